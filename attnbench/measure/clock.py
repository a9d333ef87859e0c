"""The one clock: device events on CUDA, the host's monotonic clock on the CPU. Nothing else in the project times.

torch takes seconds to import, so that nobody waits for it who only keeps deadlines: those who time calls import it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from attnbench.case import Cache

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]

_FLUSH_FLOOR_BYTES = 256 * 2**20
_HOST_FLUSH_BYTES = 64 * 2**20


class Clock(Interface):
    """Times a call. Milliseconds throughout."""

    def once(self, call: Call) -> float:
        """One call on the host's clock, the device idle before and after: what a first call costs a user."""

    def batch(self, call: Call, count: int, *, meet: Call | None = None) -> list[float]:
        """`count` samples in time order, each with the cache state asked for.

        meet: comes right before each sample, and is no part of it: where processes that sample together wait for each
        other.
        """

    @property
    def clears(self) -> bool:
        """Is the cache cleared before each sample?"""

    def clear(self) -> None:
        """Bring the cache into the state asked for, as before each sample."""

    def close(self) -> None:
        """Give back what the clock holds (the flush buffer), so that a memory pass does not see it."""


class _Flushing:
    """What clocks share: a buffer that is written to clear the cache, or None where it stays warm."""

    def __init__(self, flush: torch.Tensor | None) -> None:
        self._flush = flush

    @property
    def clears(self) -> bool:
        return self._flush is not None

    def clear(self) -> None:
        if self._flush is not None:
            self._flush.zero_()

    def close(self) -> None:
        self._flush = None


class CudaClock(_Flushing):
    """CUDA events around each call; with a cold cache, a buffer over twice the L2 is written before each sample.

    The host runs ahead of the device within a batch, so a sample holds launch gaps only where the host really
    is the slower of the two. A `meet` that waits on the device leaves it so.
    """

    def __init__(self, *, device: torch.device, cache: Cache) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        flush = None
        if cache is Cache.COLD:
            l2 = self._cuda.get_device_properties(device).L2_cache_size
            flush = torch.empty(max(2 * l2, _FLUSH_FLOOR_BYTES) // 4, dtype=torch.int32, device=device)
        super().__init__(flush)

    def once(self, call: Call) -> float:
        self._cuda.synchronize(self._device)
        start = time.perf_counter()
        call()
        self._cuda.synchronize(self._device)
        return (time.perf_counter() - start) * 1e3

    def batch(self, call: Call, count: int, *, meet: Call | None = None) -> list[float]:
        pairs = [
            (self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)) for _ in range(count)
        ]
        for start, end in pairs:
            self.clear()
            if meet is not None:
                meet()
            start.record()
            call()
            end.record()
        self._cuda.synchronize(self._device)
        return [start.elapsed_time(end) for start, end in pairs]


class HostClock(_Flushing):
    """The host's monotonic clock around each call; with a cold cache, 64 MiB are written before each sample."""

    def __init__(self, *, cache: Cache) -> None:
        import torch

        super().__init__(
            torch.empty(_HOST_FLUSH_BYTES // 4, dtype=torch.int32) if cache is Cache.COLD else None
        )

    def once(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def batch(self, call: Call, count: int, *, meet: Call | None = None) -> list[float]:
        samples = []
        for _ in range(count):
            self.clear()
            if meet is not None:
                meet()
            samples.append(self.once(call))
        return samples


def open_clock(*, device: torch.device, cache: Cache) -> Clock:
    """The clock of a device."""
    return CudaClock(device=device, cache=cache) if device.type == "cuda" else HostClock(cache=cache)


def host_times(call: Call, count: int, *, device: torch.device) -> list[float]:
    """Milliseconds that the host spends on each of `count` calls before it goes on, the device idle at the start.

    On the CPU that is the whole call; on CUDA what it takes to enqueue it, and to wait where the call itself waits.
    """
    import torch

    samples = []
    for _ in range(count):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return samples


def timestamp() -> str:
    """The moment in UTC, ISO 8601 with milliseconds: when a case started."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def now_s() -> float:
    """Seconds on the host's monotonic clock, for deadlines and progress."""
    return time.monotonic()


@dataclass
class Phases:
    """Wall seconds spent in each phase of a case, so that a run can say what share of its time was measuring."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
