"""Diagnoses of profiles whose truth is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.case import Status
from attnbench.profiling import diagnosis, words
from attnbench.profiling.diagnosis import (
    BUSY_SHARE,
    HOST_FACTOR,
    IDLE_SHARE,
    SUM_TOLERANCE,
    Evidence,
    diagnose,
    judge,
)
from attnbench.profiling.found import Bound, Operator, Operators, Profile
from tests.profiling.samples import counters, profile, timeline, timing, work

KNOWN: dict[str, tuple[Profile, Bound, str]] = {
    "streams through DRAM": (
        profile(time_us=160, counters=(counters(time_us=170, dram=0.85, tensor=0.5, long_scoreboard=3.0),)),
        Bound.MEMORY,
        "DRAM is at 90% of its ceiling, close to its limit",  # 85 % over the 170 µs under ncu, in 160 µs
    ),
    "moves little by formula and much in truth": (
        profile(time_us=500, work=work(time_us=500, memory=0.3, matrix=0.2),
                counters=(counters(time_us=500, dram=0.7),)),
        Bound.MEMORY,
        "DRAM is at 70%",
    ),
    "memory bound by formula alone, no counters": (
        profile(time_us=160, work=work(time_us=160, memory=0.95, matrix=0.3)),
        Bound.MEMORY,
        "DRAM is at 95%",
    ),
    "stuck in shared memory": (
        profile(time_us=900, counters=(counters(time_us=900, dram=0.4, shared=0.76, l2=0.7),)),
        Bound.MEMORY,
        "the shared memory's data pipe is at 76%",
    ),
    "busy tensor cores": (
        profile(time_us=5000, counters=(counters(time_us=5000, dram=0.05, tensor=0.81, multiprocessor=0.82),)),
        Bound.TENSOR,
        "bound by the tensor cores: at 81%",
    ),
    "instructions beside the tensor cores": (
        profile(time_us=5000, counters=(counters(time_us=5000, dram=0.05, tensor=0.3, multiprocessor=0.77),)),
        Bound.ARITHMETIC,
        "at 77% of its peak",
    ),
    "waits": (
        profile(time_us=3000, counters=(counters(time_us=3000, dram=0.2, barrier=6.0, long_scoreboard=2.0),)),
        Bound.LATENCY,
        "warps wait most for a barrier (75% of what they wait for)",
    ),
    "many short kernels": (
        profile(time_us=100, timeline=timeline(busy_us=60, launches=20, gap_us=38), host_us=70.0),
        Bound.LAUNCHES,
        "the device is idle for 40% of the 0.100 ms, over 20 kernels that take 0.0600 ms in all, 3.00 µs each",
    ),
    "one kernel shorter than its launch": (
        profile(time_us=7, busy_us=4, host_us=5.0), Bound.LAUNCHES, "over one kernel that"
    ),
    "gaps because the host is late": (
        profile(time_us=200, timeline=timeline(busy_us=60, launches=20, gap_us=138), host_us=190.0),
        Bound.HOST,
        "the host takes 0.190 ms",
    ),
    "no gaps, as the host ran ahead while the cache was cleared": (
        profile(time_us=10, busy_us=9.5, host_us=40.0), Bound.HOST, "works for 9.50 µs"
    ),
    "no counters and no unit near its ceiling": (
        profile(time_us=3000), Bound.UNCLEAR, "without hardware counters"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given_", "bound", "said"), KNOWN.values(), ids=KNOWN)
def test_the_truth_is_found(given_: Profile, bound: Bound, said: str) -> None:
    found = diagnose(given_)
    assert found is not None
    assert (found.bound, said in found.sentence) == (bound, True), found.sentence
    assert found.figures


def test_the_figures_are_weighted_with_the_time_of_each_launch() -> None:
    long_, short = counters(time_us=900, dram=0.1, tensor=0.9), counters(time_us=100, dram=0.1, tensor=0.1)
    assert diagnosis.mean((long_, short), "tensor") == pytest.approx(0.82)
    assert diagnosis.traffic((long_, short)) == pytest.approx(0.1 * 4000e9 * 1000e-6)
    uncounted = dataclasses.replace(short, read_bytes=None)
    assert diagnosis.traffic((long_, uncounted)) is None  # a part of the traffic is no traffic


def test_what_torch_does_not_see_is_not_called_dispatch() -> None:
    found = diagnose(cpu((40, 10.0), call_us=21_000.0))
    assert found is not None
    assert found.bound is Bound.HOST
    assert "98% of the time is outside of torch's operators" in found.sentence


def cpu(*operators: tuple[int, float], call_us: float | None = None) -> Profile:
    """A call on the CPU of operators, each as how often it is called and the microseconds of each time."""
    whole = sum(calls * each_us for calls, each_us in operators)
    told = tuple(
        Operator(
            name=f"aten::{number}",
            calls=calls,
            time_us=calls * each_us,
            share=calls * each_us / whole,
            allocated_bytes=0,
        )
        for number, (calls, each_us) in enumerate(operators)
    )
    made = Operators(calls=3, operators=told, operators_us=whole, call_us=call_us or whole)
    return profile(time_us=call_us or whole, timeline=None, device_type="cpu", operators=made)


@pytest.mark.parametrize(
    ("operators", "bound"),
    [
        ([(100, 5.0)], Bound.HOST),
        ([(100, 500.0)], Bound.UNCLEAR),
        ([(1, 600.0), (50, 6.0)], Bound.UNCLEAR),  # 18 µs on average, of which most is one
        ([(1, 600.0), (150, 6.0)], Bound.HOST),
    ],
    ids=["short ones", "long ones", "a long one beside short ones", "short ones beside a long one"],
)
def test_a_cpu_is_its_own_host(operators: list[tuple[int, float]], bound: Bound) -> None:
    found = diagnose(cpu(*operators))
    assert found is not None
    assert found.bound is bound, found.sentence
    assert "launch" not in found.sentence


def test_what_was_not_timed_is_not_diagnosed() -> None:
    assert diagnose(profile(time_us=1, status=Status.OOM, reason="too large", timing=None)) is None


_SHARES = st.floats(0, 1.2)


@given(
    time_us=st.floats(1, 1e6),
    busy=st.floats(0.01, 1.05),
    host=st.floats(0.01, 5),
    memory=_SHARES,
    tensor=_SHARES,
    arithmetic=st.none() | _SHARES,
    counted=st.booleans(),
)
def test_every_verdict_keeps_to_its_threshold(
    time_us: float,
    busy: float,
    host: float,
    memory: float,
    tensor: float,
    arithmetic: float | None,
    counted: bool,
) -> None:
    found = judge(
        Evidence(
            time_us=time_us, busy_us=busy * time_us, launches=3, host_us=host * time_us, memory={"L2": memory},
            tensor={"tensor pipes": tensor}, arithmetic=arithmetic, counted=counted,
        )
    )  # fmt: skip
    late, idle, busiest = host >= HOST_FACTOR, 1 - busy >= IDLE_SHARE, max(memory, tensor)
    expected: dict[Bound, Any] = {
        Bound.HOST: late or idle,
        Bound.LAUNCHES: idle and not late,
        Bound.MEMORY: not idle and memory >= max(BUSY_SHARE, tensor),
        Bound.TENSOR: not idle and tensor >= BUSY_SHARE and tensor > memory,
        Bound.ARITHMETIC: busiest < BUSY_SHARE <= (arithmetic or 0.0),
        Bound.LATENCY: counted and busiest < BUSY_SHARE,
        Bound.UNCLEAR: not counted and busiest < BUSY_SHARE,
    }
    assert expected[found.bound]


@pytest.mark.parametrize(
    ("busy_us", "astray"), [(100.0, False), (98.0, False), (96.0, True), (104.0, True), (60.0, False)]
)
def test_kernels_that_do_not_sum_to_the_events_are_told(busy_us: float, astray: bool) -> None:
    """Within 3 % where the device bounds the call; a call with gaps is not expected to."""
    taken = profile(time_us=100, busy_us=busy_us)
    assert taken.timeline is not None
    taken = dataclasses.replace(taken, timeline=dataclasses.replace(taken.timeline, events_us=100.0))
    taken = dataclasses.replace(taken, diagnosis=diagnose(taken))
    assert taken.deviation == pytest.approx(busy_us / 100 - 1)
    assert words.sums_astray(taken) is astray
    assert any(f"more than {SUM_TOLERANCE:.0%}" in text for text in words.caveats(taken)) is astray
    assert any(f"{abs(busy_us - 100):.1f}%" in text for text in words.facts(taken))


@pytest.mark.parametrize(("events_us", "told"), [(102.0, None), (109.0, "9.0% more"), (91.0, "9.0% less")])
def test_another_clock_under_the_profiler_is_told(events_us: float, told: str | None) -> None:
    """The kernels still sum to the events of their own calls."""
    taken = profile(time_us=100, busy_us=events_us)
    assert taken.deviation == pytest.approx(0)
    texts = [text for text in words.caveats(taken) if "profiled calls took" in text]
    assert (not texts) if told is None else (told in texts[0])


def test_a_timing_stands_before_every_profiler() -> None:
    taken = profile(time_us=100, timing=timing(50))
    assert taken.time_us == pytest.approx(50)
    assert "before any profiler" in words.facts(taken)[0]
