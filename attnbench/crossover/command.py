"""The command `crossover`: parses, has the lengths around a crossing measured or looks into a run, and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.errors import UserError
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
    from collections.abc import Sequence

    from attnbench.crossover.finding import Finding
    from attnbench.crossover.measuring import Asked
    from attnbench.sweeping import Outcome

_AXIS = "seq_len"


def crossover(
    a: Annotated[str, typer.Argument(metavar="A", help="A mechanism (see: attnbench list).")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to hold it against.")],
    axis: Annotated[str, typer.Option("--axis", help="What grows until the two cross: seq_len.")] = _AXIS,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Answer from recorded runs, separated by commas, and measure nothing; axes select rows.",
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option("--resolution", help="How near the lengths around a crossing come; default: 3%."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", help="Preset or TOML file for all that is not given; default: crossover."),
    ] = None,
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
    cache: CacheOption = None,
    launch: LaunchOption = None,
    cap_s: CapS = None,
    limit_s: LimitS = None,
    seed: Seed = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """From which length is one mechanism faster than another? Measures ever nearer lengths around the crossing.

    Begins with the lengths of the preset, or of --seq-len, and goes on between two whose order differs, until they are
    near. The crossing is given with its interval: at its ends the 95 % intervals of the medians tell the two apart.
    With constant tokens the batch is whole, so that a call may fall short of them by up to 2 %.

    \b
    Exit codes:
      0  where they cross, or who is ahead at every length
      2  bad input
      3  nothing can be said: no length tells them apart, or one of them never had a time
    """
    from attnbench.comparison.command import percentage
    from attnbench.crossover.finding import findings
    from attnbench.crossover.measuring import PRESET, RESOLUTION
    from attnbench.crossover.recorded import selected
    from attnbench.store import load_results

    if axis.replace("-", "_") != _AXIS:
        raise UserError(f"--axis: expected {_AXIS}, got '{axis}': it is lengths that are refined")
    axes = _given(
        workload=workload,
        seq_len=seq_len,
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=head_dim,
        value_dim=value_dim,
        kv_heads=kv_heads,
        window=window,
        causal=causal,
        dtype=dtype,
    )
    protocol = _given(cache=cache, launch=launch, cap_s=cap_s, limit_s=limit_s, seed=seed)
    if run is not None:
        more = _given(sweep=sweep, resolution=resolution, out=out, resume=resume or None)
        frame = selected(run, {**axes, **protocol, **more})
        _tell(findings(frame, a, b), runs=sorted(set(frame["run_id"])), json_=json_)
        return
    near = RESOLUTION if resolution is None else percentage(resolution, option="--resolution")
    what = _asked(a, b, preset=sweep or PRESET, device=device, resolution=near, axes=axes, protocol=protocol)
    outcome = _measured(what, out=out, resume=resume)
    frame = load_results(outcome.results)
    found = findings(frame, what.a, what.b)
    _tell(found, runs=[outcome.folder.run_id], json_=json_, resolution=near, outcome=outcome)


# ------------------------------------------------------------------------------------------------------------


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; typer makes an empty list of a list that was not."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _asked(a: str, b: str, *, device: str, **given: Any) -> Asked:
    from attnbench.crossover.measuring import asked
    from attnbench.measure.gpus import device_kind

    kind = device_kind(device)
    return asked(a, b, device=kind, **given)


def _measured(what: Asked, *, out: Path | None, resume: bool) -> Outcome:
    from attnbench.crossover.measuring import measure
    from attnbench.sweeping import InterruptedSweepError

    try:
        outcome = measure(
            what, out=out, resume=resume, command=sys.argv[1:], console=make_console(stderr=True)
        )
    except InterruptedSweepError as stop:
        print(stop.how_to_go_on(sys.argv[1:], named=out is not None), file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    for note in outcome.notes:
        print(note, file=sys.stderr)
    return outcome


def _tell(
    found: Sequence[Finding],
    *,
    runs: Sequence[str],
    json_: bool,
    resolution: float | None = None,
    outcome: Outcome | None = None,
) -> None:
    """Print what was found; exit code 3 where nothing tells the two apart."""
    from attnbench.crossover import finding, telling

    if json_:
        findings = [finding.as_json(each, resolution=resolution) for each in found]
        results = None if outcome is None else str(outcome.results)
        document = {"runs": list(runs), "results": results, "resolution": resolution, "findings": findings}
        print(json.dumps(document, indent=1))
    else:
        telling.render(found, make_console(), resolution=resolution)
        print("\n".join([] if outcome is None else outcome.sentences()))
    if not any(each.told for each in found):
        raise typer.Exit(Exit.INCONCLUSIVE)
