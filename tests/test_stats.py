"""The interval of the median keeps its promise, and the odd cases are what the docstrings say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from attnbench.stats import effective_count, median_interval, relative_half_width, smallest_count, summarize
from attnbench.store import VERSION_KEY, load_results

positive = st.floats(min_value=1e-3, max_value=1e4, allow_nan=False)


def in_no_order(values: Iterable[float]) -> list[float]:
    """The values, each followed by one from the other half, so that none resembles those before it."""
    ordered = sorted(map(float, values))
    low, high = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    return [each for pair in itertools.zip_longest(high, low) for each in pair if each is not None]


def test_summarize_keeps_time_order() -> None:
    timing = summarize([3.0, 1.0, 2.0])
    assert timing.samples_ms == (3.0, 1.0, 2.0)
    assert timing.median_ms == 2.0
    assert timing.p10_ms == pytest.approx(1.2)
    assert timing.p90_ms == pytest.approx(2.8)


def test_summarize_yields_plain_floats() -> None:
    timing = summarize(np.array([1.0, 2.0], dtype=np.float32))
    values = [*timing.samples_ms, *(v for k, v in asdict(timing).items() if k != "samples_ms")]
    assert {type(value) for value in values} == {float}


@given(st.lists(positive, min_size=1, max_size=200))
def test_order_of_the_numbers(samples: list[float]) -> None:
    timing = summarize(samples)
    assert min(samples) <= timing.ci_low_ms <= timing.median_ms <= timing.ci_high_ms <= max(samples)
    slack = 1e-9 * timing.p90_ms  # interpolation rounds
    assert timing.p10_ms - slack <= timing.median_ms <= timing.p90_ms + slack
    assert median_interval(samples) == (timing.ci_low_ms, timing.ci_high_ms)


@given(st.lists(positive, min_size=6, max_size=60), st.floats(min_value=1e-3, max_value=1e3))
def test_relative_half_width_has_no_unit(samples: list[float], unit: float) -> None:
    scaled = [sample * unit for sample in samples]
    assert relative_half_width(scaled) == pytest.approx(relative_half_width(samples), rel=1e-6, abs=1e-9)


@given(st.integers(min_value=6, max_value=2000), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_ranks_are_those_of_the_binomial(count: int, confidence: float) -> None:
    low, high = median_interval(in_no_order(range(count)), confidence)
    outside = int(low)
    assert high == count - 1 - outside
    if count < smallest_count(confidence):
        assert outside == 0
        return
    # The interval misses the median when at most `outside` samples lie on one side of it.
    assert 2 * scipy_stats.binom.cdf(outside, count, 0.5) <= 1 - confidence + 1e-12
    assert 2 * scipy_stats.binom.cdf(outside + 1, count, 0.5) > 1 - confidence - 1e-12


@pytest.mark.parametrize("count", [6, 11, 30, 101])
@pytest.mark.parametrize("draw", ["normal", "lognormal", "three-humps", "ties"])
def test_coverage(count: int, draw: str) -> None:
    rng = np.random.default_rng(20240501)
    rounds = 600
    draws: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "normal": lambda: rng.normal(5.0, 1.0, (rounds, count)),
        "lognormal": lambda: rng.lognormal(0.0, 1.0, (rounds, count)),
        "three-humps": lambda: (
            rng.choice([1.0, 2.0, 3.0], (rounds, count)) + rng.normal(0, 0.1, (rounds, count))
        ),
        "ties": lambda: rng.integers(0, 5, (rounds, count)).astype(float),
    }
    samples = draws[draw]()
    truth = {"normal": 5.0, "lognormal": 1.0, "three-humps": 2.0, "ties": 2.0}[draw]
    intervals = [median_interval(row) for row in samples]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / rounds)


def test_ties_give_a_point() -> None:
    assert median_interval([2.0] * 40) == (2.0, 2.0)
    assert relative_half_width([2.0] * 40) == 0.0


@pytest.mark.parametrize("samples", [[4.0], [4.0, 5.0], [5.0, 1.0, 2.0, 3.0, 4.0]])
def test_too_few_samples_give_all_that_was_seen(samples: list[float]) -> None:
    assert median_interval(samples) == (min(samples), max(samples))
    assert relative_half_width(samples) == math.inf, "a stopping rule must not stop here"


def test_known_ranks() -> None:
    """Tables give ranks 10 and 21 for 30 samples, and 6 as the fewest samples."""
    assert median_interval(in_no_order(range(1, 31))) == (10.0, 21.0)
    assert smallest_count() == 6
    assert smallest_count(0.99) == 8


def test_the_farther_end_counts() -> None:
    samples = in_no_order([1.0] * 20 + [1.5] * 15)
    assert median_interval(samples) == (1.0, 1.5)
    assert relative_half_width(samples) == pytest.approx(0.5)


def test_zero_median_is_never_narrow() -> None:
    assert relative_half_width([0.0] * 40) == math.inf


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [[1.0], [2.0]]])
def test_bad_samples(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        median_interval(samples)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_bad_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        median_interval([1.0, 2.0], confidence)


def resembling(rng: np.random.Generator, count: int, *, rho: float) -> npt.NDArray[np.float64]:
    """Samples of which each keeps the share rho of the one before: normal, with deviation 1."""
    found = rng.normal(size=count)
    for i in range(1, count):
        found[i] = rho * found[i - 1] + math.sqrt(1 - rho**2) * found[i]
    return found


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_an_interval_of_samples_that_resemble_each_other_keeps_its_promise(rho: float) -> None:
    rng = np.random.default_rng(1992)
    rounds, count = 400, 500
    draws = [resembling(rng, count, rho=rho) for _ in range(rounds)]
    intervals = [median_interval(draw) for draw in draws]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert covered >= 0.93 - 3 * math.sqrt(0.95 * 0.05 / rounds)
    if rho == 0.9:  # taken as independent they would cover far less often
        alone = [median_interval(rng.permutation(draw)) for draw in draws]
        assert np.mean([low <= 0 <= high for low, high in alone]) < 0.6


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 380, 500), (0.5, 160, 320), (0.9, 15, 80)])
def test_effective_counts_are_those_of_theory(rho: float, least: int, most: int) -> None:
    """The sign of such samples correlates by 2/pi asin(rho^k) at lag k: tau is 1, 2.4 and 12."""
    rng = np.random.default_rng(33)
    counts = [effective_count(resembling(rng, 500, rho=rho)) for _ in range(50)]
    assert least <= np.median(counts) <= most


def test_a_drift_counts_as_few_samples_and_a_stopping_rule_goes_on() -> None:
    drift = [1 + 0.001 * i for i in range(100)]
    assert effective_count(drift) < smallest_count()
    low, high = median_interval(drift)
    assert low < drift[10]
    assert high > drift[90]
    assert relative_half_width(drift) == math.inf


def test_a_late_sample_among_few_that_count_is_not_all_that_was_seen() -> None:
    drift = [1 + 0.001 * i for i in range(100)]
    drift[50] = 100.0
    low, high = median_interval(drift)
    assert 1.0 <= low <= high < 1.1


@given(st.lists(positive, min_size=1, max_size=200))
def test_no_more_samples_count_than_there_are(samples: list[float]) -> None:
    assert 1 <= effective_count(samples) <= len(samples)


def test_recorded_processes_at_a_power_cap_bear_the_wider_intervals_out() -> None:
    """The file is of schema version 4, whose intervals take samples as independent; reading it draws them anew."""
    file = Path(__file__).parents[1] / "results" / "h200" / "gate" / "lightning1-processes.parquet"
    assert pq.read_schema(file).metadata[VERSION_KEY] == b"4"
    independent, resembling = held(pq.read_table(file).to_pandas()), held(load_results(file))
    assert len(independent) == 10
    narrow = [case for case, share in independent.items() if share < 1]
    assert len(narrow) == 9
    assert [min(independent.values()), max(independent[case] for case in narrow)] == [0.05, 0.425]
    assert [min(resembling.values()), max(resembling[case] for case in narrow)] == [0.575, 0.875]


def held(rows: pd.DataFrame) -> dict[str, float]:
    """The share of a case's processes whose interval holds the median of all."""
    return {
        str(case): float(((same["ci_low_ms"] <= middle) & (middle <= same["ci_high_ms"])).mean())
        for case, same in rows.groupby("case_id")
        for middle in [same["median_ms"].median()]
    }
