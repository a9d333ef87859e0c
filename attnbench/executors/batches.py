"""A sweep as batches for an engine that finds GPUs for them: what goes into one, and what its events mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.case import Case, Protocol
from attnbench.errors import UserError
from attnbench.executors.batch import Batch, Event, lost_row
from attnbench.executors.book import Book, rows_of
from attnbench.executors.queue import CaseQueue, Slot, bound_by, comparison_of
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import Row
from attnbench.places import by_place, name_of

_REFUSALS = 3  # so many in a row, with no row between them: it is no accident
_SHARES = 4  # batches for each GPU, so that none waits long for the last one


@dataclass(kw_only=True)
class Flight:
    """A batch that is somebody's, and what was told of it so far."""

    batch: Batch
    left: list[Case]
    slot: Slot
    environment: Mapping[str, Any] | None = None
    begun: str | None = None  # case_id


class Batches:
    """The cases that a run lacks, in batches of whole comparisons.

    notes: what a user should know of the run, in sentences.
    """

    def __init__(
        self,
        cases: Iterable[Case],
        *,
        folder: RunFolder,
        kind: str,
        protocol: Protocol,
        started: Callable[[Case], None],
        finished: Callable[[Row], None],
    ) -> None:
        done = folder.done()
        missing = [case for case in cases if case.case_id not in done]
        self.book = Book.of(folder)
        self.notes = self.book.notes
        self._kind, self._protocol = kind, protocol
        self._started, self._finished = started, finished
        self._queue = CaseQueue(cases=(), held=list(missing), bound=bound_by(rows_of(folder)))
        self._cases = {case.case_id: case for case in missing}
        self._comparisons = len({comparison_of(case) for case in missing})
        self._refusals = self._misplaced = 0

    def take(self, *, device: str | None, gpus: int) -> Flight | None:
        """A batch for one of so many GPUs, by its model (None: not known yet); None where nothing is left for it."""
        if self._misplaced >= _REFUSALS:
            return None
        slot = Slot(device=device)
        size = max(1, self._comparisons // (_SHARES * max(gpus, 1)))
        cases = self._queue.take_comparisons(slot, at_most=size)
        if not cases:
            return None
        batch = Batch(
            cases=cases,
            kind=self._kind,
            protocol=self._protocol,
            run_id=self.book.folder.run_id,
            device=self._queue.bound_to(cases),
            ceilings={name: each["ceilings"] for name, each in by_place(self.book.folder.record).items()},
            overlong=tuple(self.book.overlong.rows),
        )
        return Flight(batch=batch, left=list(cases), slot=slot)

    @property
    def left(self) -> int:
        """Cases that are nobody's."""
        return len(self._queue.held)

    def tell(self, flight: Flight, event: Event, *, kept: bool = False) -> None:
        """Take note of an event of a batch. kept: its rows are on disk already.

        What a batch tells of cases that were taken back from it counts for nothing.

        Raises UserError when task after task refuses to measure, or one is at a place that has changed since rows were
        measured there.
        """
        if "place" in event:
            self._placed(flight, event)
        elif "begun" in event:
            self._begun(flight, event["begun"])
        elif "row" in event:
            self._row(flight, event["row"], kept=kept)
        elif "gone" in event:  # its row was taken off the disk, as another batch had put its own over it
            gone = [case for case in flight.left if case.case_id == event["gone"]]
            flight.left = [case for case in flight.left if case not in gone]
            self._queue.back(gone)
        elif "misplaced" in event:
            flight.slot = Slot(device=event["misplaced"])
            self._misplaced += 1
            self._queue.back(flight.left, last=True)
            flight.left = []
        elif "refused" in event:
            self.returned(flight)
            self._refused(event["refused"])
        else:
            self.book.spent(wall_s=0.0, worker_s=event["worker_s"], phases_s=event["phases_s"])

    def returned(self, flight: Flight) -> None:
        """What is left of a batch is nobody's again, through no fault of its own."""
        self._queue.back(flight.left)
        flight.left = []

    def lost(self, flight: Flight, *, reason: str) -> None:
        """A batch ended before its time. The case that was under way will be tried elsewhere, or is given up.

        Raises UserError when batch after batch ends before a case of it is begun.
        """
        cases, flight.left = flight.left, []
        if not cases:  # they are done, or were taken back
            return
        self._queue.back(case for case in cases if case.case_id != flight.begun)
        case = next((case for case in cases if case.case_id == flight.begun), None)
        if case is None:
            self._refused(f"the workers end before their first case ({reason})")
            return
        if self._queue.lost(case):
            self.notes.append(f"{case.case_id} was lost with its worker and tried once more ({reason}).")
            return
        row = lost_row(case, batch=flight.batch, environment=flight.environment, reason=reason)
        self.book.keep(row)
        self._finished(row)

    def _placed(self, flight: Flight, event: Event) -> None:
        environment = event["place"]
        flight.environment = environment
        flight.slot = Slot(device=environment["device"], name=name_of(environment))
        self.book.found(environment=environment, ceilings=event["ceilings"])
        if not self._queue.place(
            flight.left, flight.slot
        ):  # bound to another model meanwhile, by another batch
            flight.left = []

    def _begun(self, flight: Flight, case_id: str) -> None:
        if case_id in {case.case_id for case in flight.left}:
            flight.begun = case_id
            self._started(self._cases[case_id])

    def _row(self, flight: Flight, row: Row, *, kept: bool) -> None:
        if row["case_id"] not in {case.case_id for case in flight.left}:  # it is somebody else's meanwhile
            if kept:
                self._discard(row)
            return
        self._refusals = self._misplaced = 0
        flight.left = [case for case in flight.left if case.case_id != row["case_id"]]
        flight.begun = None
        if kept:
            self.book.overlong.add(row)
        else:
            self.book.keep(row)
        self._queue.done(row["case_id"])
        self._finished(row)

    def _discard(self, row: Row) -> None:
        """Take the row of a case that is not its batch's any more off the disk, unless its model is the right one."""
        case = self._cases[row["case_id"]]
        if self._queue.bound_to((case,)) != row["device"]:
            self.book.folder.shard(case.case_id).unlink(missing_ok=True)
            self._queue.again(case)  # it may have lain over the right one

    def _refused(self, sentence: str) -> None:
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            raise UserError(f"nothing can be measured: {sentence}")
