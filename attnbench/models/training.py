"""Steps of training, timed: forward, loss, backward and AdamW over a constant number of tokens, as memory allows."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Iterator
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
from attnbench.models.compiling import (
    CompilationError,
    compile_blocks,
    forget,
    fresh,
    telling,
    uncompiled,
)
from attnbench.models.device import clean, matmul_flops, peak_bytes, peak_flops, timing
from attnbench.models.distributed import Ranks
from attnbench.models.model import Checkpointing, LanguageModel, build
from attnbench.models.records import TrainStep, seed_text
from attnbench.models.shapes import SHAPES, family_of

Precision = Literal["bf16", "autocast", "fp32"]
PRECISIONS: Final[tuple[Precision, ...]] = ("bf16", "autocast", "fp32")
WEIGHTS: Final = {"bf16": torch.bfloat16, "autocast": torch.float32, "fp32": torch.float32}
COMPILE_LIMIT_S: Final = 120.0
_LEARNING_RATE = 3e-4


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to measure. `tokens`: of a step over all GPUs, to the nearest number of whole sequences, at least one a GPU.

    `warmup` steps, at least the first one, come before `steps` timed ones; both are cut where `limit_s` seconds do not
    have room for them.
    `compiled`: blocks are, by torch.compile, in the first step. What that takes does not count against `limit_s`, up
    to `compile_limit_s` seconds.
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
    compile_limit_s: float = COMPILE_LIMIT_S
    compiled: bool = False
    gpus: int = 1
    seed: int = 0

    @property
    def allowance_s(self) -> float:
        """Beyond limit_s, for what comes before the second step."""
        return self.compile_limit_s if self.compiled else 0.0

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
        compiled = ".compiled" if self.compiled else ""
        loss = "" if self.loss == "auto" else f".{self.loss}"
        return (
            f"train.{self.size}.{self.attention}.N{self.seq_len}.T{self.tokens_per_step}."
            f"{self.checkpointing}.{self.precision}{gpus}{compiled}{loss}{seed_text(self.seed)}"
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
            compiled=self.compiled,
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
    except CompilationError as error:
        return dataclasses.replace(row, status=str(Status.ERROR), reason=str(error))
    except Exception as error:  # a row with a reason, and the run goes on
        status, reason = failure(error)
        return dataclasses.replace(row, status=str(status), reason=reason)


def _measured(
    request: TrainRequest, row: TrainStep, *, by: str, device: torch.device, ranks: Ranks
) -> TrainStep:
    begun = now_s()
    with peak_bytes(device) as peak, fresh() if request.compiled else contextlib.nullcontext():
        model = build(
            request.size,
            attention=request.attention,
            device=device,
            dtype=WEIGHTS[request.precision],
            seed=request.seed,
            checkpointing=request.checkpointing,
            loss_by=by,
        )
        row = dataclasses.replace(
            row,
            provider=model.attention.provider.label,
            parameters=sum(p.numel() for p in model.parameters()),
            loss_by=loss.label(by),
        )
        if request.compiled:
            compile_blocks(model)
        ranks.shard(model)
        reason = ""
        for batch in _batches(request.sequences):
            steps = _Steps(request, model, batch=batch, begun=begun, device=device, ranks=ranks)
            try:
                row = dataclasses.replace(row, **steps.timed(), peak_bytes=peak())
                row = dataclasses.replace(row, attention_share=steps.attention_share(row))
                return _with_rates(row, request, device=device)
            except Exception as error:
                if failure(error)[0] is not Status.OOM:
                    raise
                reason = first_sentence(error)
            del steps
            model.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)  # what did not fit is not what the step takes
            if request.compiled:
                forget()  # for so many sequences
        return dataclasses.replace(row, status=str(Status.OOM), reason=f"one sequence at a time: {reason}")


def _batches(sequences: int) -> Iterator[int]:
    """Sizes of micro-batches to try, the largest first: the divisors of the sequences of a step."""
    return (n for n in range(sequences, 0, -1) if sequences % n == 0)


class _Steps:
    """Training steps in micro-batches of `batch` sequences, always over the same random tokens."""

    def __init__(
        self,
        request: TrainRequest,
        model: LanguageModel,
        *,
        batch: int,
        begun: float,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._request, self._model, self._batch = request, model, batch
        self._device, self._ranks = device, ranks
        self._deadline = begun + request.limit_s + request.allowance_s
        self._losses: list[Tensor] = []
        self._clock = open_clock(device=device, cache=Cache.HOT)
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=_LEARNING_RATE,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            fused=device.type == "cuda",
        )
        torch.manual_seed(request.seed + ranks.rank)  # each rank has tokens of its own
        shape = (request.sequences, request.seq_len + 1)
        self._pieces = torch.randint(model.shape.vocabulary, shape, device=device).split(batch)

    def timed(self) -> dict[str, Any]:
        """Warm-up and samples, and the losses of the first and of the last step.

        Raises OutOfMemoryError, CompilationError, CaseTimeoutError when no step fits before the deadline, and
        FloatingPointError for a loss that is not finite.
        """
        first_ms = estimate = self._first()
        done = 1
        samples: list[float] = []
        if self._request.compiled:  # what that took says nothing of the next
            if self._too_late(0.0):
                raise CaseTimeoutError(
                    f"compiling and the first step took {first_ms / 1e3:.0f} s: nothing is left of "
                    f"{self._request.compile_limit_s:g} s for that and {self._request.limit_s:g} s for the others"
                )
            estimate, done = self._sample(), 2
            if self._request.warmup < done and not self._too_late(0.0):
                samples.append(estimate)
        for _ in range(self._request.warmup - done):
            if self._too_late(estimate, calls=3):  # better one sample of a slow step than none
                break
            estimate = self._sample()
        while len(samples) < self._request.steps and not self._too_late(estimate, calls=2 if samples else 1):
            samples.append(self._sample())
            estimate = samples[-1]
        if not samples:
            raise CaseTimeoutError(
                f"a step takes {estimate / 1e3:.2f} s: none fits what the steps before it left of the limit of "
                f"{self._request.limit_s:g} s"
            )
        first, last = self._losses[0].item(), self._losses[-1].item()
        if not math.isfinite(first + last):
            raise FloatingPointError(f"the loss was {first} in the first step and {last} in the last one")
        return {
            **timing(samples),
            "batch": self._batch,
            "micro_batches": self._request.sequences // self._batch,
            "first_step_ms": first_ms,
            "first_loss": first,
            "last_loss": last,
        }

    def attention_share(self, row: TrainStep) -> float | None:
        """Time of the attention calls, with marks around them, over that of a step; None where there is no room.

        Compiled blocks have no place for marks: they run as they are written for once, with the same kernels of
        attention, and the step is the median of those that were timed.
        """
        compiled = self._request.compiled
        estimate = row.median_ms or 0.0
        if self._too_late(estimate, calls=4 if compiled else 1):
            return None
        if self._ranks.any(not self._has_room(row.peak_bytes)):
            return None
        spans = Spans(self._device)
        try:
            with uncompiled() if compiled else contextlib.nullcontext():
                if compiled:
                    self._sample()  # once without marks: it loads what compiled steps had no use for
                self._model.attention.spans = spans
                whole = self._sample()
            return spans.total_ms() / (estimate if compiled else whole)
        except torch.OutOfMemoryError:
            return None
        finally:
            self._model.attention.spans = None

    def _has_room(self, peak: int | None) -> bool:
        """May a step as written take more memory than compiled ones did?

        One rank of many that runs out of it would leave the others waiting.
        """
        if self._ranks.count == 1 or not self._request.compiled or peak is None:
            return True
        return 2 * peak <= torch.cuda.mem_get_info(self._device)[1]

    def _first(self) -> float:
        """Milliseconds of the first step on the host's clock, compiling included. The limit begins behind it."""
        with telling() if self._request.compiled else contextlib.nullcontext():
            taken = self._clock.once(self._step)
        if self._request.compiled:
            self._deadline = min(self._deadline, now_s() + self._request.limit_s)
        return taken

    def _sample(self) -> float:
        return self._clock.batch(self._step, 1)[0]

    def _too_late(self, estimate_ms: float, *, calls: int = 1) -> bool:
        return self._ranks.any(now_s() + calls * estimate_ms / 1e3 > self._deadline)

    def _step(self) -> None:
        """A whole step; its loss, mean over the micro-batches, stays on the device until all are taken."""
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for piece in self._pieces:
            with autocast(self._request.precision, device=self._device):
                mean = self._model(piece[:, :-1], piece[:, 1:]) / len(self._pieces)
            mean.backward()
            total += mean.detach()
        self._optimizer.step()
        self._losses.append(total)


def autocast(precision: Precision, *, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where it is asked for."""
    if precision != "autocast":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


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
