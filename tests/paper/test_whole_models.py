"""Recording whole models: `attnbench model` in this process, and what becomes of its end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from attnbench.executors.idle import between_runs
from attnbench.executors.worker_process import WorkerProcess
from attnbench.models import running
from attnbench.models.records import Inference, TrainStep, read, read_environment
from attnbench.models.running import Run
from attnbench.paper.whole_models import Recorded, record

COMMAND = "model train-step --size tiny -a lightning2 --seq-len 32 --tokens 64 --steps 1 --device cpu"


def test_commands_are_run_here_their_records_name_them_and_those_of_a_kind_share_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training has an allocator of its own; between inference and losses nothing differs."""
    started: list[WorkerProcess] = []

    def start(**given: Any) -> WorkerProcess:
        started.append(WorkerProcess(**given))
        return started[-1]

    monkeypatch.setattr(running, "WorkerProcess", start)
    monkeypatch.setattr(sys, "argv", ["attnbench", "paper", "all"])
    alive = []
    with between_runs():
        for command in (
            COMMAND.replace("--seq-len 32", "--seq-len 16"),
            COMMAND,
            "model losses --size tiny -a lightning2 --task markov --steps 2 --seq-len 16 --batch 1 --device cpu",
            "model inference --size tiny -a lightning2 --phase decode --seq-len 8 --device cpu",
        ):
            assert record(command, folder=tmp_path, remaining_s=None) == Recorded(left=0)
            alive.append([worker.alive for worker in started])
    assert alive == [[True], [True], [False, True], [False, True]]
    assert not started[-1].alive
    assert {row.status for row in read(tmp_path, kind=TrainStep)} == {"ok"}
    assert [row.status for row in read(tmp_path, kind=Inference)] == ["ok"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/1] train.tiny.lightning2.N32" in err  # its progress is seen
    assert sys.argv == ["attnbench", "paper", "all"]
    assert read_environment(tmp_path, kind=TrainStep)["command"] == [
        *shlex.split(COMMAND), "--out", str(tmp_path), "--json",
    ]  # fmt: skip


def test_what_is_there_is_not_measured_again_and_what_is_no_command_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = record("model train-step --size 9B --device cpu", folder=tmp_path, remaining_s=None)
    assert made.failure == "attnbench model train-step --size 9B --device cpu ended with exit code 2"
    assert "error: " in capsys.readouterr().err
    assert record(COMMAND, folder=tmp_path, remaining_s=10.0) == Recorded(left=None)
    assert not list(tmp_path.iterdir())


def test_a_fault_costs_its_command_and_ctrl_c_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Any, requests: Any) -> Any:
        raise error

    monkeypatch.setattr(Run, "measure", measure)
    error: BaseException = ZeroDivisionError("a fault")
    made = record(COMMAND, folder=tmp_path, remaining_s=None)
    assert made == Recorded(left=0, failure=f"attnbench {COMMAND} ended with exit code 1")
    assert "ZeroDivisionError: a fault" in capsys.readouterr().err
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        record(COMMAND, folder=tmp_path, remaining_s=None)
