"""The device's own limits, measured in the same run: copy bandwidth, matrix rate by dtype, and the shortest time."""

from __future__ import annotations

import functools
import statistics
from dataclasses import asdict, dataclass

import torch

from attnbench.case import DTYPES, Cache, Case
from attnbench.measure.clock import open_clock
from attnbench.semantics import TORCH_DTYPES

_SAMPLES = 10
_EMPTY_SAMPLES = 50


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Copy bandwidth in GB/s (bytes read plus bytes written, 10^9) and matmul rate in TFLOP/s by dtype.

    empty_call_ms: what the clock tells of a call that writes one element, so that no call takes less by it; None in
    records of before.
    """

    copy_gbps: float
    matmul_tflops: dict[str, float]
    empty_call_ms: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def bound_ms(self, case: Case, *, flops: float, moved_bytes: float) -> float | None:
        """The least time for that work: the longer of moving the bytes and doing the FLOPs; None if unknown."""
        rate = self.matmul_tflops.get(case.dtype)
        if rate is None:
            return None
        return max(moved_bytes / (self.copy_gbps * 1e9), flops / (rate * 1e12)) * 1e3


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure them on `device`: about half a second on a data-centre GPU, one second on two CPU cores."""
    cuda = device.type == "cuda"
    copy_bytes = 2**30 if cuda else 2**26
    size = 8192 if cuda else 1024
    clock = open_clock(device=device, cache=Cache.HOT)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copy_ms = statistics.median(clock.batch(functools.partial(target.copy_, source), _SAMPLES))
    del source, target
    rates = {}
    for dtype in DTYPES if cuda else ("fp32",):
        a, b = (torch.randn(size, size, device=device, dtype=TORCH_DTYPES[dtype]) for _ in range(2))
        multiply = functools.partial(torch.matmul, a, b, out=torch.matmul(a, b))
        product_ms = statistics.median(clock.batch(multiply, _SAMPLES))
        rates[dtype] = 2 * size**3 / (product_ms * 1e-3) / 1e12
    return Ceilings(
        copy_gbps=2 * copy_bytes / (copy_ms * 1e-3) / 1e9,
        matmul_tflops=rates,
        empty_call_ms=_empty_call_ms(device),
    )


def _empty_call_ms(device: torch.device) -> float:
    # On a GPU with the cache cleared: meanwhile the host gets ahead, and its launch is no part of the time.
    clock = open_clock(device=device, cache=Cache.COLD if device.type == "cuda" else Cache.HOT)
    element = torch.zeros(1, device=device)
    clock.batch(element.zero_, _SAMPLES)
    try:
        return statistics.median(clock.batch(element.zero_, _EMPTY_SAMPLES))
    finally:
        clock.close()
