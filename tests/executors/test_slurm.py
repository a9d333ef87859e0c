"""Slurm without Slurm: submitit's own interface over stand-ins for sbatch and its kin, and jobs that are lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import attnbench
from attnbench import store
from attnbench.case import Accuracy, Measurement, Status
from attnbench.errors import UserError
from attnbench.executors import slurm
from attnbench.executors.batch import Batch, Event
from attnbench.executors.engines import Engine
from attnbench.measure.pretending import VARIABLE
from tests.executors.sweeps import record, run, tiny

# Runs the array of a submitted script in the background, each job in a process of its own, as sbatch has it done.
_SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
text = pathlib.Path(sys.argv[-1]).read_text()
here = pathlib.Path(__file__).parent
(here / "submitted.sh").write_text(text)
array = re.search(r"--array=0-([0-9]+)%([0-9]+)", text)
jobs = range(int(array.group(1)) + 1) if array else [None]
state = here / "states"
for job in jobs:
    name = "77" if job is None else f"77_{{job}}"
    own = dict(os.environ, SLURM_JOB_ID=f"77{{job or 0}}", SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0",
               SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="node-s", CUDA_VISIBLE_DEVICES=str(job or 0))
    if job is not None:
        own.update(SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID=str(job))
    else:
        own.update(SLURM_JOB_ID="77")
    subprocess.Popen(["bash", sys.argv[-1]], env=own, stdout=open(here / "out", "a"), stderr=subprocess.STDOUT)
print("Submitted batch job 77")
"""
_SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with sbatch, srun, sacct and scancel."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "sbatch": _SBATCH.format(python=sys.executable),
        "srun": _SRUN,
        "sacct": "#!/bin/bash\necho 'JobID|State|NodeList'\n",
        "scancel": '#!/bin/bash\necho "$@" >> "$(dirname "$0")/cancelled"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(attnbench.__file__).parents[1]), prepend=os.pathsep)
    return folder


def test_an_array_of_jobs_measures_a_sweep_through_submitit(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'attnbench[slurm]'")
    monkeypatch.setenv(VARIABLE, "node-s:H200,H200")
    monkeypatch.setattr(slurm, "_POLL_S", 0.1)
    engine = Engine(
        name="slurm", gpus=2, slurm_partition="gpu", slurm_options={"constraint": "h200", "time": "30"}
    )
    sweep = tiny(tmp_path)
    outcome = run(sweep, tmp_path / "slurm-run", engine=engine)
    assert (outcome.left, outcome.notes) == (0, ())
    submitted = (stand_in / "submitted.sh").read_text()
    for line in ("--array=0-1%2", "--partition=gpu", "--constraint=h200", "--time=30", "--nodes=1"):
        assert f"#SBATCH {line}\n" in submitted
    frame = attnbench.load_results(tmp_path / "slurm-run" / "results.parquet")
    assert (frame["status"] == "ok").all()
    assert frame.groupby("seq_len")["gpu_index"].nunique().tolist() == [1, 1]  # a job for each comparison
    assert set(frame["gpu_index"]) == {0, 1}
    assert set(record(tmp_path / "slurm-run")["places"]) == {"node-s/0", "node-s/1"}
    assert sorted(frame["case_id"]) == sorted(case.case_id for case in sweep.cases())


# ---------------------------------------------------------------- jobs that are lost, in this process


class _Job:
    """As submitit's, of a job that has ended."""

    def __init__(self, number: int, *, error: Exception | None) -> None:
        self.job_id = f"9_{number}"
        self.paths = SimpleNamespace(result_pickle=Path(__file__))
        self.watcher = SimpleNamespace(update=lambda: None)
        self._error = error

    def exception(self) -> Exception | None:
        return self._error


class _Submitit:
    """The part of submitit's interface that the executor uses; a job is done before map_array returns."""

    def __init__(self) -> None:
        self.arrays: list[list[Batch]] = []
        self.cancelled: list[str] = []
        self.core = SimpleNamespace(
            utils=SimpleNamespace(FailedJobError=OSError, FailedSubmissionError=KeyError)
        )

    def SlurmExecutor(self, folder: Path) -> _Submitit:  # noqa: N802
        return self

    def SlurmJob(self, *, folder: Path, job_id: str) -> Any:  # noqa: N802
        return SimpleNamespace(cancel=lambda check: self.cancelled.append(job_id))

    def update_parameters(self, **_: Any) -> None:
        """Whatever they are."""

    def map_array(self, perform: Callable[..., None], *given: Any) -> list[_Job]:
        self.arrays.append(list(given[0]))
        jobs = []
        for number, arguments in enumerate(zip(*given, strict=True)):
            try:
                perform(*arguments)
                error = None
            except RuntimeError as raised:
                error = raised
            jobs.append(_Job(number, error=error))
        return jobs


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> _Submitit:
    made = _Submitit()
    monkeypatch.setattr(slurm, "submitit_module", lambda: made)
    return made


def _dying(times: int, case_id: str) -> Callable[..., Iterator[Event]]:
    """In place of `measure_batch`: the node dies so many times under one case."""
    left = [times]

    def measure(batch: Batch, *, log: Path) -> Iterator[Event]:
        yield {"place": {"device": "H200", "node": "n", "gpu_index": 0}, "ceilings": None}
        for case in batch.cases:
            yield {"begun": case.case_id}
            if case.case_id == case_id and left[0]:
                left[0] -= 1
                raise RuntimeError("Traceback ...\nNODE_FAIL")
            right = Accuracy(rel_err_o=0.0)
            done = Measurement(case=case, status=Status.OK, device="H200", started_at="2030", accuracy=right)
            yield {"row": store.row(done, run_id=batch.run_id)}
        yield {"phases_s": {"sample": 1.0}, "worker_s": 2.0}

    return measure


@pytest.mark.parametrize(("deaths", "status"), [(1, "ok"), (2, "crashed")], ids=["once", "twice"])
def test_a_lost_job_costs_the_case_in_flight(
    submitit: _Submitit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, status: str
) -> None:
    sweep = tiny(tmp_path)
    victim = sweep.cases()[0].case_id
    monkeypatch.setattr(slurm, "measure_batch", _dying(deaths, victim))
    outcome = run(sweep, tmp_path / "run", engine=Engine(name="slurm"))
    frame = attnbench.load_results(outcome.results).set_index("case_id")
    assert sorted(frame.index) == sorted(case.case_id for case in sweep.cases())
    assert frame["status"].to_dict() == {name: status if name == victim else "ok" for name in frame.index}
    assert len(submitit.arrays) == 1 + deaths
    assert submitit.arrays[1][0].cases[0].case_id == victim
    assert "NODE_FAIL" in outcome.notes[0]
    if status == "crashed":
        assert "lost twice: its job failed: NODE_FAIL (last on n/0)" in str(frame.loc[victim, "reason"])
    assert outcome.effort is not None
    assert outcome.effort["worker_s"] > 0


def test_a_row_that_is_gone_from_the_disk_is_measured_once_more(
    submitit: _Submitit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job, whose cases were taken back from it, may have written over it; what that wrote is discarded."""
    sweep, path = tiny(tmp_path), tmp_path / "run"
    victim = sweep.cases()[0].case_id
    gone = [path / "shards" / f"{victim}.parquet"]

    def measure(batch: Batch, *, log: Path) -> Iterator[Event]:
        for event in _dying(0, "")(batch, log=log):
            yield event
            if event.get("row", {}).get("case_id") == victim and gone:
                gone.pop().unlink()

    monkeypatch.setattr(slurm, "measure_batch", measure)
    outcome = run(sweep, path, engine=Engine(name="slurm"))
    assert (outcome.left, outcome.notes) == (0, ())
    assert [case.case_id for batch in submitit.arrays[1] for case in batch.cases] == [victim]


def test_jobs_of_a_killed_sitting_are_cancelled_first(
    submitit: _Submitit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny(tmp_path)
    monkeypatch.setattr(slurm, "measure_batch", _dying(0, ""))
    outcome = run(sweep, tmp_path / "run", engine=Engine(name="slurm"))
    outcome.folder.with_record(slurm_jobs=["9_0", "9_1"])
    run(sweep, tmp_path / "run", engine=Engine(name="slurm"), resume=True)
    assert submitit.cancelled == ["9_0", "9_1"]
    assert len(submitit.arrays) == 1  # nothing was measured again


def test_a_submission_that_fails_is_one_sentence(
    submitit: _Submitit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("sbatch: error\nsbatch: error: invalid partition specified: gpus")

    monkeypatch.setattr(submitit, "map_array", refuse)
    with pytest.raises(
        UserError, match="Slurm takes no job: sbatch: error: invalid partition specified: gpus"
    ):
        run(tiny(tmp_path), tmp_path / "run", engine=Engine(name="slurm"))
