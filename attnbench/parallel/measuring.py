"""One case on one rank: check, time, and, each in a pass of its own, computing, communication and memory.

All ranks run this together and decide alike: what differs between them (a time, an error) is agreed on first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attnbench.case import Cache, Status, Workload
from attnbench.measure.accuracy import relative_error
from attnbench.measure.clock import Clock, now_s, open_clock, timestamp
from attnbench.measure.environment import device_name
from attnbench.measure.memory import open_meter
from attnbench.measure.runner import failure
from attnbench.measure.sampling import CaseTimeoutError
from attnbench.models.device import clean, timing
from attnbench.models.distributed import Ranks
from attnbench.parallel.mechanisms import MECHANISMS, ParallelAttention, build
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.requests import ParallelRequest
from attnbench.parallel.states import Decay
from attnbench.parallel.wire import BlockingWire, CutWire, GroupWire, Wire, meeting
from attnbench.semantics import SEMANTICS, TOLERANCES, TORCH_DTYPES, geometric_slopes

_SPLIT_CALLS = 6  # of each of the passes that split the time, the first of them for warming up
_WARM_UP = 2
# Tokens of a check: a whole fp64 oracle. Where heads forget, as many more as that takes on each rank.
_CHECKED = {"softmax": 2_047, "linear": 8_191}
_CHECKED_ON_CPU = 1_023


def measure_parallel(request: ParallelRequest, *, ranks: Ranks) -> ParallelCase:
    """The record of a case, the same on all ranks unless one of them failed; a failure is a status with a reason."""
    row = dataclasses.replace(
        request.blank(),
        device=device_name(ranks.device),
        started_at=timestamp(),
        provider=_provider(request, ranks),
    )
    if ranks.count > 1:
        row = dataclasses.replace(row, backend=dist.get_backend())
    try:
        with clean(ranks.device):
            return _Case(request, ranks=ranks).measured(row)
    except Exception as error:  # a row with a reason, and the run goes on
        status, reason = failure(error)
        return dataclasses.replace(row, status=str(status), reason=f"rank {ranks.rank}: {reason}")


def checked_length(request: ParallelRequest, *, on_gpu: bool, slopes: Tensor | None) -> int:
    """Tokens of the sequence that is checked in the place of the one that is timed, which may be shorter.

    Long pieces, in which every head forgets what lies before them, are computed in another way than short ones. So
    pieces of the check are at least as long as that; on the CPU, where nothing is recorded, it stays short.
    """
    if not on_gpu:
        return min(request.seq_len, _CHECKED_ON_CPU)
    most = _CHECKED["softmax" if request.semantics == "softmax" else "linear"]
    reach = Decay.of(slopes, dtype=TORCH_DTYPES[request.dtype]).reach
    if reach < math.inf:
        most = max(
            most, request.ranks * (int(reach) + 1) + 1
        )  # one further, so that pieces are not all alike
    return min(request.seq_len, most)


class _Case:
    """A case with what measuring it needs."""

    def __init__(self, request: ParallelRequest, *, ranks: Ranks) -> None:
        self.request, self.ranks = request, ranks
        self.device, self.dtype = ranks.device, TORCH_DTYPES[request.dtype]
        self.workload = Workload(request.workload)
        self.slopes = geometric_slopes(request.heads) if request.decays else None
        self.scale = SEMANTICS[request.semantics].scale(request.head_dim)
        self.wire: Wire = GroupWire(self.device) if ranks.count > 1 else CutWire(rank=0, ranks=1)
        self.begun = now_s()
        self.meet = meeting(self.device) if ranks.count > 1 else None

    def measured(self, row: ParallelCase) -> ParallelCase:
        row = self._checked(row)
        if row.status != Status.OK:
            return row
        clock = open_clock(device=self.device, cache=Cache.COLD)
        attention = self._attention(self.request.seq_len)
        with open_meter(self.device) as meter:  # of the first call, which is no sample
            call = self._call(attention)
            sent = self.wire.sent_bytes
            first_ms = clock.once(call)
            sent = self.wire.sent_bytes - sent
            peak = meter.peak()
        row = dataclasses.replace(
            row,
            peak_bytes=int(self._most(float(peak))),
            sent_bytes=int(self._over_ranks([float(sent)], dist.ReduceOp.SUM)[0]),
        )
        row = dataclasses.replace(row, **self._timed(call, clock, first_ms=first_ms))
        return dataclasses.replace(row, **self._split(attention, call, clock, row))

    def _attention(self, seq_len: int) -> ParallelAttention:
        return build(
            self.request.mechanism,
            seq_len,
            wire=self.wire,
            slopes=self.slopes,
            dtype=self.dtype,
            device=self.device,
        )

    def _checked(self, row: ParallelCase) -> ParallelCase:
        """Forward and gradients of a shorter sequence against the fp64 oracle, for the first head and the last."""
        request = self.request
        seq_len = checked_length(request, on_gpu=self.device.type == "cuda", slopes=self.slopes)
        attention = self._attention(seq_len)
        shape = (request.batch, request.heads, seq_len, request.head_dim)
        generator = torch.Generator().manual_seed(request.seed)
        whole = [torch.randn(shape, generator=generator).to(self.device, self.dtype) for _ in range(4)]
        q, k, v, do = (attention.sharding.take(x, self.ranks.rank) for x in whole)
        found = _outputs(attention, q, k, v, do, scale=self.scale)
        pairs = sorted({0, request.batch * request.heads - 1})
        truth = SEMANTICS[request.semantics].oracle(
            *(x.flatten(0, 1)[pairs] for x in whole),
            slopes=None
            if self.slopes is None
            else self.slopes.to(self.device)[[p % request.heads for p in pairs]],
            scale=self.scale,
            causal=True,
        )
        errors: dict[str, Any] = {}
        for name, got in zip(("o", "dq", "dk", "dv"), found, strict=True):
            wanted = attention.sharding.take(getattr(truth, name)[None], self.ranks.rank)[0]
            error = relative_error(got.flatten(0, 1)[pairs], wanted, fallback=do)
            errors[f"rel_err_{name}"] = self._most(error if error == error else torch.inf)
        row = dataclasses.replace(row, checked_len=seq_len)
        limit = TOLERANCES[request.dtype]
        wrong = [f"{name[8:]} by {error:.1e}" for name, error in errors.items() if error > limit]
        if not wrong:
            return dataclasses.replace(row, **errors)
        reason = f"of {seq_len:,} tokens: {', '.join(wrong)} off the fp64 oracle, allowed are {limit:.0e}"
        finite = {name: error for name, error in errors.items() if error < torch.inf}
        return dataclasses.replace(row, status=str(Status.INCORRECT), reason=reason, **finite)

    def _call(self, attention: ParallelAttention) -> Callable[[], object]:
        """What the workload times, over random inputs that only this rank has."""
        torch.manual_seed(self.request.seed + self.ranks.rank)
        length = attention.sharding.lengths[self.ranks.rank]
        shape = (self.request.batch, self.request.heads, length, self.request.head_dim)
        q, k, v = (torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(3))
        if self.workload is Workload.FWD:
            return functools.partial(_inference, attention, q, k, v, scale=self.scale)
        do = torch.randn_like(v)
        for x in (q, k, v):
            x.requires_grad_(True)
        if self.workload is Workload.FWD_BWD:
            return functools.partial(_outputs, attention, q, k, v, do, scale=self.scale)
        o = attention(q, k, v, scale=self.scale)
        return functools.partial(torch.autograd.grad, o, (q, k, v), do, retain_graph=True)

    def _timed(self, call: Callable[[], object], clock: Clock, *, first_ms: float) -> dict[str, Any]:
        """Samples, their number decided before: half of what fits. A slow first call is all the warm-up there is."""
        estimate = self._most(first_ms)
        for _ in range(_WARM_UP):
            if self._left_s() * 1e3 > 3 * estimate:  # better one sample of a slow call than none
                estimate = self._samples(call, clock, 1)[0]
        fitting = self._left_s() * 1e3 / estimate
        if fitting < 1:
            raise CaseTimeoutError(
                f"a call takes {estimate / 1e3:.2f} s: none fits what the calls before it left of the limit of "
                f"{self.request.limit_s:g} s"
            )
        found = timing(self._samples(call, clock, min(self.request.samples, max(1, int(fitting / 2)))))
        tokens = self.request.batch * self.request.seq_len
        return {**found, "tokens_per_s": tokens / (found["median_ms"] * 1e-3)}

    def _samples(self, call: Callable[[], object], clock: Clock, count: int) -> list[float]:
        """Samples that begin together, each the time of the slowest rank; nothing waits for a host between them."""
        return self._slowest(clock.batch(call, count, meet=self.meet))

    def _split(
        self, attention: ParallelAttention, call: Callable[[], object], clock: Clock, row: ParallelCase
    ) -> dict[str, Any]:
        """Computing, communication and what of it is exposed; alone there is no communication."""
        whole = row.median_ms
        assert whole is not None
        if self.ranks.count == 1:
            return {"compute_ms": whole, "communication_ms": 0.0, "exposed_ms": 0.0}
        calls = min(_SPLIT_CALLS, int(self._left_s() * 1e3 / (2.5 * whole)))  # two passes, one of them slower
        if not calls:
            return {}
        try:
            attention.wire = CutWire(rank=self.ranks.rank, ranks=self.ranks.count)
            compute = _warm_median(self._samples(call, clock, calls))
            communication = _warm_median(self._transfers(attention, call, clock, calls))
        finally:
            attention.wire = self.wire
        return {
            "compute_ms": compute,
            "communication_ms": communication,
            "exposed_ms": max(0.0, whole - compute),
        }

    def _transfers(
        self, attention: ParallelAttention, call: Callable[[], object], clock: Clock, count: int
    ) -> list[float]:
        """Milliseconds of the transfers of each call, on the slowest rank, with nothing computed meanwhile."""
        wires = []

        def blocking() -> None:
            attention.wire = BlockingWire(self.wire, device=self.device)
            wires.append(attention.wire)
            call()

        clock.batch(blocking, count)
        return self._slowest([wire.spans.total_ms() for wire in wires])

    def _left_s(self) -> float:
        return self.request.limit_s - self._most(now_s() - self.begun)

    def _most(self, value: float) -> float:
        return self._slowest([value])[0]

    def _slowest(self, values: Sequence[float]) -> list[float]:
        """The largest over all ranks, of each value."""
        return self._over_ranks(values, dist.ReduceOp.MAX)

    def _over_ranks(self, values: Sequence[float], how: Any) -> list[float]:
        if self.ranks.count == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=how)
        found: list[float] = shared.tolist()
        return found


def _warm_median(samples: Sequence[float]) -> float:
    """The median without the first sample, where there are others."""
    return statistics.median(samples[1:] or samples)


@torch.no_grad()
def _inference(attention: ParallelAttention, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attention(q, k, v, scale=scale)


def _outputs(
    attention: ParallelAttention, q: Tensor, k: Tensor, v: Tensor, do: Tensor, *, scale: float
) -> tuple[Tensor, ...]:
    """o, dq, dk and dv of this rank."""
    q, k, v = (x.detach().requires_grad_(True) for x in (q, k, v))
    o = attention(q, k, v, scale=scale)
    return o.detach(), *torch.autograd.grad(o, (q, k, v), do)


def _provider(request: ParallelRequest, ranks: Ranks) -> str:
    """The library that computes on each rank, with its version."""
    if MECHANISMS[request.mechanism].decays and ranks.device.type == "cuda":
        return f"triton {importlib.metadata.version('triton')}"
    return f"torch {torch.__version__}" + ("" if MECHANISMS[request.mechanism].decays else " sdpa-flash")
