"""The rules by which a case is judged: time, status, memory and accuracy; each verdict with its reason in words.

Pure functions on numbers. A time is judged on the logarithm of its ratio, so that exchanging the sides exchanges
`slower` and `faster`: a threshold of 3 % means above 1.03 and below 1 / 1.03.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from attnbench.case import Status

SIGNIFICANCE = 0.05  # share of false alarms among the alarms that is put up with
MEMORY_GROWTH = 1.02  # peak memory is deterministic but for rounding of the allocator
ERROR_GROWTH = 1.5

# Unit roundoff: an error that grows by less than this has moved by rounding, whatever its ratio.
_ROUNDOFF: Mapping[str, float] = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-24}
_FEW = 5  # fewer processes than this a side are worth adding to


class Verdict(StrEnum):
    """What became of a case from base to new."""

    BROKEN = "broken"  # it was ok, and no longer is; or it is incorrect now
    SLOWER = "slower"
    UNCLEAR = "unclear"
    MISSING = "missing"  # measured on one side only
    UNTIMED = "untimed"  # ok on neither side
    SAME = "same"  # within the threshold, with its whole interval
    FASTER = "faster"
    FIXED = "fixed"  # the reverse of broken


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict and why, in words without a full stop."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """A number that went from base to new; `worse` beyond what the rules allow."""

    name: str
    base: float
    new: float
    worse: bool

    @property
    def ratio(self) -> float | None:
        return self.new / self.base if self.base else None


def practical_threshold(threshold: float, noise: float | None) -> float:
    """The change that counts, as a share: no less than twice the stated noise of a process median."""
    return max(threshold, 2 * (noise or 0.0))


def judge_time(
    *,
    log_ratio: float,
    interval: tuple[float, float] | None,
    q: float | None,
    cases: int,
    processes: tuple[int, int],
    threshold: float,
    significance: float = SIGNIFICANCE,
) -> Judged:
    """Judge the time of a case that is ok on both sides.

    `slower`: among `cases` cases the change is significant after Benjamini and Hochberg (q below `significance`), its
    interval excludes 1, and the ratio itself is beyond the threshold; `faster` likewise. `same`: the whole
    interval lies within the threshold. Everything else is `unclear`.

    log_ratio: new over base. interval: of the ratio, at a confidence of 1 - significance; None when the noise is
    unknown, and q with it. processes: of base and of new. threshold: a share, 0.03 for 3 %.
    """
    change = f"{change_text(math.exp(log_ratio))}"
    if interval is None or q is None:
        return Judged(verdict=Verdict.UNCLEAR, reason=_alone(processes))
    low, high = interval
    limit = 1 + threshold
    # The point is an element of its interval, up to rounding of exp.
    confidence = percent_text(1 - significance)
    span = f"{confidence} interval {change_text(low)} to {change_text(high)}"
    beyond, apart = abs(log_ratio) > math.log(limit), not low <= 1 <= high
    within = f"{percent_text(threshold)}"
    if beyond and apart and q < significance:
        verdict = Verdict.SLOWER if log_ratio > 0 else Verdict.FASTER
        return Judged(verdict=verdict, reason=f"{change} ({span}), which is beyond {within}; q = {q:.2g}")
    if 1 / limit <= low and high <= limit:
        return Judged(verdict=Verdict.SAME, reason=f"{change} ({span}), all of it within {within}")
    more = _more(processes)
    if apart and q < significance:
        return Judged(
            verdict=Verdict.UNCLEAR,
            reason=f"it changed by {change} ({span}), and whether by more than {within} is open{more}",
        )
    if apart and beyond:
        return Judged(
            verdict=Verdict.UNCLEAR,
            reason=f"{change} ({span}) would be a change if it were the only case, but chance yields such among "
            f"{cases} (q = {q:.2g}){more}",
        )
    return Judged(
        verdict=Verdict.UNCLEAR,
        reason=f"the interval is too wide to tell: {change} ({span}) is neither apart from 0 nor within {within}{more}",
    )


def judge_status(base: Sequence[Status], new: Sequence[Status], *, reason: str) -> Judged | None:
    """Judge how a case ended in the processes of both sides; None when time decides.

    A side is ok in all of its processes, in some, or in none: fewer is `broken`, more is `fixed`. `incorrect` in any
    new process, and in no base process, is `broken` whatever else there is. Ok in some on either side leaves
    it to the times that there are.

    reason: what the new side says of a case that is not ok (of `fixed`: the base side), empty when unknown.

    Raises ValueError for a side without processes.
    """
    if not base or not new:
        raise ValueError("a side needs at least one process")
    told = f": {reason}" if reason else ""
    wrong = Status.INCORRECT in new and Status.INCORRECT not in base
    if wrong or _level(new) < _level(base):
        return Judged(verdict=Verdict.BROKEN, reason=f"it {_ended(base)} before and {_ended(new)} now{told}")
    if _level(new) > _level(base):
        return Judged(verdict=Verdict.FIXED, reason=f"it {_ended(new)} now and {_ended(base)} before{told}")
    if _level(new) == 0:
        return Judged(
            verdict=Verdict.UNTIMED,
            reason=f"there is no time on either side: it {_ended(base)} before and {_ended(new)} now{told}",
        )
    return None


def judge_memory(base: float | None, new: float | None) -> Change | None:
    """Peak memory of a call in bytes; worse when it grew by more than 2 %. None where a side does not know it."""
    if base is None or new is None:
        return None
    return Change(name="peak_bytes", base=base, new=new, worse=new > base * MEMORY_GROWTH)


def judge_errors(base: Mapping[str, float], new: Mapping[str, float], *, dtype: str) -> tuple[Change, ...]:
    """The relative errors that both sides know, by name.

    Worse when an error is more than 1.5 times what it was, and by more than the unit roundoff of the dtype.
    """
    room = _ROUNDOFF.get(dtype, 0.0)
    return tuple(
        Change(
            name=name,
            base=base[name],
            new=new[name],
            worse=new[name] > ERROR_GROWTH * base[name] and new[name] - base[name] > room,
        )
        for name in base
        if name in new
    )


def change_text(ratio: float) -> str:
    """A ratio as a change: +8.2 %, -0.41 %, and ×3.1 from a doubling on."""
    if ratio >= 2:
        return f"×{ratio:.3g}"
    if ratio <= 0.5:
        return f"/{1 / ratio:.3g}"
    percent = (ratio - 1) * 100
    return f"{percent:+.1f} %" if abs(percent) >= 0.95 else f"{percent:+.2f} %"


def percent_text(share: float) -> str:
    """0.03 as 3 %."""
    return f"{share * 100:.3g} %"


# ------------------------------------------------------------------------------------------------------------


def _level(side: Sequence[Status]) -> int:
    good = list(side).count(Status.OK)
    return 2 if good == len(side) else int(good > 0)


def _ended(side: Sequence[Status]) -> str:
    bad = [str(status) for status in Status if status is not Status.OK and status in side]
    if not bad:
        return "was ok"
    failed = sum(status is not Status.OK for status in side)
    often = f" in {failed} of {len(side)} processes" if failed < len(side) else ""
    return f"was {' or '.join(bad)}{often}"


def _alone(processes: tuple[int, int]) -> str:
    singles = [name for name, count in zip(("base", "new"), processes, strict=True) if count < 2]
    who = "one process a side" if len(singles) == 2 else f"one process on the {singles[0]} side"
    return (
        f"{who}: how far processes differ by chance is unknown; measure in several, or state it with --noise"
    )


def _more(processes: tuple[int, int]) -> str:
    fewest = min(processes)
    if fewest >= _FEW:
        return ""
    many = "1 process" if fewest == 1 else f"{fewest} processes"
    return f"; {many} a side {'is' if fewest == 1 else 'are'} few"
