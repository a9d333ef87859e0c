"""The command line: parses, calls, prints. It measures nothing, and torch is imported inside commands only."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.comparison.commands import compare
from attnbench.crossover.command import crossover
from attnbench.errors import UserError
from attnbench.gate.commands import bisect, check, noise
from attnbench.models.command import app as models
from attnbench.options import (
    AllowDifferent,
    Batches,
    CacheOption,
    CapS,
    Causal,
    DeviceOption,
    DrawnRuns,
    Dtypes,
    FigureFolder,
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
    Threshold,
    Tokens,
    ValueDims,
    Windows,
    Workloads,
)
from attnbench.options import Exit as Exit
from attnbench.options import example as _example
from attnbench.options import make_console as _console
from attnbench.options import plain as _plain
from attnbench.paper.commands import paper
from attnbench.parallel.command import app as parallel
from attnbench.profiling.commands import profile
from attnbench.tuning.commands import tune
from attnbench.version import __version__

if TYPE_CHECKING:
    from attnbench.case import Case
    from attnbench.executors.engines import Engine
    from attnbench.sweeps.sweep import Device, Sweep


app = typer.Typer(
    name="attnbench",
    help="Benchmark attention mechanisms: constant-speed curves, checked outputs, raw samples.",
    epilog="Start with: attnbench sweep quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """Run the command line; bad input becomes one sentence on stderr and exit code 2."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a terminated sweep ends as cleanly as on Ctrl-C
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


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


@app.command("list", epilog=_example("attnbench list --json"))
def list_(mechanism: Mechanisms = None, json_: Json = False, device: DeviceOption = "auto") -> None:
    """Mechanisms: what each computes, who provides it here, or why nobody does and how to get it."""
    from attnbench import listing
    from attnbench.measure.environment import pick_device
    from attnbench.sweeps.files import preset_names
    from attnbench.sweeps.values import parse_mechanisms

    kind = pick_device(device).type
    asked = parse_mechanisms(mechanism) if mechanism else None
    rows = [row for row in listing.rows(kind) if asked is None or row["mechanism"] in asked]
    if json_:
        print(json.dumps({"device": kind, "mechanisms": rows, "presets": preset_names()}, indent=1))
        return
    console = _console()
    console.print(listing.table(rows, device=kind))
    console.print("gqa: grouped-query heads; full: not causal; name@distribution asks for one provider.")
    presets = ", ".join(preset_names())
    console.print(f"Presets: {presets}. Start with: attnbench sweep quick", highlight=False, soft_wrap=True)


@app.command(
    epilog=_example("attnbench sweep quick --seq-len 1k,2k,4k -m lightning2 -m flash2 -o results/my-run")
)
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
    from attnbench.measure.environment import pick_device
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
    picked = "cuda" if engine.elsewhere and device == "auto" else device
    has_cuda = picked == "cuda" if engine.elsewhere else pick_device(picked).type == "cuda"
    kind: Device = "cuda" if has_cuda else "cpu"
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
    for case in cases:
        print(case.case_id)
    print(f"{len(cases)} cases on {grid.device}; nothing was measured", file=sys.stderr)


def _case_json(case: Case) -> dict[str, Any]:
    return {"case_id": case.case_id, **case.as_dict()}


def _measure(grid: Sweep, *, engine: Engine, out: Path | None, resume: bool, plot: bool, json_: bool) -> None:
    from attnbench import summary
    from attnbench.store import load_results
    from attnbench.sweeping import InterruptedSweepError, folder_of, run_sweep

    path = folder_of(grid.name, out=out, resume=resume)
    console = _console(stderr=True)
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
    figures = _draw(frame, path / "figures") if plot and (frame["status"] == "ok").any() else []
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
        summary.render(found, _console())
        where, *took = outcome.sentences()
        drawn = [f"Figures: {figures[0].parent} ({len(figures)} files)"] if figures else []
        print("\n".join(["", where, *drawn, *took]))
    if outcome.left:
        raise typer.Exit(Exit.INCONCLUSIVE)


def _draw(frame: Any, folder: Path) -> list[Path]:
    from attnbench.plots import plot_run, plot_shapes
    from attnbench.shapes import lists_shapes

    # Listed shapes are points with no line through them, unless no bound is known to set them against.
    listed = lists_shapes(frame) and bool(frame["roofline"].notna().any())
    return plot_shapes(frame, folder) if listed else plot_run(frame, folder)


def _figures_beside(run: Path) -> Path:
    return (run if run.is_dir() else run.parent) / "figures"


@app.command(epilog=_example("attnbench plot runs/quick-20260101-120000 -o figures"))
def plot(
    runs: DrawnRuns,
    out: FigureFolder = None,
    json_: Json = False,
) -> None:
    """Draw tokens/s, time and peak memory against sequence length, as PNG and SVG, and say what they show.

    Of a sweep over a list of shapes: the share of its bound that each mechanism reaches at each shape.
    """
    from attnbench import summary
    from attnbench.store import load_results

    frame = load_results(runs)
    folder = out or _figures_beside(runs[0])
    try:
        files = _draw(frame, folder)
    except OSError as error:
        raise UserError(f"cannot write figures into {folder}: {error.strerror or error}") from error
    found = summary.summarize_run(frame)
    if json_:
        print(json.dumps({"figures": [str(f) for f in files], **summary.as_json(found)}, indent=1))
        return
    summary.render(found, _console())
    print(f"\nFigures: {folder} ({len(files)} files)")


@app.command(epilog=_example("attnbench roofline runs/kernels-20260101-120000 -o figures"))
def roofline(
    runs: DrawnRuns,
    out: FigureFolder = None,
    json_: Json = False,
) -> None:
    """Draw FLOP rate against intensity under the ceilings measured in the same run, as PNG and SVG.

    A point for each mechanism and shape, by formula: how near it comes to what its algorithm allows.
    """
    from attnbench.plots import plot_roofline
    from attnbench.store import load_results

    folder = out or _figures_beside(runs[0])
    files = plot_roofline(load_results(runs), folder)
    if json_:
        print(json.dumps({"figures": [str(file) for file in files]}, indent=1))
        return
    print(f"Figures: {folder} ({len(files)} files)")


@app.command(epilog=_example("attnbench verify -m lightning2 --dtype bf16 --seq-len 1,63,64,1000"))
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
    from attnbench.measure.environment import pick_device
    from attnbench.progress import ticking
    from attnbench.registry import mechanisms
    from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_sizes

    kind = pick_device(device).type
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
    with ticking(_console(stderr=True), total=len(cases)) as ticker:
        found = verification.verify(
            cases, device=kind, seed=seed, jobs=jobs or verification.jobs_on(kind), finished=ticker.finished
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

    console = _console()
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
            console.print(_plain(f"{f.mechanism} {f.dtype}: {f.why_unsupported}"), highlight=False)
        for fault in f.faults:
            console.print(_plain(f"{f.mechanism} {f.dtype} {fault}"), highlight=False)


app.add_typer(models)
app.command(epilog=_example("attnbench tune lightning2 --head-dim 64,128 --time-budget 120 -o table.toml"))(
    tune
)
app.command(epilog=_example("attnbench compare before.parquet after.parquet --threshold 5% --explain"))(
    compare
)
app.command(epilog=_example("attnbench paper fig3 --run results/h200/paper-fig3.parquet -o figures"))(paper)
app.add_typer(parallel)
app.command(epilog=_example("attnbench profile lightning2 --seq-len 8k --workload bwd -o profiles"))(profile)
app.command(epilog=_example("attnbench crossover lightning2 flash2 --tokens 32k --workload fwd"))(crossover)
app.command(epilog=_example("attnbench noise ci"))(noise)
app.command(epilog=_example("attnbench bisect v0.1.0 main --case 'lightning2.bwd.*'"))(bisect)
app.command(epilog=_example("attnbench check ci --against main --time-budget 5m --explain"))(check)


@app.command(epilog=_example("attnbench report runs/quick-20260101-120000 -o quick.html"))
def report(
    run: Annotated[
        str, typer.Argument(help="A run: a folder or a Parquet file; several separated by commas.")
    ],
    base: Annotated[
        str | None, typer.Argument(help="What to compare it with; several separated by commas.")
    ] = None,
    threshold: Threshold = None,
    noise: Annotated[
        str | None, typer.Option("--noise", help="As for compare: how far runs differ on this machine, 1%.")
    ] = None,
    allow_different: AllowDifferent = False,
    figures: Annotated[
        bool, typer.Option(help="Put the figures of plot and roofline in, to download.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default: report.html in the run's folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write one HTML file of a run that needs no network: charts, findings, every row, the machine.

    With BASE also the verdict of each case.
    """
    from attnbench.comparison.command import percentage
    from attnbench.comparison.comparing import THRESHOLD
    from attnbench.comparison.sides import paths_of
    from attnbench.report import command

    paths = paths_of([run])
    made = command.report(
        paths,
        paths_of([base]) if base else (),
        threshold=THRESHOLD if threshold is None else percentage(threshold, option="--threshold"),
        noise=None if noise is None else percentage(noise, option="--noise"),
        allow_different=allow_different,
        figures=figures,
        tell=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )
    path = out or command.default_path(paths[0])
    command.save(made.html, path)
    if json_:
        size = len(made.html.encode())
        print(json.dumps({"report": str(path), "bytes": size, "left_out": list(made.left_out)}, indent=1))
        return
    print(f"Report: {path}")
    if made.left_out:
        print(
            f"{len(made.left_out)} figures would make it too large; attnbench plot and roofline write them."
        )


@app.command(epilog=_example("attnbench watch runs/quick-20260101-120000"))
def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a sweep that runs in another shell.")],
    once: Annotated[bool, typer.Option("--once", help="Say how far it is, and end.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the last state as JSON on stdout, for scripts.")
    ] = False,
) -> None:
    """Follow a sweep from another shell: each case as it ends, how many are left, and about how long.

    It ends with the sweep; Ctrl-C ends the watching alone. Exit code 3 if the sweep stopped before its end.
    """
    from attnbench import watching

    watcher = watching.Watcher(path=run)
    state = watcher.look()[0] if once else watching.watch(run, _console(stderr=json_))
    print(watching.as_json(state) if json_ else state.sentence())
    if state.stopped:
        raise typer.Exit(Exit.INCONCLUSIVE)


@app.command(
    "import", epilog=_example("attnbench import bench-1.json bench-2.json bench-3.json -o runs/after")
)
def import_(
    files: Annotated[
        list[Path], typer.Argument(help="JSON files that pytest benchmarks/ --benchmark-json=FILE wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the Parquet files; default: beside each JSON."),
    ] = None,
    json_: Json = False,
) -> None:
    """Turn the JSON of our pytest-benchmark suite into Parquet, one file each, for plot, report and compare.

    A file is one process: measure several for a side of a comparison.
    """
    from attnbench import importing
    from attnbench.words import count_text

    done = importing.import_files(files, folder=out)
    if json_:
        found = [
            {
                "source": str(each.source),
                "results": str(each.results),
                "run_id": each.run_id,
                "device": each.device,
                "statuses": dict(each.statuses),
            }
            for each in done
        ]
        print(json.dumps(found, indent=1))
        return
    for each in done:
        ended = ", ".join(f"{count:,} {status}" for status, count in each.statuses.items())
        cases = count_text(sum(each.statuses.values()), "case")
        print(f"{each.source} -> {each.results}: {cases} on {each.device} ({ended})")


@app.command(
    epilog=_example("attnbench merge node-1/run node-2/run results/h200/grid.parquet -o grid-all.parquet")
)
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not, or Parquet files.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The Parquet file, or a folder for its results.parquet.")
    ],
    every_process: Annotated[
        bool,
        typer.Option(
            "--every-process",
            help="Keep a case once for each run that measured it, for compare; default: once for each environment.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Join runs and shards of many machines into one Parquet file, each case once for each environment.

    Of what was measured twice on one GPU model, driver, libraries, commit and protocol, the first that is ok stays.
    """
    import dataclasses

    from attnbench.merging import merge_runs
    from attnbench.words import count_text

    done = merge_runs(runs, out=out, every_process=every_process)
    if json_:
        print(json.dumps({**dataclasses.asdict(done), "path": str(done.path)}, indent=1))
        return
    devices = ", ".join(f"{count:,} on {device}" for device, count in done.devices.items())
    print(
        f"{done.path}: {count_text(done.rows, 'case')} of {count_text(done.runs, 'run')} ({devices or 'none'})"
    )
    if done.duplicates:
        print(f"{count_text(done.duplicates, 'row')} left out, measured before in the same environment.")


@app.command(epilog=_example("attnbench env --json"))
def env(json_: Json = False, device: DeviceOption = "auto") -> None:
    """What a run on this machine would record: device, driver, versions."""
    from attnbench.measure.environment import collect, pick_device

    record = collect(pick_device(device))
    if json_:
        print(json.dumps(record, indent=1))
        return
    for name, value in record.items():
        print(f"{name:14} {json.dumps(value) if isinstance(value, (dict, list)) else value}")
