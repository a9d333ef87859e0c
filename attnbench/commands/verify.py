"""The command `verify`: its options, the table of its findings, and its exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.errors import UserError
from attnbench.options import DeviceOption, Dtypes, Exit, Json, Mechanisms, SeqLens, make_console, plain

if TYPE_CHECKING:
    from attnbench.verification.checking import Outcome
    from attnbench.verification.findings import Finding
    from attnbench.verification.plan import Progress

_ENDING_S = 10.0  # of the time that a user gives, for the command to start and to end in


def verify(
    mechanism: Mechanisms = None,
    dtype: Dtypes = None,
    seq_len: SeqLens = None,
    head_dim: Annotated[
        list[str] | None, typer.Option("--head-dim", help="Channels per query and key head.")
    ] = None,
    value_dim: Annotated[
        list[str] | None, typer.Option("--value-dim", help="Default: as --head-dim.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the random inputs.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Workers that check at once, over all GPUs; default: by the cores."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.0, help="Stop cleanly before so much time; with --out to go on later."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder that keeps what is checked, and verify.md; the same command goes on."
        ),
    ] = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Check every mechanism against its fp64 oracle, in o, dq, dk and dv, over dtypes and odd shapes.

    A mechanism that decodes is checked in that too: o, and what it keeps of the context. Workers share every visible
    GPU. With --out nothing is checked twice with the same libraries, device model and sources; the table says it all.
    Exit code 1 if one is wrong; 3 while cases are left as the time was up, or if none could be checked.
    """
    from attnbench.measure.clock import now_s

    begun = now_s()

    from attnbench.case import DTYPES
    from attnbench.measure.gpus import device_kind
    from attnbench.progress import ticking
    from attnbench.registry import mechanisms
    from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_sizes
    from attnbench.verification import checking, scope

    kind = device_kind(device)
    names = parse_mechanisms(mechanism or list(mechanisms()), axis="--mechanism")
    dtypes = parse_names(dtype or scope.DTYPES[kind], kind="dtype", choices=DTYPES, axis="--dtype")
    lengths = parse_sizes(seq_len or scope.SEQ_LENS[kind], axis="--seq-len")
    if head_dim is None and value_dim is not None:
        raise UserError("--value-dim needs --head-dim")
    dims = scope.HEAD_DIMS[kind]
    if head_dim is not None:
        widths = parse_sizes(head_dim, axis="--head-dim")
        values = parse_sizes(value_dim, axis="--value-dim") if value_dim else None
        dims = tuple((d, e) for d in widths for e in (values or (d,)))
    cases = scope.cases(mechanisms=names, dtypes=dtypes, seq_lens=lengths, dims=dims, device=kind)
    with ticking(make_console(stderr=True), total=len(cases), told=True) as ticker:
        outcome = checking.verify(
            cases,
            device=kind,
            seed=seed,
            jobs=jobs or checking.jobs_on(kind),
            listener=checking.Listener(
                earlier=ticker.earlier,
                finished=lambda row, progress: ticker.finished(row, left=_left(progress)),
                waiting=ticker.waiting,
            ),
            folder=out,
            deadline_s=None if minutes is None else begun + minutes * 60 - _ENDING_S,
        )
    _end(outcome, total=len(cases), out=out, json_=json_)


def _left(progress: Progress) -> str:
    from attnbench.words import count_text, duration

    if progress.left_s is not None:
        return f"about {duration(progress.left_s)} left"
    return f"{progress.groups:,} of {count_text(progress.of, 'group')} left"


def _end(outcome: Outcome, *, total: int, out: Path | None, json_: bool) -> None:
    """The findings, what is left, and the exit code."""
    from attnbench.executors.run_folder import write_json, write_text
    from attnbench.verification.checking import End
    from attnbench.verification.page import page

    interrupted = outcome.end is End.INTERRUPTED
    report = [_as_json(finding) for finding in outcome.findings]
    if out is not None and report:
        write_json(out / "verify.json", report)
        write_text(out / "verify.md", page(outcome.findings))
    if json_ and not interrupted:
        print(json.dumps(report, indent=1))
    elif outcome.findings and not interrupted:
        _print_findings(outcome.findings, out=out)
    if outcome.end is not End.DONE:
        print(_how_to_go_on(outcome, total=total, out=out), file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED if interrupted else Exit.INCONCLUSIVE)
    if any(f.faults for f in outcome.findings):
        raise typer.Exit(Exit.REGRESSION)
    if not any(f.shapes for f in outcome.findings):
        raise typer.Exit(Exit.INCONCLUSIVE)


def _how_to_go_on(outcome: Outcome, *, total: int, out: Path | None) -> str:
    """One sentence."""
    known = f"{outcome.left:,} of {total:,} cases are left" if outcome.findings else "nothing new was checked"
    if out is None:
        how = "nothing is kept without --out: give a folder by -o, and the same command goes on in it"
    else:
        how = f"what is checked is safe in {out}; go on with: attnbench {shlex.join(sys.argv[1:])}"
    return f"{outcome.end.value}: {known}; {how}"


def _as_json(finding: Finding) -> dict[str, Any]:
    import dataclasses

    status = None if finding.status is None else str(finding.status)
    return {"status": status, **dataclasses.asdict(finding)}


def _print_findings(found: list[Finding], *, out: Path | None) -> None:
    from rich.table import Table

    from attnbench.markdown import NAMES
    from attnbench.verification.page import HEADINGS, TITLE, cells, remarks, standing

    console = make_console()
    table = Table(title=TITLE, title_justify="left")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in NAMES else "right")
    for finding in found:
        table.add_row(*cells(finding))
    console.print(table)
    for remark in remarks(found):
        console.print(plain(remark), highlight=False)
    console.print(plain(standing(found)), highlight=False, soft_wrap=True)
    if out is not None:
        console.print(plain(f"Page: {out / 'verify.md'}"), highlight=False, soft_wrap=True)
