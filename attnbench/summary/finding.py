"""From the rows of a run to what it found: who is fastest where, how flat, where curves cross, what is missing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from attnbench.case import Status
from attnbench.crossings import crossovers
from attnbench.curves import Curve, Group, curves, flatness, groups, line_names, slope
from attnbench.executors.spared import cause
from attnbench.shapes import lists_shapes, standings
from attnbench.summary.doubts import warnings_of
from attnbench.summary.found import Energy, Flatness, Leader, Missing, Section, Summary
from attnbench.words import workload_order


def summarize_run(frame: pd.DataFrame) -> Summary:
    """Derive the summary of a results frame as `store.load_results` returns it.

    Values are those of `curves.curves`: several runs of one case are merged there. `energy_j` is read as the
    energy of one call.
    """
    found = curves(frame)
    missing = _missing(frame)
    return Summary(
        rows=len(frame),
        devices=tuple(sorted({str(device) for device in frame["device"].dropna()})),
        statuses=dict(sorted(Counter(str(status) for status in frame["status"]).items())),
        sections=tuple(_sections(found)),
        standings=standings(frame) if lists_shapes(frame) else (),
        missing=tuple(each for each in missing if each.status != Status.INCORRECT),
        incorrect=tuple(each for each in missing if each.status == Status.INCORRECT),
        warnings=warnings_of(frame, found),
    )


def _sections(found: Sequence[Curve]) -> Iterable[Section]:
    for workload in dict.fromkeys(c.workload for c in found):
        for group in groups(c for c in found if c.workload == workload):
            asked = [c for c in found if (c.workload, c.group) == (workload, group)]
            if any(len(c) for c in asked):
                yield _section(asked, workload=workload, group=group)


def _section(asked: Sequence[Curve], *, workload: str, group: Group) -> Section:
    same = [c for c in asked if len(c)]
    failed = {gap.seq_len for c in asked for gap in c.gaps}
    lengths = sorted({int(n) for c in same for n in c.seq_len})
    flat = [_flatness(c) for c in same]
    energy = [each for c in same if (each := _energy(c)) is not None]
    return Section(
        workload=workload,
        group=group,
        leaders=tuple(_leader(same, n, failed=n in failed) for n in lengths),
        flatness=tuple(sorted(flat, key=_flat_order)),
        crossovers=tuple(crossing for a, b in combinations(same, 2) for crossing in crossovers(a, b)),
        energy=tuple(sorted(energy, key=lambda each: (each.joules_per_million_tokens, each.mechanism))),
    )


def _leader(same: Sequence[Curve], seq_len: int, *, failed: bool) -> Leader:
    """failed: a mechanism that was asked for at this length has no time there."""
    here = [(c, int(i)) for c in same for i in (c.seq_len == seq_len).nonzero()[0]]
    here.sort(key=lambda at: (at[0].median_ms[at[1]], at[0].mechanism))
    (c, i), after = here[0], here[1] if len(here) > 1 else None
    peak = float(c.peak_bytes[i])
    return Leader(
        seq_len=seq_len,
        mechanism=c.mechanism,
        tokens_per_s=float(c.tokens_per_s[i]),
        median_ms=float(c.median_ms[i]),
        peak_bytes=None if math.isnan(peak) else round(peak),
        next=after[0].mechanism if after else None,
        ahead=float(after[0].median_ms[after[1]] / c.median_ms[i]) if after else None,
        clear=_clear(c, i, *after) if after else None,
        alone=after is None and not failed,
    )


def _clear(a: Curve, i: int, b: Curve, j: int) -> bool:
    """Does the faster one's interval end before the slower one's begins? Unknown ends are the median."""
    high = a.median_ms[i] if math.isnan(a.ci_high_ms[i]) else a.ci_high_ms[i]
    low = b.median_ms[j] if math.isnan(b.ci_low_ms[j]) else b.ci_low_ms[j]
    return bool(high < low)


def _flatness(c: Curve) -> Flatness:
    high, low = int(c.tokens_per_s.argmax()), int(c.tokens_per_s.argmin())
    return Flatness(
        mechanism=c.mechanism,
        flatness=flatness(c.tokens_per_s),
        slope=slope(c.seq_len, c.tokens_per_s),
        fastest=float(c.tokens_per_s[high]),
        fastest_at=int(c.seq_len[high]),
        slowest=float(c.tokens_per_s[low]),
        slowest_at=int(c.seq_len[low]),
    )


def _flat_order(each: Flatness) -> tuple[bool, float, str]:
    return (each.slope is None, each.flatness, each.mechanism)  # a single point is not flat


def _energy(c: Curve) -> Energy | None:
    known = [i for i in range(len(c)) if c.energy_j[i] > 0]  # False for NaN
    if not known:
        return None
    tokens = c.tokens_per_s[known[-1]] * c.median_ms[known[-1]] * 1e-3
    joules = float(c.energy_j[known[-1]] / tokens * 1e6)
    return Energy(mechanism=c.mechanism, seq_len=int(c.seq_len[known[-1]]), joules_per_million_tokens=joules)


# --- what was not -------------------------------------------------------------------------------------------


def _missing(frame: pd.DataFrame) -> list[Missing]:
    """The rows that are not ok, by mechanism, workload, status and reason, whatever the numbers in it.

    What was not attempted has the reason of the attempted case that it was spared for.
    """
    shapes: dict[tuple[str, str, str, str], list[tuple[int | None, str]]] = {}
    spared: Counter[tuple[str, str, str, str]] = Counter()
    ends: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    names = ("mechanism", "workload", "status", "reason", "seq_len")
    named = frame.assign(mechanism=line_names(frame))
    for mechanism, workload, status, given, length in zip(*(named[name] for name in names), strict=True):
        whole = given if isinstance(given, str) else ""
        reason = cause(whole) or whole
        seq_len = None if pd.isna(length) else int(length)
        kind = "" if status == Status.OOM else re.sub(r"\d[\d.,]*", "#", reason)
        ends.setdefault((mechanism, workload), []).append((status, kind, seq_len or 0))
        if status != Status.OK:
            shapes.setdefault((mechanism, workload, status, kind), []).append((seq_len, reason))
            spared[mechanism, workload, status, kind] += reason != whole
    found: dict[tuple[Any, ...], Missing] = {}
    for (mechanism, workload, status, kind), cases in shapes.items():
        lengths = [seq_len for seq_len, _ in cases if seq_len is not None]
        others = [n for *end, n in ends[mechanism, workload] if end != [status, kind]]
        each = Missing(
            mechanism=mechanism,
            workloads=(workload,),
            status=status,
            reason=min((reason for _, reason in cases), default=""),
            cases=len(cases),
            spared=spared[mechanism, workload, status, kind],
            shortest=min(lengths, default=None),
            longest=max(lengths, default=None),
            every_length=not others,
            onwards=bool(lengths) and max(others, default=0) < min(lengths),
        )
        place = None if each.every_length else (each.shortest, each.longest, each.onwards)
        key = (mechanism, status, kind, place)
        found[key] = _joined(found[key], each) if key in found else each
    return sorted(found.values(), key=lambda each: (each.status, each.mechanism, each.workloads))


def _joined(a: Missing, b: Missing) -> Missing:
    lengths = [n for n in (a.shortest, b.shortest, a.longest, b.longest) if n is not None]
    return dataclasses.replace(
        a,
        workloads=tuple(sorted({*a.workloads, *b.workloads}, key=workload_order)),
        reason=min(a.reason, b.reason),
        cases=a.cases + b.cases,
        spared=a.spared + b.spared,
        shortest=min(lengths, default=None),
        longest=max(lengths, default=None),
    )
