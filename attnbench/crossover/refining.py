"""Which lengths to measure next, so that every crossing ends up between two that are close."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from attnbench.crossings import Point, zones
from attnbench.curves import SAME_TOKENS

Bracket = tuple[int, int]


def brackets(found: Sequence[Point], *, resolution: float) -> list[Bracket]:
    """Neighbouring lengths with an end of a crossing between them, where the longer exceeds the shorter by more.

    resolution: by how much of the shorter one. Where the two mechanisms cannot be told apart at some lengths, the
    crossing has two such ends, one on either side of those lengths; else the two are one.
    """
    ends: dict[Bracket, None] = {}
    for zone in zones(found):
        for left, right in (zone[:2], zone[-2:]):
            ends[left.seq_len, right.seq_len] = None
    return [(low, high) for low, high in ends if high > low * (1 + resolution)]


def next_lengths(found: Sequence[Point], *, resolution: float, tokens: int | None) -> list[int]:
    """The lengths that halve each bracket, from short to long; none where every crossing is as near as it gets.

    tokens: what a call is to work through, where that is constant; the batch is then `batch_for` a length.
    """
    middles = (middle(low, high, tokens=tokens) for low, high in brackets(found, resolution=resolution))
    return sorted({length for length in middles if length is not None})


def middle(low: int, high: int, *, tokens: int | None) -> int | None:
    """A length about half way between two on a logarithmic scale: the roundest of the middle third.

    Round in binary, as tiles are: between 128 and 256 it is 192. Where the batch must be whole and none of the middle
    third suits (see `batch_for`), the one nearest to the middle; None where no length between the two suits, or only
    ones that are as near to an end as calls of constant tokens are to each other.
    """
    third = (high / low) ** (1 / 3)
    near = 1.0 if tokens is None else 1 / (1 - SAME_TOKENS)
    inner = _suitable(math.ceil(low * third), math.floor(high / third), tokens=tokens)
    outer = _suitable(math.floor(low * near) + 1, math.ceil(high / near) - 1, tokens=tokens)
    suitable = inner if len(inner) else outer
    if not len(suitable):
        return None
    roundness = suitable & -suitable if len(inner) else np.ones_like(suitable)
    off = np.abs(np.log(suitable / math.sqrt(low * high)))
    return int(suitable[np.lexsort((off, -roundness))[0]])


def batch_for(seq_len: int, *, tokens: int) -> int | None:
    """The largest whole batch within `tokens` a call; None where it stays below by more than `SAME_TOKENS`."""
    batch = tokens // seq_len
    return batch if batch * seq_len >= (1 - SAME_TOKENS) * tokens else None


def steps_left(found: Sequence[Point], *, resolution: float) -> int:
    """About how many lengths are still to be measured, each halving one of the present brackets."""
    ratios = (math.log(high / low) for low, high in brackets(found, resolution=resolution))
    return sum(math.ceil(math.log2(ratio / math.log1p(resolution))) for ratio in ratios)


# ------------------------------------------------------------------------------------------------------------


def _suitable(first: int, last: int, *, tokens: int | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The lengths from `first` to `last`, where tokens are constant those that a whole batch suits."""
    lengths = np.arange(first, last + 1, dtype=np.int64)
    if tokens is None:
        return lengths
    return lengths[(tokens // lengths) * lengths >= (1 - SAME_TOKENS) * tokens]
