"""What ran on the device and when: CUPTI's records through torch.profiler, told apart by call. Untimed passes only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from attnbench.measure.clock import Call, CudaClock

# Copies and fills by the driver, which are work on the device but no kernels.
NO_KERNEL = re.compile(r"^(Memcpy|Memset)")


@dataclass(frozen=True, kw_only=True)
class Span:
    """One piece of work on the device, in microseconds of the profiler's clock."""

    name: str
    start_us: float
    end_us: float

    @property
    def length_us(self) -> float:
        return self.end_us - self.start_us


def let_go() -> None:
    """Ask CUPTI to detach after each use: left attached it slows later launches (DESIGN.md has what was seen)."""
    os.environ.setdefault("TEARDOWN_CUPTI", "1")


def recorded(work: Callable[[], object]) -> list[Span]:
    """Kernels, copies and fills of all that `work` enqueues on the device, in no order."""
    let_go()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        work()
        torch.cuda.synchronize()
    events = [e for e in profiler.events() or () if e.device_type == DeviceType.CUDA]
    return [Span(name=e.name, start_us=e.time_range.start, end_us=e.time_range.end) for e in events]


def flush_name(clock: CudaClock) -> str:
    """The kernel that clears the cache: the only one of a sample without a call.

    Raises ValueError when the profiler saw another number of kernels.
    """
    nothing: Call = lambda: None  # noqa: E731
    names = {span.name for span in recorded(lambda: clock.batch(nothing, 3))}
    if len(names) != 1:
        raise ValueError(f"expected one kernel to clear the cache, the profiler saw {sorted(names)}")
    return names.pop()


def by_call(spans: Iterable[Span], *, flush: str, calls: int) -> list[list[Span]]:
    """The work of each call, which begins behind a flush of the cache; what came before the first is left out.

    A call may itself run the kernel that flushes: then calls of equal length are told apart by their number.

    Raises ValueError when there are not as many flushes as calls, or nothing behind one of them.
    """
    ordered = sorted(spans, key=lambda each: each.start_us)
    found: list[list[Span]] = []
    for span in ordered:
        if span.name == flush:
            found.append([])
        elif found:
            found[-1].append(span)
    if len(found) == calls and all(found):
        return found
    length, left = divmod(len(ordered), calls)
    pieces = [ordered[place : place + length] for place in range(0, len(ordered), length or 1)]
    if length > 1 and not left and len(found) > calls and all(piece[0].name == flush for piece in pieces):
        return [piece[1:] for piece in pieces]
    raise ValueError(
        f"the profiler saw {len(found)} flushes and {sum(map(bool, found))} calls, expected {calls}"
    )
