"""What stays between the runs of one command: the device's lock, and the worker of the run that ended.

A worker takes seconds to start, and its first trace seconds more. A command of many runs (`attnbench paper`) opens
`between_runs` around them; whoever measures asks here for its lock and its workers, and without such a block gets both
as if nobody else had asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attnbench.executors.lock import Descriptors, device_lock


class Worker(Protocol):
    """What is asked of one here: `WorkerProcess` is one."""

    @property
    def alive(self) -> bool: ...
    def end(self) -> None: ...


W = TypeVar("W", bound=Worker)


@dataclass
class _Idle:
    """The worker that was started last, whether it waits, and the locks that it holds."""

    locks: contextlib.ExitStack
    held: dict[str, Descriptors] = field(default_factory=dict)
    worker: Worker | None = None
    kind: dict[str, Any] = field(default_factory=dict)
    waits: bool = False

    def lock(self, device: str) -> Descriptors:
        if device not in self.held:
            self.held[device] = self.locks.enter_context(device_lock(device))
        return self.held[device]

    def take(self, kind: dict[str, Any]) -> Any | None:
        """The one that waits, if it is of this kind; one of another kind goes, and its part of the device with it."""
        if self.worker is None or not self.waits or not self.worker.alive:
            return None
        if kind != self.kind:
            self.end()
            return None
        self.waits = False
        return self.worker

    def end(self) -> None:
        if self.worker is not None and self.waits:
            self.worker.end()
        self.waits = False


# Of a thread: those that serve several GPUs start with none, and their workers end with their runs.
_IDLE: ContextVar[_Idle | None] = ContextVar("idle", default=None)


@contextlib.contextmanager
def between_runs() -> Iterator[None]:
    """Inside of this a run's worker waits for the next run that needs one of its kind, and the lock stays held."""
    with contextlib.ExitStack() as locks:
        idle = _Idle(locks=locks)
        token = _IDLE.set(idle)
        try:
            yield
        finally:
            _IDLE.reset(token)
            idle.end()  # before the locks go, which it has inherited


@contextlib.contextmanager
def lock(device: str) -> Iterator[Descriptors]:
    """The lock of all devices, "cuda" or "cpu", as `device_lock` has it.

    Raises UserError when another process holds one.
    """
    idle = _IDLE.get()
    if idle is not None:
        yield idle.lock(device)
        return
    with device_lock(device) as descriptors:
        yield descriptors


def worker(start: Callable[..., W], *, log: Path, inherit: Descriptors, **kind: Any) -> W:
    """The worker that waits, where it is of that kind, or a new one: `start` with everything.

    The log of one that waited is the one it was started with. Raises what `start` does.
    """
    idle = _IDLE.get()
    found: W | None = None if idle is None else idle.take(kind)
    if found is None:
        found = start(log=log, inherit=inherit, **kind)
        if idle is not None:
            idle.worker, idle.kind, idle.waits = found, kind, False
    return found


def end(ended: Worker) -> None:
    """A run needs its worker no more: it goes, or waits."""
    idle = _IDLE.get()
    if idle is not None and ended is idle.worker and ended.alive:
        idle.waits = True
    else:
        ended.end()
