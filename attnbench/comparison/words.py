"""A comparison in words: the closing sentence, and what stands beside the times."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.comparison.found import Compared, Comparison, Mean, Ratio
from attnbench.comparison.verdicts import Change, Verdict, change_text, percent_text
from attnbench.words import bytes_text, count_text, time_text

_NAMED = 3  # up to so many cases that share an explanation are named
_ERRORS = {"rel_err_o": "o", "rel_err_dq": "dq", "rel_err_dk": "dk", "rel_err_dv": "dv"}


def closing(found: Comparison) -> str:
    """The last sentence: `2 of 48 cases are slower (worst: ... 1.08×), 40 the same within 3 %, 6 unclear.`"""
    counts, total = found.counts, len(found.cases)
    parts: list[str] = []
    for verdict, count in counts.items():
        words = {
            Verdict.SAME: f"the same within {_thresholds(found)}",
            Verdict.UNTIMED: "without a time on either side",
            Verdict.MISSING: "on one side only",
        }.get(verdict, str(verdict))
        verb = ("is " if count == 1 else "are ") if not parts else ""
        of = f" of {count_text(total, 'case')}" if not parts else ""
        parts.append(f"{count:,}{of} {verb}{words}{_worst(found, verdict)}")
    memory = sum(each.memory is not None and each.memory.worse for each in found.cases)
    if memory:
        parts.append(f"{memory:,} {'needs' if memory == 1 else 'need'} more memory")
    if found.waived:
        parts.append(f"{len(found.waived):,} waived")
    return f"{', '.join(parts)}. {_end(found)}."


def remarks(found: Comparison) -> list[str]:
    """What to know before believing the times: differences and oddities, then accuracy. Full sentences."""
    said = [f"{each.sentence()}." for each in found.differences]
    said += [f"{text}." for text in found.notices]
    if found.noise is not None:
        said.append(
            f"stated noise of process medians: {percent_text(found.noise)}, so that changes count from "
            f"{percent_text(found.threshold)} on."
        )
    said += [f"{each.name}: {each.waived}." for each in found.waived]
    said += [f"{text}." for text in found.expired]
    for each in found.cases:
        said += [f"{each.name}: error of {error_text(change)}." for change in each.worse_errors]
    return said


def sentences(found: Comparison) -> Sequence[str]:
    """Remarks and the closing sentence."""
    return [*remarks(found), closing(found)]


def explanation(each: Compared) -> str:
    """Why a case has its verdict, and what else changed: one line."""
    memory = f"; peak memory {memory_words(each.memory)}" if each.memory and each.memory.worse else ""
    said = [text for text in (each.pick, each.waived) if text]
    return "; ".join([f"{each.name}: {each.verdict}: {each.reason}{memory}", *said])


def explanations(cases: Sequence[Compared]) -> list[str]:
    """The explanation of each case as a sentence; many cases of one verdict and reason share theirs."""
    alike: dict[str, list[Compared]] = {}
    for each in cases:
        alike.setdefault(explanation(each).removeprefix(each.name), []).append(each)
    return [
        f"{', '.join(each.name for each in same) if len(same) <= _NAMED else count_text(len(same), 'case')}{text}."
        for text, same in alike.items()
    ]


def shown(found: Comparison, *, everything: bool) -> tuple[Compared, ...]:
    """The cases worth a line: all, or those that are not simply the same (or never had a time)."""
    quiet = (Verdict.SAME, Verdict.UNTIMED)
    return tuple(
        each
        for each in found.cases
        if everything or each.verdict not in quiet or each.regressed or each.worse_errors
    )


def cells(each: Compared) -> tuple[str, ...]:
    """One line of a table: mechanism, workload, shape, base, new, ratio, memory, verdict."""
    return (
        each.case.mechanism,
        str(each.case.workload),
        f"{each.case.shape_id} {each.case.dtype}",
        "" if each.base_ms is None else time_text(each.base_ms),
        "" if each.new_ms is None else time_text(each.new_ms),
        ratio_text(each.ratio),
        _more_memory(each.memory),
        str(each.verdict) if each.waived is None else f"{each.verdict}, waived",
    )


HEADINGS = ("mechanism", "workload", "shape", "base", "new", "ratio", "memory", "verdict")


def mean_cells(mean: Mean) -> tuple[str, ...]:
    """One line of the table of means: mechanism, workload, cases, ratio."""
    return (mean.mechanism, mean.workload, f"{mean.cases:,}", ratio_text(mean.ratio))


MEAN_HEADINGS = ("mechanism", "workload", "cases", "geometric mean of the ratio")


def ratio_text(ratio: Ratio | None) -> str:
    """`1.082 [1.071, 1.093]`, the interval left out where it is unknown."""
    if ratio is None:
        return ""
    if ratio.low is None or ratio.high is None:
        return _factor(ratio.value)
    return f"{_factor(ratio.value)} [{_factor(ratio.low)}, {_factor(ratio.high)}]"


def memory_words(change: Change) -> str:
    """`1.00 GiB before, 1.25 GiB now`."""
    return f"{bytes_text(change.base)} before, {bytes_text(change.new)} now"


def error_text(change: Change) -> str:
    """`o 2.1e-03 before, 6.4e-03 now`."""
    return f"{_ERRORS.get(change.name, change.name)} {change.base:.1e} before, {change.new:.1e} now"


def _end(found: Comparison) -> str:
    faults = []
    if found.regressions:
        faults.append(count_text(len(found.regressions), "regression"))
    if found.expired:
        faults.append(count_text(len(found.expired), "expired waiver"))
    none = "No regression was shown" if found.doubtful else "No regression"
    return " and ".join(faults) or none


def _thresholds(found: Comparison) -> str:
    """`3 %`, or `3 % to 4.2 %` where noise widens it for some of the cases that are the same."""
    limits = {each.threshold for each in found.cases if each.verdict is Verdict.SAME} or {found.threshold}
    return " to ".join(dict.fromkeys(percent_text(limit) for limit in (min(limits), max(limits))))


def _more_memory(change: Change | None) -> str:
    if change is None or not change.worse:
        return ""
    return "more" if change.ratio is None else change_text(change.ratio)


def _worst(found: Comparison, verdict: Verdict) -> str:
    if verdict not in (Verdict.SLOWER, Verdict.BROKEN):
        return ""
    worst = next(each for each in found.cases if each.verdict is verdict)
    return (
        f" (first: {worst.name})"
        if worst.ratio is None
        else f" (worst: {worst.name} {worst.ratio.value:.2f}×)"
    )


def _factor(value: float) -> str:
    return f"{value:.3f}" if value < 9.9995 else f"{value:.3g}"
