"""What the modules of the command line share: exit codes, options that mean the same everywhere, consoles."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


class Exit(IntEnum):
    """Exit codes of every command."""

    FINE = 0
    REGRESSION = 1  # or an incorrect mechanism
    USAGE = 2
    INCONCLUSIVE = 3  # or nothing there to judge
    INTERRUPTED = 130
    PIPE = 141  # as a shell tells of a process that SIGPIPE ended


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")]
Mechanisms = Annotated[
    list[str] | None,
    typer.Option(
        "--mechanism",
        "-m",
        help="Names (see: attnbench list), one provider's (flash2@torch), or path/to/file.py:name[:semantics]; "
        "repeat or separate by commas.",
    ),
]
DrawnRuns = Annotated[
    list[Path], typer.Argument(help="Run folders or Parquet files; several are drawn together.")
]
FigureFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the figures; default: figures beside the first run."),
]
Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="bf16, fp16, fp32.")]
SeqLens = Annotated[list[str] | None, typer.Option("--seq-len", help="Tokens per sequence: 1k,2k,4k or 1M.")]

# What is measured, and how: `sweep`, `crossover`, and some of it by other commands.
Workloads = Annotated[list[str] | None, typer.Option("--workload", "-w", help="fwd, bwd, fwd-bwd, decode.")]
Batches = Annotated[list[str] | None, typer.Option("--batch", help="Sequences per call.")]
Tokens = Annotated[
    str | None, typer.Option("--tokens", help="Constant tokens per call: batch = tokens / seq_len.")
]
Heads = Annotated[list[str] | None, typer.Option("--heads", help="Query heads.")]
HeadDims = Annotated[list[str] | None, typer.Option("--head-dim", help="Channels per query and key head.")]
ValueDims = Annotated[
    list[str] | None, typer.Option("--value-dim", help="Channels per value head; default: as --head-dim.")
]
KvHeads = Annotated[
    list[str] | None, typer.Option("--kv-heads", help="Key and value heads; default: as --heads.")
]
Windows = Annotated[
    list[str] | None, typer.Option("--window", help="Tokens a query sees, for mechanisms with a window.")
]
Causal = Annotated[
    bool | None, typer.Option("--causal/--full", help="Mask what comes after a token, or nothing.")
]
CacheOption = Annotated[str | None, typer.Option("--cache", help="L2 before each sample: cold or hot.")]
LaunchOption = Annotated[str | None, typer.Option("--launch", help="eager, or graph (CUDA graph replay).")]
CapS = Annotated[float | None, typer.Option("--cap-s", help="Seconds of sampling per case, at most.")]
LimitS = Annotated[
    float | None,
    typer.Option(
        "--limit-s",
        help="Seconds after which a case that is too slow is a timeout; its first call, which may compile, has 180 "
        "beside that.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", max=2**31 - 1, help="Seed of the random inputs.")]
RunOut = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the run; default: runs/<sweep>-<time>.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; repeat nothing done.")]

# What is compared with what, and how the verdicts are handed over: `compare`, `check`, `noise`, `bisect`.
Threshold = Annotated[
    str | None, typer.Option("--threshold", help="The smallest change that counts; default: 3%.")
]
Waivers = Annotated[
    Path | None,
    typer.Option("--waivers", help="TOML file of regressions that are put up with until a day, and why."),
]
ShowAll = Annotated[bool, typer.Option("--all", help="Show the cases that stayed the same too.")]
Explain = Annotated[bool, typer.Option("--explain", help="Give the reason of each verdict.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit code 3 when a case is unclear, or no longer measured.")
]
AllowDifferent = Annotated[
    bool, typer.Option("--allow-different", help="Compare across devices, drivers, libraries, protocols.")
]
Format = Annotated[
    str,
    typer.Option(
        "--format", help="table, json, markdown, junit or github (annotations, and the step summary)."
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the report to a file; stdout has the verdict.")
]


def example(line: str) -> str:
    """The last line of a command's help."""
    return f"Example: {line}"


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal; a file or a pipe has no width of its own and gets room for a table."""
    from rich.console import Console

    class Told(Console):
        """Leaves it to the command line what becomes of a reader that has read enough."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Told(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, 110)
    return console


def plain(text: str) -> str:
    """Text whose brackets rich does not take for markup."""
    from rich.markup import escape

    return escape(text)
