"""What every executor keeps of a run: rows, places, effort."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench import store
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.spared import Overlong
from attnbench.executors.supervised import Row
from attnbench.places import with_place


@dataclass
class Book:
    """The run folder, from several threads if need be."""

    folder: RunFolder
    overlong: Overlong = field(default_factory=Overlong)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, folder: RunFolder) -> Book:
        """With what the shards of a resumed run tell."""
        return cls(folder=folder, overlong=Overlong.among(rows_of(folder)))

    def keep(self, row: Row) -> None:
        """Put a row on disk."""
        self.folder.keep(row)
        self.overlong.add(row)

    def found(self, *, environment: Mapping[str, Any], ceilings: Mapping[str, Any] | None) -> None:
        """Record what a worker tells of the place where it is."""
        with self._lock:
            changes = with_place(self.folder.record, environment=environment, ceilings=ceilings)
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


def rows_of(folder: RunFolder) -> list[Row]:
    """The rows that a run has so far."""
    return store.load_table(folder.path).to_pylist() if folder.done() else []
