"""`attnbench watch`: progress read from a folder while, after, and in spite of a sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench import store, watching
from attnbench.case import Measurement, Status
from attnbench.cli import Exit, app
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock, run_lock
from attnbench.executors.run_folder import RunFolder, open_run
from attnbench.stats import summarize
from attnbench.sweeping import new_record
from attnbench.sweeps.files import preset_names
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Sweep, sweep_of_record

Keep = Callable[[int], None]


@pytest.fixture
def sweep() -> Sweep:
    return load("ci", device="cpu")


@pytest.fixture
def folder(tmp_path: Path, sweep: Sweep) -> RunFolder:
    return open_run(tmp_path / "run", record=new_record(sweep, command=["sweep", "ci"]), resume=False)


@pytest.fixture
def keep(folder: RunFolder, sweep: Sweep) -> Keep:
    """Finishes the case of that number, 2 s after the one before it."""

    def keep_one(number: int) -> None:
        case = sweep.cases()[number]
        status = Status.OOM if number == 1 else Status.OK
        found = Measurement(
            case=case,
            status=status,
            reason="full",
            started_at=f"2026-01-02T03:00:{2 * number:02d}+00:00",
            timing=None if status is Status.OOM else summarize([1.0] * 6),
        )
        folder.keep(store.row(found, run_id=folder.run_id))

    return keep_one


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)])


def test_a_sweep_under_way(folder: RunFolder, keep: Keep) -> None:
    """Three of nine cases in two intervals of 2 s: six more will take 12 s."""
    for number in range(3):
        keep(number)
    with run_lock(folder.run_id):
        state, rows = watching.Watcher(path=folder.path).look()
    assert (state.done, state.total, state.statuses) == (3, 9, {"ok": 2, "oom": 1})
    assert state.left_s == pytest.approx(12)
    assert state.sentence() == "3 of 9 cases (2 ok, 1 oom), about 12 s left."
    assert [row["started_at"][17:19] for row in rows] == ["00", "02", "04"]


def test_a_look_tells_what_is_new(folder: RunFolder, keep: Keep) -> None:
    watcher = watching.Watcher(path=folder.path)
    assert watcher.look()[1] == []
    keep(1)
    keep(0)
    assert [row["status"] for row in watcher.look()[1]] == ["ok", "oom"]
    assert watcher.look()[1] == []
    assert watcher.look()[0].done == 2


def test_a_run_that_came_without_its_shards(folder: RunFolder, keep: Keep) -> None:
    keep(0)
    keep(1)
    folder.merge()
    shutil.rmtree(folder.path / "shards")
    watcher = watching.Watcher(path=folder.path)
    state, rows = watcher.look()
    assert (state.done, [row["status"] for row in rows]) == (2, ["ok", "oom"])
    assert watcher.look()[1] == []


def test_a_sweep_that_stopped(folder: RunFolder, keep: Keep) -> None:
    keep(0)
    done = invoke(folder.path, "--once")
    assert done.exit_code == Exit.INCONCLUSIVE
    assert done.stdout == "1 of 9 cases (1 ok): stopped, as nothing measures it on this machine.\n"
    with device_lock("cpu"):  # somebody is at work there, on something else
        assert invoke(folder.path, "--once").exit_code == Exit.INCONCLUSIVE
    with run_lock(folder.run_id):
        assert invoke(folder.path, "--once").exit_code == Exit.FINE


def test_following_to_the_end(
    folder: RunFolder, keep: Keep, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case is one line as it ends; the last line says that it is finished."""
    todo = iter(range(len(sweep.cases())))
    monkeypatch.setattr("time.sleep", lambda _: keep(next(todo)))
    with run_lock(folder.run_id):
        done = invoke(folder.path)
    lines = done.stdout.splitlines()
    assert done.exit_code == Exit.FINE
    assert [line.split("]")[0] for line in lines[:-1]] == [f"[{n}/9" for n in range(1, 10)]
    assert lines[-1] == "9 of 9 cases (8 ok, 1 oom): finished."


def test_following_ends_when_the_sweep_has_stopped(
    folder: RunFolder, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(0)
    monkeypatch.setattr(watching, "_POLL_S", 0.0)
    done = invoke(folder.path, "--json")
    assert done.exit_code == Exit.INCONCLUSIVE
    assert json.loads(done.stdout)["stopped"] is True


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", preset_names())
def test_a_record_gives_its_sweep_back(name: str, device: Any) -> None:
    sweep = load(name, device=device)
    assert sweep_of_record(json.loads(json.dumps(sweep.as_dict()))) == sweep


def test_folders_that_hold_no_run(tmp_path: Path, folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"is no folder of a run \(it has no run\.json\)"):
        watching.Watcher(path=tmp_path).look()
    folder.with_record(sweep={"name": "ci"})
    with pytest.raises(UserError, match=r"names no sweep that this attnbench knows: 'description'"):
        watching.Watcher(path=folder.path).look()
