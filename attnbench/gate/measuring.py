"""The order of a gate's processes, and how often it looks: ABBA rounds, then more of them where it cannot tell yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

from attnbench import store
from attnbench.case import Case, Status
from attnbench.comparison.found import Comparison, settled
from attnbench.comparison.verdicts import SIGNIFICANCE, Verdict
from attnbench.gate.processes import Process, Source
from attnbench.words import count_text, duration

PROCESSES = 5  # a side, where there is one look
FIRST_LOOK = 3  # a side, where a time budget pays for more
MOST = 20
_FEWEST = 2  # a side: below it no time can be judged at all
_GROWTH = 1.5  # of the processes from look to look

Judge = Callable[[Mapping[str, pd.DataFrame], float], Comparison]  # what was measured by side, significance


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many processes a side at the first look, and the seconds that may be spent, the first look included."""

    processes: int
    budget_s: float | None = None
    most: int = MOST


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The last look's comparison, and all that was measured, by side."""

    comparison: Comparison
    tables: Mapping[str, pa.Table]
    looks: int
    spent_s: float


def level(look: int) -> float:
    """The share of false alarms that the look of that number, from 1, may allow itself where further ones follow.

    Whoever looks again until something stands out finds it by chance: at 5 % each, twenty looks alarm far more often
    than once in 20. The shares 1 / (k (k + 1)) of 5 % sum up to 5 % over any number of looks (a union bound; the
    series telescopes), and take little from the first.
    """
    return SIGNIFICANCE / (look * (look + 1))


@dataclass(kw_only=True)
class Gate:
    """Measures its sides in turns and judges them.

    sides: base and new, or new alone where the judge holds it to stored results. spent_s: seconds of the budget that
    are gone already. enough: ends the measuring although cases are unclear.
    """

    cases: Sequence[Case]
    source: Source
    sides: tuple[str, ...]
    plan: Plan
    judge: Judge
    tell: Callable[[str], None]
    spent_s: float = 0.0
    enough: Callable[[Comparison], bool] = lambda found: False
    _done: dict[str, list[Process]] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Measure, judge, and measure more of what is unclear while the budget lasts."""
        look, target, wanted = 1, self.plan.processes, list(self.cases)
        found: Comparison | None = None
        while True:
            self.rounds(until=target, cases=wanted)
            significance = SIGNIFICANCE if self.plan.budget_s is None else level(look)
            found = settled(self._judged(significance), before=found)
            unclear = {each.name for each in found.cases if each.verdict is Verdict.UNCLEAR}
            wanted = [case for case in self.cases if case.case_id in unclear]
            further = 0 if self.enough(found) else self._further(wanted)
            if not further:
                return Outcome(comparison=found, tables=self.tables(), looks=look, spent_s=self.spent_s)
            self.tell(
                f"{count_text(len(wanted), 'case')} unclear after {self._count} processes a side: {further} more"
            )
            look, target = look + 1, self._count + further

    @property
    def measured(self) -> bool:
        """Is there anything yet?"""
        return any(self._done.values())

    @property
    def _count(self) -> int:
        """Processes so far, of the side that has fewest."""
        return min(len(self._done.get(side, ())) for side in self.sides)

    def _judged(self, significance: float) -> Comparison:
        frames = {side: store.to_frame(table) for side, table in self.tables().items()}
        return self.judge(frames, significance)

    def tables(self) -> dict[str, pa.Table]:
        """All that was measured, by side."""
        return {side: store.merge(each.table for each in self._done.get(side, ())) for side in self.sides}

    def rounds(self, *, until: int, cases: Sequence[Case]) -> None:
        """Measure up to `until` processes a side, in rounds of one each.

        The sides take turns as AB, BA, AB, ...: what drifts falls on both alike.
        """
        while (count := self._count) < until and self._possible(1):
            if count >= _FEWEST and not self._affordable(1, cases):
                self.tell(f"the time budget ends the measuring after {count} processes a side")
                return
            worth = [case for case in cases if case.case_id not in self._hopeless()]
            for side in self.sides if count % 2 == 0 else self.sides[::-1]:
                self._measure(side, cases=worth, until=until)

    def _measure(self, side: str, *, cases: Sequence[Case], until: int) -> None:
        done = self._done.setdefault(side, [])
        process = self.source.process(side, number=len(done) + 1, cases=cases)
        done.append(process)
        self.spent_s += process.wall_s or 0.0
        bad = sum(row["status"] != Status.OK for row in process.rows)
        missing = sum(until - len(self._done.get(each, ())) for each in self.sides)
        recorded = self.source.left(side, after=len(done)) is not None  # nobody waits for those
        seconds = missing * process.seconds_for(len(cases))
        left = f"; about {duration(seconds)} left" if missing and not recorded else ""
        self.tell(
            f"{side}, process {len(done)} of {until}: {count_text(len(process.rows), 'case')} in "
            f"{duration(process.wall_s or 0.0)}{f', {bad} not ok' if bad else ''}{left}"
        )

    def _hopeless(self) -> set[str]:
        """Cases that were never ok in two processes of a side: their verdict needs no more, and no time."""
        found: set[str] = set()
        for processes in self._done.values():
            ended: dict[str, list[bool]] = {}
            for row in (row for process in processes for row in process.rows):
                ended.setdefault(row["case_id"], []).append(row["status"] == Status.OK)
            found |= {name for name, oks in ended.items() if len(oks) >= 2 and not any(oks)}
        return found

    def _possible(self, rounds: int) -> bool:
        counts = [self.source.left(side, after=len(self._done.get(side, ()))) for side in self.sides]
        return all(count is None or count >= rounds for count in counts)

    def _affordable(self, rounds: int, cases: Sequence[Case]) -> bool:
        if self.plan.budget_s is None:
            return True
        # The slower of the last two processes: a budget is rather left unspent than exceeded.
        seconds = sum(max(p.seconds_for(len(cases)) for p in self._done[side][-2:]) for side in self.sides)
        return self.spent_s + rounds * seconds <= self.plan.budget_s

    def _further(self, unclear: Sequence[Case]) -> int:
        """Rounds that the budget pays for before the next look; 0: none, or none is needed."""
        if self.plan.budget_s is None or not unclear:
            return 0
        wanted = min(math.ceil(self._count * _GROWTH), self.plan.most) - self._count
        fitting = (n for n in range(wanted, 0, -1) if self._possible(n) and self._affordable(n, unclear))
        return next(fitting, 0)
