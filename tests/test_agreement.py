"""The table of both clocks, from records of known truth; the records themselves need a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attnbench.case import Case, Launch, Workload
from attnbench.errors import UserError
from attnbench.measure.agreement import Agreement, agreement, main, measure, measure_nothing, table
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
    found = agreement(events_ms=[0.0194, 0.0202], calls=calls)
    assert (found.kernels, found.samples) == (2, 2)
    assert found.profiler_us == 19.5  # spans of 19 and 20
    assert found.beyond_us == pytest.approx(0.3)
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


def _agreement(events_us: float, span_us: float) -> Agreement:
    return agreement(events_ms=[events_us / 1e3], calls=[_spans(("a", 0, span_us))])


def test_only_long_cases_count_and_what_every_kernel_has_is_taken_off() -> None:
    """Of three long cases one agrees, one is 4 µs too long, as an empty kernel is, and one differs by itself."""
    found = {
        dataclasses.replace(CASE, seq_len=length): _agreement(*times)
        for length, times in ((1, (404, 400)), (2, (104, 100)), (3, (130, 100)), (4, (14, 10)))
    }
    text = table(found, nothing=_agreement(6, 2), device="a GPU", launch=Launch.GRAPH)
    assert text.startswith("# CUDA events against CUPTI on a GPU, launch graph\n")
    assert (
        "1 of 3 cases over 50 µs agree within 2%. Events take in 4.00 µs beyond the span in the median"
        in text
    )
    assert "writes one element: with 4.00 µs taken off 2 of 3 agree within 2%." in text
    second = dataclasses.replace(CASE, seq_len=2).case_id
    assert f"| {second} | 1 | 1 | 104.00 | 100.00 | 4.00 | 1.0400 | 1.0000 |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        main()


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("launch", Launch)
def test_both_clocks_agree_on_a_long_kernel(launch: Launch) -> None:
    """Events take in about 4 µs beside a kernel: 2 % of one of 200 µs. This one takes 270."""
    device = torch.device("cuda", 0)
    found = measure(dataclasses.replace(CASE, batch=8), device=device, samples=20, launch=launch)
    assert found.ratio == pytest.approx(1, abs=0.02)
    nothing = measure_nothing(device=device, samples=20, launch=launch)
    assert nothing.kernels == 1
    assert 0 < nothing.beyond_us < 20
    assert found.beyond_us == pytest.approx(nothing.beyond_us, abs=3)
