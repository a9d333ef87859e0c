"""What a rank computes: laws of its time in the tokens that it holds, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from scipy.optimize import nnls

from attnbench.parallel.records import ParallelCase

_SAME: Final = 1e-9  # sums of squared relative errors that differ by less are equally good
_DISTINCT: Final = (
    1e-3  # the least singular value of terms that cases can tell apart, each scaled to at most 1
)


class Compute(Protocol):
    """Milliseconds of computing, on the rank that holds most."""

    def ms(self, *, ranks: int, seq_len: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Milliseconds over n tokens: max(floor, per_token n). A short call takes what the host needs to launch it."""

    floor: float  # 0 where no measured length came down to it
    per_token: float

    def ms(self, tokens: float) -> float:
        return max(self.floor, self.per_token * tokens)


@dataclass(frozen=True, kw_only=True)
class LinearCompute:
    """Of mechanisms whose cost is linear: a law of one rank, and one of several, which launch more and correct."""

    alone: Bounded
    parallel: Bounded

    def ms(self, *, ranks: int, seq_len: int) -> float:
        """On the rank that holds most."""
        law = self.alone if ranks == 1 else self.parallel
        return law.ms(tokens_per_rank(ranks=ranks, seq_len=seq_len))


@dataclass(frozen=True, kw_only=True)
class SoftmaxCompute:
    """Of ring attention: per_pair n N + per_token n + per_step W, each block being launched by itself."""

    per_pair: float
    per_token: float
    per_step: float

    def ms(self, *, ranks: int, seq_len: int) -> float:
        """On the rank that holds most."""
        tokens = tokens_per_rank(ranks=ranks, seq_len=seq_len)
        return self.per_pair * tokens * seq_len + self.per_token * tokens + self.per_step * ranks


def tokens_per_rank(*, ranks: int, seq_len: int) -> int:
    """Of the rank that holds most."""
    return -(-seq_len // ranks)


def fit_compute(rows: Sequence[ParallelCase]) -> Compute:
    """The law of cases that differ in ranks and length alone.

    Raises ValueError where compute_ms is known of none.
    """
    known = [row for row in rows if row.compute_ms]
    if not known:
        raise ValueError("rows must hold a case whose compute_ms is known")
    if known[0].decay is None:
        return _fit_softmax(known)
    alone, parallel = (
        [
            (tokens_per_rank(ranks=row.ranks, seq_len=row.seq_len), row.compute_ms or 0.0)
            for row in known
            if (row.ranks > 1) == several
        ]
        for several in (False, True)
    )
    return LinearCompute(alone=fit_bounded(alone or parallel), parallel=fit_bounded(parallel or alone))


def fit_bounded(points: Sequence[tuple[int, float]]) -> Bounded:
    """The law of points (tokens, milliseconds) with the least sum of squared relative errors.

    Points below some number of tokens make the floor, the others the slope; at least the longest lies on the slope.
    Where splits are equally good the one with the fewest points below it is taken.
    """
    splits = [
        Bounded(
            floor=_common([(1.0, ms) for tokens, ms in points if tokens < first]),
            per_token=_common([(float(tokens), ms) for tokens, ms in points if tokens >= first]),
        )
        for first in sorted({tokens for tokens, _ in points})
    ]
    return min(splits, key=lambda law: round(_squares(law, points) / _SAME))


def _common(pairs: Sequence[tuple[float, float]]) -> float:
    """The c by which c x / y is closest to 1 over all (x, y); 0 of none."""
    return relative_fit([[x] for x, _ in pairs], [y for _, y in pairs])[0] if pairs else 0.0


def _squares(law: Bounded, points: Iterable[tuple[int, float]]) -> float:
    return sum((law.ms(tokens) / ms - 1) ** 2 for tokens, ms in points)


def _fit_softmax(rows: Sequence[ParallelCase]) -> SoftmaxCompute:
    """Pairs, which cost most, come first; a further term needs cases that tell it apart, and one left to err."""
    times = [row.compute_ms or 0.0 for row in rows]
    tokens = [tokens_per_rank(ranks=row.ranks, seq_len=row.seq_len) for row in rows]
    terms = {
        "per_pair": [float(n * row.seq_len) for n, row in zip(tokens, rows, strict=True)],
        "per_token": [float(n) for n in tokens],
        "per_step": [float(row.ranks) for row in rows],
    }
    kept: list[str] = []
    for name in terms:
        asked = [*kept, name]
        if not kept or (len(asked) < len(rows) and _told_apart([terms[each] for each in asked], times)):
            kept = asked
    found = relative_fit(list(zip(*(terms[name] for name in kept), strict=True)), times)
    return SoftmaxCompute(**dict.fromkeys(terms, 0.0) | dict(zip(kept, found, strict=True)))


def _told_apart(terms: Sequence[Sequence[float]], times: Sequence[float]) -> bool:
    """Is none of the terms, as parts of the times, nearly a sum of others?"""
    shares = np.asarray(terms) / np.asarray(times)
    return bool(
        np.linalg.matrix_rank(shares / shares.max(axis=1, keepdims=True), tol=_DISTINCT) == len(terms)
    )


def relative_fit(columns: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """Coefficients >= 0 by which sum c_i x_i / y is closest to 1; columns are scaled: units do not matter."""
    x, y = np.asarray(columns, dtype=float), np.asarray(values, dtype=float)
    weighted = x / y[:, None]
    scale = np.where(weighted.any(axis=0), np.abs(weighted).max(axis=0), 1.0)
    found, _ = nnls(weighted / scale, np.ones(len(y)))
    return tuple(float(value) for value in found / scale)
