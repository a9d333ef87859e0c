"""Which case goes where: by GPU model, once, and once more when it was lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench import store
from attnbench.case import Case, Measurement, Protocol, Status, Workload
from attnbench.errors import UserError
from attnbench.executors.batches import Batches, Flight
from attnbench.executors.queue import CaseQueue, Slot, bound_by, comparison_of
from attnbench.executors.run_folder import open_run
from attnbench.executors.supervised import Row


def _case(mechanism: str, seq_len: int = 16, **changes: Any) -> Case:
    given = {"workload": Workload.FWD, "batch": 1, "heads": 2, "head_dim": 16, "dtype": "fp32", **changes}
    return Case(mechanism=mechanism, seq_len=seq_len, **given)


CASES = [_case(name, n) for n in (16, 32, 64) for name in ("lightning2", "flash2")]
H200, OTHER_H200, A100 = (
    Slot(device="H200", name="a/0"),
    Slot(device="H200", name="a/1"),
    Slot(device="A100", name="b/0"),
)


def test_a_window_does_not_part_what_is_compared() -> None:
    windows = [_case("streaming-llm", window=window) for window in (8, 16)]
    assert {comparison_of(case) for case in (*windows, CASES[0])} == {"fwd.B1-H2-N16-D16.fp32"}


@given(turns=st.lists(st.sampled_from([H200, OTHER_H200, A100]), min_size=30, max_size=60))
def test_a_comparison_stays_on_one_model_and_nothing_is_handed_out_twice(turns: list[Slot]) -> None:
    queue, where = CaseQueue(cases=CASES), dict[str, Slot]()
    for slot in turns:
        case = queue.take(slot)
        if case is not None:
            assert case.case_id not in where
            where[case.case_id] = slot
            queue.done(case.case_id)
    models: dict[str, set[str | None]] = {}
    for case in CASES:
        if case.case_id in where:
            models.setdefault(comparison_of(case), set()).add(where[case.case_id].device)
    assert all(len(each) == 1 for each in models.values())
    left = {case.case_id for case in CASES} - set(where)
    assert all(queue.bound[comparison_of(case)] not in {s.device for s in turns[-1:]} for case in queue.held)
    assert left == {case.case_id for case in queue.held}


def test_what_was_decided_before_holds() -> None:
    queue = CaseQueue(cases=CASES, bound={comparison_of(CASES[0]): "A100"})
    assert queue.take(H200) == CASES[2]
    assert queue.take(A100) == CASES[0]


def test_a_lost_case_is_tried_elsewhere_and_given_up_when_it_is_lost_again() -> None:
    queue = CaseQueue(cases=CASES)
    for slot in (H200, OTHER_H200):
        queue.join(slot)
    case = queue.take(H200)
    assert case == CASES[0]
    assert queue.lost(case)
    assert queue.take(H200) == CASES[1]  # not there again, as there is another
    assert queue.take(OTHER_H200) == case
    assert not queue.lost(case)
    assert case not in queue.held


def test_a_lost_case_is_tried_in_its_place_where_there_is_no_other() -> None:
    queue = CaseQueue(cases=CASES)
    for slot in (H200, A100):
        queue.join(slot)
    case = queue.take(H200)
    assert case is not None
    assert queue.lost(case)
    assert queue.take(H200) == case


def test_a_slot_waits_for_what_may_come_back() -> None:
    queue, taken = CaseQueue(cases=CASES[:1]), list[Case | None]()
    case = queue.take(H200)
    assert case is not None
    waiting = threading.Thread(target=lambda: taken.append(queue.take(OTHER_H200)))
    waiting.start()
    assert queue.lost(case)
    waiting.join(timeout=20)
    assert taken == [case]
    assert queue.take(A100) is None  # and one of another model does not


def test_cases_are_asked_for_when_a_slot_is_free() -> None:
    asked: list[Case] = []

    def cases() -> Iterator[Case]:
        for case in CASES:
            asked.append(case)
            yield case

    queue = CaseQueue(cases=cases())
    queue.take(H200)
    assert asked == CASES[:1]


def test_a_comparison_stays_whole_where_another_lies_within_it() -> None:
    """A mechanism whose values are wider by itself is a comparison of its own, between the others in the order."""
    names = {"lightning2": 16, "retnet": 32, "flash2": 16}
    cases = [_case(name, n, value_dim=width) for n in (16, 32, 64) for name, width in names.items()]
    queue = CaseQueue(cases=(), held=list(cases), bound={comparison_of(cases[3]): "A100"})
    taken = []
    while batch := queue.take_comparisons(Slot(), at_most=2):
        taken.append([(case.mechanism, case.seq_len) for case in batch])
    assert taken == [
        [("lightning2", 16), ("retnet", 16), ("flash2", 16)],
        [("lightning2", 32), ("flash2", 32)],  # bound, and what comes next is not
        [("retnet", 32), ("lightning2", 64), ("flash2", 64)],
        [("retnet", 64)],
    ]


# ---------------------------------------------------------------- batches and their events


def _row(case: Case, device: str) -> Row:
    done = Measurement(case=case, status=Status.OK, device=device, started_at="2030")
    return store.row(done, run_id="r")


class _Run:
    """Batches of a run folder, and who heard of what."""

    def __init__(self, path: Path) -> None:
        self.folder = open_run(path, record={"run_id": "r", "sweep": "s", "device": "cpu"}, resume=True)
        self.begun: list[Case] = []
        self.finished: list[Row] = []
        self.batches = Batches(
            CASES, folder=self.folder, kind="cpu", protocol=Protocol(),
            started=self.begun.append, finished=self.finished.append,
        )  # fmt: skip

    def take(self, device: str | None = None) -> Flight:
        flight = self.batches.take(device=device, gpus=8)
        assert flight is not None
        return flight

    def place(self, flight: Flight, device: str, node: str = "a") -> None:
        environment = {"device": device, "node": node, "gpu_index": 0}
        self.batches.tell(flight, {"place": environment, "ceilings": {"copy_gbps": 1.0}})

    def measure(self, flight: Flight, case: Case, device: str = "H200") -> None:
        self.batches.tell(flight, {"begun": case.case_id})
        self.batches.tell(flight, {"row": _row(case, device)})

    def taken_back(self) -> Flight:
        """A batch of the first comparison that landed on an H200, when another one had bound it to the A100."""
        flight = self.take()
        self.batches._queue.bound[comparison_of(CASES[0])] = "A100"
        self.place(flight, "H200")
        assert not flight.left
        return flight


def test_a_batch_is_a_comparison_and_the_rest_of_a_lost_one_is_not_at_fault(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    flight = run.take()
    assert list(flight.batch.cases) == CASES[:2]
    run.place(flight, "H200")
    run.batches.tell(flight, {"begun": CASES[0].case_id})
    run.batches.lost(flight, reason="the node died")
    again = run.take("H200")
    assert list(again.batch.cases) == CASES[:2]
    assert again.batch.device == "H200"
    assert again.batch.ceilings == {"a/0": {"copy_gbps": 1.0}}
    run.place(again, "H200", node="b")
    run.batches.tell(again, {"begun": CASES[0].case_id})
    run.batches.lost(again, reason="the other node died")
    (row,) = run.finished
    assert (row["case_id"], row["status"], row["node"]) == (CASES[0].case_id, "crashed", "b")
    assert row["reason"] == "lost twice: the other node died (last on b/0)"
    assert run.folder.done() == {CASES[0].case_id}
    assert list(run.take("H200").batch.cases) == CASES[1:2]
    assert [note.split(" ")[0] for note in run.batches.notes] == [CASES[0].case_id]


def test_a_batch_that_landed_on_another_model_goes_to_the_end(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    first = run.take()
    run.place(first, "H200")
    run.measure(first, CASES[0])
    run.batches.lost(first, reason="preempted between two cases")
    second = run.take()
    assert list(second.batch.cases) == CASES[1:2]
    run.batches.tell(second, {"misplaced": "A100"})
    assert list(run.take("A100").batch.cases) == CASES[2:4]
    resumed = bound_by(store.load_table(tmp_path).to_pylist())
    assert resumed == {comparison_of(CASES[0]): "H200"}


def test_what_cannot_be_placed_is_left_for_a_later_sitting(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    for _ in range(3):
        flight = run.take()
        run.batches.tell(flight, {"misplaced": "A100"})
    assert run.batches.take(device=None, gpus=8) is None
    assert run.batches.left == len(CASES)


def test_one_refusal_is_an_accident_and_three_are_the_answer(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    for _ in range(2):
        run.batches.tell(run.take(), {"refused": "another attnbench is timing there"})
    with pytest.raises(UserError, match="nothing can be measured: another attnbench is timing there"):
        run.batches.tell(run.take(), {"refused": "another attnbench is timing there"})


def test_what_a_batch_goes_on_to_tell_of_cases_that_were_taken_back_counts_for_nothing(
    tmp_path: Path,
) -> None:
    run = _Run(tmp_path)
    flight = run.taken_back()
    run.measure(flight, CASES[0])
    assert not run.begun
    run.batches.tell(flight, {"begun": CASES[1].case_id})
    again = run.take("A100")
    assert list(again.batch.cases) == CASES[:2]
    run.place(again, "A100", node="b")
    for case in CASES[:2]:
        run.measure(again, case, "A100")
    for _ in range(3):  # and it is no refusal either, which would end the sweep
        run.batches.lost(flight, reason="the node died")
    assert run.batches.left == len(CASES[2:])  # what was in flight there is done
    assert not run.batches.notes
    assert [row["device"] for row in run.finished] == ["A100", "A100"]


def test_a_case_that_was_taken_back_while_it_was_begun_is_not_lost_with_its_batch(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    flight = run.take()
    run.place(flight, "H200")
    run.batches.tell(flight, {"begun": CASES[0].case_id})
    run.batches.tell(flight, {"refused": "no worker process starts any more"})
    run.measure(run.take("H200"), CASES[0])
    run.batches.lost(flight, reason="the node died")
    assert CASES[0] not in run.batches._queue.held
    assert not run.batches.notes


@pytest.mark.parametrize("when", ["nobody's", "somebody's", "done"])
def test_a_job_leaves_no_row_of_a_case_that_was_taken_back(tmp_path: Path, when: str) -> None:
    """It writes rows by itself, whoever has the case meanwhile: the right one is measured later, or once more."""
    run = _Run(tmp_path)
    flight = run.taken_back()
    again = None
    if when != "nobody's":
        again = run.take("A100")
        run.place(again, "A100", node="b")
    if again and when == "done":
        for case in CASES[:2]:
            run.measure(again, case, "A100")
    wrong = _row(CASES[0], "H200")
    run.folder.keep(wrong)
    run.batches.tell(flight, {"row": wrong}, kept=True)
    assert CASES[0].case_id not in run.folder.done()
    assert (CASES[0] in run.batches._queue.held) is (when != "somebody's")
    if again and when == "somebody's":
        run.batches.tell(again, {"begun": CASES[0].case_id})
        run.batches.tell(again, {"gone": CASES[0].case_id})  # the wrong row had been put over its own
        assert again.left == CASES[1:2]
    last = run.take("A100")
    assert last.batch.cases[0] == CASES[0]


def test_a_row_of_the_right_model_stays_whoever_wrote_it(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    flight = run.taken_back()
    right = _row(CASES[0], "A100")  # of the batch that has the case now, over the other's
    run.folder.keep(right)
    run.batches.tell(flight, {"row": right}, kept=True)
    assert run.folder.done() == {CASES[0].case_id}
