"""What a comparison found: the nouns, with what can be read off them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from attnbench.case import Case
from attnbench.comparison.sides import Difference
from attnbench.comparison.verdicts import SIGNIFICANCE, Change, Verdict

_ORDER = tuple(Verdict)  # worst first


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """New over base, with its interval; `low` and `high` are None where the noise is unknown."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One case on both sides: milliseconds are geometric means of the medians of processes, None where not ok."""

    name: str  # the case_id
    case: Case
    verdict: Verdict
    reason: str  # in words, without a full stop
    base_ms: float | None
    new_ms: float | None
    processes: tuple[int, int]  # that have a time, of base and of new
    ratio: Ratio | None  # None where a side has no time
    p: float | None
    q: float | None  # p after Benjamini and Hochberg over all cases of the comparison
    memory: Change | None
    errors: tuple[Change, ...]
    threshold: float  # the change that counts in this case, a share
    pick: str | None = None  # what else ran on the new side, in words without a full stop
    waived: str | None = None  # why a regression is put up with, in words without a full stop

    @property
    def regressed(self) -> bool:
        """Slower, broken, or in need of more memory."""
        more = self.memory is not None and self.memory.worse
        return more or self.verdict in (Verdict.SLOWER, Verdict.BROKEN)

    @property
    def worse_errors(self) -> tuple[Change, ...]:
        return tuple(each for each in self.errors if each.worse)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The geometric mean of the ratios of a mechanism and workload, over the cases with times on both sides."""

    mechanism: str
    workload: str
    cases: int
    ratio: Ratio


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found. `cases` are worst first.

    threshold: the smallest change that counts in any case, a share. noise: the one that was stated for all cases.
    significance: the share of false alarms that verdicts allow; intervals have a confidence of 1 minus it.
    expired: of each waiver that is past its day, a sentence without a full stop.
    """

    cases: tuple[Compared, ...]
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]
    notices: tuple[str, ...]
    threshold: float
    noise: float | None
    runs: tuple[tuple[str, ...], tuple[str, ...]]
    significance: float = SIGNIFICANCE
    expired: tuple[str, ...] = ()

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """Cases by verdict, worst first, those that occur."""
        seen = Counter(each.verdict for each in self.cases)
        return {verdict: seen[verdict] for verdict in _ORDER if seen[verdict]}

    @property
    def regressions(self) -> tuple[Compared, ...]:
        return tuple(each for each in self.cases if each.regressed and each.waived is None)

    @property
    def waived(self) -> tuple[Compared, ...]:
        """Regressions that a waiver puts up with."""
        return tuple(each for each in self.cases if each.regressed and each.waived is not None)

    @property
    def failed(self) -> bool:
        """Is there a regression that nobody waived, or a waiver past its day?"""
        return bool(self.regressions or self.expired)

    @property
    def judged(self) -> bool:
        """Is there a case with any verdict but `unclear`, `missing` and `untimed`?"""
        none = {Verdict.UNCLEAR, Verdict.MISSING, Verdict.UNTIMED}
        return any(each.regressed or each.verdict not in none for each in self.cases)

    @property
    def doubtful(self) -> tuple[Compared, ...]:
        """No regression, and no proof that there is none: unclear, or no longer measured."""
        gone = [each for each in self.cases if each.verdict is Verdict.MISSING and each.processes[0]]
        unclear = [each for each in self.cases if each.verdict is Verdict.UNCLEAR]
        return tuple(each for each in (*unclear, *gone) if not each.regressed)


def settled(found: Comparison, *, before: Comparison | None) -> Comparison:
    """A later look at the same cases, where what an earlier look has settled stays as that look judged it."""
    kept = {} if before is None else {e.name: e for e in before.cases if e.verdict is not Verdict.UNCLEAR}
    cases = sorted((kept.get(each.name, each) for each in found.cases), key=worst_first)
    return dataclasses.replace(found, cases=tuple(cases))


def worst_first(each: Compared) -> tuple[bool, int, float, str]:
    """Sorting key: regressions, then by verdict, then by ratio."""
    ratio = each.ratio.value if each.ratio is not None else 0.0
    return (not each.regressed, _ORDER.index(each.verdict), -ratio, each.name)
