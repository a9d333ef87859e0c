"""What is derived from the samples of one case: quantiles and the interval of the median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from attnbench.case import Timing

CONFIDENCE = 0.95

_FEWEST_TO_CORRELATE = 20  # below it how samples depend on each other cannot be told from chance

Samples = Sequence[float] | npt.NDArray[np.floating]


def summarize(samples_ms: Samples) -> Timing:
    """The samples of one case, in milliseconds and in time order, with median, p10, p90 and 95 % interval.

    No sample is removed. p10 and p90 are interpolated linearly between order statistics.

    Raises ValueError when there is no sample, or one that is not finite.
    """
    ordered = _ordered(samples_ms)
    p10, median, p90 = np.quantile(ordered, (0.1, 0.5, 0.9))
    low, high = median_interval(samples_ms)
    return Timing(
        samples_ms=tuple(float(sample) for sample in samples_ms),
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        ci_low_ms=low,
        ci_high_ms=high,
    )


def median_interval(samples: Samples, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """A confidence interval of the median, in the unit of the samples, whatever their distribution.

    samples: in time order. The interval between two order statistics of equal rank from either end. It misses the true
    median only when too few samples fall on one side of it, and how many do is binomial with p = 1/2 (David and
    Nagaraja, Order Statistics, 3rd edition, section 7.1). Coverage is at least `confidence` for independent samples;
    ties only raise it. Samples that depend on each other count as `effective_count` independent ones.

    With fewer than `smallest_count` samples (6 at 95 %) no such interval exists: then it is all that was seen,
    (min, max), whose coverage is 1 - 2^(1-n); one sample gives (x, x). Many samples that tell as little are cut into so
    many pieces, and it is from the lowest of their medians to the highest: a drift shows in it, a single late sample
    does not.

    Raises ValueError when there is no sample, one that is not finite, or a confidence outside (0, 1).
    """
    return _interval_of(samples, count=effective_count(samples), confidence=confidence)


def _interval_of(samples: Samples, *, count: int, confidence: float) -> tuple[float, float]:
    ordered, least = _ordered(samples), smallest_count(confidence)
    if count < least <= len(ordered):
        pieces = [ordered, *np.array_split(np.asarray(samples, dtype=np.float64), least)]
        medians = [float(np.median(piece)) for piece in pieces]
        return min(medians), max(medians)
    return _interval(ordered, count=count, confidence=confidence)


def relative_half_width(samples: Samples) -> float:
    """How far the 95 % interval of the median reaches from the median, at its farther end, over the median.

    samples: in time order. 0.005 means that the interval lies within +-0.5 %. Infinite while there are too few samples
    for a 95 % interval (fewer than 6 that are independent) or the median is 0: a rule that stops on a small value must
    not stop there.

    Raises ValueError when there is no sample, or one that is not finite.
    """
    median, count = float(np.median(samples)), effective_count(samples)
    if count < smallest_count(CONFIDENCE) or median == 0:
        return math.inf
    low, high = _interval_of(samples, count=count, confidence=CONFIDENCE)
    return max(high - median, median - low) / abs(median)


def effective_count(samples: Samples) -> int:
    """How many independent samples tell as much of the median as these do: their count where they are independent.

    samples: in time order. A clock that wanders under a power cap, or a host that is busy for a while, makes samples
    resemble those before them. The variance of their median is then that of n / tau independent ones, with

        tau = 1 + 2 sum_k rho_k,

    rho_k the autocorrelation, at lag k, of the side of the median on which samples lie. The sum ends where two
    neighbouring terms together are no longer positive (Geyer, Practical Markov Chain Monte Carlo, Statistical Science
    1992, section 3.3). Fewer than 20 samples do not tell, and are taken as independent.

    Raises ValueError when there is no sample, or one that is not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    count = len(_ordered(values))
    sides = np.sign(values - np.median(values))
    sides -= sides.mean()
    if count < _FEWEST_TO_CORRELATE or not sides.any():
        return count
    spectrum = np.fft.rfft(sides, 2 * count)  # padded, or the end would meet the beginning
    products = np.fft.irfft(np.abs(spectrum) ** 2)[1:count]
    pairs = products[: (count - 1) // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    related = pairs[: ends[0]] if len(ends) else pairs
    tau = 1 + 2 * float(related.sum() / np.square(sides).sum())
    return max(1, int(count / tau))


@cache
def smallest_count(confidence: float = CONFIDENCE) -> int:
    """The fewest samples for which (min, max) covers the median with that confidence: 6 for 95 %.

    Raises ValueError for a confidence outside (0, 1).
    """
    _check(confidence)
    count = 1
    while 2 / 2**count > 1 - confidence:
        count += 1
    return count


def _interval(ordered: npt.NDArray[np.float64], *, count: int, confidence: float) -> tuple[float, float]:
    """count: of independent samples that tell as much. The ends among them stand at a share of (rank + 1) / (count + 1)
    from either end in the mean; so they do among all."""
    outside, last = _rank(count, confidence), len(ordered) - 1
    if count >= smallest_count(confidence):
        outside = (outside + 1) * (last + 2) // (count + 1) - 1
    return float(ordered[outside]), float(ordered[last - outside])


@cache
def _rank(count: int, confidence: float) -> int:
    """How many samples lie outside the interval at either end (0 when there are too few for any)."""
    _check(confidence)
    # Counts of outcomes of `count` fair coins, as exact integers: 2^-2000 is no double.
    outcomes = 2**count
    ways, tail, rank = 1, 1, 0  # ways: exactly `rank` heads; tail: at most `rank` heads
    while True:
        ways = ways * (count - rank) // (rank + 1)
        tail += ways
        if 2 * tail / outcomes > 1 - confidence:
            return rank
        rank += 1


def _ordered(samples: Samples) -> npt.NDArray[np.float64]:
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if ordered.ndim != 1 or not len(ordered):
        raise ValueError("expected a list of at least one sample")
    if not np.isfinite(ordered).all():
        raise ValueError("a sample is not finite")
    return ordered


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
