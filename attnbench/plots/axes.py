"""Ranges and ticks of logarithmic axes."""

from __future__ import annotations

import math


def log_ticks(low: float, high: float, *, base: int, most: int) -> list[float]:
    """Round numbers of a logarithmic axis: the densest set that has at most `most` of them."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    powers = [float(base) ** n for n in range(first, last + 1)]
    sets = [[p * m for p in powers for m in (1, 2, 5)], [p * m for p in powers for m in (1, 3)]]
    if base != 10:
        sets = []
    sets += [powers[-first % step :: step] for step in range(1, len(powers) + 1)]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in sets]
    return next((ticks for ticks in inside if len(ticks) <= most), inside[-1])


def padded(low: float, high: float, *, least: float, pad: float) -> tuple[float, float]:
    """A range with room at both ends, of at least the factor `least`: noise must not look like a slope."""
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), math.sqrt(least))
    half *= (half * half) ** pad
    return middle / half, middle * half
