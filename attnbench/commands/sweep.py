"""The command `sweep`: its options, what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.commands.plot import draw
from attnbench.options import (
    Batches,
    CacheOption,
    CapS,
    Causal,
    DeviceOption,
    Dtypes,
    Exit,
    HeadDims,
    Heads,
    Json,
    KvHeads,
    LaunchOption,
    LimitS,
    Mechanisms,
    Resume,
    RunOut,
    Seed,
    SeqLens,
    Tokens,
    ValueDims,
    Windows,
    Workloads,
    make_console,
)

if TYPE_CHECKING:
    from attnbench.case import Case
    from attnbench.executors.engines import Engine
    from attnbench.sweeps.sweep import Device, Sweep


def sweep(
    preset: Annotated[str, typer.Argument(help="A preset (see: attnbench list) or the path of a TOML file.")],
    mechanism: Mechanisms = None,
    workload: Workloads = None,
    seq_len: SeqLens = None,
    batch: Batches = None,
    tokens: Tokens = None,
    heads: Heads = None,
    head_dim: HeadDims = None,
    value_dim: ValueDims = None,
    kv_heads: KvHeads = None,
    window: Windows = None,
    causal: Causal = None,
    dtype: Dtypes = None,
    out: RunOut = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cases and measure nothing.")] = False,
    plot: Annotated[bool, typer.Option(help="Draw the curves into <out>/figures.")] = True,
    cache: CacheOption = None,
    launch: LaunchOption = None,
    cap_s: CapS = None,
    limit_s: LimitS = None,
    seed: Seed = None,
    json_: Json = False,
    device: DeviceOption = "auto",
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            help="local (every visible GPU of this machine), ray (a cluster) or slurm (an array of jobs).",
        ),
    ] = "local",
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="GPUs to use at a time; default: all, with slurm one."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="An existing Ray cluster, HOST:PORT; default: one of our own."),
    ] = None,
    slurm_partition: Annotated[
        str | None, typer.Option("--slurm-partition", help="Where the jobs go.")
    ] = None,
    slurm_option: Annotated[
        list[str] | None,
        typer.Option("--slurm-option", help="Any of sbatch's: constraint=h200, time=60; repeat."),
    ] = None,
) -> None:
    """Measure a grid of cases: check each output, then time it, and store every sample."""
    from attnbench.executors import engines
    from attnbench.measure.gpus import device_kind
    from attnbench.sweeps.layers import Overrides
    from attnbench.sweeps.loader import load

    protocol = {"cache": cache, "launch": launch, "cap_s": cap_s, "limit_s": limit_s, "seed": seed}
    overrides = Overrides(
        mechanism=mechanism or None,
        workload=workload or None,
        seq_len=seq_len or None,
        batch=batch or None,
        tokens=tokens,
        heads=heads or None,
        head_dim=head_dim or None,
        value_dim=value_dim or None,
        kv_heads=kv_heads or None,
        window=window or None,
        causal=causal,
        dtype=dtype or None,
        protocol={name: value for name, value in protocol.items() if value is not None},
    )
    engine = engines.engine(
        name=executor,
        gpus=gpus,
        ray_address=ray_address,
        slurm_partition=slurm_partition,
        slurm_options=slurm_option or (),
    )
    # Where others measure, the machine that the command is given on need not have a GPU.
    there: Device = "cuda" if device in ("auto", "cuda") else "cpu"
    kind = there if engine.elsewhere else device_kind(device)
    grid = load(preset, device=kind, overrides=overrides)
    if dry_run:
        _print_cases(grid, json_=json_)
        return
    _measure(grid, engine=engine, out=out, resume=resume, plot=plot, json_=json_)


def _print_cases(grid: Sweep, *, json_: bool) -> None:
    cases = grid.cases()
    if json_:
        print(json.dumps({"sweep": grid.as_dict(), "cases": [_case_json(c) for c in cases]}, indent=1))
        return
    from attnbench.words import count_text

    for case in cases:
        print(case.case_id)
    print(f"{count_text(len(cases), 'case')} on {grid.device}; nothing was measured", file=sys.stderr)


def _case_json(case: Case) -> dict[str, Any]:
    return {"case_id": case.case_id, **case.as_dict()}


def _measure(grid: Sweep, *, engine: Engine, out: Path | None, resume: bool, plot: bool, json_: bool) -> None:
    from attnbench import summary
    from attnbench.store import load_results
    from attnbench.sweeping import InterruptedSweepError, folder_of, run_sweep

    path = folder_of(grid.name, out=out, resume=resume)
    console = make_console(stderr=True)
    if resume and not path.exists():
        print(f"There is no run in {path} yet: it begins there.", file=sys.stderr)
    try:
        outcome = run_sweep(
            grid,
            grid.cases(),
            path=path,
            resume=resume,
            command=sys.argv[1:],
            console=console,
            engine=engine,
        )
    except InterruptedSweepError as stop:
        print(stop.how_to_go_on(sys.argv[1:], named=out is not None), file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    for note in outcome.notes:
        print(note, file=sys.stderr)
    if outcome.left:
        print(
            f"{outcome.left} of {len(grid.cases())} cases are not measured, as no GPU of the model that they are bound "
            "to was there any more; the same command with --resume goes on with them.",
            file=sys.stderr,
        )
    if not outcome.results.exists():
        raise typer.Exit(Exit.INCONCLUSIVE)
    frame = load_results(outcome.results)
    found = summary.summarize_run(frame)
    figures = draw(frame, path / "figures") if plot and (frame["status"] == "ok").any() else []
    if json_:
        report = {
            "run": outcome.folder.run_id,
            "results": str(outcome.results),
            "figures": [str(f) for f in figures],
            "measuring_share": outcome.measuring_share,
            "left": outcome.left,
            **summary.as_json(found),
        }
        print(json.dumps(report, indent=1))
    else:
        summary.render(found, make_console())
        where, *took = outcome.sentences()
        drawn = [f"Figures: {figures[0].parent} ({len(figures)} files)"] if figures else []
        print("\n".join(["", where, *drawn, *took]))
    if outcome.left:
        raise typer.Exit(Exit.INCONCLUSIVE)
