"""What is asked of an engine that is not there, or not so large, is one sentence; and workers of several GPUs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli, store
from attnbench.case import Accuracy, Case, Measurement, Protocol, Status
from attnbench.errors import UserError
from attnbench.executors.book import rows_of
from attnbench.executors.engines import interpreters
from attnbench.executors.local import LocalExecutor
from attnbench.executors.run_folder import RunFolder, open_run
from attnbench.executors.supervised import NoWorkerError, Row, SupervisedWorker
from attnbench.measure.pretending import VARIABLE, VISIBLE, pretended
from tests.executors.sweeps import tiny

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What `attnbench sweep` says to these words; it must leave no folder behind."""

    def say(*words: str) -> str:
        tiny(tmp_path)
        out = tmp_path / "run"
        argv = ["attnbench", "sweep", str(tmp_path / "tiny.toml"), "--device", "cpu", "-o", str(out), *words]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == cli.Exit.USAGE
        assert not out.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return say


BAD = {
    "unknown": (["--executor", "rya"], "unknown executor 'rya'; did you mean 'ray'?"),
    "ray's": (["--ray-address", "h:1"], "--ray-address is for --executor ray, and this is --executor local"),
    "slurm's": (
        ["--executor", "ray", "--slurm-partition", "gpu"],
        "--slurm-partition is for --executor slurm, and this is --executor ray",
    ),
    "no value": (
        ["--executor", "slurm", "--slurm-option", "constraint"],
        "--slurm-option is 'constraint'; expected NAME=VALUE, as in constraint=h200",
    ),
    "too many": (["--gpus", "2"], "this machine has 0 GPUs, and --gpus asks for 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_words_are_one_sentence(refused: Refused, what: str) -> None:
    words, sentence = BAD[what]
    assert refused(*words) == sentence


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_says_how_to_get_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = refused("--executor", name)
    assert said.endswith(f"which is not installed: pip install 'attnbench[{name}]'")


def test_a_machine_without_slurm_is_one_sentence(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'attnbench[slurm]'")
    monkeypatch.setenv("PATH", "")
    assert refused("--executor", "slurm").startswith("no Slurm here: sbatch is not on PATH")


@pytest.mark.parametrize("port", ["1", "head"], ids=["nobody listens", "no port"])
def test_a_cluster_that_does_not_answer_is_one_sentence(refused: Refused, port: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'attnbench[ray]'")
    said = refused("--executor", "ray", "--ray-address", f"127.0.0.1:{port}")
    assert said.startswith(f"no Ray cluster answers at 127.0.0.1:{port} (")
    assert ("expected HOST:PORT" in said) is (port == "head")


@pytest.mark.parametrize("text", ["node-a", ":H200", "node-a:H200,,"], ids=["no gpus", "no node", "a gap"])
def test_what_is_to_be_pretended_must_be_said_whole(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError, match="expected a node and its GPUs"):
        pretended()


# ---------------------------------------------------------------- the GPUs of one machine


def test_each_gpu_gets_a_worker_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.variables for each in interpreters("cpu", gpus=None)] == [{}]
    monkeypatch.setenv(VARIABLE, "a:H200,H200,A100")
    assert [each.variables[VISIBLE] for each in interpreters("cpu", gpus=None)] == ["0", "1", "2"]
    assert [each.variables[VISIBLE] for each in interpreters("cpu", gpus=2)] == ["0", "1"]
    assert [each.variables for each in interpreters("cpu", gpus=1)] == [{}]
    monkeypatch.setenv(VISIBLE, "2,0")
    assert [each.variables[VISIBLE] for each in interpreters("cpu", gpus=None)] == ["2", "0"]
    monkeypatch.delenv(VISIBLE)
    with pytest.raises(UserError, match="this machine has 3 GPUs, and --gpus asks for 4"):
        interpreters("cpu", gpus=4)


class _Fake(SupervisedWorker):
    """A worker without a process. One whose log is called `dying` loses its device at its second case."""

    def measure_ceilings(self) -> None:
        self.ceilings = {}

    def _ready(self) -> Any:
        index = int(self.log.name[0])
        self.environment = {"device": "H200", "node": "a", "gpu_index": index}

    def row(self, case: Case, *, verify_only: bool = False) -> Row:
        self.phases_s["sample"] = self.phases_s.get("sample", 0.0) + 1.0
        if "dying" in self.log.name and self.phases_s["sample"] > 1:
            raise NoWorkerError("no worker process starts any more: no device")
        known = self.environment or {}
        done = Measurement(
            case=case, status=Status.OK, accuracy=Accuracy(rel_err_o=0.0), started_at="2030", **known
        )
        return store.row(done, run_id=self.run_id)


def _together(folder: RunFolder, *names: str) -> LocalExecutor:
    return LocalExecutor(
        folder=folder,
        workers=tuple(
            _Fake(device="cpu", protocol=Protocol(), log=folder.path / name, run_id="r") for name in names
        ),
    )


def test_a_lost_gpu_costs_no_case(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", record={"run_id": "r"}, resume=False)
    cases, begun, rows = tiny(tmp_path).cases(), list[str](), list[Row]()
    executor = _together(folder, "0-dying", "1")
    executor.run(cases, started=lambda case: begun.append(case.case_id), finished=rows.append)
    wanted = sorted(case.case_id for case in cases)
    assert sorted(str(row["case_id"]) for row in rows) == wanted
    assert {row["status"] for row in rows} == {"ok"}
    assert set(begun) == set(wanted)
    assert folder.done() == set(wanted)
    if executor.notes:  # the other worker may have been quicker with all of them
        assert executor.notes == [
            "A GPU was lost, and the others went on: no worker process starts any more: no device."
        ]


def test_all_gpus_lost_is_one_sentence_and_what_was_measured_stays(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", record={"run_id": "r"}, resume=False)
    executor = _together(folder, "0-dying", "1-dying")
    with pytest.raises(UserError, match="none of the 2 GPUs can be used any more: no worker process starts"):
        executor.run(tiny(tmp_path).cases(), started=lambda case: None, finished=lambda row: None)
    ended = [row["status"] for row in rows_of(folder)]  # the case that both have lost is a row, too
    assert ended.count("ok") == 2
    assert ended.count("crashed") == len(ended) - 2 <= 1


def test_ctrl_c_ends_every_worker(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", record={"run_id": "r"}, resume=False)
    executor = _together(folder, "0", "1")

    def interrupted(row: Row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run(tiny(tmp_path).cases(), started=lambda case: None, finished=interrupted)
    assert executor.folder.record["effort"]["wall_s"] >= 0
