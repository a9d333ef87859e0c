"""What stays between the runs of one command: one worker, one lock, and nothing behind it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import UserError
from attnbench.executors import idle, supervised
from attnbench.executors import lock as locks
from attnbench.executors.idle import between_runs
from attnbench.executors.lock import device_lock
from attnbench.executors.worker_process import WorkerProcess
from attnbench.store import load_results
from attnbench.sweeping import InterruptedSweepError
from tests.executors.sweeps import Machine, run, tiny


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """The workers of sweeps, as they are started."""
    workers: list[WorkerProcess] = []

    def start(**given: Any) -> WorkerProcess:
        workers.append(WorkerProcess(**given))
        return workers[-1]

    monkeypatch.setattr(supervised, "WorkerProcess", start)
    return workers


def test_sweeps_of_one_command_share_a_worker_that_ends_with_it(
    started: list[WorkerProcess], tmp_path: Path
) -> None:
    sweep = tiny(tmp_path)
    with between_runs():
        for name in ("one", "two"):
            assert run(sweep, tmp_path / name).left == 0
            assert started[0].alive
            frame = load_results(tmp_path / name)
            assert list(frame["status"]) == ["ok"] * len(sweep.cases())
            assert frame["run_id"].str.startswith("tiny").all()
    assert len(started) == 1
    assert not started[0].alive
    assert (
        load_results(tmp_path / "one")["run_id"].iloc[0] != load_results(tmp_path / "two")["run_id"].iloc[0]
    )


def test_without_such_a_block_each_sweep_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sweep, machine = tiny(tmp_path), Machine(device="H200", processes=3)
    monkeypatch.setattr(supervised, "WorkerProcess", machine.start)
    for left in (2, 1):
        run(sweep, tmp_path / f"own-{left}")
        assert machine.processes == left
    with between_runs():
        for name in ("one", "two"):
            run(sweep, tmp_path / name)
    assert machine.processes == 0


def test_the_lock_is_held_between_the_runs_and_not_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.0)

    def refused() -> bool:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(device_lock("cpu"))
            except UserError as error:
                return "another attnbench is timing on cpu" in str(error)
        return False

    with between_runs():
        assert not refused()
        with idle.lock("cpu") as first:
            assert refused()
        assert refused()
        with idle.lock("cpu") as second:
            assert second == first
    assert not refused()
    with idle.lock("cpu"):
        assert refused()
    assert not refused()


class _Worker:
    def __init__(self, **given: Any) -> None:
        self.given, self.alive, self.ended = given, True, 0

    def end(self) -> None:
        self.alive, self.ended = False, self.ended + 1


def _worker(module: str, *, log: Path = Path("log")) -> _Worker:
    return idle.worker(_Worker, log=log, inherit=(), module=module)


def test_only_one_of_the_same_kind_is_taken_and_another_kind_finds_the_device_free() -> None:
    with between_runs():
        first = _worker("sweeps")
        assert first.given == {"log": Path("log"), "inherit": (), "module": "sweeps"}
        idle.end(first)
        assert _worker("sweeps", log=Path("other")) is first
        assert _worker("sweeps") is not first  # it is at work
        idle.end(first)
        assert first.ended == 1  # only the one that was started last waits
        second = _worker("models")
        idle.end(second)
        third = _worker("sweeps")
        assert (second.ended, third.ended) == (1, 0)
        third.alive = False  # it died of something
        idle.end(third)
        fourth = _worker("sweeps")
        assert fourth is not third
        idle.end(fourth)
        fourth.alive = False  # while it waited
        assert _worker("sweeps") is not fourth
    assert fourth.ended == 0


@pytest.mark.parametrize("after", [True, False], ids=["between-runs", "in-a-run"])
def test_what_is_interrupted_leaves_none(
    after: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep, machine = tiny(tmp_path), Machine(device="H200", processes=1)
    played: list[Any] = []

    def start(**given: Any) -> Any:
        played.append(machine.start(**given))
        if not after:
            monkeypatch.setattr(played[-1], "ask", _interrupted)
        return played[-1]

    monkeypatch.setattr(supervised, "WorkerProcess", start)

    def sit() -> None:
        with between_runs():
            run(sweep, tmp_path / "one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if after else InterruptedSweepError):
        sit()
    assert [worker.alive for worker in played] == [False]
    with device_lock("cpu"):
        pass


def _interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt
