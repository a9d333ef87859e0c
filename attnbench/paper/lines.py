"""Lines: what was published and what was measured, in one form and in the same units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from attnbench.words import bytes_text, rate_text, time_text

Floats = npt.NDArray[np.float64]


class Origin(StrEnum):
    """Where a line comes from."""

    PUBLISHED = "published"
    CORRECTED = "corrected"
    MEASURED = "measured"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A point without a value, and why."""

    x: float
    status: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """Values over x, ascending: milliseconds, tokens per second, bytes or nats. NaN in low and high: unknown.

    edition: which of several: the table it stood in, or the device that it was measured on.
    """

    origin: Origin
    edition: str
    panel: str
    series: str
    x: Floats
    value: Floats
    low: Floats
    high: Floats
    gaps: tuple[Gap, ...] = ()
    as_assumed: bool = True  # of the shape that its figure assumes

    def __len__(self) -> int:
        return len(self.x)

    def at(self, x: float) -> float | None:
        """The value at x, or None."""
        place = np.flatnonzero(self.x == x)
        return float(self.value[place[0]]) if len(place) else None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a line that is being put together. value None: `status` says why."""

    x: float
    value: float | None
    low: float | None = None
    high: float | None = None
    status: str = "ok"
    reason: str = ""


def value_text(value: float, quantity: str) -> str:
    """A value of a line in words: 12.3 ms, 1.25 GiB, 45.6 k tokens/s, a loss to four digits."""
    words = {"time": time_text, "rate": rate_text, "memory": bytes_text}
    return words[quantity](value) if quantity in words else f"{value:.4g}"


def line(points: Iterable[Point], *, origin: Origin, edition: str, panel: str, series: str) -> Line:
    """A line of points, in order of x."""
    there = sorted(points, key=lambda point: point.x)
    valued = [point for point in there if point.value is not None]

    def column(name: str) -> Floats:
        values = [getattr(point, name) for point in valued]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    return Line(
        origin=origin,
        edition=edition,
        panel=panel,
        series=series,
        x=column("x"),
        value=column("value"),
        low=column("low"),
        high=column("high"),
        gaps=tuple(
            Gap(x=point.x, status=point.status, reason=point.reason) for point in there if point.value is None
        ),
    )
