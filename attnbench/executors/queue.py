"""Which case is whose: cases of one comparison stay on one GPU model, and one that was lost is tried once more."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench.case import Case


def comparison_of(case: Case) -> str:
    """What the cases that are set beside each other have in common: all but the mechanism and its window."""
    shape = dataclasses.replace(case, window=None).shape_id
    return f"{case.workload}.{shape}.{case.dtype}"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What takes cases: a GPU by its model and by a name of its own; None where the engine has not told yet."""

    device: str | None = None
    name: str | None = None


@dataclass(kw_only=True)
class CaseQueue:
    """Hands cases out, from several threads if need be.

    The GPU model that the first case of a comparison went to is that of all its cases; `bound` says what was decided
    before. A lost case goes elsewhere where there is another slot of its model, and is given up when it is lost again.
    `cases` is asked for the next one when a slot is free for it.
    """

    cases: Iterable[Case]
    bound: dict[str, str] = field(default_factory=dict)  # comparison -> device
    held: list[Case] = field(
        default_factory=list
    )  # asked for, and nobody's; at the end, those with no slot left
    _flying: dict[str, Slot] = field(default_factory=dict)  # by case_id
    _lost_on: dict[str, Slot] = field(default_factory=dict)  # by case_id
    _slots: set[Slot] = field(default_factory=set)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._source: Iterator[Case] = iter(self.cases)
        self._changed = threading.Condition(threading.RLock())

    def join(self, slot: Slot) -> None:
        """Say that a slot is there, so that others may leave to it what they have lost."""
        with self._changed:
            self._slots.add(slot)

    def leave(self, slot: Slot) -> None:
        """Say that a slot is gone."""
        with self._changed:
            self._slots.discard(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, slot: Slot) -> Case | None:
        """The next case for a slot whose model is known. It waits while one may come back to it; None: none will."""
        with self._changed:
            while not self._closed:
                case = next(self._eligible(slot), None)
                if case is not None:
                    self._fly(case, slot)
                    return case
                if not any(at.device == slot.device for at in self._flying.values()):
                    return None
                self._changed.wait()
            return None

    def take_comparisons(self, slot: Slot, *, at_most: int) -> tuple[Case, ...]:
        """All cases of the next comparisons, all bound to one model or none; empty where nothing is eligible now.

        Every case is asked for, as those of one comparison need not follow each other: where mechanisms have value
        dims of their own, another comparison's lie between them.
        """
        with self._changed:
            taken: list[Case] = []
            wanted: dict[str, str | None] = {}
            full = False
            for case in self._eligible(slot):
                name = comparison_of(case)
                if name not in wanted:
                    bound = self.bound.get(name)
                    full = full or len(wanted) >= at_most or (bool(wanted) and bound not in wanted.values())
                    if full:
                        continue
                    wanted[name] = bound
                taken.append(case)
            for case in taken:
                self._fly(case, slot)
            return tuple(taken)

    def place(self, cases: Iterable[Case], slot: Slot) -> bool:
        """Say where cases really went, which binds them. False: some are bound to another model; they are nobody's."""
        with self._changed:
            cases = tuple(cases)
            device = slot.device
            right = all(self.bound.get(comparison_of(case), device) == device for case in cases)
            if not right:
                self.back(cases)
                return False
            for case in cases:
                self._fly(case, slot)
            return True

    def done(self, case_id: str) -> None:
        """Say that a case has its row."""
        with self._changed:
            self._flying.pop(case_id, None)
            self._changed.notify_all()

    def back(self, cases: Iterable[Case], *, last: bool = False) -> None:
        """Say that nobody is at these cases any more, through no fault of theirs. last: others come before them."""
        with self._changed:
            for case in cases if last else reversed(tuple(cases)):
                self._back(case, last=last)

    def lost(self, case: Case) -> bool:
        """Say that the slot of a case is lost while it was measured. False: it was lost before, and is given up."""
        with self._changed:
            again = case.case_id not in self._lost_on
            self._lost_on[case.case_id] = self._flying.get(case.case_id, Slot())
            if again:
                self._back(case)
            else:
                self.done(case.case_id)
            return again

    def again(self, case: Case) -> None:
        """Say that a case has no row after all. Whoever is at it stays at it."""
        with self._changed:
            if case.case_id not in self._flying and case not in self.held:
                self._back(case)

    def bound_to(self, cases: Iterable[Case]) -> str | None:
        """The model that cases are bound to, those of comparisons that were taken together; None: to none yet."""
        with self._changed:
            models = (self.bound.get(comparison_of(case)) for case in cases)
            return next((model for model in models if model is not None), None)

    def _fly(self, case: Case, slot: Slot) -> None:
        if case in self.held:
            self.held.remove(case)
        self._flying[case.case_id] = slot
        if slot.device is not None:
            self.bound.setdefault(comparison_of(case), slot.device)

    def _back(self, case: Case, *, last: bool = False) -> None:
        self._flying.pop(case.case_id, None)
        self.held.insert(len(self.held) if last else 0, case)
        self._changed.notify_all()

    def _eligible(self, slot: Slot) -> Iterator[Case]:
        """Cases that a slot may have, which are held until they are taken."""
        for case in tuple(self.held):
            if self._may(case, slot):
                yield case
        for case in self._source:
            self.held.append(case)
            if self._may(case, slot):
                yield case

    def _may(self, case: Case, slot: Slot) -> bool:
        if slot.device is not None and self.bound.get(comparison_of(case), slot.device) != slot.device:
            return False
        if slot.name is None or self._lost_on.get(case.case_id) != slot:
            return True
        return not any(other.device == slot.device for other in self._slots - {slot})


def bound_by(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The GPU models of the comparisons of which something is measured, by the rows of a run."""
    names = [each.name for each in dataclasses.fields(Case)]
    known = (row for row in rows if row["device"] is not None)
    return {comparison_of(Case(**{name: row[name] for name in names})): row["device"] for row in known}
