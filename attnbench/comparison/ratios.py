"""How much longer one side takes than the other, and how sure that is: a bootstrap of processes and samples.

Pure functions on arrays of samples. A process is one run (one `run_id`). Its samples share what differs from
process to process (addresses, clocks, temperature, what compilers chose), so that they say how well the median of
that process is known and nothing of how far the next process will be from it. Only processes say that
(Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special

from attnbench.stats import CONFIDENCE

RESAMPLES = 4000

Floats = npt.NDArray[np.float64]
Side = Mapping[str, npt.ArrayLike]  # run_id -> its samples of one case, in milliseconds, all above 0

# Values nearer than this to each other, relatively, differ by the rounding of float32 and not by the timer.
_SAME_VALUE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Effect:
    """The logarithm of the ratio new over base, and how far noise may have moved it.

    log_ratio: mean log median of the new processes minus that of the base processes.
    deviations: [R], what the bootstrap adds to it, centred on 0.
    freedom: degrees of freedom of the spread between processes; infinite when that spread was stated and not
    estimated, None when it is unknown: then there is neither an interval nor a p-value.
    known_sd: standard deviation of the part of the noise that was stated, in the same logarithm.
    """

    log_ratio: float
    deviations: Floats
    freedom: float | None
    known_sd: float = 0.0


def effect(
    base: Side, new: Side, *, name: str, noise: float | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Effect:
    """The effect on one case by a hierarchical bootstrap: processes are drawn anew, then samples within each.

    Processes of a side are drawn with replacement, and of each the median of as many samples drawn with
    replacement. What n processes deviate from their mean is widened by sqrt(n / (n - 1)), as the variance of a
    resample is too small by that (Efron and Tibshirani, An Introduction to the Bootstrap, section 5.3).

    name: of the case; with the run_ids and `seed` it decides the random numbers, so that neither other cases
    nor the order of files change them, and exchanging the sides exchanges them. Which processes are drawn depends on
    the run_ids alone: a slow process is slow in all its cases, and a mean over cases must not forget it.
    noise: the standard deviation between the log medians of processes, for a side with a single one.

    Raises ValueError for a side without processes, and a sample that is not finite and above 0.
    """
    processes = [_processes(side) for side in (base, new)]
    both = _timer_step([each for side in processes for each in side.values()])
    sides = [
        # Where all values of a side are one, its own do not tell the step: they may be a step from the other's.
        _resampled(
            side, name=name, timer_step=_timer_step(side.values()) or both, resamples=resamples, seed=seed
        )
        for side in processes
    ]
    counts = [len(side) for side in processes]
    estimated = sum(count - 1 for count in counts)
    alone = counts.count(1)
    freedom = None if alone and noise is None else float(estimated or math.inf)
    return Effect(
        log_ratio=sides[1][0] - sides[0][0],
        deviations=sides[1][1] - sides[0][1],
        freedom=freedom,
        known_sd=(noise or 0.0) * math.sqrt(alone),
    )


def mean_effect(effects: Sequence[Effect]) -> Effect:
    """The effect on the geometric mean of several cases of the same processes; all with as many resamples.

    The stated noise of a process is taken to be the same in all its cases, so it does not average out.
    """
    freedoms = [each.freedom for each in effects]
    return Effect(
        log_ratio=float(np.mean([each.log_ratio for each in effects])),
        deviations=np.mean([each.deviations for each in effects], axis=0),
        freedom=None if None in freedoms else min(f for f in freedoms if f is not None),
        known_sd=float(np.mean([each.known_sd for each in effects])),
    )


def interval(of: Effect, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of the ratio new over base, symmetric in its logarithm; None when the noise is unknown.

    The deviations are those of an estimated spread. Each is therefore divided by the square root of a chi-square
    variable over its degrees of freedom, which turns a normal deviate into Student's t: with few processes the
    interval is as wide as that of a t-test, where that of a bare bootstrap is too narrow (Hesterberg, What Teachers
    Should Know About the Bootstrap, The American Statistician 69, 2015).
    """
    if of.freedom is None:
        return None
    noise: Floats = of.deviations * _heavier(of.freedom, len(of.deviations))
    if of.known_sd:
        stated = of.known_sd * _stream("stated noise").standard_normal(len(noise))
        noise = np.concatenate(
            [noise + stated, noise - stated]
        )  # both, so that no sign of the ratio is favoured
    reach = float(np.quantile(np.abs(noise), confidence))
    return math.exp(of.log_ratio - reach), math.exp(of.log_ratio + reach)


def p_value(of: Effect) -> float | None:
    """Two-sided: how often noise alone moves the ratio at least as far from 1; None when the noise is unknown.

    The same deviations as in `interval`, with the chi-square variable (or the normal one of a stated noise)
    integrated instead of drawn: a smooth p-value, which is not bounded by the number of resamples. Where the spread
    between processes was stated to be 0, there is nothing to integrate, and it is the share of the resamples.
    """
    if of.freedom is None:
        return None
    far = abs(of.log_ratio)
    if far == 0:
        return 1.0
    if of.known_sd:
        noise = of.deviations * _heavier(of.freedom, len(of.deviations))
        tails = [special.ndtr((either - far) / of.known_sd) for either in (noise, -noise)]
        return float(np.mean(tails)) * 2
    if math.isinf(of.freedom):
        return float(np.mean(np.abs(of.deviations) >= far))
    # P(|e| sqrt(f / chi2_f) >= far) = P(chi2_f <= f (e / far)^2)
    return float(np.mean(special.gammainc(of.freedom / 2, of.freedom / 2 * (of.deviations / far) ** 2)))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values after Benjamini and Hochberg (J. R. Statist. Soc. B 57, 1995), in the order given.

    Cases below q among them hold at most a share of q of false alarms, on average.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(each) for each in q]


def log_median(samples: npt.ArrayLike) -> float:
    """The logarithm of the median of samples in milliseconds.

    Raises ValueError when there is no sample, or one that is not finite and above 0.
    """
    return _middle(_ordered(samples))


# ------------------------------------------------------------------------------------------------------------


def _ordered(samples: npt.ArrayLike) -> Floats:
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if ordered.ndim != 1 or not len(ordered) or not (np.isfinite(ordered).all() and ordered[0] > 0):
        raise ValueError("expected a list of at least one time, all of them finite and above 0")
    return ordered


def _middle(ordered: Floats) -> float:
    """The logarithm of the median of what is ordered already."""
    n = len(ordered)
    return math.log((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def _stream(*parts: object) -> np.random.Generator:
    """Random numbers of their own for whatever the parts name, the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    )


def _processes(side: Side) -> dict[str, Floats]:
    """The ordered samples of each process, by run_id in their order.

    Raises ValueError for a side without processes, and samples that are no times.
    """
    if not side:
        raise ValueError("a side needs at least one process")
    return {run: _ordered(side[run]) for run in sorted(side)}


def _resampled(
    side: Mapping[str, Floats], *, name: str, timer_step: float, resamples: int, seed: int
) -> tuple[float, Floats]:
    """Mean log median of a side's ordered processes, and what the bootstrap adds to it: [resamples].

    timer_step: what the side's times are told apart by, in milliseconds.
    """
    runs, ordered = list(side), list(side.values())
    medians = np.array([_middle(each) for each in ordered])
    mean, count = float(medians.mean()), len(runs)
    drawn = _stream(seed, *runs).integers(count, size=(resamples, count))
    between = medians[drawn].mean(axis=1) - mean
    if count > 1:
        between *= math.sqrt(count / (count - 1))
    within = _stream(seed, name, *runs)
    # Each process once: what `count` independent draws of samples add to a mean has this variance on average.
    moved = sum((_bootstrap_medians(each, resamples, within) for each in ordered), np.zeros(resamples))
    # A time is the difference of two readings, each short by up to a step, and alike in every process.
    short = within.uniform(size=resamples) - within.uniform(size=resamples)
    return mean, between + moved / count + short * timer_step / math.exp(mean)


def _bootstrap_medians(ordered: Floats, resamples: int, random: np.random.Generator) -> Floats:
    """Log medians of resamples of one process minus its own: [resamples].

    Not by drawing n samples for each: the m-th smallest of n draws is the value at the m-th smallest of n uniform
    numbers, which is Beta(m, n + 1 - m) (David and Nagaraja, Order Statistics, 3rd edition, section 2.3).
    """
    n = len(ordered)
    if n == 1:
        return np.zeros(resamples)
    m = (n + 1) // 2
    at = random.beta(m, n + 1 - m, size=resamples)
    median = ordered[_places(at, n)]
    if n % 2 == 0:  # the next one is the smallest of the n - m uniform numbers above
        above = 1 - random.uniform(size=resamples) ** (1 / (n - m))
        median = (median + ordered[_places(at + (1 - at) * above, n)]) / 2
    moved: Floats = np.log(median) - _middle(ordered)
    return moved


def _places(uniform: Floats, n: int) -> npt.NDArray[np.intp]:
    return np.minimum((uniform * n).astype(np.intp), n - 1)


def _timer_step(processes: Iterable[Floats]) -> float:
    """The smallest step between two values: no median is known better. 0 where there is one value.

    In milliseconds. Where a timer does not tell times apart, many samples are equal and a median seems exact.
    A side that has a step is not given that of both: the other one's device may have a finer timer.
    """
    values: Floats = np.unique(np.concatenate(list(processes)))
    steps = np.diff(values)
    steps = steps[steps > _SAME_VALUE * values[1:]]
    return float(steps.min(initial=math.inf)) if len(steps) else 0.0


@cache
def _heavier(freedom: float, count: int) -> Floats:
    """sqrt(f / chi2_f) at evenly spread quantiles; 1 when nothing was estimated: [count]."""
    if math.isinf(freedom):
        return np.ones(count)
    at = (np.arange(count) + 0.5) / count
    factors: Floats = np.sqrt(freedom / 2 / special.gammaincinv(freedom / 2, at))
    factors.setflags(write=False)  # every case of the comparison has the same
    return factors
