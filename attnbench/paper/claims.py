"""What a figure claims, and how that is checked on lines: published ones and measured ones alike.

A claim is data. Its `check` names one of the few kinds below; `judge` says whether the lines of one panel bear it out,
and what they show, in words.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from attnbench.case import Status
from attnbench.crossings import crossovers
from attnbench.curves import Curve, Group, flatness, slope
from attnbench.paper.lines import Line, value_text
from attnbench.words import count_text, factor, joined

Lines = Mapping[str, Line]  # of one panel and one edition, by series
SLACK = 0.1  # a ratio that comes within so much of the published one is as published


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Does a claim hold for some lines (None: they cannot tell), what they show, and the number behind it."""

    holds: bool | None
    said: str
    value: float | None = None


class _Claim(BaseModel, abc.ABC):
    """What all claims have. `published_panel`: where the published lines are, if not in each panel itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bears_gaps: ClassVar[bool] = False  # can it be judged of a line without any value?

    text: str
    source: str
    panels: tuple[str, ...]
    published_panel: str = ""

    def judge(self, lines: Lines, *, quantity: str) -> Judged:
        """What the lines of one panel say to it. `quantity`: time, rate, memory or loss.

        That it fails at another shape than the figure assumes tells nothing of the claim.
        """
        absent = [
            name
            for name in self.needed()
            if name not in lines or not (len(lines[name]) or (self.bears_gaps and lines[name].gaps))
        ]
        if absent:
            return Judged(holds=None, said=f"no value of {joined(absent)}")
        judged = self._judge(lines, quantity)
        if judged.holds is False and not all(lines[name].as_assumed for name in self.needed()):
            return dataclasses.replace(
                judged, holds=None, said=f"{judged.said}, but measured at another shape"
            )
        return judged

    @abc.abstractmethod
    def needed(self) -> tuple[str, ...]:
        """The series that it is about."""

    @abc.abstractmethod
    def _judge(self, lines: Lines, quantity: str) -> Judged: ...


class Flat(_Claim):
    """The largest value is at most `within` times the smallest. What is more, but may be by chance, cannot be told."""

    check: Literal["flat"]
    series: str
    within: float

    def needed(self) -> tuple[str, ...]:
        return (self.series,)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        line = lines[self.series]
        if len(line) < 2:
            return Judged(holds=None, said="one length alone")
        spread = flatness(line.value)
        low, high = (
            value_text(float(line.value.min()), quantity),
            value_text(float(line.value.max()), quantity),
        )
        said = f"{factor(spread)} from {line.x[0]:,.0f} to {line.x[-1]:,.0f} ({low} to {high})"
        if spread <= self.within:
            return Judged(holds=True, said=said, value=spread)
        if _least_spread(line) <= self.within:
            return Judged(holds=None, said=f"{said}, which the spread of single values exceeds", value=spread)
        return Judged(holds=False, said=said, value=spread)


def _least_spread(line: Line) -> float:
    """The smallest ratio of largest to smallest value that the ends of their intervals leave possible."""
    lows, highs = np.fmin(line.value, line.low), np.fmax(line.value, line.high)  # NaN: no end is known
    return float(lows.max() / highs.min())


class Ratio(_Claim):
    """`series` is at least `published` times (less SLACK) as fast, or as small, as `than`, at one x."""

    check: Literal["ratio"]
    series: str
    than: str
    at: float
    published: float

    def needed(self) -> tuple[str, ...]:
        return (self.series, self.than)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        mine, other = lines[self.series].at(self.at), lines[self.than].at(self.at)
        if mine is None or other is None:
            absent = [name for name in self.needed() if lines[name].at(self.at) is None]
            return Judged(
                holds=None,
                said=f"{joined(absent)} has no value at {self.at:,.0f}{self._nearest(lines, quantity)}",
            )
        ratio = mine / other if quantity == "rate" else other / mine
        said = f"{factor(ratio)} ({value_text(mine, quantity)} and {value_text(other, quantity)})"
        return Judged(holds=ratio >= self.published * (1 - SLACK), said=said, value=ratio)

    def _nearest(self, lines: Lines, quantity: str) -> str:
        """What can be said instead: the ratio at the longest length that both have."""
        common = np.intersect1d(lines[self.series].x, lines[self.than].x)
        if not len(common):
            return ""
        mine, other = (float(lines[name].at(common[-1]) or np.nan) for name in self.needed())
        ratio = mine / other if quantity == "rate" else other / mine
        return f"; at {common[-1]:,.0f} it is {factor(ratio)}"


class Crossover(_Claim):
    """`faster` overtakes `slower` by the length `before` and stays ahead."""

    check: Literal["crossover"]
    faster: str
    slower: str
    before: int

    def needed(self) -> tuple[str, ...]:
        return (self.faster, self.slower)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        found = crossovers(*(_curve(lines[name], quantity=quantity) for name in self.needed()))
        if not found:
            return Judged(holds=None, said="no common length tells them apart")
        last = found[-1]
        ahead = last.faster == self.faster
        where = float(last.high) if last.estimate is None else last.estimate
        common = np.intersect1d(lines[self.faster].x, lines[self.slower].x)
        if ahead and last.low is None and where > self.before and (common < where).any():
            return Judged(holds=None, said=f"{last.sentence()}; below it nothing tells them apart")
        if not ahead and common.max(initial=0) < self.before:
            return Judged(
                holds=None,
                said=f"{last.sentence()}; lengths that both have end at {common.max(initial=0):,.0f}",
            )
        holds = ahead and (last.low is None or where <= self.before)
        return Judged(holds=holds, said=last.sentence(), value=where if ahead else None)


class Leads(_Claim):
    """`series` is ahead of `than` at every common length from `start` to `stop`."""

    check: Literal["leads"]
    series: str
    than: str
    start: float = 0
    stop: float = float("inf")

    def needed(self) -> tuple[str, ...]:
        return (self.series, self.than)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        a, b = (lines[name] for name in self.needed())
        common = [float(x) for x in np.intersect1d(a.x, b.x) if self.start <= x <= self.stop]
        if not common:
            return Judged(holds=None, said="no length that both have")
        ratios = {x: _ahead(a, b, x, quantity) for x in common}
        behind = [x for x, ratio in ratios.items() if ratio <= 1]
        least = min(ratios, key=lambda x: ratios[x])
        most = max(ratios, key=lambda x: ratios[x])
        span = f"{factor(ratios[least])} at {least:,.0f}, {factor(ratios[most])} at {most:,.0f}"
        said = span if least != most else f"{factor(ratios[least])} at {least:,.0f}"
        if behind:
            said += f"; behind at {joined([f'{x:,.0f}' for x in behind])}"
        return Judged(holds=not behind, said=said, value=ratios[least])


class Growth(_Claim):
    """The value grows like N to the power `order`, within `within`, from the length `start` on."""

    check: Literal["growth"]
    series: str
    order: float
    within: float
    start: float

    def needed(self) -> tuple[str, ...]:
        return (self.series,)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        line = lines[self.series]
        chosen = line.x >= self.start
        found = slope(line.x[chosen].astype(np.int64), line.value[chosen])
        if found is None:
            return Judged(holds=None, said=f"fewer than two lengths from {self.start:,.0f} on")
        said = f"like N^{found:.2f} from {line.x[chosen][0]:,.0f} to {line.x[-1]:,.0f}"
        return Judged(holds=abs(found - self.order) <= self.within, said=said, value=found)


class Equal(_Claim):
    """At every common x (or the last alone) the largest of some series is at most `within` times the smallest."""

    check: Literal["equal"]
    series: tuple[str, ...]
    within: float
    last: bool = False

    def needed(self) -> tuple[str, ...]:
        return self.series

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        common = set.intersection(*(set(lines[name].x.tolist()) for name in self.series))
        if not common:
            return Judged(holds=None, said="no x that all have")
        at = [max(common)] if self.last else sorted(common)
        values = {x: [lines[name].at(x) or np.nan for name in self.series] for x in at}
        spreads = {x: max(each) / min(each) for x, each in values.items()}
        worst = max(spreads, key=lambda x: spreads[x])
        shown = joined([value_text(value, quantity) for value in values[worst]])
        said = f"{(spreads[worst] - 1):.2%} apart at {worst:,.0f} ({shown})"
        if not self.last and len(at) > 1:
            said += f", {count_text(len(at), 'common point')}"
        return Judged(holds=spreads[worst] <= self.within, said=said, value=spreads[worst])


class Floor(_Claim):
    """Memory is at most `within` times `per_token` bytes for each token of a sequence."""

    check: Literal["floor"]
    series: str
    per_token: float
    of: str
    within: float

    def needed(self) -> tuple[str, ...]:
        return (self.series,)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        line = lines[self.series]
        if not line.as_assumed:
            return Judged(holds=None, said="measured at another shape")
        times = line.value / (self.per_token * line.x)
        worst = float(times.max())
        return Judged(holds=worst <= self.within, said=f"at most {factor(worst)} {self.of}", value=worst)


class Boundary(_Claim):
    """Memory ends at the same length for all series."""

    bears_gaps: ClassVar[bool] = True

    check: Literal["boundary"]
    series: tuple[str, ...]

    def needed(self) -> tuple[str, ...]:
        return self.series

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        ends = {name: _first_oom(lines[name]) for name in self.series}
        if not any(ends.values()):
            longest = min((float(lines[name].x.max()) for name in self.series if len(lines[name])), default=0)
            return Judged(holds=None, said=f"none ran out of memory up to {longest:,.0f} tokens")
        first = min(end for end in ends.values() if end is not None)
        if set(ends.values()) == {first}:
            return Judged(holds=True, said=f"out of memory: all at {first:,.0f} tokens")
        beyond = [name for name in self.series if _reaches(lines[name], first)]
        said = [f"{name} {'never' if end is None else f'at {end:,.0f}'}" for name, end in ends.items()]
        if beyond:
            return Judged(holds=False, said=f"out of memory: {joined(said)}")
        open_ = [name for name, end in ends.items() if end != first]
        return Judged(
            holds=None, said=f"out of memory: {joined(said)}; {joined(open_)} not measured at {first:,.0f}"
        )


class Ends(_Claim):
    """`series` runs out of memory at a length that `before` reaches."""

    bears_gaps: ClassVar[bool] = True

    check: Literal["ends"]
    series: str
    before: str

    def needed(self) -> tuple[str, ...]:
        return (self.series, self.before)

    def _judge(self, lines: Lines, quantity: str) -> Judged:
        end = _first_oom(lines[self.series])
        if end is None:
            return Judged(holds=None, said=f"{self.series} did not run out of memory where it was measured")
        said = f"{self.series} is out of memory from {end:,.0f} tokens, {self.before}"
        if _reaches(lines[self.before], end):
            return Judged(holds=True, said=f"{said} reaches that length", value=end)
        other = _first_oom(lines[self.before])
        if other is None or other > end:
            return Judged(holds=None, said=f"{said} was not measured there")
        return Judged(holds=False, said=f"{said} from {other:,.0f}", value=end)


Claim = Flat | Ratio | Crossover | Leads | Growth | Equal | Floor | Boundary | Ends


# ------------------------------------------------------------------------------------------------------------


def _ahead(a: Line, b: Line, x: float, quantity: str) -> float:
    """How many times as fast (or as small) a is as b."""
    mine, other = a.at(x) or np.nan, b.at(x) or np.nan
    return mine / other if quantity == "rate" else other / mine


def _first_oom(line: Line) -> float | None:
    return min((gap.x for gap in line.gaps if gap.status == Status.OOM), default=None)


def _reaches(line: Line, x: float) -> bool:
    """Has it a value at so many tokens, or at more?"""
    return bool((line.x >= x).any())


_NOWHERE = Group(heads=1, kv_heads=1, head_dim=1, value_dim=1, dtype="", causal=True, device="", batch=1)


def _curve(line: Line, *, quantity: str) -> Curve:
    """A line as a curve of times, so that crossings are found as in any run; of rates the inverse is a time."""
    inverse = quantity == "rate"
    value = 1e3 / line.value if inverse else line.value
    low, high = (1e3 / line.high, 1e3 / line.low) if inverse else (line.low, line.high)
    unknown = np.full(len(line), np.nan)
    return Curve(
        mechanism=line.series,
        workload="",
        group=_NOWHERE,
        seq_len=line.x.astype(np.int64),
        median_ms=value,
        ci_low_ms=low,
        ci_high_ms=high,
        tokens_per_s=1e3 / value,
        peak_bytes=unknown,
        energy_j=unknown,
    )


def by_series(lines: Sequence[Line]) -> dict[str, Line]:
    """Lines of one panel and one edition by their series."""
    return {line.series: line for line in lines}
