"""What every executor keeps of a run: rows, places, effort."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench import store
from attnbench.errors import UserError
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.spared import Overlong
from attnbench.executors.supervised import Row
from attnbench.places import by_place, code_of, differing, measured_places, name_of, with_place


class ChangedPlaceError(UserError):
    """A place is not what it was when rows of the run were measured there."""


@dataclass
class Book:
    """The run folder, from several threads if need be.

    measured: the places, by name, that rows of earlier sittings are of. notes: what a user should know, in sentences.
    """

    folder: RunFolder
    overlong: Overlong = field(default_factory=Overlong)
    measured: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, folder: RunFolder) -> Book:
        """With what the shards of a resumed run tell."""
        rows = rows_of(folder)
        return cls(
            folder=folder,
            overlong=Overlong.among(rows),
            measured=measured_places(folder.record, rows),
        )

    def keep(self, row: Row) -> None:
        """Put a row on disk."""
        self.folder.keep(row)
        self.overlong.add(row)

    def found(self, *, environment: Mapping[str, Any], ceilings: Mapping[str, Any] | None) -> None:
        """Record what a worker tells of the place where it is.

        Raises ChangedPlaceError where rows of an earlier sitting were measured there with something else.
        """
        with self._lock:
            record = self.folder.record
            anew = name_of(environment) not in self.measured
            if not anew:
                self._compare(environment)
            changes = with_place(record, environment=environment, ceilings=ceilings, anew=anew)
            self.folder = self.folder.with_record(**changes)

    def spent(self, *, wall_s: float, worker_s: float, phases_s: Mapping[str, float]) -> None:
        """Add to the run's effort: wall seconds, those of all workers together, and these by phase."""
        with self._lock:
            before = self.folder.record.get("effort") or {"wall_s": 0.0, "phases_s": {}}
            phases = {
                name: before["phases_s"].get(name, 0.0) + phases_s.get(name, 0.0)
                for name in {**before["phases_s"], **phases_s}
            }
            effort = {
                "wall_s": before["wall_s"] + wall_s,
                "worker_s": before.get("worker_s", before["wall_s"]) + worker_s,
                "phases_s": phases,
            }
            self.folder = self.folder.with_record(effort=effort)

    def _compare(self, environment: Mapping[str, Any]) -> None:
        """Hold a place to what it was; other code of ours alone is worth a note, as people resume after a commit."""
        name = name_of(environment)
        known = by_place(self.folder.record).get(name)
        if known is None:
            return
        if differences := differing(known["environment"], environment):
            raise ChangedPlaceError(
                f"{name} has changed since rows of the run in {self.folder.path} were measured there "
                f"({'; '.join(differences)}), so it cannot be resumed; choose another folder"
            )
        before, now = code_of(known["environment"]), code_of(environment)
        note = f"This sitting ran {now}; the run's record names {before}, which its first rows are of."
        if before != now and note not in self.notes:
            self.notes.append(note)


def rows_of(folder: RunFolder) -> list[Row]:
    """The rows that a run has so far."""
    return store.load_table(folder.path).to_pylist() if folder.done() else []
