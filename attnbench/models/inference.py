"""Prefill, decode and generation, timed: what a context costs to take in, to keep, and to go on from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from attnbench.case import Cache, Launch, Status
from attnbench.measure.clock import Clock, now_s, open_clock, timestamp
from attnbench.measure.environment import device_name
from attnbench.measure.runner import failure, launched
from attnbench.measure.sampling import CaseTimeoutError
from attnbench.models.attention import UnsupportedError
from attnbench.models.device import clean, peak_bytes, timing
from attnbench.models.kept import CacheKind
from attnbench.models.model import LanguageModel, build
from attnbench.models.records import Inference, seed_text
from attnbench.models.shapes import SHAPES, Shape, family_of
from attnbench.models.training import Precision

Phase = Literal["prefill", "decode", "generate"]
PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode", "generate")

_DECODE_STEPS: Final = 32  # samples of a decode, and the room that a cache has for them behind its context
_SEQUENCES_AT_ONCE_TOKENS: Final = (
    65536  # of a prefill before generation: so many tokens are in flight together
)
_MEMORY_SHARE: Final = 0.85  # of the device's memory: weights, and what generation keeps of its batch
_HOST_BATCH: Final = 4  # on the CPU, where filling the memory would take all day


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """What to measure. `context`: tokens before the first new one. `batch` None: as many sequences as memory holds.

    `new_tokens` are put out for each sequence of a generation; a decode takes single steps behind its context, and a
    prefill puts out none.
    """

    size: str
    attention: str
    cache: CacheKind
    phase: Phase
    context: int
    new_tokens: int
    batch: int | None
    precision: Precision
    launch: Launch = Launch.EAGER
    samples: int = 3  # of a prefill or a generation, as far as the limit has time for them
    limit_s: float = 60.0
    seed: int = 0

    @property
    def case_id(self) -> str:
        batch = "full" if self.batch is None else str(self.batch)
        new = f".new{self.new_tokens}" if self.phase == "generate" else ""
        return (
            f"{self.phase}.{self.size}.{self.attention}.{self.cache}.N{self.context}.B{batch}{new}."
            f"{self.precision}.{self.launch}{seed_text(self.seed)}"
        )

    @property
    def capacity(self) -> int:
        """Tokens that must find room: those of the context, and those that come."""
        return self.context + {"prefill": 0, "decode": _DECODE_STEPS, "generate": self.new_tokens}[self.phase]

    @property
    def shape(self) -> Shape:
        return SHAPES[self.size][family_of(self.attention)]

    def blank(self) -> Inference:
        """The record of a case of which nothing is known yet."""
        return Inference(
            case_id=self.case_id,
            model=self.shape.family,
            size=self.size,
            attention=self.attention,
            cache=self.cache,
            phase=self.phase,
            context=self.context,
            precision=self.precision,
            batch=self.batch,
            new_tokens={"prefill": None, "decode": 1, "generate": self.new_tokens}[self.phase],
            status=str(Status.OK),
            started_at=timestamp(),
        )


def measure_inference(request: InferenceRequest, *, device: torch.device) -> Inference:
    """One record, whatever happens. Raises UserError for an attention that no model takes."""
    row = dataclasses.replace(request.blank(), device=device_name(device))
    try:
        with clean(device), torch.inference_mode(), peak_bytes(device) as peak:
            found = _measured(request, device=device)
            return dataclasses.replace(row, **found, peak_bytes=peak())
    except UnsupportedError as error:
        return dataclasses.replace(row, status=str(Status.UNSUPPORTED), reason=str(error))
    except Exception as error:  # a row with a reason, and the run goes on
        status, reason = failure(error)
        return dataclasses.replace(row, status=str(status), reason=reason)


def _measured(request: InferenceRequest, *, device: torch.device) -> dict[str, Any]:
    bench = _Bench(request, device=device)
    measure = {"prefill": bench.prefill, "decode": bench.decode, "generate": bench.generate}[request.phase]
    samples, tokens = measure()
    times = timing(samples)
    return {
        **times,
        "provider": bench.model.attention.provider.label,
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "weight_bytes": sum(p.nbytes for p in bench.model.parameters()),
        "kept_bytes": bench.kept.bytes,
        "batch": bench.batch,
        "launch": None if request.phase == "prefill" else str(request.launch),
        "tokens_per_s": tokens / times["median_ms"] * 1e3,
    }


class _Bench:
    """A model with what it keeps of the sequences, and the clock."""

    def __init__(self, request: InferenceRequest, *, device: torch.device) -> None:
        self.deadline = now_s() + request.limit_s
        self.request, self.device = request, device
        dtype = torch.float32 if request.precision == "fp32" else torch.bfloat16
        self.model: LanguageModel = build(
            request.size,
            attention=request.attention,
            device=device,
            dtype=dtype,
            seed=request.seed,
            decodes=True,
        ).eval()
        self.batch = request.batch or self._batch()
        self.kept = self.model.keep(kind=request.cache, batch=self.batch, capacity=request.capacity)
        self.clock: Clock = open_clock(device=device, cache=Cache.HOT)

    def _batch(self) -> int:
        """Sequences whose states or caches fill the memory that is free."""
        if self.device.type != "cuda":
            return _HOST_BATCH
        one = self.model.keep(kind=self.request.cache, batch=1, capacity=self.request.capacity)
        each = one.bytes
        del one
        free, total = torch.cuda.mem_get_info(self.device)
        room = free - (1 - _MEMORY_SHARE) * total
        logits = self.request.shape.vocabulary * 2 * 4  # of a sequence, and a copy, in up to 32 bits
        return max(1, int(room / (each + logits)))

    def prefill(self) -> tuple[list[float], int]:
        """Take the whole context in, from nothing."""
        tokens = self._tokens(self.request.context)

        def call() -> None:
            self.kept.clear()
            self.model.prefill(tokens, self.kept)

        return self._samples(call, estimate_ms=self.clock.once(call)), self.batch * self.request.context

    def decode(self) -> tuple[list[float], int]:
        """One token more of each sequence, behind a context whose values are random: they do not change the cost."""
        step = self._step(self._tokens(1)[:, 0])
        # Behind the step, as making it has taken a token in and cleared what was kept.
        self.kept.fill(self.request.context)
        self.kept.position.set(self.request.context)
        estimate = self.clock.once(step)
        count = min(_DECODE_STEPS - 1, int((self.deadline - now_s()) * 1e3 / max(estimate, 1e-3)))
        if count < 1:
            raise CaseTimeoutError(
                f"a step takes {estimate / 1e3:.2f} s: none fits what taking the context in left of the limit"
            )
        return self.clock.batch(step, count), self.batch

    def generate(self) -> tuple[list[float], int]:
        """Take a prompt in and put `new_tokens` out for each sequence, by the largest logit."""
        prompt = self._tokens(self.request.context)
        token = prompt[:, 0].clone()
        step = self._step(token)

        def call() -> None:
            self.kept.clear()
            self._prefill_in_pieces(prompt, into=token)
            for _ in range(self.request.new_tokens - 1):  # the prompt's own logits give the first
                step()

        def first_piece() -> None:
            self.kept.clear()
            self.model.prefill(prompt[:rows], self.kept.rows(slice(0, rows)))

        rows = self._rows(prompt)
        first_piece()  # now it is warm, as the step is
        taking_in = self.clock.once(first_piece) * math.ceil(self.batch / rows)
        estimate = taking_in + self.clock.once(step) * (self.request.new_tokens - 1)
        return self._samples(call, estimate_ms=estimate), self.batch * self.request.new_tokens

    def _prefill_in_pieces(self, prompt: Tensor, *, into: Tensor) -> None:
        """A few sequences at a time: the activations of all would not fit beside what is kept of them."""
        rows = self._rows(prompt)
        for first in range(0, self.batch, rows):
            piece = slice(first, first + rows)
            self.kept.position.set(0)
            into[piece] = self.model.prefill(prompt[piece], self.kept.rows(piece)).argmax(-1)

    def _rows(self, prompt: Tensor) -> int:
        return max(1, _SEQUENCES_AT_ONCE_TOKENS // prompt.shape[1])

    def _samples(self, call: Callable[[], None], *, estimate_ms: float) -> list[float]:
        """Samples while there is time. Raises CaseTimeoutError when there is none for the first."""
        if self._late(estimate_ms):
            raise CaseTimeoutError(
                f"a call takes about {estimate_ms / 1e3:.2f} s, too long for the limit of {self.request.limit_s:g} s"
            )
        samples = self.clock.batch(call, 1)
        while len(samples) < self.request.samples and not self._late(samples[-1]):
            samples += self.clock.batch(call, 1)
        return samples

    def _late(self, estimate_ms: float) -> bool:
        return now_s() + estimate_ms / 1e3 > self.deadline

    def _tokens(self, count: int) -> Tensor:
        return torch.randint(self.request.shape.vocabulary, (self.batch, count), device=self.device)

    def _step(self, token: Tensor) -> Callable[[], object]:
        """Take `token` [B] in and replace it by the next one: as calls, or as a CUDA graph of them."""

        def step() -> None:
            token.copy_(self.model.step(token, self.kept).argmax(-1))

        if (
            self.device.type == "cuda"
        ):  # what is made once (workspaces, compiled kernels) is not made in a capture
            self.kept.clear()
            step()
            torch.cuda.synchronize(self.device)
        return launched(lambda: step, launch=self.request.launch)
