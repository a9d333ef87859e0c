"""Hand a sweep's batches to Slurm: an array of jobs with one GPU each, through submitit, over a shared folder.

A job writes its shards into the run's folder by itself, and what else is to be told into a journal there, a JSON line
for each event. The sweep's process waits, reads journals and shards, and asks Slurm how jobs ended. What jobs have left
over goes into another array.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.case import Case, Protocol
from attnbench.errors import UserError
from attnbench.executors.batch import Batch, Event, measure_batch
from attnbench.executors.batches import Batches, Flight
from attnbench.executors.run_folder import RunFolder
from attnbench.executors.supervised import Row
from attnbench.measure.clock import now_s

INSTALL = "pip install 'attnbench[slurm]'"

_POLL_S = 1.0  # between two looks at the journals
_ASK_S = 20.0  # between two questions to Slurm's accounting
_MINUTES = 240  # of a job, unless --slurm-option time=... says otherwise: submitit's own 5 are too few


def submitit_module() -> Any:
    """Raises UserError where submitit is not installed, or this machine cannot submit to Slurm."""
    import shutil

    try:
        import submitit
    except ImportError:
        raise UserError(f"the executor slurm needs submitit, which is not installed: {INSTALL}") from None
    lacking = [name for name in ("sbatch", "srun", "sacct", "scancel") if shutil.which(name) is None]
    if lacking:
        raise UserError(
            f"no Slurm here: {lacking[0]} is not on PATH; give the command on a machine that submits"
        )
    return submitit


@dataclass
class SlurmExecutor:
    """Measures the cases that a run folder lacks in jobs of a Slurm cluster that shares the folder."""

    submitit: Any
    folder: RunFolder
    kind: str
    protocol: Protocol
    gpus: int = 1  # jobs at a time
    partition: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)  # of sbatch, without the dashes
    notes: list[str] = field(default_factory=list)

    def run(
        self, cases: Iterable[Case], *, started: Callable[[Case], None], finished: Callable[[Row], None]
    ) -> None:
        """Measure every case that has no shard yet; `started` and `finished` hear of each.

        Raises UserError where Slurm takes no job, or job after job cannot measure.
        """
        begun = now_s()
        self._cancel(self.folder.record.get("slurm_jobs") or ())  # of a sitting that was killed
        batches = Batches(
            cases,
            folder=self.folder,
            kind=self.kind,
            protocol=self.protocol,
            started=started,
            finished=finished,
        )
        jobs: list[_Job] = []
        try:
            while jobs := self._submit(batches):
                self._follow(jobs, batches)
        except BaseException:
            self._cancel([each.job.job_id for each in jobs])
            raise
        finally:
            batches.book.spent(wall_s=now_s() - begun, worker_s=0.0, phases_s={})
            self.folder = batches.book.folder.with_record(slurm_jobs=[])
            self.notes += batches.notes

    @property
    def _jobs(self) -> Path:
        return self.folder.path / "jobs"

    def _submit(self, batches: Batches) -> list[_Job]:
        """An array with all that is left; empty when nothing is."""
        flights: list[Flight] = []
        while flight := batches.take(device=None, gpus=self.gpus):
            flights.append(flight)
        if not flights:
            return []
        names = [f"{os.getpid()}-{now_s():.0f}-{number}" for number in range(len(flights))]
        journals = [self._jobs.resolve() / f"{name}.jsonl" for name in names]
        executor, utils = self._executor(), self.submitit.core.utils
        try:
            sent = executor.map_array(
                run_job,
                [flight.batch for flight in flights],
                [self.folder.path.resolve()] * len(flights),
                journals,
            )
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            raise UserError(f"Slurm takes no job: {_last_line(str(error))}") from None
        jobs = [
            _Job(job, flight, journal) for job, flight, journal in zip(sent, flights, journals, strict=True)
        ]
        book = batches.book
        book.folder = book.folder.with_record(slurm_jobs=[each.job.job_id for each in jobs])
        return jobs

    def _executor(self) -> Any:
        executor = self.submitit.SlurmExecutor(folder=self._jobs.resolve())
        says_gpus = any("gpu" in f"{name}{value}" for name, value in self.options.items())
        own = {"gpus-per-node": 1} if self.kind == "cuda" and not says_gpus else {}
        known = {"job_name": f"attnbench-{self.folder.record.get('run_id', '')}", "time": _MINUTES}
        if self.partition is not None:
            known["partition"] = self.partition
        if "time" in self.options:
            del known["time"]
        executor.update_parameters(
            **known,
            array_parallelism=self.gpus,
            additional_parameters={**own, **self.options},
        )
        return executor

    def _follow(self, jobs: Sequence[_Job], batches: Batches) -> None:
        """Wait for jobs, taking note of what they tell."""
        waiting, asked = list(jobs), float("-inf")
        while waiting:
            ask = now_s() - asked >= _ASK_S
            if ask:
                waiting[0].job.watcher.update()  # one question for all
                asked = now_s()
            for each in tuple(waiting):
                ended = each.ended(self.submitit)  # before its journal is read: what it wrote is there then
                for event in each.news():
                    batches.tell(each.flight, self._event(event), kept="kept" in event)
                if ended is not None:
                    waiting.remove(each)
                    if each.flight.left:
                        batches.lost(each.flight, reason=ended)
            if waiting:
                time.sleep(_POLL_S)

    def _event(self, event: Event) -> Event:
        if "kept" not in event:
            return event
        shard = self.folder.shard(event["kept"])
        if not shard.exists():
            return {"gone": event["kept"]}
        (row,) = store.read(shard).to_pylist()
        return {"row": row}

    def _cancel(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self.submitit.SlurmJob(folder=self._jobs, job_id=job_id).cancel(check=False)


@dataclass
class _Job:
    """A job as submitit knows it, and its journal."""

    job: Any
    flight: Flight
    journal: Path
    _read: int = 0

    def news(self) -> list[Event]:
        """The events that the job has written since the last call."""
        if not self.journal.exists():
            return []
        with self.journal.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]

    def ended(self, submitit: Any) -> str | None:
        """How the job ended, in words; None while it runs or waits."""
        if self.job.paths.result_pickle.exists():
            error = self.job.exception()
            return "its job ended" if error is None else f"its job failed: {_last_line(str(error))}"
        if not self.job.watcher.is_done(self.job.job_id, mode="cache"):
            return None
        told = self.job.watcher.get_info(self.job.job_id, mode="cache")
        return (
            f"its job {self.job.job_id} ended as {told.get('State')} on {told.get('NodeList') or 'no node'}"
        )


def run_job(batch: Batch, folder: Path, journal: Path) -> None:
    """A job's life, on its node: shards and journal into the shared folder."""
    run = RunFolder(path=folder, record={"run_id": batch.run_id})
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as lines:
        for event in measure_batch(batch, log=journal.with_suffix(".log")):
            if "row" in event:
                run.keep(event["row"])
                event = {"kept": event["row"]["case_id"]}
            lines.write(json.dumps(event) + "\n")
            lines.flush()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"
