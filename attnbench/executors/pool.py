"""Processes that work off many small jobs; one that dies or hangs costs its job, and a fresh one takes its place."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from attnbench.measure.clock import now_s

_START_LIMIT_S = 120.0  # to import torch and to open the device, with every core busy doing so
_LOOK_S = 0.2  # between two looks at the deadlines

Job = TypeVar("Job")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A job without an answer: its process died or was ended."""

    reason: str


class Pool(Generic[Job, Answer]):
    """At most `size` processes, the first at once and others as jobs need them, each an interpreter of its own.

    `perform` is a function of a module, and what it raises ends its process; jobs and answers are pickled. What
    the processes print is kept from the terminal.
    """

    def __init__(self, perform: Callable[[Job], Answer], *, size: int) -> None:
        self._perform = perform
        self._size = size
        self._folder = tempfile.TemporaryDirectory(prefix="attnbench-pool-")
        self._workers: list[_Worker] = []
        self._started = 0

    def __enter__(self) -> Pool[Job, Answer]:
        self._free()  # the first process imports what it needs while others are still busy
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._folder.cleanup()

    def run(
        self, jobs: Iterable[Job], *, limit_s: float, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Answer | Lost]]:
        """Each job with its answer, in the order in which they come.

        A job is taken from `jobs` when a process is free for it. One that takes longer than limit_s is lost. Once
        `stop` is true no job is taken, the running ones are ended, and neither kind is told of.
        """
        waiting = iter(jobs)
        exhausted = False
        while not stop():
            while not exhausted and (worker := self._free()) is not None:
                try:
                    job = next(waiting)
                except StopIteration:
                    exhausted = True
                else:
                    worker.give(job, limit_s=limit_s)
            busy = [worker for worker in self._workers if worker.busy]
            if not busy:
                return
            multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=_LOOK_S)
            for worker in busy:
                job = worker.job
                answer = worker.answer()
                for found in answer:
                    yield job, found
        for worker in self._workers:
            if worker.busy:
                worker.kill()

    def _free(self) -> _Worker | None:
        self._workers = [worker for worker in self._workers if worker.alive]
        idle = next((worker for worker in self._workers if not worker.busy), None)
        if idle is not None or len(self._workers) >= self._size:
            return idle
        self._started += 1
        self._workers.append(_Worker(self._perform, log=Path(self._folder.name) / f"{self._started}.log"))
        return self._workers[-1]


class _Worker:
    """The parent's end of one process."""

    def __init__(self, perform: Callable[[Any], Any], *, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._log = log
        self._process: SpawnProcess = context.Process(target=_serve, args=(perform, theirs, log), daemon=True)
        self._process.start()
        theirs.close()
        self._grace_s = _START_LIMIT_S
        self._limit_s = self._deadline = 0.0
        self.busy = False
        self.alive = True
        self.job: Any = None

    def give(self, job: Any, *, limit_s: float) -> None:
        self.job, self.busy = job, True
        self._limit_s = limit_s
        self._deadline = now_s() + limit_s + self._grace_s
        self._grace_s = 0.0
        with contextlib.suppress(BrokenPipeError):  # it died while idle: `answer` finds that out
            self.pipe.send(job)

    def answer(self) -> list[Any]:
        """The answer to the job, or Lost; empty while there is neither."""
        try:
            if self.pipe.poll():
                found = self.pipe.recv()
                self.busy = False
                return [found]
        except (EOFError, ConnectionResetError):
            return self._lost(self._death())
        if now_s() > self._deadline:
            return self._lost(f"took longer than {self._limit_s:g} s and was ended")
        return []

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()
        self.pipe.close()
        self.alive = self.busy = False

    def _lost(self, reason: str) -> list[Any]:
        self.kill()
        return [Lost(reason=reason)]

    def _death(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return f"its process ended with {how}" + (
            f"; last output: {lines[-1].strip()[:300]}" if lines else ""
        )


def _serve(perform: Callable[[Any], Any], pipe: Connection, log: Path) -> None:
    """A process's life: it ends when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(perform(job))
