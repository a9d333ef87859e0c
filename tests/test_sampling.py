"""When sampling stops, on a clock that tells scripted times."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from attnbench.case import Launch, Protocol, Timing
from attnbench.measure import sampling
from attnbench.measure.clock import Call
from attnbench.measure.runner import launched
from attnbench.measure.sampling import CaseTimeoutError, collect, warm_up
from attnbench.stats import relative_half_width


class ScriptedClock:
    """Samples from a script; time passes by them and by nothing else."""

    clears = False

    def __init__(self, samples_ms: Iterable[float]) -> None:
        self._script: Iterator[float] = iter(samples_ms)
        self.now_s = 1000.0
        self.clear_ms = 0.0
        self.batches: list[list[float]] = []

    @property
    def told(self) -> list[float]:
        return [sample for batch in self.batches for sample in batch]

    def once(self, call: Call) -> float:
        before = self.clear_ms
        self.clear_ms = 0.0
        try:
            return self.batch(call, 1)[0]
        finally:
            self.clear_ms = before

    def batch(self, call: Call, count: int, *, meet: Call | None = None) -> list[float]:
        samples = [next(self._script) for _ in range(count)]
        self.now_s += sum(samples) / 1e3 + count * self.clear_ms / 1e3
        self.batches.append(samples)
        return samples

    def clear(self) -> None: ...
    def close(self) -> None: ...


Sample = Callable[..., Timing]


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[float]], ScriptedClock]:
    def make(samples_ms: Iterable[float]) -> ScriptedClock:
        clock = ScriptedClock(samples_ms)
        monkeypatch.setattr(sampling, "now_s", lambda: clock.now_s)
        return clock

    return make


ClockOf = Callable[[Iterable[float]], ScriptedClock]


def _protocol(**changes: Any) -> Protocol:
    """No rule binds but those that a test sets."""
    loose: dict[str, Any] = {
        "min_samples": 6,
        "min_device_s": 0.0,
        "ci_half_width": 1e9,
        "cap_s": 1e6,
        "limit_s": 1e9,
    }
    return Protocol(**{**loose, **changes})


def _collect(
    clock: ScriptedClock, *, estimate_ms: float, after_batch: Callable[[], None] = lambda: None, **rules: Any
) -> Timing:
    return collect(
        lambda: None,
        clock=clock,
        protocol=_protocol(**rules),
        estimate_ms=estimate_ms,
        after_batch=after_batch,
    )


def _noise(low: float, high: float) -> Iterator[float]:
    """Two values by turns: the interval of their median never closes."""
    return itertools.cycle([low, high])


# ---------------------------------------------------------------- collect


def test_it_takes_the_least_number_of_samples(clock_of: ClockOf) -> None:
    timing = _collect(clock_of(itertools.repeat(10.0)), estimate_ms=10.0, min_samples=30)
    assert len(timing.samples_ms) == 30  # batches of 6: 60 ms of work each


def test_it_takes_the_least_time(clock_of: ClockOf) -> None:
    clock = clock_of(itertools.repeat(10.0))
    timing = _collect(clock, estimate_ms=10.0, min_device_s=0.5)
    assert len(timing.samples_ms) == 54  # 0.48 s are too little, 0.54 s are enough


def test_it_goes_on_until_the_interval_is_narrow(clock_of: ClockOf) -> None:
    clock = clock_of(itertools.chain(itertools.islice(_noise(10.0, 12.0), 40), itertools.repeat(10.0)))
    samples = list(_collect(clock, estimate_ms=10.0, min_samples=30, ci_half_width=0.005).samples_ms)
    assert len(samples) > 40
    assert relative_half_width(samples) <= 0.005
    assert relative_half_width(samples[: -len(clock.batches[-1])]) > 0.005


def test_noise_ends_at_the_cap(clock_of: ClockOf) -> None:
    clock = clock_of(_noise(10.0, 20.0))
    timing = _collect(clock, estimate_ms=15.0, ci_half_width=0.005, cap_s=1.0)
    before = sum(timing.samples_ms) - sum(clock.batches[-1])
    assert before < 1000 <= sum(timing.samples_ms)


def test_the_cap_never_cuts_below_the_floor(clock_of: ClockOf) -> None:
    timing = _collect(
        clock_of(itertools.repeat(3000.0)), estimate_ms=3000.0, min_samples=30, min_samples_floor=5, cap_s=5.0
    )
    assert len(timing.samples_ms) == 5  # 15 s, thrice the cap


def test_the_cap_cuts_at_once_above_the_floor(clock_of: ClockOf) -> None:
    timing = _collect(
        clock_of(itertools.repeat(3000.0)), estimate_ms=3000.0, min_samples=30, min_samples_floor=1, cap_s=5.0
    )
    assert len(timing.samples_ms) == 2  # 6 s


def test_it_never_exceeds_the_most_samples(clock_of: ClockOf) -> None:
    timing = _collect(clock_of(_noise(1.0, 2.0)), estimate_ms=1.0, ci_half_width=0.005, max_samples=100)
    assert len(timing.samples_ms) == 100  # a batch of 60, then one of 40


def test_the_limit_before_the_floor_is_a_timeout(clock_of: ClockOf) -> None:
    with pytest.raises(CaseTimeoutError, match=r"4 samples in 80\.0 s, over the case limit of 60 s"):
        _collect(
            clock_of(itertools.repeat(20_000.0)),
            estimate_ms=1000.0,
            min_samples=30,
            min_samples_floor=5,
            limit_s=60.0,
        )


def test_the_limit_after_the_floor_keeps_the_samples(clock_of: ClockOf) -> None:
    """Even where the cap is set beyond the limit, enough samples are a result and no timeout."""
    timing = _collect(
        clock_of(_noise(7000.0, 8000.0)), estimate_ms=7000.0, ci_half_width=0.005, cap_s=100.0, limit_s=60.0
    )
    assert len(timing.samples_ms) == 8  # 60 s


def test_all_samples_are_kept_in_time_order(clock_of: ClockOf) -> None:
    script = [10.0, 500.0, 9.0, 11.0, 1.0, 10.0, 10.5, 9.5, 10.1, 9.9, 10.2, 9.8]
    clock = clock_of([*script, *itertools.repeat(10.0, 100)])
    timing = _collect(clock, estimate_ms=10.0, min_samples=12)
    assert list(timing.samples_ms) == script == clock.told
    assert timing.median_ms == 10.0


def test_the_device_is_read_after_every_batch(clock_of: ClockOf) -> None:
    clock = clock_of(itertools.repeat(10.0))
    batches_seen: list[int] = []
    _collect(
        clock, estimate_ms=10.0, min_samples=30, after_batch=lambda: batches_seen.append(len(clock.batches))
    )
    assert batches_seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("estimate_ms", "size"), [(0.0, 200), (0.01, 200), (1.0, 60), (25.0, 2), (59.0, 1), (900.0, 1)]
)
def test_batches_hold_about_60_ms_of_work(clock_of: ClockOf, estimate_ms: float, size: int) -> None:
    clock = clock_of(itertools.repeat(max(estimate_ms, 0.001)))
    _collect(clock, estimate_ms=estimate_ms, min_samples=1)
    assert len(clock.batches[0]) == size


# ---------------------------------------------------------------- warm-up


def test_a_call_too_slow_for_the_floor_is_a_timeout_after_one_call(clock_of: ClockOf) -> None:
    clock = clock_of(itertools.repeat(13_000.0))
    with pytest.raises(
        CaseTimeoutError, match=r"one call takes 13\.00 s: 5 samples do not fit .* limit of 60 s"
    ):
        warm_up(lambda: None, clock=clock, protocol=_protocol(min_samples_floor=5, limit_s=60.0))
    assert clock.told == [13_000.0]


def test_a_call_just_fast_enough_is_not(clock_of: ClockOf) -> None:
    clock = clock_of(itertools.repeat(12_000.0))
    protocol = _protocol(min_samples_floor=5, limit_s=60.0, warmup_s=0.0)
    assert warm_up(lambda: None, clock=clock, protocol=protocol) == 12_000.0


def test_warm_up_lasts_its_time_and_tells_the_fastest_batch(clock_of: ClockOf) -> None:
    script = [80.0, *itertools.repeat(20.0, 8), *itertools.repeat(5.0, 12), *itertools.repeat(20.0, 1000)]
    clock = clock_of(script)
    assert warm_up(lambda: None, clock=clock, protocol=_protocol(warmup_s=0.3)) == pytest.approx(5.0)
    assert 300 <= sum(clock.told) - 80.0 < 300 + 20 * 20.0


def test_what_clears_the_cache_is_planned_for(clock_of: ClockOf) -> None:
    """A short call on a CPU: batches by the call alone would take two seconds each, whatever the cap."""
    clock = clock_of(_noise(0.01, 0.02))
    clock.clear_ms = 10.0
    estimate_ms = warm_up(lambda: None, clock=clock, protocol=_protocol(warmup_s=0.1))
    assert estimate_ms == pytest.approx(10.0, abs=0.02)
    begun = clock.now_s
    timing = _collect(clock, estimate_ms=estimate_ms, ci_half_width=0.0, cap_s=0.5, min_samples=30)
    assert clock.now_s - begun == pytest.approx(0.5, abs=0.06)
    assert len(timing.samples_ms) == pytest.approx(50, abs=6)


@pytest.mark.parametrize(
    ("checked_ms", "limit_s", "calls"),
    [(299.0, 60.0, 1), (300.0, 60.0, 0), (1000.0, 4.9, 1)],
    ids=["short", "long", "long, and perhaps too long"],
)
def test_a_long_check_is_all_the_warming_up(
    clock_of: ClockOf, checked_ms: float, limit_s: float, calls: int
) -> None:
    clock = clock_of(itertools.repeat(700.0))
    protocol = _protocol(warmup_s=0.0, min_samples_floor=5, limit_s=limit_s)
    estimate = warm_up(lambda: None, clock=clock, protocol=protocol, checked_ms=checked_ms)
    assert (len(clock.told), estimate) == (calls, 700.0 if calls else checked_ms)


def test_warm_up_calls_what_will_be_timed() -> None:
    from attnbench.case import Cache
    from attnbench.measure.clock import HostClock

    calls: list[int] = []
    warm_up(lambda: calls.append(1), clock=HostClock(cache=Cache.HOT), protocol=_protocol(warmup_s=0.01))
    assert len(calls) > 1


def test_what_a_graph_reads_lives_as_long_as_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward's call alone holds what its forward saved, and a replay reads it at the same addresses."""
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, mock.Mock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, **named: contextlib.nullcontext())
    saved: list[weakref.ref[torch.Tensor]] = []

    def make() -> Call:
        tensor = torch.zeros(1)
        saved.append(weakref.ref(tensor))
        return lambda: tensor + 1

    replay = launched(make, launch=Launch.GRAPH)
    replay()
    gc.collect()
    assert saved[0]() is not None
    del replay
    gc.collect()
    assert saved[0]() is None
