"""The table of both clocks, from records of known truth; the records themselves need a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attnbench.case import Case, Workload
from attnbench.errors import UserError
from attnbench.measure.agreement import agreement, main, measure, table
from attnbench.measure.timeline import Span, by_call

CASE = Case(
    mechanism="lightning2", workload=Workload.FWD, batch=1, heads=16, seq_len=8192, head_dim=128, dtype="bf16"
)


def _spans(*pieces: tuple[str, float, float]) -> list[Span]:
    return [Span(name=name, start_us=start, end_us=end) for name, start, end in pieces]


def test_calls_are_told_apart_by_what_clears_the_cache() -> None:
    """Two calls of two kernels each, recorded out of order, behind a warm-up that is not theirs."""
    spans = _spans(
        ("b", 30, 40), ("flush", 10, 20), ("a", 21, 29), ("a", 0, 5), ("flush", 50, 60), ("a", 61, 70), ("b", 72, 81)
    )  # fmt: skip
    calls = by_call(spans, flush="flush", calls=2)
    assert [[span.name for span in call] for call in calls] == [["a", "b"], ["a", "b"]]
    found = agreement(CASE, events_ms=[0.0194, 0.0202], calls=calls)
    assert (found.kernels, found.samples) == (2, 2)
    assert found.profiler_us == 19.5  # spans of 19 and 20
    assert found.ratio == pytest.approx((19.4 / 19 + 20.2 / 20) / 2)


@pytest.mark.parametrize(
    "spans",
    [
        _spans(("flush", 0, 1), ("a", 2, 3)),
        _spans(("flush", 0, 1), ("flush", 2, 3), ("a", 4, 5)),
        _spans(),
    ],
    ids=["a flush is missing", "a call is missing", "nothing"],
)
def test_records_with_gaps_are_refused(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match=r"the profiler saw .* expected 2"):
        by_call(spans, flush="flush", calls=2)


def test_only_long_cases_count() -> None:
    long_, off, short = (
        agreement(CASE, events_ms=[events], calls=[_spans(("a", 0, length))])
        for events, length in ((0.101, 100), (0.11, 100), (0.02, 10))
    )
    text = table([long_, off, short], device="a GPU")
    assert "1 of 2 cases over 50 µs agree within 2 %" in text
    assert f"| {CASE.case_id} | 1 | 1 | 101.00 | 100.00 | 1.0100 |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        main()


@pytest.mark.gpu
def test_both_clocks_agree_on_a_long_kernel() -> None:
    """Events take in 2 to 3 µs before a kernel begins: 2 % of a kernel of 150 µs. This one takes 270."""
    found = measure(dataclasses.replace(CASE, batch=8), device=torch.device("cuda", 0), samples=20)
    assert found.ratio == pytest.approx(1, abs=0.02)
