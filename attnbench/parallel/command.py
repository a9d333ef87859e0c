"""`attnbench parallel ...`: parses, hands over, prints. torch is imported inside commands only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.models.command import Minutes, Seed, end, print_table, say, seconds
from attnbench.options import DeviceOption, Dtypes, FigureFolder, Json, SeqLens, example

if TYPE_CHECKING:
    from attnbench.executors.lock import Descriptors
    from attnbench.models.folder import Folder
    from attnbench.models.running import Outcome, Worker
    from attnbench.parallel.records import ParallelCase
    from attnbench.parallel.requests import ParallelRequest

app = typer.Typer(
    name="parallel",
    help="One sequence over many GPUs: Lightning Attention by LASP and LASP-2, ring attention, and how they scale.",
    epilog=example("attnbench parallel run --ranks 1,2 --seq-len 64k,1M"),
    rich_markup_mode=None,
    no_args_is_help=True,
)

_DEFAULT_OUT = Path("runs") / "parallel"
_WARM_GRACE_S = (
    10.0  # ranks decide alike before each call whether it fits, so they are late by what one took longer
)


@app.command("run", epilog=example("attnbench parallel run --ranks 1,2 --seq-len 64k,256k,1M --minutes 5"))
def run(
    ranks: Annotated[
        list[str] | None,
        typer.Option(
            "--ranks",
            "--gpus-per-case",
            help="GPUs that share a sequence: 1,2,4; default: 1,2. Processes on the CPU.",
        ),
    ] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            "--mechanism", "-m", help="lightning2-lasp, lightning2-lasp2, ring-attention; default: all."
        ),
    ] = None,
    seq_len: SeqLens = None,
    seq_len_per_rank: Annotated[
        list[str] | None,
        typer.Option("--seq-len-per-rank", help="Weak scaling: tokens on each rank, 64k,256k."),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="fwd, bwd, fwd-bwd; default: fwd-bwd.")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Sequences per call.")] = "1",
    heads: Annotated[str | None, typer.Option("--heads", help="Default: 16, on the CPU 4.")] = None,
    head_dim: Annotated[
        str | None, typer.Option("--head-dim", help="Channels per head; default: 128, on the CPU 64.")
    ] = None,
    dtype: Dtypes = None,
    decay: Annotated[
        bool, typer.Option("--decay/--no-decay", help="Lightning Attention with its decay, or without.")
    ] = True,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Timed calls, at most.")] = 10,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1.0, help="Seconds for a case, at most.")] = 60.0,
    minutes: Minutes = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the records; default: runs/parallel. Nothing in it is repeated."
        ),
    ] = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure sequences that are cut over ranks: speed, memory, bytes sent, and communication that is exposed.

    Starts a process for each rank. Under torchrun, on one host or several, its processes are the ranks:
    torchrun --nproc-per-node 2 -m attnbench parallel run --seq-len 1M
    """
    from attnbench.errors import UserError
    from attnbench.measure.gpus import device_kind
    from attnbench.models.folder import Folder
    from attnbench.parallel import findings, planning
    from attnbench.parallel.records import ParallelCase

    if dtype is not None and len(dtype) > 1:
        raise UserError(f"--dtype: expected one of bf16, fp16, fp32, got {len(dtype)}")
    kind = device_kind(device)
    plan = planning.ParallelPlan(
        ranks=ranks,
        mechanisms=mechanism,
        seq_lens=seq_len,
        seq_lens_per_rank=seq_len_per_rank,
        workloads=workload,
        batch=batch,
        heads=heads,
        head_dim=head_dim,
        dtype=None if dtype is None else dtype[0],
        decay=decay,
        samples=samples,
        limit_s=limit_s,
        seed=seed,
    )
    folder = Folder(path=out or _DEFAULT_OUT, kind=ParallelCase)
    outcome = _measure(plan, folder, kind=kind, budget_s=seconds(minutes))
    if outcome is None:
        return
    end(
        outcome,
        table=findings.table(outcome.rows),
        sentences=findings.sentences(outcome.rows),
        file=folder.merged,
        json_=json_,
    )


@app.command("scaling", epilog=example("attnbench parallel scaling runs/parallel -o figures"))
def scaling(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or its parallel.parquet.")],
    out: FigureFolder = None,
    json_: Json = False,
) -> None:
    """Draw strong and weak scaling, and predict 8, 64 and 1,024 GPUs over NVLink and InfiniBand.

    The model is fitted to computing and transfers as measured apart, and checked against the whole; what it assumes is
    printed on the figure.
    """
    from attnbench.models.records import read
    from attnbench.parallel import predictions
    from attnbench.parallel.figures import plot_scaling
    from attnbench.parallel.records import ParallelCase
    from attnbench.parallel.scaling import fit

    rows = read(run, kind=ParallelCase)
    model = fit(rows)
    files = plot_scaling(rows, model, out or (run if run.is_dir() else run.parent) / "figures")
    found = predictions.predict(rows, model)
    if json_:
        figures = [str(file) for file in files]
        record = {"predictions": found, "assumptions": model.assumptions, "figures": figures}
        print(json.dumps(record, indent=1))
        return
    print_table(predictions.table(found), model.assumptions)
    print(f"\nFigures: {files[0].parent} ({len(files)} files)")


def _measure(
    plan: Any, folder: Folder[ParallelCase], *, kind: str, budget_s: float | None
) -> Outcome[ParallelCase] | None:
    """In processes of our own, or in those that torchrun started; None on all of these but the first."""
    import torch

    from attnbench.executors.spared import Forecast
    from attnbench.measure.environment import collect, pick_device
    from attnbench.models.distributed import joined, launched
    from attnbench.models.running import Run
    from attnbench.models.together import measure_together
    from attnbench.parallel import findings, planning
    from attnbench.parallel.group import NCCL_VARIABLES, RankGroups
    from attnbench.parallel.measuring import measure_parallel
    from attnbench.parallel.mechanisms import MECHANISMS

    gpus = torch.cuda.device_count()
    forecast = Forecast(series=planning.series, cost=lambda request: MECHANISMS[request.mechanism].cost)
    if launched():
        os.environ.update(NCCL_VARIABLES)
        with joined(kind) as ranks:
            outcome = measure_together(
                plan.requests(kind=kind, gpus=gpus, launched=ranks.count),
                folder=folder,
                measure=lambda request: measure_parallel(request, ranks=ranks),
                ranks=ranks,
                budget_s=budget_s,
                say=say,
                describe=findings.line,
                forecast=forecast,
            )
            return outcome if ranks.rank == 0 else None
    requests: list[ParallelRequest] = plan.requests(kind=kind, gpus=gpus)
    environment = collect(pick_device(kind))

    def start(lock: Descriptors) -> Worker:
        return RankGroups(device=kind, log=folder.log, inherit=lock, environment=environment)

    return Run(
        folder=folder,
        device=kind,
        budget_s=budget_s,
        series=planning.series,
        blank=lambda request: request.blank(),
        say=say,
        describe=findings.line,
        start=start,
        forecast=forecast,
        warm_grace_s=_WARM_GRACE_S,
    ).measure(requests)
