"""Run a sweep's cases on this machine, one worker process at a time on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from attnbench import store
from attnbench.case import Case, Status, Workload
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.measure.clock import now_s


@dataclass
class LocalExecutor:
    """Measures the cases that a run folder lacks and writes a shard for each."""

    folder: RunFolder
    worker: SupervisedWorker
    ceilings: bool = True  # measure the device's ceilings first, for the rates of the rows
    _overlong: list[Row] = field(default_factory=list)

    def run(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        """Measure every case that has no shard yet; `started` and `finished` hear of each.

        A case is asked for when the one before it is on disk, so that what comes may depend on what was found. The
        environment, the ceilings, and the wall time by phase go into the run's record.
        """
        done = self.folder.done()
        missing = (case for case in cases if case.case_id not in done)
        first = next(missing, None)
        if first is None:
            return
        self._overlong = self._timeouts_on_disk()
        begun = now_s()
        with self.worker.running() as worker:
            worker.ceilings = self.folder.record.get("ceilings")
            if self.ceilings:
                worker.measure_ceilings()
            worker.phases_s["start"] = now_s() - begun  # the worker's start and the ceilings
            self.folder = self.folder.with_record(environment=worker.environment, ceilings=worker.ceilings)
            try:
                for case in chain((first,), missing):
                    started(case)
                    row = self._row(case)
                    self.folder.keep(row)
                    finished(row)
                    time.sleep(worker.protocol.pause_s)
            finally:  # a sitting that is interrupted took its time too
                self._record_effort(wall_s=now_s() - begun)

    def _row(self, case: Case) -> Row:
        lighter = next((r for r in self._overlong if _is_no_lighter(case, than=r)), None)
        if lighter is None:
            row = self.worker.row(case)
            if row["status"] == Status.TIMEOUT:
                self._overlong.append(row)
            return row
        reason = (
            f"not attempted: batch {lighter['batch']}, heads {lighter['heads']}, seq_len {lighter['seq_len']} is no "
            f"more work and was over the limit ({lighter['reason']})"
        )
        return self.worker.unmeasured(case, status=Status.TIMEOUT, reason=reason)

    def _timeouts_on_disk(self) -> list[Row]:
        if not self.folder.done():
            return []
        rows = store.load_table(self.folder.path).to_pylist()
        return [r for r in rows if r["status"] == Status.TIMEOUT and "not attempted" not in r["reason"]]

    def _record_effort(self, *, wall_s: float) -> None:
        """Wall seconds in all and by phase, summed over the sittings of a resumed run."""
        before = self.folder.record.get("effort") or {"wall_s": 0.0, "phases_s": {}}
        phases = {
            name: before["phases_s"].get(name, 0.0) + self.worker.phases_s.get(name, 0.0)
            for name in {**before["phases_s"], **self.worker.phases_s}
        }
        self.folder = self.folder.with_record(
            effort={"wall_s": before["wall_s"] + wall_s, "phases_s": phases}
        )


def _is_no_lighter(case: Case, *, than: Row) -> bool:
    """Does a case do at least the work of a measured one?

    No shorter, no fewer tokens over all heads, as many heads to a key-value head, all else equal. The tokens of a
    decode are its sequences, so there it is: no shorter a context, no fewer sequences.
    """
    same = ("mechanism", "head_dim", "value_dim", "dtype", "causal", "window")
    tokens = Workload(than["workload"]).tokens(batch=than["batch"], seq_len=than["seq_len"])
    return (
        all(getattr(case, name) == than[name] for name in same)
        and str(case.workload) == than["workload"]
        and case.heads * than["kv_heads"] == than["heads"] * case.kv_heads
        and case.seq_len >= than["seq_len"]
        and case.tokens * case.heads >= tokens * than["heads"]
    )
