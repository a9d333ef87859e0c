"""The command `verify`: its options, the table of its findings, and its exit codes."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from attnbench.errors import UserError
from attnbench.options import DeviceOption, Dtypes, Exit, Json, Mechanisms, SeqLens, make_console, plain


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
        int | None, typer.Option("--jobs", min=1, help="Workers that check at once; default: by the cores.")
    ] = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Check every mechanism against its fp64 oracle, in o, dq, dk and dv, over dtypes and odd shapes.

    A mechanism that decodes is checked in that too: o, and what it keeps of the context.
    Exit code 1 if one is wrong, 3 if none could be checked.
    """
    import dataclasses

    from attnbench import verification
    from attnbench.case import DTYPES
    from attnbench.measure.gpus import device_kind
    from attnbench.progress import ticking
    from attnbench.registry import mechanisms
    from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_sizes

    kind = device_kind(device)
    names = parse_mechanisms(mechanism or list(mechanisms()))
    dtypes = parse_names(dtype or verification.DTYPES[kind], kind="dtype", choices=DTYPES)
    lengths = parse_sizes(seq_len or verification.SEQ_LENS[kind], axis="--seq-len")
    if head_dim is None and value_dim is not None:
        raise UserError("--value-dim needs --head-dim")
    dims = verification.HEAD_DIMS[kind]
    if head_dim is not None:
        widths = parse_sizes(head_dim, axis="--head-dim")
        values = parse_sizes(value_dim, axis="--value-dim") if value_dim else None
        dims = tuple((d, e) for d in widths for e in (values or (d,)))
    cases = verification.cases(mechanisms=names, dtypes=dtypes, seq_lens=lengths, dims=dims, device=kind)
    with ticking(make_console(stderr=True), total=len(cases)) as ticker:
        found = verification.verify(
            cases,
            device=kind,
            seed=seed,
            jobs=jobs or verification.jobs_on(kind),
            finished=ticker.finished,
            waiting=ticker.waiting,
        )
    if json_:
        print(json.dumps([{"status": str(f.status), **dataclasses.asdict(f)} for f in found], indent=1))
    else:
        _print_findings(found)
    if any(f.faults for f in found):
        raise typer.Exit(Exit.REGRESSION)
    if not any(f.shapes for f in found):
        raise typer.Exit(Exit.INCONCLUSIVE)


def _print_findings(found: list[Any]) -> None:
    from rich.table import Table

    console = make_console()
    table = Table(title="Largest relative error against the fp64 oracle", title_justify="left")
    for name in ("mechanism", "dtype", "shapes", "o", "dq", "dk", "dv", "allowed", "verdict"):
        table.add_column(name, justify="left" if name in ("mechanism", "dtype", "verdict") else "right")
    for f in found:
        errors = ("" if f.worst[n] is None else f"{f.worst[n]:.1e}" for n in ("o", "dq", "dk", "dv"))
        verdict = "right" if f.status == "ok" else str(f.status)
        allowed = f"{f.tolerance:.0e}" if f.shapes else ""
        table.add_row(f.mechanism, f.dtype, str(f.shapes), *errors, allowed, verdict)
    console.print(table)
    for f in found:
        if f.why_unsupported:
            console.print(plain(f"{f.mechanism} {f.dtype}: {f.why_unsupported}"), highlight=False)
        for fault in f.faults:
            console.print(plain(f"{f.mechanism} {f.dtype} {fault}"), highlight=False)
