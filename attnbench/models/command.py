"""`attnbench model ...`: parses, hands over, prints. torch is imported inside commands only."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.case import Status
from attnbench.options import DeviceOption, Exit, Json, SeqLens, example, make_console, plain

if TYPE_CHECKING:
    from attnbench.models.running import Outcome

app = typer.Typer(
    name="model",
    help="Whole models, TransNormerLLM and LLaMA: training steps, inference, loss curves.",
    epilog=example("attnbench model train-step --size 1B --seq-len 1k,8k,64k --minutes 5"),
    rich_markup_mode=None,
    no_args_is_help=True,
)

Sizes = Annotated[
    list[str] | None, typer.Option("--size", help="tiny, 0.4B, 1B, 3B; default: tiny on the CPU, else 0.4B.")
]
Attentions = Annotated[
    list[str] | None,
    typer.Option(
        "--attention", "-a", help="lightning2 and lightning1 make a TransNormerLLM, flash2 or sdpa a LLaMA."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.0,
        help="Stop cleanly before so much time, with exit code 3; the same command goes on later.",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder of the records; default: runs/model. Nothing in it is repeated."
    ),
]
LimitS = Annotated[float, typer.Option("--limit-s", min=1.0, help="Seconds for a case, at most.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="bf16 (weights too), autocast (bf16 over fp32 weights), fp32."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of weights and data.")]

_DEFAULT_OUT = Path("runs") / "model"


@app.command(
    "train-step", epilog=example("attnbench model train-step --size 1B --seq-len 1k,8k,64k --minutes 5")
)
def train_step(
    size: Sizes = None,
    seq_len: SeqLens = None,
    attention: Attentions = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", help="Tokens of a step over all GPUs; default: 64k, on the CPU 1k."),
    ] = None,
    checkpointing: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpointing", help="none, selective (keeps products and attention; the default), full."
        ),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Blocks by torch.compile, or as written; default: by it on a GPU."
        ),
    ] = None,
    precision: PrecisionOption = None,
    loss: Annotated[
        str, typer.Option("--loss", help="Who computes the cross-entropy: auto, fla, torch, chunked.")
    ] = "auto",
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Steps before the timed ones.")] = 2,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps.")] = 3,
    limit_s: LimitS = 60.0,
    compile_limit_s: Annotated[
        float, typer.Option("--compile-limit-s", min=0.0, help="Seconds beside that, for compiling.")
    ] = 120.0,
    minutes: Minutes = None,
    seed: Seed = 0,
    out: OutFolder = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Time whole training steps (forward, loss, backward, AdamW) over constant tokens.

    Memory decides how many sequences run together. The first step, in which blocks are compiled, is not timed.
    Under torchrun the same command trains on all its GPUs (FSDP2):
    torchrun --nproc-per-node 2 -m attnbench model train-step ...
    """
    from attnbench.models import findings, planning
    from attnbench.models.distributed import joined, launched
    from attnbench.models.folder import Folder
    from attnbench.models.records import TrainStep
    from attnbench.models.running import Run
    from attnbench.models.together import measure_together
    from attnbench.models.training import measure_train_step

    kind = _kind(device)
    plan = planning.TrainPlan(
        sizes=size,
        attentions=attention,
        seq_lens=seq_len,
        tokens=tokens,
        checkpointing=checkpointing,
        precision=precision,
        loss=loss,
        warmup=warmup,
        steps=steps,
        limit_s=limit_s,
        seed=seed,
        compiled=compile_,
        compile_limit_s=compile_limit_s,
    )
    folder = Folder(path=out or _DEFAULT_OUT, kind=TrainStep)
    if launched():
        with joined(kind) as ranks:
            requests = plan.requests(kind=kind, gpus=ranks.count)
            outcome = measure_together(
                requests,
                folder=folder,
                measure=lambda request: measure_train_step(request, device=ranks.device, ranks=ranks),
                ranks=ranks,
                budget_s=seconds(minutes),
                say=say,
                describe=findings.train_line,
            )
            if ranks.rank != 0:
                return
    else:
        run = Run(
            folder=folder,
            device=kind,
            budget_s=seconds(minutes),
            series=planning.train_series,
            blank=lambda request: request.blank(),
            say=say,
            describe=findings.train_line,
        )
        requests = plan.requests(kind=kind, gpus=1)
        if (note := planning.rounded(requests, asked=tokens is not None)) is not None:
            say(note)
        outcome = run.measure(requests)
    end(
        outcome,
        table=findings.train_table(outcome.rows),
        sentences=findings.train_sentences(outcome.rows),
        file=folder.merged,
        json_=json_,
    )


@app.command(
    "inference", epilog=example("attnbench model inference --size 1B --phase decode --seq-len 1k,64k,1M")
)
def inference(
    size: Sizes = None,
    phase: Annotated[
        list[str] | None, typer.Option("--phase", help="prefill, decode, generate; default: all.")
    ] = None,
    seq_len: SeqLens = None,
    attention: Attentions = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            "--cache", help="state (TransNormerLLM); kv, kv-interpolated, kv-streaming (LLaMA); default: all."
        ),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Sequences of a prefill or decode.")] = "1",
    prompt: Annotated[str, typer.Option("--prompt", help="Tokens put in before a generation.")] = "512",
    new_tokens: Annotated[
        str, typer.Option("--new-tokens", help="Tokens put out for each sequence of a generation.")
    ] = "256",
    generate_batch: Annotated[
        str, typer.Option("--generate-batch", help="Sequences of a generation; full: as memory allows.")
    ] = "full",
    launch: Annotated[
        str, typer.Option("--launch", help="A step of decode: graph (CUDA graph; on a GPU) or eager.")
    ] = "graph",
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Default: 3 of a prefill, 1 of a generation."),
    ] = None,
    precision: PrecisionOption = None,
    limit_s: LimitS = 60.0,
    minutes: Minutes = None,
    seed: Seed = 0,
    out: OutFolder = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Time taking a context in (prefill), one token behind it (decode), and a prompt with its answer (generate).

    A recurrent state stands beside a full cache of keys and values, one with interpolated positions, and a bounded
    one (attention sinks and a window), in speed and memory.
    """
    from attnbench.models import findings, planning
    from attnbench.models.folder import Folder
    from attnbench.models.records import Inference
    from attnbench.models.running import Run

    kind = _kind(device)
    plan = planning.InferencePlan(
        sizes=size,
        attentions=attention,
        caches=cache,
        phases=phase,
        seq_lens=seq_len,
        batch=batch,
        prompt=prompt,
        new_tokens=new_tokens,
        generate_batch=generate_batch,
        launch=launch,
        samples=samples,
        precision=precision,
        limit_s=limit_s,
        seed=seed,
    )
    folder = Folder(path=out or _DEFAULT_OUT, kind=Inference)
    run = Run(
        folder=folder,
        device=kind,
        budget_s=seconds(minutes),
        series=planning.inference_series,
        blank=lambda request: request.blank(),
        say=say,
        describe=findings.inference_line,
    )
    outcome = run.measure(plan.requests(kind=kind))
    end(
        outcome,
        table=findings.inference_table(outcome.rows),
        sentences=findings.inference_sentences(outcome.rows),
        file=folder.merged,
        json_=json_,
    )


@app.command("losses", epilog=example("attnbench model losses --task text --steps 300"))
def losses(
    size: Sizes = None,
    attention: Attentions = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="markov (a synthetic language), text (bundled); default: both."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of AdamW.")] = 300,
    seq_len: Annotated[str, typer.Option("--seq-len", help="Tokens per sequence.")] = "256",
    batch: Annotated[str, typer.Option("--batch", help="Sequences per step.")] = "16",
    precision: PrecisionOption = None,
    limit_s: LimitS = 600.0,
    minutes: Minutes = None,
    seed: Seed = 0,
    out: OutFolder = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a small model by each attention, from the same weights over the same tokens, and compare the losses."""
    from attnbench.models import findings, planning
    from attnbench.models.folder import Folder
    from attnbench.models.records import Loss
    from attnbench.models.running import Run

    kind = _kind(device)
    plan = planning.LossPlan(
        sizes=size,
        attentions=attention,
        tasks=task,
        steps=steps,
        seq_len=seq_len,
        batch=batch,
        precision=precision,
        limit_s=limit_s,
        seed=seed,
    )
    folder = Folder(path=out or _DEFAULT_OUT, kind=Loss)
    run = Run(
        folder=folder,
        device=kind,
        budget_s=seconds(minutes),
        series=lambda request: (request.case_id,),
        blank=_no_blank,
        say=say,
        describe=findings.loss_line,
    )
    outcome = run.measure(plan.requests(kind=kind))
    end(
        outcome,
        table=findings.loss_table(outcome.rows),
        sentences=findings.loss_sentences(outcome.rows, outcome.missing),
        file=folder.merged,
        json_=json_,
    )


def _no_blank(request: Any) -> Any:
    """A training run that failed has no record: its reason is a sentence."""
    raise AssertionError(request)


def _kind(device: str) -> str:
    from attnbench.measure.gpus import device_kind

    return device_kind(device)


def seconds(minutes: float | None) -> float | None:
    return None if minutes is None else minutes * 60


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def end(outcome: Outcome[Any], *, table: Any, sentences: Sequence[str], file: Path, json_: bool) -> None:
    """The table, what was found in words, and where it lies.

    Exit code 3 when the time was up before all was measured, or no case could be.
    """
    if json_:
        rows = [dataclasses.asdict(row) for row in outcome.rows]
        print(json.dumps({"rows": rows, "findings": list(sentences), "left": outcome.left}, indent=1))
    else:
        print_table(table, sentences)
        if outcome.rows:
            print(f"\nRecords: {file}")
        if outcome.left:
            print(f"The time was up with {outcome.left} to go; the same command goes on with them.")
    nothing = not any(getattr(row, "status", Status.OK) == Status.OK for row in outcome.rows)
    if outcome.left or nothing:
        raise typer.Exit(Exit.INCONCLUSIVE)


def print_table(table: Any, sentences: Sequence[str]) -> None:
    from rich.table import Table

    console = make_console()
    heads, rows = table
    if rows:
        drawn = Table()
        for head in heads:
            drawn.add_column(head)
        for row in rows:
            drawn.add_row(*map(plain, row))
        console.print(drawn)
    for sentence in sentences:
        console.print(plain(sentence), highlight=False, soft_wrap=True)
