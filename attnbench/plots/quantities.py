"""What figures of curves show: tokens/s, time and peak memory, each with its axis, interval and tick labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attnbench.curves import Curve, Floats


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a kind of figure shows: file name, words, and a curve's values with the ends of their interval."""

    stem: str
    title: str
    axis: str
    base: int  # of the ticks of the vertical axis
    value: Callable[[Curve], Floats]
    ends: Callable[[Curve], tuple[Floats, Floats]] | None
    tick: Callable[[float], str]
    flatness: bool = False


def _rate_ends(c: Curve) -> tuple[Floats, Floats]:
    tokens_ms = c.tokens_per_s * c.median_ms
    return tokens_ms / c.ci_high_ms, tokens_ms / c.ci_low_ms


def _rate_tick(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.999:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _bytes_tick(value: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B"


QUANTITIES = (
    Quantity(
        stem="tokens-per-s",
        title="speed against sequence length",
        axis="tokens/s",
        base=10,
        value=lambda c: c.tokens_per_s,
        ends=_rate_ends,
        tick=_rate_tick,
        flatness=True,
    ),
    Quantity(
        stem="time",
        title="time of one call",
        axis="time (ms)",
        base=10,
        value=lambda c: c.median_ms,
        ends=lambda c: (c.ci_low_ms, c.ci_high_ms),
        tick=lambda value: f"{value:,g}" if value < 1e6 else f"{value:.0e}",
    ),
    Quantity(
        stem="memory",
        title="peak memory of one call",
        axis="peak memory",
        base=2,
        value=lambda c: c.peak_bytes,
        ends=None,
        tick=_bytes_tick,
    ),
)


def has_values(c: Curve, quantity: Quantity) -> bool:
    """Is there anything to draw of it? NaN and zero are no value."""
    return bool((quantity.value(c) > 0).any())
