"""What a run found, as data."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.case import Status
from attnbench.crossings import Crossover
from attnbench.curves import Group
from attnbench.shapes import Standings
from attnbench.words import count_text, one_line, status_words


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The fastest mechanism at one length. `ahead` is the time of the next one over its own."""

    seq_len: int
    mechanism: str
    tokens_per_s: float
    median_ms: float
    peak_bytes: int | None
    next: str | None
    ahead: float | None
    clear: bool | None  # do the intervals of the two leave a space? None without a next one
    alone: (
        bool  # was nothing else asked for at this length? What was, and has no time, is in `Summary.missing`
    )


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """How constant the speed of a mechanism is: largest over smallest tokens/s, and where they were."""

    mechanism: str
    flatness: float
    slope: float | None  # of log tokens/s on log N
    fastest: float
    fastest_at: int
    slowest: float
    slowest_at: int


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules that a mechanism takes for a million tokens, at its longest length where that is known."""

    mechanism: str
    seq_len: int
    joules_per_million_tokens: float


@dataclass(frozen=True, kw_only=True)
class Section:
    """One workload with everything else but the length fixed."""

    workload: str
    group: Group
    leaders: tuple[Leader, ...]  # by length
    flatness: tuple[Flatness, ...]  # flattest first
    crossovers: tuple[Crossover, ...]  # of every pair
    energy: tuple[Energy, ...]  # least first


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Cases of one mechanism that ended alike, without a value, and at which lengths."""

    mechanism: str
    workloads: tuple[str, ...]
    status: str
    reason: str  # of the first; numbers in it may differ from case to case
    cases: int
    spared: int  # of these cases, that were not attempted, as no less work had ended so
    shortest: int | None
    longest: int | None
    every_length: bool  # all cases of the mechanism in these workloads ended so
    onwards: bool  # and those of `shortest` or longer

    def sentence(self) -> str:
        """In words, e.g. `linear-cumsum: out of memory from 8,192 tokens on (4 cases)`."""
        who = f"{self.mechanism} ({', '.join(self.workloads)})"
        reason = f": {one_line(self.reason)}" if self.reason and self.status != Status.OOM else ""
        cases = count_text(self.cases, "case")
        cases += f", {self.spared} of them not attempted" if self.spared else ""
        return f"{who}: {status_words(self.status)} {self._lengths()} ({cases}){reason}"

    def _lengths(self) -> str:
        if self.shortest is None or self.longest is None:
            return "at an unknown length"
        if self.every_length:
            return "at every length"
        if self.onwards:
            return f"from {self.shortest:,} tokens on"
        if self.shortest == self.longest:
            return f"at {self.shortest:,} tokens"
        return f"between {self.shortest:,} and {self.longest:,} tokens"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run found, in numbers; `sentences` says it in words."""

    rows: int
    devices: tuple[str, ...]
    statuses: dict[str, int]
    sections: tuple[Section, ...]
    standings: tuple[Standings, ...]  # of a sweep whose shapes are listed one by one
    missing: tuple[Missing, ...]  # without the incorrect ones
    incorrect: tuple[Missing, ...]
    warnings: tuple[str, ...]
