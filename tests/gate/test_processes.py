"""What a process of a gate takes, by a clock that its parts move: the start is paid once, whatever cases follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attnbench import store
from attnbench.case import Case, Measurement, Status
from attnbench.executors import local
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE
from attnbench.executors.run_folder import read_run
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.executors.worker_process import HERE
from attnbench.gate import processes
from attnbench.gate.measuring import Gate, Plan
from attnbench.gate.processes import FreshProcesses
from attnbench.gate.telling import Teller
from attnbench.gate.trees import Tree
from attnbench.options import make_console
from attnbench.stats import summarize
from attnbench.sweeps.loader import load

if TYPE_CHECKING:
    from attnbench.comparison.found import Comparison
    from tests.gate.conftest import Player

START_S, CASE_S, PROOF_S, END_S = 5.0, 2.0, 10.0, 1.0


@dataclass
class _Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Clock:
    """The clock of gate and executor; workers move it and are no processes."""
    clock = _Clock()

    class Worker(SupervisedWorker):
        @contextlib.contextmanager
        def running(self) -> Iterator[SupervisedWorker]:
            if self._running:
                yield self
                return
            clock.now += START_S
            self.environment, self._running = {"device": "a device"}, True
            yield self
            clock.now += END_S

        def row(self, case: Case, *, verify_only: bool = False) -> Row:
            clock.now += PROOF_S if "proof_only" in self.options else CASE_S
            measured = Measurement(case=case, status=Status.OK, timing=summarize([1.0, 1.1]))
            return store.row(measured, run_id=self.run_id)

    monkeypatch.setattr(processes, "SupervisedWorker", Worker)
    for module in (processes, local):
        monkeypatch.setattr(module, "now_s", clock)
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))
    return clock


def _source(player: Player, *, options: frozenset[str]) -> FreshProcesses:
    sweep = load("tiny.toml", device="cpu")
    tree = Tree(
        label="the working tree",
        interpreter=HERE,
        environment={},
        mechanisms=frozenset(case.mechanism for case in player.cases),
        workloads=frozenset({"fwd"}),
        options=options,
    )
    return FreshProcesses(
        sweep=replace(sweep, protocol=replace(sweep.protocol, pause_s=0.0)),
        folder=player.folder / "runs",
        trees={"base": tree, "new": tree},
        command=[],
        lock=(),
        teller=Teller(make_console()),
    )


@pytest.mark.parametrize("options", [frozenset({"timed_only", "proof_only"}), frozenset[str]()], ids=len)
def test_the_start_of_a_process_is_its_start_whatever_cases_follow(
    player: Player, clock: _Clock, options: frozenset[str]
) -> None:
    """Four cases, of which the first process of a side also proves each, if the trees can leave that to it."""
    source = _source(player, options=options)
    first, second = (source.process("new", number=number, cases=player.cases) for number in (1, 2))
    usual_s = START_S + 4 * CASE_S + END_S
    assert (first.wall_s, second.wall_s) == (usual_s + (4 * PROOF_S if options else 0), usual_s)
    for process in (first, second):
        assert (process.start_s, process.usual_s) == (START_S, usual_s)
        assert process.seconds_for(4) == usual_s
        assert process.seconds_for(1) == START_S + CASE_S + END_S / 4
    effort = read_run(source.folder_of("new", 1)).record["effort"]
    assert effort["phases_s"]["start"] == START_S
    assert effort["wall_s"] == effort["worker_s"] == START_S + 4 * CASE_S
    again = processes.recorded_process(first.table, {"effort": effort})
    assert again.seconds_for(1) == START_S + CASE_S, "a replay forecasts from the same start"


@pytest.mark.parametrize(("left_s", "rounds"), [(12.0, 2), (16.0, 3)])
def test_a_budget_pays_for_the_start_of_a_process_with_few_cases(
    player: Player, clock: _Clock, left_s: float, rounds: int
) -> None:
    """A third round of one case takes 16 s, of which 10 start its two processes."""
    begun, told = clock.now, list[str]()
    budget_s = 4 * (START_S + 4 * CASE_S + END_S) + 2 * 4 * PROOF_S + left_s
    gate = Gate(
        cases=player.cases,
        source=_source(player, options=frozenset({"timed_only", "proof_only"})),
        sides=("base", "new"),
        plan=Plan(processes=2, budget_s=budget_s),
        judge=_unasked,
        tell=told.append,
    )
    gate.rounds(until=2, cases=player.cases)
    gate.rounds(until=3, cases=player.cases[:1])
    assert sum(line.startswith("new, process") for line in told) == rounds
    assert clock.now - begun == gate.spent_s <= budget_s


def _unasked(*given: object) -> Comparison:
    raise AssertionError("nothing is judged here")
