"""Steps of training, timed: forward, loss, backward and AdamW over a constant number of tokens, as memory allows."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from attnbench.case import Cache, Status
from attnbench.measure.clock import now_s, open_clock, timestamp
from attnbench.measure.environment import device_name
from attnbench.measure.runner import failure, first_sentence
from attnbench.measure.sampling import CaseTimeoutError
from attnbench.measure.spans import Spans
from attnbench.models import loss
from attnbench.models.attention import UnsupportedError
from attnbench.models.device import clean, matmul_flops, peak_bytes, peak_flops, timing
from attnbench.models.distributed import Ranks
from attnbench.models.model import Checkpointing, LanguageModel, build
from attnbench.models.records import TrainStep
from attnbench.models.shapes import SHAPES, family_of

Precision = Literal["bf16", "autocast", "fp32"]
PRECISIONS: Final[tuple[Precision, ...]] = ("bf16", "autocast", "fp32")
WEIGHTS: Final = {"bf16": torch.bfloat16, "autocast": torch.float32, "fp32": torch.float32}
_LEARNING_RATE = 3e-4


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to measure. `tokens`: of a step over all GPUs, to the nearest number of whole sequences, at least one a GPU.

    `warmup` steps come before `steps` timed ones; both are cut where `limit_s` seconds do not have room for them.
    """

    size: str
    attention: str
    seq_len: int
    tokens: int
    checkpointing: Checkpointing
    precision: Precision
    loss: str = "auto"
    warmup: int = 2
    steps: int = 3
    limit_s: float = 60.0
    gpus: int = 1
    seed: int = 0

    @property
    def sequences(self) -> int:
        """Of a step on one GPU."""
        return max(1, round(self.tokens / self.seq_len / self.gpus))

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.seq_len * self.gpus

    @property
    def case_id(self) -> str:
        gpus = "" if self.gpus == 1 else f".{self.gpus}gpus"
        return (
            f"train.{self.size}.{self.attention}.N{self.seq_len}.T{self.tokens_per_step}."
            f"{self.checkpointing}.{self.precision}{gpus}"
        )

    def blank(self) -> TrainStep:
        """The record of a case of which nothing is known yet."""
        return TrainStep(
            case_id=self.case_id,
            model=family_of(self.attention),
            size=self.size,
            attention=self.attention,
            seq_len=self.seq_len,
            tokens_per_step=self.tokens_per_step,
            checkpointing=self.checkpointing,
            precision=self.precision,
            gpus=self.gpus,
            status=str(Status.OK),
            started_at=timestamp(),
        )


def measure_train_step(
    request: TrainRequest, *, device: torch.device, ranks: Ranks | None = None
) -> TrainStep:
    """One record, whatever happens: what cannot run or does not fit is a status with a reason.

    Raises UserError for what no machine could run: an unknown loss, an attention without a model.
    """
    row = dataclasses.replace(request.blank(), device=device_name(device))
    by = loss.choose(request.loss, device=device, dtype=WEIGHTS[request.precision])
    try:
        with clean(device):
            return _measured(request, row, by=by, device=device, ranks=ranks or Ranks.alone(device))
    except UnsupportedError as error:
        return dataclasses.replace(row, status=str(Status.UNSUPPORTED), reason=str(error))
    except Exception as error:  # a row with a reason, and the run goes on
        status, reason = failure(error)
        return dataclasses.replace(row, status=str(status), reason=reason)


def _measured(
    request: TrainRequest, row: TrainStep, *, by: str, device: torch.device, ranks: Ranks
) -> TrainStep:
    deadline = now_s() + request.limit_s
    with peak_bytes(device) as peak:
        model = build(
            request.size,
            attention=request.attention,
            device=device,
            dtype=WEIGHTS[request.precision],
            seed=request.seed,
            checkpointing=request.checkpointing,
            loss_by=by,
        )
        parameters = sum(p.numel() for p in model.parameters())
        ranks.shard(model)
        found, reason = None, ""
        for batch in _batches(request.sequences):
            try:
                found = _run(request, model, batch=batch, deadline=deadline, device=device, ranks=ranks)
                break
            except torch.OutOfMemoryError as error:
                reason = first_sentence(error)
            model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        row = dataclasses.replace(
            row, provider=model.attention.provider.label, parameters=parameters, loss_by=loss.label(by)
        )
        if found is None:
            return dataclasses.replace(
                row, status=str(Status.OOM), reason=f"one sequence at a time: {reason}"
            )
        row = dataclasses.replace(row, **found, peak_bytes=peak())
    return _with_rates(row, request, device=device)


def _batches(sequences: int) -> Iterator[int]:
    """Sizes of micro-batches to try, the largest first: the divisors of the sequences of a step."""
    return (n for n in range(sequences, 0, -1) if sequences % n == 0)


def _run(
    request: TrainRequest,
    model: LanguageModel,
    *,
    batch: int,
    deadline: float,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, Any]:
    """Warm-up, samples, and a pass for the attention's share, in micro-batches of `batch` sequences.

    Raises OutOfMemoryError, and CaseTimeoutError when no step fits before the deadline.
    """
    losses: list[Tensor] = []
    step = _step(request, model, batch=batch, losses=losses, device=device, ranks=ranks)
    clock = open_clock(device=device, cache=Cache.HOT)

    def too_late(estimate_ms: float, *, calls: int = 1) -> bool:
        return ranks.any(now_s() + calls * estimate_ms / 1e3 > deadline)

    estimate = clock.once(step)
    for _ in range(request.warmup - 1):
        if too_late(estimate, calls=3):  # better one sample of a slow step than none
            break
        estimate = clock.batch(step, 1)[0]
    samples: list[float] = []
    while len(samples) < request.steps and not too_late(estimate, calls=2 if samples else 1):
        samples += clock.batch(step, 1)
        estimate = samples[-1]
    if not samples:
        raise CaseTimeoutError(
            f"a step takes {estimate / 1e3:.2f} s: none fits the limit of {request.limit_s:g} s any more"
        )
    share = None if too_late(estimate) else _attention_share(model, step, device=device)
    first, last = losses[0].item(), losses[-1].item()
    if not math.isfinite(first + last):
        raise FloatingPointError(f"the loss was {first} in the first step and {last} in the last one")
    return {
        **timing(samples),
        "batch": batch,
        "micro_batches": request.sequences // batch,
        "first_loss": first,
        "last_loss": last,
        "attention_share": share,
    }


def _step(
    request: TrainRequest,
    model: LanguageModel,
    *,
    batch: int,
    losses: list[Tensor],
    device: torch.device,
    ranks: Ranks,
) -> Callable[[], None]:
    """A whole step over the same random tokens; its loss, mean over the micro-batches, goes into `losses`."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=_LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=device.type == "cuda",
    )
    torch.manual_seed(request.seed + ranks.rank)  # each rank has tokens of its own
    shape = (request.sequences, request.seq_len + 1)
    tokens = torch.randint(model.shape.vocabulary, shape, device=device)
    pieces = tokens.split(batch)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for piece in pieces:
            with autocast(request.precision, device=device):
                mean = model(piece[:, :-1], piece[:, 1:]) / len(pieces)
            mean.backward()
            total += mean.detach()
        optimizer.step()
        losses.append(total)

    return step


def autocast(precision: Precision, *, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where it is asked for."""
    if precision != "autocast":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _attention_share(model: LanguageModel, step: Callable[[], None], *, device: torch.device) -> float:
    """Time of the attention calls over that of the step around them, in one step more with marks in it."""
    spans = Spans(device)
    model.attention.spans = spans
    try:
        (whole,) = open_clock(device=device, cache=Cache.HOT).batch(step, 1)
        return spans.total_ms() / whole
    finally:
        model.attention.spans = None


def _with_rates(row: TrainStep, request: TrainRequest, *, device: torch.device) -> TrainStep:
    assert row.median_ms is not None
    shape = SHAPES[request.size][family_of(request.attention)]
    flops = shape.step_flops(sequences=request.sequences * request.gpus, seq_len=request.seq_len)
    seconds, peak = row.median_ms / 1e3, peak_flops(device)
    return dataclasses.replace(
        row,
        tokens_per_s=request.tokens_per_step / request.gpus / seconds,
        model_flops=flops,
        matmul_flops=matmul_flops(device),
        peak_flops=peak,
        mfu=None if peak is None or request.precision == "fp32" else flops / (seconds * request.gpus * peak),
    )
