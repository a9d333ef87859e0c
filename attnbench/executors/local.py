"""Run a sweep's cases on this machine, one worker process at a time on each of its GPUs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from attnbench.case import Case, Status
from attnbench.errors import UserError
from attnbench.executors.book import Book, ChangedPlaceError, rows_of
from attnbench.executors.queue import CaseQueue, Slot, bound_by, comparison_of
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import NoWorkerError, Row, SupervisedWorker
from attnbench.measure.clock import now_s
from attnbench.places import by_place, name_of


@dataclass
class LocalExecutor:
    """Measures the cases that a run folder lacks and writes a shard for each. A worker for each GPU, one or more."""

    folder: RunFolder
    workers: tuple[SupervisedWorker, ...]
    ceilings: bool = True  # measure the devices' ceilings first, for the rates of the rows
    notes: list[str] = field(default_factory=list)  # what a user should know of the run, in sentences
    _book: Book = field(init=False)

    def __post_init__(self) -> None:
        self._book = Book.of(self.folder)

    def run(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        """Measure every case that has no shard yet; `started` and `finished` hear of each, in this thread.

        A case is asked for when a GPU is free for it (of a single one: when the case before it is on disk), so that
        what comes may depend on what was found. Environment, ceilings, and the wall time by phase go into the record.
        Cases of comparisons that are bound to a GPU model which is not there are left out.

        Raises UserError where no worker starts, or none starts any more, and where a GPU's place is not what it was
        when rows of the run were measured there.
        """
        done = self.folder.done()
        missing = (case for case in cases if case.case_id not in done)
        first = next(missing, None)
        if first is None:
            return
        self._book = Book.of(self.folder)
        try:
            if len(self.workers) == 1:
                self._alone(_chained(first, missing), started=started, finished=finished)
            else:
                _Together(self, _chained(first, missing)).run(started=started, finished=finished)
        finally:
            self.folder = self._book.folder
            self.notes += self._book.notes

    def _alone(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        (worker,) = self.workers
        begun, bound = now_s(), bound_by(rows_of(self.folder))
        with worker.running():
            self.prepare(worker, begun=begun)
            assert worker.environment is not None
            device = worker.environment["device"]
            try:
                for case in cases:
                    if bound.get(comparison_of(case), device) != device:
                        continue
                    started(case)
                    row = self.row(worker, case)
                    self._book.keep(row)
                    finished(row)
                    time.sleep(worker.protocol.pause_s)
            finally:  # a sitting that is interrupted took its time too
                wall_s = now_s() - begun
                self._book.spent(wall_s=wall_s, worker_s=wall_s, phases_s=worker.phases_s)

    def prepare(self, worker: SupervisedWorker, *, begun: float) -> None:
        """Learn where a worker is and what its device reaches."""
        assert worker.environment is not None
        known = by_place(self._book.folder.record).get(name_of(worker.environment), {})
        worker.ceilings = known.get("ceilings")
        if self.ceilings:
            worker.measure_ceilings()
        worker.phases_s["start"] = now_s() - begun  # the worker's start and the ceilings
        self._book.found(environment=worker.environment, ceilings=worker.ceilings)

    def row(self, worker: SupervisedWorker, case: Case) -> Row:
        """Measure a case, unless it is no less work than one that was over the limit."""
        reason = self._book.overlong.reason(case, device=(worker.environment or {}).get("device"))
        if reason is None:
            return worker.row(case)
        return worker.unmeasured(case, status=Status.TIMEOUT, reason=reason)

    @property
    def book(self) -> Book:
        return self._book


def _chained(first: Case, rest: Iterable[Case]) -> Iterable[Case]:
    yield first
    yield from rest


class _Together:
    """Several workers at one queue, a thread for each; what is told to the user is told by the thread that waits."""

    def __init__(self, executor: LocalExecutor, cases: Iterable[Case]) -> None:
        self._executor = executor
        self._queue = CaseQueue(cases=cases, bound=bound_by(rows_of(executor.folder)))
        self._told: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._errors: list[Exception] = []
        self._stopped = False

    def run(self, *, started: Callable[[Case], None], finished: Callable[[Row], None]) -> None:
        """Raises UserError where no worker starts on any of the GPUs, or one is at a place that has changed."""
        begun, book = now_s(), self._executor.book
        workers = self._executor.workers
        threads = [
            threading.Thread(target=self._serve, args=(worker, started, finished), daemon=True)
            for worker in workers
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                tell = self._told.get()
                if tell is None:
                    left -= 1
                else:
                    tell()
        except BaseException:
            self._stopped = True
            self._queue.close()
            for worker in workers:
                worker.stop()
            raise
        finally:
            for thread in threads:
                thread.join()
            book.spent(wall_s=now_s() - begun, worker_s=0.0, phases_s={})
        unexpected = [error for error in self._errors if not isinstance(error, (UserError, NoWorkerError))]
        if unexpected:
            raise unexpected[0]
        if len(self._errors) == len(workers):
            raise UserError(f"none of the {len(workers)} GPUs can be used any more: {self._errors[0]}")
        self._executor.notes += [f"A GPU was lost, and the others went on: {each}." for each in self._errors]

    def _serve(
        self,
        worker: SupervisedWorker,
        started: Callable[[Case], None],
        finished: Callable[[Row], None],
    ) -> None:
        """A thread's life: cases for one GPU until there are none, or until the GPU is lost."""
        begun, executor = now_s(), self._executor
        slot = Slot()
        try:
            with worker.running():
                executor.prepare(worker, begun=begun)
                assert worker.environment is not None
                slot = Slot(device=worker.environment["device"], name=name_of(worker.environment))
                self._queue.join(slot)
                while (case := self._queue.take(slot)) is not None:
                    self._told.put(partial(started, case))
                    row = self._row(worker, case)
                    if row is None or self._stopped:
                        return
                    executor.book.keep(row)
                    self._queue.done(case.case_id)
                    self._told.put(partial(finished, row))
                    time.sleep(worker.protocol.pause_s)
        except ChangedPlaceError as error:  # nor may the other GPUs go on with this run
            self._told.put(partial(_refuse, error))
        except Exception as error:  # the thread that waits decides what it means for the run
            self._errors.append(error)
        finally:
            self._queue.leave(slot)
            executor.book.spent(wall_s=0.0, worker_s=now_s() - begun, phases_s=worker.phases_s)
            self._told.put(None)

    def _row(self, worker: SupervisedWorker, case: Case) -> Row | None:
        """The row of a case; None where another GPU will have to measure it, as none works here any more."""
        try:
            return self._executor.row(worker, case)
        except NoWorkerError as error:
            if self._queue.lost(case):
                raise
            return worker.unmeasured(case, status=Status.CRASHED, reason=f"lost on two GPUs: {error}")


def _refuse(error: ChangedPlaceError) -> None:
    raise error
