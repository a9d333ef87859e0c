"""Check every case in worker processes, spread over the GPUs that this process may see."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from attnbench.case import Case, Protocol
from attnbench.executors.engines import interpreters
from attnbench.executors.lock import device_lock
from attnbench.executors.supervised import NoWorkerError, Row, SupervisedWorker
from attnbench.measure.clock import now_s
from attnbench.measure.gpus import visible_gpus
from attnbench.verification.findings import Finding, findings
from attnbench.verification.kept import Kept, Records, keeping
from attnbench.verification.plan import Group, Plan, Progress, groups_of

_MOST_JOBS = 8  # on a GPU: compiling takes memory of the host
_LOOK_S = 0.2  # between two looks at workers that are to end


class End(Enum):
    """Why a sitting ended."""

    DONE = "all is checked"
    TIME = "the time was up"
    INTERRUPTED = "stopped"
    LOST = "no worker process starts any more"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found, in all sittings; empty where the time was up before it was known what the earlier ones had."""

    findings: list[Finding]
    left: int  # cases that are not checked yet
    end: End


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who hears of a sitting while it goes on.

    earlier: so many cases were checked in sittings before. finished: of each row, in the order in which they come, and
    of how far the sitting is. waiting: of what is still under way, each time that a worker finds nothing to begin.
    """

    earlier: Callable[[int], None] = lambda count: None
    finished: Callable[[Row, Progress], None] = lambda row, progress: None
    waiting: Callable[[Sequence[str]], None] = lambda names: None


def jobs_on(device: str) -> int:
    """How many workers check at once where nobody says: kernels compile on the host, one at a time in each."""
    gpus = len(visible_gpus(device))
    if device == "cpu":
        return max(1, gpus)
    return max(1, gpus, min(_MOST_JOBS * max(1, gpus), (os.cpu_count() or 1) // 2))


def verify(
    wanted: Sequence[Case],
    *,
    device: str,
    seed: int,
    jobs: int,
    listener: Listener,
    folder: Path | None = None,
    deadline_s: float | None = None,
) -> Outcome:
    """Check every case in one of `jobs` worker processes, which take the visible GPUs in turns.

    folder: keeps each row, so that nothing is checked twice on the same model of device with the same libraries,
    sources and seed. deadline_s: on the clock of `now_s`; what is under way then is broken off.

    Raises UserError when another attnbench times on one of the GPUs or is at the folder, or no worker starts.
    """
    if deadline_s is not None and now_s() >= deadline_s:
        return Outcome(findings=[], left=len(wanted), end=End.TIME)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-verify-")))
        lock = stack.enter_context(device_lock(device))
        kept = None if folder is None else stack.enter_context(keeping(folder))
        places = interpreters(device, gpus=None)
        protocol = Protocol(seed=seed)
        plan = Plan(groups_of(wanted, device=device), deadline_s=deadline_s, waiting=listener.waiting)
        workers = [
            SupervisedWorker(
                device=device,
                protocol=protocol,
                log=logs / f"worker-{number}.log",
                run_id="verify",
                lock=lock,
                interpreter=places[number % len(places)],
                replaceable=True,
            )
            for number in range(min(jobs, plan.progress().groups))
        ]
        sitting = _Sitting(
            wanted=wanted,
            plan=plan,
            workers=workers,
            kept=kept,
            records=Records(protocol),
            listener=listener,
            scouts=min(len(places), len(workers)),
        )
        end = sitting.run(deadline_s=deadline_s)
        found = findings(wanted, sitting.rows) if sitting.settled else []
        return Outcome(findings=found, left=len(wanted) - len(sitting.rows), end=end)


@dataclass(kw_only=True)
class _Sitting:
    """Workers at one plan, a thread for each.

    Where rows are kept, the first worker on each GPU is a scout: what they tell of their GPUs settles which of these
    rows still hold, and no other worker starts before it is known whether there is work for it.
    """

    wanted: Sequence[Case]
    plan: Plan
    workers: Sequence[SupervisedWorker]
    kept: Kept | None
    records: Records
    listener: Listener
    scouts: int
    rows: dict[int, Row] = field(default_factory=dict)
    settled: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lost: bool = False
    _found: list[Mapping[str, Any]] = field(default_factory=list)  # environments
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, *, deadline_s: float | None) -> End:
        """Check until all is done or something else ends it."""
        self.settled = not self.kept
        with ThreadPoolExecutor(max_workers=max(1, len(self.workers))) as threads:
            futures = [threads.submit(self._serve, *each) for each in enumerate(self.workers)]
            with self._all_ended(futures):
                try:
                    left_s = None if deadline_s is None else deadline_s - now_s()
                    for future in wait(futures, timeout=left_s, return_when=FIRST_EXCEPTION).done:
                        future.result()
                except KeyboardInterrupt:
                    return End.INTERRUPTED
        if len(self.rows) == len(self.wanted):
            return End.DONE
        return End.LOST if self._lost else End.TIME

    @contextmanager
    def _all_ended(self, futures: Sequence[Future[None]]) -> Iterator[None]:
        """No worker goes on after the block: threads cannot be ended, but what they wait for can."""
        try:
            yield
        finally:
            with self._changed:
                self._stopped.set()
                self._changed.notify_all()
            self.plan.close()
            while wait(futures, timeout=0).not_done:
                for worker in self.workers:
                    worker.stop()
                wait(futures, timeout=_LOOK_S)

    def _serve(self, number: int, worker: SupervisedWorker) -> None:
        """A thread's life: groups for one worker until there are none."""
        if number >= self.scouts:
            self._settling()
            if self._stopped.is_set() or number >= self.plan.progress().groups:
                return
        with worker.running():
            assert worker.environment is not None
            self._scouted(worker.environment)
            self._settling()
            while not self._stopped.is_set() and (group := self.plan.take(number)) is not None:
                try:
                    self._check(group, number=number, worker=worker)
                except NoWorkerError:
                    self._lost = True
                    self.plan.lost(number)
                    return

    def _check(self, group: Group, *, number: int, worker: SupervisedWorker) -> None:
        for place in group.places:
            if self._stopped.is_set():
                return
            case = self.wanted[place]
            row = worker.row(case, verify_only=True)
            if self._stopped.is_set():  # nobody waits for it, and its worker may have been ended
                return
            if self.kept is not None:
                assert worker.environment is not None
                record = self.records.of(case.mechanism, environment=worker.environment)
                row = {**row, "run_id": record["run_id"]}
                self.kept.keep(row, record=record)
            with self._changed:
                self.rows[place] = row
                self.plan.checked(number)
                self.listener.finished(row, self.plan.progress())

    def _settling(self) -> None:
        """Wait until it is known what is left to check."""
        with self._changed:
            self._changed.wait_for(lambda: self.settled or self._stopped.is_set())

    def _scouted(self, environment: Mapping[str, Any]) -> None:
        """Take note of where a worker is; the last scout's word settles which kept rows hold."""
        with self._changed:
            self._found.append(environment)
            if self.settled or len(self._found) < self.scouts:
                return
            assert self.kept is not None
            for place, case in enumerate(self.wanted):
                runs = {self.records.of(case.mechanism, environment=found)["run_id"] for found in self._found}
                row = self.kept.row(case.case_id, runs=runs)
                if row is not None:
                    self.rows[place] = row
            self.plan.without(self.rows)
            self.listener.earlier(len(self.rows))
            self.settled = True
            self._changed.notify_all()
