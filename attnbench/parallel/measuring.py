"""One case on one rank: check, time, and, each in a pass of its own, computing, communication and memory.

All ranks run this together and decide alike: what differs between them (a time, an error) is agreed on first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import statistics
from collections.abc import Callable
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
from attnbench.measure.spans import Spans
from attnbench.models.device import clean, timing
from attnbench.models.distributed import Ranks
from attnbench.parallel.mechanisms import MECHANISMS, ParallelAttention, build
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.requests import ParallelRequest
from attnbench.parallel.wire import BlockingWire, CutWire, GroupWire, Wire
from attnbench.semantics import SEMANTICS, TOLERANCES, TORCH_DTYPES, geometric_slopes

_SPLIT_SAMPLES = 3  # of each of the passes that split the time
_WARM_UP = 2
# Tokens of a check at most: a whole fp64 oracle, and more than the geometric law's weakest head remembers.
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

    def measured(self, row: ParallelCase) -> ParallelCase:
        row = self._checked(row)
        if row.status != Status.OK:
            return row
        clock = open_clock(device=self.device, cache=Cache.COLD)
        attention = self._attention(self.request.seq_len)
        call = self._call(attention)
        row = dataclasses.replace(row, **self._timed(call, clock))
        row = dataclasses.replace(row, **self._split(attention, call, clock, row))
        clock.close()
        del call
        return dataclasses.replace(row, peak_bytes=self._peak(attention))

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
        most = _CHECKED["softmax" if request.semantics == "softmax" else "linear"]
        seq_len = min(request.seq_len, most if self.device.type == "cuda" else _CHECKED_ON_CPU)
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

    def _timed(self, call: Callable[[], object], clock: Clock) -> dict[str, Any]:
        """Samples, and what the first call sent; one that fills much of the limit is all the warm-up there is."""
        before = self.wire.sent_bytes
        estimate = self._most(clock.once(call))
        sent = self._agreed(float(self.wire.sent_bytes - before), dist.ReduceOp.SUM)
        for _ in range(_WARM_UP):
            if self._left_s() * 1e3 > 10 * estimate:
                estimate = self._most(clock.batch(call, 1)[0])
        fitting = self._left_s() * 1e3 / estimate
        count = min(self.request.samples, max(1, int(fitting / 2)))
        if fitting < 1:
            raise CaseTimeoutError(
                f"a call takes {estimate / 1e3:.2f} s: none fits the limit of {self.request.limit_s:g} s any more"
            )
        found = timing(self._samples(call, clock, count))
        tokens = self.request.batch * self.request.seq_len
        return {**found, "sent_bytes": int(sent), "tokens_per_s": tokens / (found["median_ms"] * 1e-3)}

    def _samples(self, call: Callable[[], object], clock: Clock, count: int) -> list[float]:
        """Samples that begin together; each is the time of the slowest rank."""
        samples = []
        for _ in range(count):
            self._barrier()
            samples.append(self._most(clock.batch(call, 1)[0]))
        return samples

    def _split(
        self, attention: ParallelAttention, call: Callable[[], object], clock: Clock, row: ParallelCase
    ) -> dict[str, Any]:
        """Computing, communication and what of it is exposed; alone there is no communication."""
        whole = row.median_ms
        assert whole is not None
        if self.ranks.count == 1:
            return {"compute_ms": whole, "communication_ms": 0.0, "exposed_ms": 0.0}
        if self._left_s() * 1e3 < 3 * _SPLIT_SAMPLES * whole:
            return {}
        try:
            attention.wire = CutWire(rank=self.ranks.rank, ranks=self.ranks.count)
            call()
            compute = statistics.median(self._samples(call, clock, _SPLIT_SAMPLES))
            times = []
            for _ in range(_SPLIT_SAMPLES):
                spans = Spans(self.device)
                attention.wire = BlockingWire(self.wire, spans=spans)
                call()
                times.append(self._most(spans.total_ms()))
        finally:
            attention.wire = self.wire
        return {
            "compute_ms": compute,
            "communication_ms": statistics.median(times),
            "exposed_ms": max(0.0, whole - compute),
        }

    def _peak(self, attention: ParallelAttention) -> int:
        with open_meter(self.device) as meter:
            call = self._call(attention)
            call()
            peak = meter.peak()
        return int(self._most(float(peak)))

    def _left_s(self) -> float:
        return self.request.limit_s - self._most(now_s() - self.begun)

    def _barrier(self) -> None:
        if self.ranks.count > 1:
            dist.barrier()

    def _most(self, value: float) -> float:
        return self._agreed(value, dist.ReduceOp.MAX)

    def _agreed(self, value: float, how: Any) -> float:
        if self.ranks.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=how)
        return float(shared)


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
