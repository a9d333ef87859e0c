"""Which configuration wins a row: successive halving, then the best that is admitted. No device is seen from here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from attnbench.kernels._configs import Config, Row
from attnbench.tuning.candidates import Point

FINALISTS = 4
_FIRST_SAMPLES = 3  # of each configuration at each point in the first round; twice as many in each later one
_LAST_SAMPLES = 24
# A gain below this is not worth another row: from one recording to the next the ratio of two configurations changes by
# more than 0.9 % in half of all pairs, and by more than 2.3 % in a quarter (tests/test_tuning.py computes it).
WORTH = 0.03


class Standing(StrEnum):
    """How far a configuration came."""

    UNTRIED = "not tried"
    SCREENED = "screened"  # its forward is right; only such a one is timed
    ADMITTED = "admitted"  # right in all that its row serves
    WRONG = "wrong"  # it returned wrong numbers
    FAILED = "failed"  # it did not compile, launch or end


@dataclass(kw_only=True, eq=False)
class Entry:
    """A configuration in the race for a row, with the samples of its times in milliseconds by point."""

    row: Row
    config: Config
    current: bool  # it is the table's row
    standing: Standing = Standing.UNTRIED
    reason: str | None = None
    samples_ms: dict[Point, list[float]] = field(default_factory=dict)
    chunk_us: tuple[float, ...] = ()  # measured, for 1 to all programs on a multiprocessor; of winners alone
    chunk_reason: str | None = None  # why a winner has none

    @property
    def racing(self) -> bool:
        return self.standing in (Standing.SCREENED, Standing.ADMITTED)

    @property
    def score_ms(self) -> float | None:
        """The geometric mean over its points of the median time; None before it is timed."""
        if not self.samples_ms:
            return None
        logs = [math.log(statistics.median(samples)) for samples in self.samples_ms.values()]
        return math.exp(statistics.fmean(logs))

    def refuse(self, standing: Standing, reason: str) -> None:
        self.standing, self.reason = standing, reason


# Samples of an entry at a point: milliseconds, as many as asked for; none after it refused the entry.
Timer = Callable[[Entry, Point, int], Sequence[float]]


def halve(
    entries: Sequence[Entry], *, points: Sequence[Point], timer: Timer, stop: Callable[[], bool]
) -> list[Entry]:
    """Time the entries that passed their screening, the better half of them again and longer, and so on.

    Returns those that were timed, best first: by time among those of the last round, then those that left
    earlier. The table's row, being what the others are compared with, stays to the end. Once `stop` is true
    what was timed so far decides; an entry that was not timed at every point is not among the returned ones,
    and has no samples.
    """
    race = sorted((e for e in entries if e.racing), key=lambda e: not e.current)
    gone: list[Entry] = []
    count = _FIRST_SAMPLES
    while True:
        for entry in race:
            if stop():
                break
            _time(entry, points=points, count=count, timer=timer)
        timed = _ranked([e for e in race if e.racing and e.samples_ms])
        if stop() or count == _LAST_SAMPLES or not timed:
            return timed + gone
        kept = max(FINALISTS, len(timed) // 2)
        gone = [e for e in timed[kept:] if not e.current] + gone
        race = sorted((e for e in timed if e not in gone), key=lambda e: not e.current)
        count = _LAST_SAMPLES if len(race) <= FINALISTS + 1 else min(2 * count, _LAST_SAMPLES // 2)


def _time(entry: Entry, *, points: Sequence[Point], count: int, timer: Timer) -> None:
    """Add samples at every point; at none of them if one refuses the entry."""
    found = {}
    for point in points:
        samples = timer(entry, point, count)
        if not samples:
            return
        found[point] = samples
    for point, samples in found.items():
        entry.samples_ms.setdefault(point, []).extend(samples)


def _ranked(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda e: e.score_ms or math.inf)


def next_in_line(ranking: Sequence[Entry]) -> Entry | None:
    """The entry that should get the row, unless its admission fails; None when nobody is left.

    The table's row gives way only to one that is faster by `WORTH`.
    """
    current = next((e for e in ranking if e.racing and e.current), None)
    best = next((e for e in ranking if e.racing and not e.current), None)
    if best is None or (current is not None and gain(best, over=current) < WORTH):
        return current
    return best


def gain(entry: Entry, *, over: Entry) -> float:
    """How much faster: 0.08 where `over` takes 1.08 times as long.

    Raises ValueError if one of them has no time.
    """
    ours, theirs = entry.score_ms, over.score_ms
    if ours is None or theirs is None:
        raise ValueError("both must have been timed")
    return theirs / ours - 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What came of a row. winner: None where no configuration was admitted, and the row stays as it was."""

    row: Row
    entries: tuple[Entry, ...]
    winner: Entry | None
    runner_up: Entry | None  # the fastest of the others that are not refused

    @property
    def current(self) -> Entry | None:
        return next((e for e in self.entries if e.current), None)

    def count(self, standing: Standing) -> int:
        return sum(e.standing is standing for e in self.entries)


def choice(row: Row, *, entries: Sequence[Entry], ranking: Sequence[Entry]) -> Choice:
    """The row's winner: the next in line, if it is admitted."""
    first = next_in_line(ranking)
    winner = first if first is not None and first.standing is Standing.ADMITTED else None
    others = [e for e in ranking if e.racing and e is not winner]
    return Choice(
        row=row, entries=tuple(entries), winner=winner, runner_up=others[0] if others and winner else None
    )
