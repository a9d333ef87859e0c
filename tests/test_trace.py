"""What a traced call ran, and how long the device was at work on it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbench.case import Cache
from attnbench.measure.clock import open_clock
from attnbench.measure.timeline import Span
from attnbench.measure.trace import Trace, missing_kernel, of_spans, trace

CPU = torch.device("cpu")


def _spans(*found: tuple[str, float, float]) -> list[Span]:
    return [Span(name=name, start_us=start, end_us=end) for name, start, end in found]


def test_names_come_once_in_order_and_the_flush_is_not_among_them() -> None:
    spans = _spans(("b", 20, 24), ("fill", 0, 10), ("a", 12, 15), ("Memset (Device)", 16, 17), ("b", 30, 31))
    found = of_spans(spans, cleared=True)
    assert found.kernels == ("a", "b")
    assert found.busy_ms == pytest.approx(0.009)
    assert of_spans(spans, cleared=False).kernels == ("fill", "a", "b")
    assert of_spans(spans[1:2], cleared=True) == Trace(
        kernels=(), busy_ms=0.0
    )  # it looked on, and nothing ran


moments = st.integers(0, 60)
works = st.lists(
    st.tuples(moments, st.integers(0, 20)).map(lambda x: (x[0], x[0] + x[1])), min_size=1, max_size=8
)


@given(works)
def test_what_runs_side_by_side_counts_once(work: Sequence[tuple[int, int]]) -> None:
    """As many microseconds as there are in which something ran."""
    covered = {moment for start, end in work for moment in range(start, end)}
    found = of_spans(_spans(*(("k", start, end) for start, end in work)), cleared=False)
    assert found.busy_ms == pytest.approx(len(covered) * 1e-3)


def test_on_the_cpu_there_are_operators_and_no_busy_time() -> None:
    clock = open_clock(device=CPU, cache=Cache.COLD)
    seen = trace(lambda: torch.ones(2, 2) @ torch.ones(2, 2), clock=clock, device=CPU)
    assert seen.busy_ms is None
    assert "aten::mm" in (seen.kernels or ())


@pytest.mark.gpu
@pytest.mark.parametrize("cache", list(Cache))
def test_a_call_that_waits_is_busy_for_its_kernels_only(cache: Cache) -> None:
    device = torch.device("cuda", 0)
    x = torch.randn(2048, 2048, device=device)
    clock = open_clock(device=device, cache=cache)

    def call() -> None:
        for _ in range(2):
            torch.mm(x, x)
            torch.cuda.synchronize()

    clock.batch(call, 5)
    median_ms = sorted(clock.batch(call, 21))[10]
    seen = trace(call, clock=clock, device=device)
    assert seen.busy_ms is not None
    assert 0.5 * median_ms < seen.busy_ms < 1.1 * median_ms
    assert len(seen.kernels or ()) == 1


def test_a_profiler_that_brings_nothing_says_nothing_of_a_call() -> None:
    seen = of_spans([], cleared=True)
    assert seen == Trace(kernels=None, busy_ms=None)
    assert missing_kernel(seen.kernels, pattern="flash") is None
    assert missing_kernel((), pattern="flash") == "no kernel matching 'flash' ran; what ran: nothing"
