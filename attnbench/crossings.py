"""Where the time curves of two mechanisms cross, as far as their medians' intervals tell; or who takes over by failure.

Pure functions on the curves of `curves.py`; nothing is measured and nothing is printed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from attnbench.case import Status
from attnbench.curves import Curve, Gap
from attnbench.words import joined, one_line, status_words

_NAMED = 4  # up to so many lengths are named


@dataclass(frozen=True, kw_only=True)
class Point:
    """Two mechanisms, a and b, at one length.

    ratio: time of b over that of a, so that a is faster above 1; low and high are its interval, from one end of a's
    95 % interval of the median to the other end of b's. All None where one of the two has no time.

    ahead: 1 where a is faster, -1 where b is, 0 where the interval contains 1 or neither has a value. Where only one
    of them has a value it is ahead by the other one's failure.
    """

    seq_len: int
    ratio: float | None
    low: float | None
    high: float | None
    a_failed: Gap | None
    b_failed: Gap | None

    @property
    def ahead(self) -> int:
        if self.low is None or self.high is None:
            return (self.b_failed is not None) - (self.a_failed is not None)
        return int(self.low > 1) - int(self.high < 1)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no time on the other side of a crossing: who ended how, at which length."""

    mechanism: str
    seq_len: int
    status: str
    reason: str

    def sentence(self) -> str:
        """`flash2 at 65,536: out of memory`; of other ends than that the reason too."""
        return f"{self.mechanism} at {self.seq_len:,}: {self.cause()}"

    def cause(self) -> str:
        """`timed out: one call takes 3 s`."""
        reason = f": {one_line(self.reason)}" if self.reason and self.status != Status.OOM else ""
        return f"{status_words(self.status)}{reason}"


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """`faster` overtakes `slower` between the lengths `low` and `high`, at about `estimate`.

    `low` and `high` tell the two apart: the interval of the crossing. At the lengths `undecided` between them the
    interval of the ratio contains 1. `low` and `estimate` are None when `faster` was ahead from the first length that
    tells them apart, `high`: "ahead from `high` or earlier"; then `undecided` are longer ones that do not. A
    crossing by `failure` has no estimate: there one of the two is ahead because the other has no time. Lengths in
    tokens.
    """

    faster: str
    slower: str
    low: int | None
    high: int
    estimate: float | None
    undecided: tuple[int, ...] = ()
    failure: Failure | None = None

    def short(self) -> str:
        """For a cell of a table: `lightning2 over flash2: 128 to 256`."""
        start = "" if self.low is None else f"{self.low:,} to "
        how = "" if self.failure is None else ", by failure"
        return f"{self.faster} over {self.slower}: {start}{self.high:,}{how}"

    def unless(self) -> str:
        """Behind who is ahead: where the two are not told apart; empty where they are at every length."""
        return f" (not told apart {lengths_text(self.undecided)})" if self.undecided else ""

    def sentence(self) -> str:
        """The crossing in words, without a full stop."""
        if self.low is None:
            where = f"from {self.high:,} tokens or earlier{self.unless()}"
            return f"{self.faster} is ahead of {self.slower} {where}"
        between = f"between {self.low:,} and {self.high:,} tokens"
        if self.failure is not None:
            return f"{self.faster} overtakes {self.slower} by failure {between} ({self.failure.sentence()})"
        notes = [] if self.estimate is None else [f"about {about(self.estimate, self.low, self.high):,}"]
        if self.undecided:
            notes.append(f"not told apart {lengths_text(self.undecided)}")
        return f"{self.faster} overtakes {self.slower} {between} ({'; '.join(notes)})"


def points(a: Curve, b: Curve) -> tuple[Point, ...]:
    """The two curves at every length that both were asked for, from short to long."""
    here, there = _by_length(a), _by_length(b)
    return tuple(
        _point(seq_len, here[seq_len], there[seq_len]) for seq_len in sorted(here.keys() & there.keys())
    )


def zones(found: Sequence[Point]) -> list[tuple[Point, ...]]:
    """The stretches of points in which the order changes: from one that tells a ahead to one that tells b, or back."""
    told = [place for place, point in enumerate(found) if point.ahead]
    return [
        tuple(found[left : right + 1])
        for left, right in pairwise(told)
        if found[left].ahead != found[right].ahead
    ]


def crossovers(a: Curve, b: Curve) -> tuple[Crossover, ...]:
    """Where the time curves of two mechanisms cross, from short to long; only lengths that both were asked for count.

    A length tells the two apart when the interval of the ratio of their times does not contain 1: when their 95 %
    intervals do not overlap (or the medians differ, where no interval is known). A crossing lies between two lengths
    that do, one for either mechanism; lengths between them that do not tell widen it. The estimate is interpolated
    in log time over log N where the medians cross; where noise makes them cross several times, it is the middle one.
    Where one of the two has no value the other is ahead by failure, and a crossing that ends there says so. When one
    mechanism is ahead at every length that tells, that is the one thing returned, with `low` None; when no length at
    which both have a time does, nothing is.
    """
    a, b = sorted((a, b), key=lambda c: c.mechanism)  # so that exchanging them changes no digit
    found = points(a, b)
    if not any(point.ahead and point.ratio is not None for point in found):
        return ()
    crossings = tuple(_crossover(zone, a.mechanism, b.mechanism) for zone in zones(found))
    if crossings:
        return crossings
    first = next(point for point in found if point.ahead and point.ratio is not None)
    faster, slower = _order(first, a.mechanism, b.mechanism)
    even = tuple(
        p.seq_len for p in found if p.seq_len > first.seq_len and p.ratio is not None and not p.ahead
    )
    return (
        Crossover(faster=faster, slower=slower, low=None, high=first.seq_len, estimate=None, undecided=even),
    )


def about(value: float, low: int, high: int) -> int:
    """An estimate to two digits, unless that would leave its interval."""
    rounded = round(value, 1 - math.floor(math.log10(value)))
    return round(rounded) if low <= rounded <= high else round(value)


def lengths_text(lengths: Sequence[int]) -> str:
    """`at 512 and 2,048 tokens`; of many `at 7 lengths from 512 to 8,192 tokens`."""
    if len(lengths) <= _NAMED:
        return f"at {joined([f'{length:,}' for length in lengths])} tokens"
    return f"at {len(lengths)} lengths from {min(lengths):,} to {max(lengths):,} tokens"


# ------------------------------------------------------------------------------------------------------------


def _by_length(c: Curve) -> dict[int, tuple[float, float, float] | Gap]:
    """Median and interval, in milliseconds, or why there is none. An unknown end of an interval is the median."""
    known = zip(c.seq_len, c.median_ms, c.ci_low_ms, c.ci_high_ms, strict=True)
    times = {
        int(n): (float(m), float(m if math.isnan(low) else low), float(m if math.isnan(high) else high))
        for n, m, low, high in known
    }
    return {**{gap.seq_len: gap for gap in c.gaps}, **times}


def _point(seq_len: int, a: tuple[float, float, float] | Gap, b: tuple[float, float, float] | Gap) -> Point:
    if isinstance(a, Gap) or isinstance(b, Gap):
        return Point(
            seq_len=seq_len,
            ratio=None,
            low=None,
            high=None,
            a_failed=a if isinstance(a, Gap) else None,
            b_failed=b if isinstance(b, Gap) else None,
        )
    return Point(
        seq_len=seq_len,
        ratio=b[0] / a[0],
        low=b[1] / a[2],
        high=b[2] / a[1],
        a_failed=None,
        b_failed=None,
    )


def _order(point: Point, a: str, b: str) -> tuple[str, str]:
    """The faster and the slower one."""
    return (a, b) if point.ahead > 0 else (b, a)


def _crossover(zone: Sequence[Point], a: str, b: str) -> Crossover:
    faster, slower = _order(zone[-1], a, b)
    failure = _failure(zone[-1], a, b) or _failure(zone[0], a, b)
    return Crossover(
        faster=faster,
        slower=slower,
        low=zone[0].seq_len,
        high=zone[-1].seq_len,
        estimate=None if failure else _estimate([point for point in zone if point.ratio is not None]),
        undecided=tuple(point.seq_len for point in zone[1:-1] if point.ratio is not None),
        failure=failure,
    )


def _failure(point: Point, a: str, b: str) -> Failure | None:
    for mechanism, gap in ((a, point.a_failed), (b, point.b_failed)):
        if gap is not None:
            return Failure(mechanism=mechanism, seq_len=gap.seq_len, status=gap.status, reason=gap.reason)
    return None


def _estimate(zone: Sequence[Point]) -> float:
    """Where the ratio is 1, linear in logarithms between neighbours; the middle one of several places."""
    lead = np.log([point.ratio for point in zone if point.ratio is not None])
    lengths = np.array([point.seq_len for point in zone], dtype=np.float64)
    positive = lead > 0  # a tie counts to one side, so that every change of sign is between two neighbours
    changes = np.flatnonzero(positive[:-1] != positive[1:])
    left = int(changes[len(changes) // 2])
    x, y = np.log(lengths[left : left + 2]), lead[left : left + 2]
    estimate = math.exp(float(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))
    return min(max(estimate, float(lengths[left])), float(lengths[left + 1]))  # exp(log(n)) may round past n
