"""Looking again and again is no way to find something: rates over seeds, on processes whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.comparison import ratios
from attnbench.comparison.verdicts import SIGNIFICANCE
from attnbench.gate import noise
from attnbench.gate.against_itself import found_from
from attnbench.gate.measuring import level
from attnbench.gate.telling import seconds
from attnbench.words import duration

LOOKS = (3, 5, 8, 12, 18)  # processes a side at each look of a gate with a time budget
FAST = 200


def _p_values(seed: int, *, log_ratio: float = 0.0, spread: float = 0.01) -> list[float]:
    """P-values of one case at each look, on processes that differ by 1 % and samples that hardly do."""
    random = np.random.default_rng([seed, 17])
    sides = {
        name: np.exp(random.normal(shift, spread, (LOOKS[-1], 1)) + random.normal(0, 1e-4, (LOOKS[-1], 3)))
        for name, shift in (("base", 0.0), ("new", log_ratio))
    }
    found = []
    for count in LOOKS:
        base, new = ({f"{n}{i}": times[i] for i in range(count)} for n, times in sides.items())
        p = ratios.p_value(ratios.effect(base, new, name="case", resamples=FAST, seed=seed))
        assert p is not None
        found.append(p)
    return found


def test_looking_again_does_not_find_what_is_not_there() -> None:
    """300 A/A gates of five looks: no more alarm than at one look of 5 %, where looks at 5 % each alarm in 15 %."""
    looks = [_p_values(seed) for seed in range(300)]
    patient = sum(any(p < level(k) for k, p in enumerate(found, start=1)) for found in looks)
    naive = sum(min(found) < SIGNIFICANCE for found in looks)
    assert patient <= 26  # 15 expected at the most, and 3 standard deviations more
    assert naive >= 35, "or the correction would have nothing to correct"


def test_looking_again_finds_what_is_there() -> None:
    """A slow-down of three standard deviations, in 40 gates."""
    looks = [_p_values(seed, log_ratio=0.03) for seed in range(40)]
    assert sum(any(p < level(k) for k, p in enumerate(found, start=1)) for found in looks) >= 38


def test_the_levels_of_all_looks_sum_up_to_one_look() -> None:
    assert math.fsum(level(look) for look in range(1, 100_000)) == pytest.approx(SIGNIFICANCE, rel=1e-4)


@pytest.mark.parametrize(("processes", "cases"), [(3, 1), (5, 1), (5, 20)])
def test_the_detectable_slow_down_is_found_in_four_of_five(processes: int, cases: int) -> None:
    """Student's t on 20,000 pairs of sides that differ by what is said to be found in 80 % of them."""
    spread = 0.004
    effect = math.log1p(noise.detectable(spread, processes=processes, cases=cases))
    random = np.random.default_rng(3)
    sides = random.normal(0, spread, (2, 20_000, processes))
    difference = effect + sides[1].mean(axis=1) - sides[0].mean(axis=1)
    error = np.sqrt(sides.var(axis=2, ddof=1).sum(axis=0) / processes)
    from scipy import stats

    limit = stats.t.ppf(1 - SIGNIFICANCE / cases / 2, 2 * processes - 2)
    assert (difference / error > limit).mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("text", "found"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" .5 m ", 30)]
)
def test_a_span_of_time(text: str, found: float) -> None:
    assert seconds(text, option="--time-budget") == found


@pytest.mark.parametrize(
    ("length", "text"), [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7500, "2 h 5 min")]
)
def test_a_duration_in_words(length: float, text: str) -> None:
    assert duration(length) == text


@pytest.mark.parametrize(("share", "text"), [(0.0123, "1.23 %"), (9.9, "990 %"), (178e3, "over 1000 %")])
def test_what_cannot_be_found_is_no_number_of_many_digits(share: float, text: str) -> None:
    assert found_from(share) == text
