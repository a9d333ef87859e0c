"""The command line: a table of the commands. It measures nothing, and torch is imported inside commands only."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attnbench.commands.here import env, list_
from attnbench.commands.plot import plot, roofline
from attnbench.commands.runs import import_, merge, watch
from attnbench.commands.sweep import sweep
from attnbench.commands.verify import verify
from attnbench.comparison.commands import compare
from attnbench.crossover.command import crossover
from attnbench.errors import UserError
from attnbench.gate.commands import bisect, check, noise
from attnbench.models.command import app as models
from attnbench.options import Exit as Exit
from attnbench.options import example
from attnbench.paper.commands import paper
from attnbench.parallel.command import app as parallel
from attnbench.profiling.commands import profile
from attnbench.report.commands import report
from attnbench.tuning.commands import tune
from attnbench.usage import UsageError, sentence
from attnbench.version import __version__

# What each is called, with an example of it, in the order of the help.
COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (list_, "list --json"),
    (sweep, "sweep quick --seq-len 512,1k,2k -m lightning2 -m sdpa -o runs/mine"),
    (plot, "plot runs/quick-20260101-120000 -o figures"),
    (roofline, "roofline runs/kernels-20260101-120000 -o figures"),
    (verify, "verify --minutes 8 -o runs/verify"),
    (tune, "tune lightning2 --head-dim 64,128 --time-budget 120 -o table.toml"),
    (compare, "compare before.parquet after.parquet --threshold 5% --explain"),
    (paper, "paper fig3 --run results/h200/paper-fig3.parquet -o figures"),
    (profile, "profile lightning2 --seq-len 8k --workload bwd -o profiles"),
    (crossover, "crossover lightning2 flash2 --tokens 32k --workload fwd"),
    (noise, "noise ci"),
    (bisect, "bisect HEAD~20 main --case 'lightning2.bwd.*'"),
    (check, "check ci --against main --time-budget 5m --explain"),
    (report, "report runs/quick-20260101-120000 -o quick.html"),
    (watch, "watch runs/quick-20260101-120000"),
    (import_, "import bench-1.json bench-2.json bench-3.json -o runs/after"),
    (merge, "merge node-1/run node-2/run results/h200/grid.parquet -o grid-all.parquet"),
    (env, "env --json"),
)


class _Commands(TyperGroup):
    """The commands, which end quietly when who reads their output has read enough: typer's own end is that of an error,
    and its exit code that of a regression."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:  # prints the help of all
        with _quietly():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _quietly():
            return super().invoke(ctx)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # For what Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.PIPE) from None


app = typer.Typer(
    cls=_Commands,
    name="attnbench",
    help="Benchmark attention mechanisms: constant-speed curves, checked outputs, raw samples.",
    epilog="Start with: attnbench sweep quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _command, _line in COMMANDS:
    app.command(_line.split()[0], epilog=example(f"attnbench {_line}"))(_command)
app.add_typer(models)
app.add_typer(parallel)


def main() -> None:
    """Run the command line; bad input becomes one sentence on stderr and exit code 2."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # a terminated sweep ends as cleanly as on Ctrl-C
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        sys.exit(app(standalone_mode=False, prog_name="attnbench") or Exit.FINE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except UsageError as error:
        said = sentence(error, sys.argv[1:])
        if said is None:
            error.show()
        else:
            print(f"error: {said}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception:
        if stopped:  # what a library made of the interruption
            sys.exit(Exit.INTERRUPTED)
        raise


def _version(wanted: bool) -> None:
    if wanted:
        print(f"attnbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
