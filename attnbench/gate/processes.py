"""Where the processes of a gate come from: measured now, each of them fresh, or recorded before and played again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from attnbench import store
from attnbench.case import Case, Status
from attnbench.errors import UserError
from attnbench.executors.local import LocalExecutor
from attnbench.executors.lock import Descriptors, run_lock
from attnbench.executors.run_folder import RunFolder, open_run
from attnbench.executors.supervised import SupervisedWorker
from attnbench.gate.telling import Teller
from attnbench.gate.trees import Tree
from attnbench.measure.clock import now_s
from attnbench.sweeping import new_record
from attnbench.sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Process:
    """What one process measured: its rows with its run's record, and the wall seconds that it took.

    usual_s: what another one would take for the same cases, `start_s` of it to begin; less than `wall_s` where this one
    had more to tell. None where a recorded run does not tell its seconds.
    """

    table: pa.Table
    start_s: float | None
    wall_s: float | None
    usual_s: float | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.table.select(["case_id", "status"]).to_pylist()
        return found

    def seconds_for(self, count: int) -> float:
        """What a process like this one would take for so many cases; 0 where it is not known."""
        if self.usual_s is None or self.start_s is None:
            return 0.0
        a_case: float = (self.usual_s - self.start_s) / max(self.table.num_rows, 1)
        return self.start_s + a_case * count


class Source(Protocol):
    """Gives out processes. Numbers count from 1 on each side."""

    def left(self, side: str, *, after: int) -> int | None:
        """How many processes of a side it could still give after number `after`; None: as many as are wanted."""

    def process(self, side: str, *, number: int, cases: Sequence[Case]) -> Process:
        """The cases, measured in one process. Cases that the side's code does not know are left out."""


@dataclass(frozen=True, kw_only=True)
class FreshProcesses:
    """Measures on this machine, one process after another, each into a run folder of its own below `folder`.

    A process checks and times, and nothing else. Kernels and memory, which do not differ between processes, are told by
    the first one of a side when it has timed everything: a profiler that is asked between two cases may disturb the
    second. Where the tree of a side cannot leave those passes out, all processes of all sides have them.
    """

    sweep: Sweep
    folder: Path
    trees: Mapping[str, Tree]
    command: Sequence[str]
    lock: Descriptors
    teller: Teller

    def folder_of(self, side: str, number: int) -> Path:
        """The run folder of a process."""
        return self.folder / "processes" / f"{side}-{number:02d}"

    def left(self, side: str, *, after: int) -> int | None:
        return None

    def process(self, side: str, *, number: int, cases: Sequence[Case]) -> Process:
        """Raises UserError when no worker starts, or the folder holds other runs."""
        tree = self.trees[side]
        known = [case for case in cases if tree.knows(case)]
        if not known:
            return Process(table=store.to_table([], records={}), start_s=0.0, wall_s=0.0, usual_s=0.0)
        path = self.folder_of(side, number)
        gate = {"side": side, "number": number, "tree": tree.label}
        folder = open_run(
            path, record={**new_record(self.sweep, command=self.command), "gate": gate}, resume=False
        )
        begun = now_s()
        worker = SupervisedWorker(
            device=self.sweep.device,
            protocol=self.sweep.protocol,
            log=path / "worker.log",
            run_id=folder.run_id,
            lock=self.lock,
            interpreter=tree.interpreter,
            options=("timed_only",) if self._lean else (),
        )
        executor = LocalExecutor(folder=folder, workers=(worker,), ceilings=False)
        with run_lock(folder.run_id), worker.running():
            start_s = now_s() - begun
            executor.run(known, started=self.teller.case, finished=lambda row: None)
            # The executor found the worker started, and took the record's times from there.
            executor.book.spent(wall_s=start_s, worker_s=start_s, phases_s={"start": start_s})
            timed = now_s()
            if number == 1 and self._lean:
                self._prove(known, worker=worker, folder=folder)
            proofs_s = now_s() - timed
        told = recorded_process(store.load_table(path), executor.book.folder.record)
        # With the end of its worker, which the run's own record of its effort leaves out, as it does the proofs.
        wall_s = now_s() - begun
        return replace(told, start_s=start_s, wall_s=wall_s, usual_s=wall_s - proofs_s)

    @property
    def _lean(self) -> bool:
        """Can the trees of all sides be timed without the other passes?"""
        return all({"timed_only", "proof_only"} <= tree.options for tree in self.trees.values())

    def _prove(self, cases: Sequence[Case], *, worker: SupervisedWorker, folder: RunFolder) -> None:
        """Add kernels and memory to the rows that are ok, now that all are timed; a fault there becomes the row."""
        rows = {row["case_id"]: row for row in store.load_table(folder.path).to_pylist()}
        worker.options = ("proof_only",)
        for case in cases:
            row = rows[case.case_id]
            if row["status"] != Status.OK:
                continue
            self.teller.case(case)
            proof = worker.row(case)
            told = {name: proof[name] for name in (*store.GROUPS["memory"], "kernels", "busy_ms")}
            folder.keep({**row, **told} if proof["status"] == Status.OK else proof)


@dataclass(frozen=True, kw_only=True)
class RecordedProcesses:
    """Plays recorded runs: the n-th run of a side is its n-th process, with the cases that are asked for."""

    runs: Mapping[str, Sequence[pa.Table]]

    def left(self, side: str, *, after: int) -> int | None:
        return max(0, len(self.runs.get(side, ())) - after)

    def process(self, side: str, *, number: int, cases: Sequence[Case]) -> Process:
        table = self.runs[side][number - 1]
        wanted = pa.array([case.case_id for case in cases], type=pa.string())
        rows = table.filter(pc.is_in(table["case_id"], value_set=wanted))
        (record,) = store.records(table).values()
        return recorded_process(rows, record)


def recorded(paths: Sequence[Path], *, sides: Sequence[str], same_code: bool = False) -> RecordedProcesses:
    """The runs in files and folders, by the side that their records name, in the order of their start.

    A run that names no side, as of a sweep, is new. same_code: the sides are of one code, so that runs which all name
    one and the same side, as the pools of `gate.evidence` do, are dealt to them in the order in which a gate measures:
    AB, BA.

    Raises UserError for files that cannot be read, and for one of `sides` without runs.
    """
    whole = store.load_table(paths)
    records = store.records(whole)
    runs: dict[str, list[tuple[tuple[int, str, str], pa.Table]]] = {}
    for run_id in dict.fromkeys(whole["run_id"].to_pylist()):
        record = records.get(run_id, {})
        gate = record.get("gate") or {}
        rows = whole.filter(pc.equal(whole["run_id"], run_id))
        order = (int(gate.get("number", 0)), str(record.get("created_at", "")), str(run_id))
        alone = store.with_records(rows, {run_id: record})
        runs.setdefault(str(gate.get("side", "new")), []).append((order, alone))
    ordered = {
        side: [table for _, table in sorted(found, key=lambda each: each[0])] for side, found in runs.items()
    }
    if same_code and len(ordered) == 1:
        (pool,) = ordered.values()
        turns = (*sides, *reversed(sides))
        ordered = {
            side: [each for place, each in enumerate(pool) if turns[place % len(turns)] == side]
            for side in sides
        }
    for side in sides:
        if not ordered.get(side):
            raise UserError(
                f"{', '.join(map(str, paths))}: expected recorded runs of the {side} side, and there are "
                f"{' and '.join(f'{len(found)} of {name}' for name, found in ordered.items()) or 'none at all'}"
            )
    return RecordedProcesses(runs={side: ordered[side] for side in sides})


def recorded_process(table: pa.Table, record: Mapping[str, Any]) -> Process:
    """The rows of a run with the seconds that its record tells."""
    effort = record.get("effort") or {}
    return Process(
        table=table,
        start_s=(effort.get("phases_s") or {}).get("start"),
        wall_s=effort.get("wall_s"),
        usual_s=effort.get("wall_s"),
    )
