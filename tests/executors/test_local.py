"""One GPU of this machine: what it does when the GPU is lost, and how a run goes on that was begun on another one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnbench
from attnbench import cli
from attnbench.errors import UserError
from attnbench.executors import supervised
from attnbench.executors.batch import Batch, measure_batch
from attnbench.executors.book import Book, rows_of
from attnbench.executors.run_folder import open_run, read_run
from attnbench.executors.worker_process import WorkerDiedError, WorkerHungError
from attnbench.measure.pretending import VARIABLE
from attnbench.places import environment_at
from attnbench.sweeping import Further
from tests.executors.sweeps import Machine, run, tiny

Sit = Callable[[Machine], None]


@pytest.fixture
def sit(monkeypatch: pytest.MonkeyPatch) -> Sit:
    """The machine that workers are on from now on."""

    def at(machine: Machine) -> None:
        monkeypatch.setattr(supervised, "WorkerProcess", machine.start)

    return at


def _statuses(path: Path) -> dict[str, str]:
    return {row["case_id"]: row["status"] for row in rows_of(read_run(path))}


# ---------------------------------------------------------------- a GPU that is lost


@pytest.mark.parametrize(
    "error", [WorkerDiedError("ended with exit code 1"), WorkerHungError("no answer within 180 s")], ids=str
)
def test_a_lost_gpu_ends_the_sweep_and_leaves_the_other_cases_open(
    sit: Sit, tmp_path: Path, error: Exception
) -> None:
    sweep, path = tiny(tmp_path), tmp_path / "run"
    first, second, *rest = [case.case_id for case in sweep.cases()]
    sit(Machine(device="H200", cases=1, dying=True, error=error))
    with pytest.raises(
        UserError, match=rf"no worker process starts on cpu any more: {error} \(see .*\); what was"
    ):
        run(sweep, path)
    assert _statuses(path) == {first: "ok", second: "crashed"}
    again = Machine(device="H200")
    sit(again)
    assert run(sweep, path, resume=True).left == 0
    assert again.begun == rest


def test_a_gpu_that_an_engine_lends_and_that_is_lost_costs_no_other_case(sit: Sit, tmp_path: Path) -> None:
    sweep = tiny(tmp_path)
    batch = Batch(cases=tuple(sweep.cases()), kind="cpu", protocol=sweep.protocol, run_id="r", variables={})
    sit(Machine(device="H200", cases=1, dying=True))
    events = list(measure_batch(batch, log=tmp_path / "log"))
    assert [event["row"]["status"] for event in events if "row" in event] == ["ok", "crashed"]
    assert str(events[-1]["refused"]).startswith("no worker process starts on cpu any more")


# ---------------------------------------------------------------- another model of GPU than before


def test_a_comparison_that_was_begun_on_another_model_is_left_out(
    sit: Sit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, path = tiny(tmp_path).cases(), tmp_path / "run"

    def sweep(machine: Machine, *more: str) -> object:
        sit(machine)
        words = ["sweep", str(tmp_path / "tiny.toml"), "--device", "cpu", "-o", str(path), "--no-plot", *more]
        monkeypatch.setattr(sys, "argv", ["attnbench", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert sweep(Machine(device="H100", node="h100-box", cases=1)) == cli.Exit.USAGE
    assert sweep(Machine(device="H200", node="h200-box"), "--resume") == cli.Exit.INCONCLUSIVE
    said = capsys.readouterr().err
    assert "1 of 4 cases are not measured, as no GPU of the model that they are bound to was there" in said
    frame = attnbench.load_results(path / "results.parquet")
    models = frame.groupby("seq_len")["device"].unique().map(list)
    assert models.to_dict() == {16: ["H100"], 24: ["H200"]}
    assert sweep(Machine(device="H100", node="h100-box"), "--resume") == 0
    assert sorted(_statuses(path)) == sorted(case.case_id for case in cases)


def test_cases_are_asked_for_one_by_one_and_none_for_ever(sit: Sit, tmp_path: Path) -> None:
    """A crossover asks for what it lacks, and what is bound to another model it will lack."""
    sweep, path = tiny(tmp_path), tmp_path / "run"
    cases, asked = sweep.cases(), list[int]()
    longer = dataclasses.replace(cases[0], seq_len=20)

    def refine(frame: Any) -> Further:
        asked.append(len(frame))
        return Further(cases=(cases[1], longer), left=2)

    sit(Machine(device="H100", node="h100-box", cases=1))
    with pytest.raises(UserError, match="no worker process starts"):
        run(sweep, path, refine=refine)
    machine = Machine(device="H200", node="h200-box")
    sit(machine)
    assert run(sweep, path, refine=refine, resume=True).left == 1
    assert asked == [3, 4]
    assert machine.begun == [*(case.case_id for case in cases[2:]), longer.case_id]


# ---------------------------------------------------------------- the same GPU, with something else on it

VERSIONS = {"torch": "2.10.0", "flash-attn": None, "numpy": "1.0"}
BEFORE: dict[str, Any] = {
    "attnbench": "1.0",
    "git": {"commit": "a" * 40, "dirty": False},
    "cuda": "12.8",
    "gpu": {"driver": "550.1", "uuid": "GPU-1"},
    "versions": VERSIONS,
}


def _begun(sit: Sit, tmp_path: Path) -> Path:
    """A run of one case, measured with all that `BEFORE` says."""
    sit(Machine(device="H200", cases=1, more=BEFORE))
    with pytest.raises(UserError, match="no worker process starts"):
        run(tiny(tmp_path), tmp_path / "run")
    return tmp_path / "run"


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "torch": ({"versions": {**VERSIONS, "torch": "2.11.0"}}, "torch 2.10.0, now 2.11.0"),
    "provider": ({"versions": {**VERSIONS, "flash-attn": "2.8.3"}}, "flash-attn not installed, now 2.8.3"),
    "several": ({"cuda": "13.0", "gpu": {"driver": "580.2"}}, "driver 550.1, now 580.2; CUDA 12.8, now 13.0"),
}


@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_run_is_not_resumed_where_what_measures_has_changed(
    sit: Sit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, gpus: int
) -> None:
    path = _begun(sit, tmp_path)
    before, (changes, said) = read_run(path).record["environment"], CHANGED[what]
    monkeypatch.setenv(VARIABLE, ",".join(["a:H200", "H200"][:gpus]))
    sit(Machine(device="H200", processes=gpus, more={**BEFORE, **changes}))
    sentence = (
        rf"^a/0 has changed since rows of the run in .* \({said}\), so it cannot be resumed; choose another"
    )
    with pytest.raises(UserError, match=sentence):
        run(tiny(tmp_path), path, resume=True)
    assert environment_at(read_run(path).record, node="a", gpu_index=0) == before


UNCHANGED: dict[str, dict[str, Any]] = {
    "commit": {"git": {"commit": "b" * 40, "dirty": True}},
    "our version": {"git": None, "attnbench": "1.1"},
    "what runs no case": {"versions": {**VERSIONS, "numpy": "2.0", "new": "1.0"}},
    "the unit": {"gpu": {"driver": "550.1", "uuid": "GPU-2"}},
    "what nobody tells": {"gpu": {"driver": None}, "cuda": None, "versions": {}},
}
NOTES = {
    "commit": f"ran commit {'b' * 12} with uncommitted changes; the run's record names commit {'a' * 12}, which its",
    "our version": f"ran attnbench 1.1; the run's record names commit {'a' * 12}, which its",
}


@pytest.mark.parametrize("what", UNCHANGED)
def test_a_resumed_run_names_the_environment_of_its_first_rows(sit: Sit, tmp_path: Path, what: str) -> None:
    path = _begun(sit, tmp_path)
    before = read_run(path).record["environment"]
    sit(Machine(device="H200", more={**BEFORE, **UNCHANGED[what]}))
    outcome = run(tiny(tmp_path), path, resume=True)
    assert outcome.left == 0
    assert environment_at(outcome.folder.record, node="a", gpu_index=0) == before
    assert [NOTES[what] in note for note in outcome.notes] == ([True] if what in NOTES else [])


def test_where_no_row_was_measured_a_later_environment_is_the_first(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", record={"run_id": "r"}, resume=False)
    for torch in ("2.10.0", "2.11.0"):
        environment = {"node": "a", "gpu_index": 0, "device": "H200", "versions": {"torch": torch}}
        book = Book.of(folder)
        book.found(environment=environment, ceilings=None)
        folder = book.folder
    assert folder.record["environment"] == environment
