"""Training under torchrun: what the first rank keeps, says and spares. The group here is of one process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnbench.errors import UserError
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE
from attnbench.models.distributed import Ranks, joined
from attnbench.models.findings import train_line
from attnbench.models.folder import Folder
from attnbench.models.records import TrainStep
from attnbench.models.running import LEAST_S, Outcome
from attnbench.models.together import measure_together
from attnbench.models.training import TrainRequest

CPU = torch.device("cpu")
REQUESTS = [
    TrainRequest(
        size="tiny",
        attention="lightning2",
        seq_len=length,
        tokens=128,
        checkpointing="none",
        precision="fp32",
    )
    for length in (16, 32, 64)
]


@pytest.fixture
def folder(group_of_one: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder[TrainStep]:
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))
    return Folder(path=tmp_path / "run", kind=TrainStep)


def _run(
    folder: Folder[TrainStep], *, budget_s: float | None = None, fails: int | None = None
) -> tuple[Outcome[TrainStep], list[str], list[int]]:
    """Of all requests: the outcome, what was said, and the lengths that were measured."""
    said: list[str] = []
    measured: list[int] = []

    def measure(request: TrainRequest) -> TrainStep:
        measured.append(request.seq_len)
        if request.seq_len == fails:
            raise SystemExit(1)  # as a rank ends whose partner ran out of memory
        return dataclasses.replace(request.blank(), median_ms=10.0, tokens_per_s=12800.0, device="a card")

    outcome = measure_together(
        REQUESTS, folder=folder, measure=measure, ranks=Ranks.alone(CPU), budget_s=budget_s,
        say=said.append, describe=train_line,
    )  # fmt: skip
    return outcome, said, measured


def test_each_case_is_told_with_its_speed_and_the_time_that_is_left(folder: Folder[TrainStep]) -> None:
    outcome, said, _ = _run(folder)
    assert [row.seq_len for row in outcome.rows] == [16, 32, 64]
    assert outcome.left == 0
    assert said[0].startswith(
        "[1/3] train.tiny.lightning2.N16.T128.none.fp32: 10.0 ms a step, 12.8 k tokens/s per GPU"
    )
    assert said[0].endswith(" s left)")
    assert said[2].startswith("[3/3] ")
    assert "left" not in said[2]
    assert folder.merged.exists()


def test_nothing_is_measured_twice_and_what_ended_the_processes_is_not_tried_again(
    folder: Folder[TrainStep],
) -> None:
    with pytest.raises(SystemExit):
        _run(folder, fails=32)
    outcome, said, measured = _run(folder)
    assert measured == [64]
    assert said[0] == f"1 of 3 cases in {folder.path} already: what is there is not measured again"
    assert [line.partition(" ")[0] for line in said[1:]] == [
        "[2/2]"
    ]  # of what was left, the crashed one with it
    assert [row.status for row in outcome.rows] == ["ok", "crashed", "ok"]
    assert "ended during this case" in (outcome.rows[1].reason or "")
    assert _run(folder)[2] == []


def test_a_budget_that_has_ended_leaves_the_rest(folder: Folder[TrainStep]) -> None:
    outcome, _, measured = _run(folder, budget_s=LEAST_S / 2)
    assert (measured, outcome.left) == ([], 3)


def test_more_ranks_than_gpus_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match=r"torchrun started 3 ranks .* torch sees 2; try --nproc-per-node 2"),
        joined("cuda"),
    ):
        pass


def test_what_one_rank_is_refused_ends_all_at_once(tmp_path: Path) -> None:
    """The lock of its device is held: the others, waiting for it, would be killed after half a minute."""
    script = tmp_path / "script.py"
    script.write_text("""
from attnbench.errors import UserError
from attnbench.models.distributed import joined

with joined("cpu") as ranks, ranks.together():
    if ranks.rank == 1:
        raise UserError("another attnbench is measuring on it")
print("went on")
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert done.stderr.count("UserError: another attnbench is measuring on it") == 1
    assert "SIGKILL" not in done.stderr


def test_a_group_of_one_passes_on_what_it_is_refused() -> None:
    with pytest.raises(UserError, match="no"), Ranks.alone(CPU).together():
        raise UserError("no")


def test_a_budget_leaves_nothing_of_what_is_there(folder: Folder[TrainStep]) -> None:
    _run(folder)
    outcome, _, measured = _run(folder, budget_s=LEAST_S / 2)
    assert (measured, outcome.left, len(outcome.rows)) == ([], 0, 3)
