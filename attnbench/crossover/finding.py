"""What a run says of two mechanisms: where they cross, or who is ahead everywhere, or why that cannot be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

from attnbench.crossings import Crossover, Failure, Point, crossovers, lengths_text, points
from attnbench.crossover.refining import brackets
from attnbench.curves import Curve, Group, curves, line_names
from attnbench.errors import UserError, nearest
from attnbench.words import factor, status_words, workload_title

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Two lines, a and b, in one workload with everything else but the length fixed."""

    workload: str
    group: Group
    a: str
    b: str
    points: tuple[Point, ...]
    crossovers: tuple[Crossover, ...]  # of `crossings.crossovers`

    @property
    def crossings(self) -> tuple[Crossover, ...]:
        """The true ones: not that one is ahead from the start."""
        return tuple(each for each in self.crossovers if each.low is not None)

    @property
    def told(self) -> bool:
        """Does any length at which both have a time tell them apart?"""
        return bool(self.crossovers)

    @property
    def outcome(self) -> str:
        """`crosses`, `ahead` (one of them everywhere), `undecided` (never told apart) or `unknown` (no common time)."""
        if self.told:
            return "crosses" if self.crossings else "ahead"
        return "undecided" if any(point.ratio is not None for point in self.points) else "unknown"

    @property
    def heading(self) -> str:
        """`Forward, batch 4, 16 heads, ...`."""
        return f"{workload_title(self.workload)}, {self.group.label()}"


def findings(frame: pd.DataFrame, a: str, b: str) -> tuple[Finding, ...]:
    """The two mechanisms in every workload and group of a results frame that has rows of both, each window a line.

    Raises UserError where a mechanism has no row, or the two share no workload and group.
    """
    both = frame[frame["mechanism"].isin((a, b))]
    for name in (a, b):
        if name not in set(both["mechanism"]):
            raise UserError(f"the run has no row of '{name}'; {nearest(name, set(frame['mechanism']))}")
    lines = {name: set(line_names(both[both["mechanism"] == name])) for name in (a, b)}
    found = [
        _finding(here, there)
        for _, same in groupby(curves(both), key=lambda c: (c.workload, c.group))
        for here, there in _pairs(tuple(same), lines[a], lines[b])
    ]
    if not found:
        raise UserError(
            f"{a} and {b} were not measured at the same shape: workload, heads, dims, dtype, mask, device, and batch "
            "or tokens must be equal"
        )
    return tuple(found)


def sentence(found: Finding, *, resolution: float | None = None) -> str:
    """What was found, in words. resolution: how near the ends of a crossing were to come, if it was refined."""
    if found.outcome == "unknown":
        return f"Nothing can be said of {found.a} and {found.b}: {_why_unknown(found)}."
    if found.outcome == "undecided":
        return (
            f"{found.a} and {found.b} cannot be told apart: the interval of the ratio of their times contains 1 "
            f"{_at(_undecided(found))}."
        )
    if found.outcome == "ahead":
        return f"{_ahead(found)}."
    said = [f"{each.sentence()}{_limit(found, each, resolution)}" for each in found.crossings]
    within = {length for each in found.crossings for length in each.undecided}
    beside = [point for point in _undecided(found) if point.seq_len not in within]
    rest = f". The two cannot be told apart {_at(beside)} either" if beside else ""
    return f"{f'They cross {len(said)} times: ' if len(said) > 1 else ''}{'; '.join(said)}{rest}."


def as_json(found: Finding, *, resolution: float | None = None) -> dict[str, Any]:
    """A finding in types that JSON has; times of b over a, lengths in tokens."""
    return {
        "workload": found.workload,
        "group": asdict(found.group),
        "a": found.a,
        "b": found.b,
        "outcome": found.outcome,
        "crossings": [asdict(each) for each in found.crossings],
        "ahead": found.crossovers[0].faster if found.outcome == "ahead" else None,
        "points": [
            {
                "seq_len": point.seq_len,
                "ratio": point.ratio,
                "ratio_low": point.low,
                "ratio_high": point.high,
                "ahead": {1: found.a, -1: found.b, 0: None}[point.ahead],
                "failed": [asdict(each) for each in failures(found, point)],
            }
            for point in found.points
        ],
        "sentence": sentence(found, resolution=resolution),
    }


def failures(found: Finding, point: Point) -> list[Failure]:
    """Who has no time at a point, and why."""
    return [
        Failure(mechanism=name, seq_len=gap.seq_len, status=gap.status, reason=gap.reason)
        for name, gap in ((found.a, point.a_failed), (found.b, point.b_failed))
        if gap is not None
    ]


# ------------------------------------------------------------------------------------------------------------


def _pairs(same: Sequence[Curve], of_a: set[str], of_b: set[str]) -> Iterable[tuple[Curve, Curve]]:
    return product(
        [c for c in same if c.mechanism in of_a],
        [c for c in same if c.mechanism in of_b],
    )


def _finding(a: Curve, b: Curve) -> Finding:
    return Finding(
        workload=a.workload,
        group=a.group,
        a=a.mechanism,
        b=b.mechanism,
        points=points(a, b),
        crossovers=crossovers(a, b),
    )


def _ahead(found: Finding) -> str:
    """`a is ahead of b from 128 to 8,192 tokens: b takes 1.46× the time at 128 and 14.2× at 8,192`."""
    (lead,) = found.crossovers
    sign = 1 if lead.faster == found.a else -1
    told = [point for point in found.points if point.ratio is not None and point.ahead]
    ends = told if len(told) < 2 else [told[0], told[-1]]
    times = [factor((point.ratio or 1.0) ** sign) for point in ends]
    said = f"{lead.faster} is ahead of {lead.slower} "
    if len(ends) == 1:
        said += f"at {ends[0].seq_len:,} tokens: {lead.slower} takes {times[0]} its time"
    else:
        low, high = (f"{point.seq_len:,}" for point in ends)
        said += f"from {low} to {high} tokens: {lead.slower} takes {times[0]} its time at {low}"
        said += f" and {times[1]} at {high}"
    if undecided := _undecided(found):
        said += f"; the two cannot be told apart {_at(undecided)}"
    if failed := [point for point in found.points if point.ratio is None]:
        words = {f"{f.mechanism}: {status_words(f.status)}": None for p in failed for f in failures(found, p)}
        said += f"; not both have a time {_at(failed)} ({', '.join(words)})"
    return said


def _limit(found: Finding, each: Crossover, resolution: float | None) -> str:
    """Why a refined crossing is wider than it was to be."""
    if resolution is None or each.low is None or each.high <= each.low * (1 + resolution):
        return ""
    left = brackets(found.points, resolution=resolution)
    if any(each.low <= low and high <= each.high for low, high in left):
        return "; no whole batch suits a length between"
    return "; noise hides where: more samples (--cap-s) may show it" if each.undecided else ""


def _why_unknown(found: Finding) -> str:
    causes = (f"{f.mechanism}: {f.cause()}" for point in found.points for f in failures(found, point))
    return "; ".join(dict.fromkeys(causes)) or "no length was measured with both"


def _undecided(found: Finding) -> list[Point]:
    return [point for point in found.points if point.ratio is not None and not point.ahead]


def _at(found: Iterable[Point]) -> str:
    return lengths_text([point.seq_len for point in found])
