"""What was measured, as lines of a figure: from the runs of sweeps, and from the records of whole models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnbench.case import Status
from attnbench.curves import Curve, Group, curves, groups
from attnbench.models.records import Record
from attnbench.paper.details import details, what_ran
from attnbench.paper.figures import Figure, Panel, Series, Where
from attnbench.paper.lines import Floats, Line, Origin, Point, line
from attnbench.paper.tables import Table
from attnbench.summary.doubts import of_times
from attnbench.words import joined

if TYPE_CHECKING:
    from attnbench.paper.figures import Shape


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Lines of a figure, and what a reader must know of them (sentences without a full stop)."""

    lines: tuple[Line, ...]
    remarks: tuple[str, ...] = ()
    details: tuple[Table, ...] = ()  # what more is known of the points


# ---------------------------------------------------------------- sweeps


def of_runs(figure: Figure, frames: Sequence[pd.DataFrame]) -> Measured:
    """The lines that the runs of sweeps hold of a figure; of a case that several have, the first one's counts.

    Where no run has the figure's shape, another one of theirs is taken, and said.
    """
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs["runs"] = {name: run for frame in frames for name, run in frame.attrs.get("runs", {}).items()}
    # A run's own repetitions stay; a later source adds only what the earlier ones have not measured at all.
    origin = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    first = pd.Series(origin).groupby([rows["case_id"], rows["device"].fillna("")]).transform("min")
    found = curves(rows[first.to_numpy() == origin])
    lines: list[Line] = []
    remarks: list[str] = []
    for device in dict.fromkeys(each.group.device for each in found):
        here = [each for each in found if each.group.device == device and _of_figure(each, figure)]
        group = _group(here, figure.shape)
        if group is None:
            continue
        fits = figure.shape is None or _fits(group, figure.shape)
        if not fits:
            remarks.append(f"measured at another shape than assumed: {group.label()}")
        same = [each for each in here if each.group == group]
        lines += [dataclasses.replace(each, as_assumed=fits) for each in _lines(figure, same)]
        remarks += _substitutes(figure, same)
        remarks += _doubts(figure, rows, same)
    named = {name for series in figure.series for name in series.mechanism}
    ran = what_ran(frames, mechanisms=named) if lines else ()
    return Measured(lines=tuple(lines), remarks=tuple(dict.fromkeys(remarks)), details=ran)


def _of_figure(curve: Curve, figure: Figure) -> bool:
    named = {name for series in figure.series for name in series.mechanism}
    return curve.mechanism in named and curve.workload in {panel.workload for panel in figure.panel}


def _group(found: Sequence[Curve], shape: Shape | None) -> Group | None:
    """The group of the assumed shape, or else that of the most points."""
    there = groups(found)
    fitting = [group for group in there if shape is not None and _fits(group, shape)]
    if fitting:
        return fitting[0]
    return max(there, key=lambda group: sum(len(c) for c in found if c.group == group), default=None)


def _fits(group: Group, shape: Shape) -> bool:
    plain = group.kv_heads == group.heads and group.value_dim == group.head_dim and group.causal
    return plain and all(
        getattr(group, name) == getattr(shape, name)
        for name in ("batch", "tokens", "heads", "head_dim", "dtype")
    )


def _lines(figure: Figure, found: Sequence[Curve]) -> list[Line]:
    lines = []
    for panel in figure.panel:
        for series in figure.series:
            here = {c.mechanism: c for c in found if c.workload == panel.workload}
            name = _first(series.mechanism, here)
            if name is not None:
                points = [p for p in _points(here[name], panel) if _within(p.x, figure.span)]
                edition = here[name].group.device or "an unknown device"
                made = line(
                    points, origin=Origin.MEASURED, edition=edition, panel=panel.key, series=series.key
                )
                lines += [made] if len(made) or made.gaps else []
    return lines


def _within(x: float, span: tuple[float, float] | None) -> bool:
    return span is None or span[0] <= x <= span[1]


def _first(wanted: Sequence[str], there: Mapping[str, Curve]) -> str | None:
    """The first mechanism that has a value, or else the first that was tried."""
    tried = [name for name in wanted if name in there]
    return next((name for name in tried if len(there[name])), tried[0] if tried else None)


def _points(curve: Curve, panel: Panel) -> list[Point]:
    value, low, high = _values(curve, panel)
    points = [
        Point(x=float(x), value=float(v), low=_known(lo), high=_known(hi))
        for x, v, lo, hi in zip(curve.seq_len, value, low, high, strict=True)
        if v > 0  # False for NaN, which is unknown
    ]
    return points + [
        Point(x=float(gap.seq_len), value=None, status=gap.status, reason=gap.reason) for gap in curve.gaps
    ]


def _values(curve: Curve, panel: Panel) -> tuple[Floats, Floats, Floats]:
    """Values and the ends of their intervals."""
    if panel.quantity == "time":
        return curve.median_ms, curve.ci_low_ms, curve.ci_high_ms
    if panel.quantity == "rate":
        tokens = curve.tokens_per_s * curve.median_ms
        return curve.tokens_per_s, tokens / curve.ci_high_ms, tokens / curve.ci_low_ms
    unknown = np.full(len(curve), np.nan)
    return curve.peak_bytes, unknown, unknown


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _substitutes(figure: Figure, found: Sequence[Curve]) -> list[str]:
    """Which mechanisms stand in for those that a figure means first."""
    there = {c.mechanism: c for c in found}
    chosen = {series.label: (series.mechanism, _first(series.mechanism, there)) for series in figure.series}
    return [f"{label} is {name} here" for label, (names, name) in chosen.items() if name and name != names[0]]


def _doubts(figure: Figure, rows: pd.DataFrame, found: Sequence[Curve]) -> tuple[str, ...]:
    """What is to be doubted in the times behind some curves; a figure of memory shows none."""
    if all(panel.quantity == "memory" for panel in figure.panel):
        return ()
    drawn = {(curve.mechanism, curve.workload) for curve in found}
    device = {curve.group.device for curve in found}
    pairs = pd.Series(zip(rows["mechanism"], rows["workload"], strict=True), index=rows.index)
    return of_times(rows[pairs.isin(drawn) & rows["device"].isin(device)])


# ---------------------------------------------------------------- records of whole models

# What else may differ between rows: each choice of it is a line of its own, and named in its edition. A batch may
# follow the length, and tells rows apart only where they stand at the same place. Several GPUs are named with
# the device.
_SETTINGS = ("checkpointing", "compiled", "precision", "launch", "new_tokens")
_FOLLOWING = ("batch",)
_IDENTITY = ("size", "model", "attention", "cache", "phase", "gpus", *_SETTINGS)
_COLUMNS = {"rate": "tokens_per_s", "memory": "peak_bytes", "time": "median_ms", "loss": "loss"}


def of_records(figure: Figure, rows: Sequence[Record]) -> Measured:
    """The lines that the records of whole models hold of a figure."""
    drawn = [row for row in rows if _matches(row, figure.where)]
    varying = _varying(drawn, x=figure.x)
    lines: list[Line] = []
    for panel in figure.panel:
        for series in figure.series:
            if not series.where:
                continue
            wanted = {**figure.where, **panel.where, **series.where}
            if not panel.where and any(other.where for other in figure.panel):
                continue  # a panel of published points alone
            here = [row for row in rows if _matches(row, wanted)]
            lines += _record_lines(figure, panel, series, here, varying=varying)
    return Measured(lines=tuple(lines), details=details(drawn) if lines else ())


def _varying(rows: Sequence[Record], *, x: str) -> list[str]:
    """The settings that tell lines of a figure apart, the same in all of its panels and series."""
    return [
        *(name for name in _SETTINGS if len(_values_of(rows, name)) > 1),
        *(name for name in _FOLLOWING if _varies(rows, name, x=x)),
    ]


def _record_lines(
    figure: Figure, panel: Panel, series: Series, rows: Sequence[Record], *, varying: Sequence[str]
) -> list[Line]:
    by_edition: dict[str, dict[float, list[Record]]] = {}
    for row in rows:
        places = by_edition.setdefault(_edition(row, varying), {})
        places.setdefault(_x(row, figure), []).append(row)
    return [
        line(
            [_record_point(same, x=x, quantity=panel.quantity) for x, same in places.items()],
            origin=Origin.MEASURED,
            edition=edition,
            panel=panel.key,
            series=series.key,
        )
        for edition, places in by_edition.items()
    ]


def _matches(row: Record, wanted: Where) -> bool:
    for name, value in wanted.items():
        own = str(getattr(row, name)).partition("@")[0]  # flash2@torch is flash2
        if own not in ((value,) if isinstance(value, str) else value):
            return False
    return True


def _x(row: Record, figure: Figure) -> float:
    value: int = getattr(row, figure.x)
    return float(value + 1 if figure.x == "step" else value)  # updates, so that the first has a logarithm


def _values_of(rows: Iterable[Record], name: str) -> set[Any]:
    """What is known of a setting."""
    return {value for row in rows if (value := getattr(row, name, None)) is not None}


def _varies(rows: Iterable[Record], name: str, *, x: str) -> bool:
    """Do two rows of one model at the same place differ in it?"""
    places: dict[Any, list[Record]] = {}
    for row in rows:
        model = row.case_id if x == "step" else tuple(getattr(row, name, None) for name in _IDENTITY)
        places.setdefault((getattr(row, x), model), []).append(row)
    return any(len(_values_of(same, name)) > 1 for same in places.values())


def _edition(row: Record, varying: Sequence[str]) -> str:
    words = {
        "checkpointing": "checkpointing {}",
        "batch": "batch {}",
        "new_tokens": "{:,} new tokens",
    }
    flags = {"compiled": ("not compiled", "compiled")}
    told = [
        flags[name][value] if name in flags else words.get(name, "{}").format(value)
        for name in varying
        if (value := getattr(row, name, None)) is not None
    ]
    gpus = getattr(row, "gpus", 1)
    device = row.device or "an unknown device"
    return ", ".join([device if gpus == 1 else f"{gpus} x {device}", *told])


def _record_point(rows: Sequence[Record], *, x: float, quantity: str) -> Point:
    """One point of rows that differ in nothing that is told apart (seeds, repetitions): their median."""
    column = _COLUMNS[quantity]
    ok = [row for row in rows if getattr(row, "status", Status.OK) == Status.OK]
    values = [value for row in ok if (value := getattr(row, column, None)) is not None]
    if not values:
        failed = [
            (str(getattr(row, "status", "")), getattr(row, "reason", "")) for row in rows if row not in ok
        ]
        status, reason = failed[0] if failed else (str(Status.ERROR), "no value was recorded")
        return Point(x=x, value=None, status=status, reason=reason or "")
    value = float(np.median(values))
    low, high = _spread(ok, quantity, value)
    return Point(x=x, value=value, low=low, high=high)


def _spread(rows: Sequence[Record], quantity: str, value: float) -> tuple[float | None, float | None]:
    """What 10 and 90 % of the samples say, where a time or a rate has samples."""
    times = [
        (getattr(r, "p10_ms", None), getattr(r, "median_ms", None), getattr(r, "p90_ms", None)) for r in rows
    ]
    known = [(fast, middle, slow) for fast, middle, slow in times if fast and middle and slow]
    if quantity not in ("time", "rate") or not known:
        return None, None
    fast = min(each[0] / each[1] for each in known)
    slow = max(each[2] / each[1] for each in known)
    return (value * fast, value * slow) if quantity == "time" else (value / slow, value / fast)


def devices(lines: Iterable[Line]) -> str:
    """The devices of measured lines, in words."""
    names = sorted({each.edition.split(",")[0] for each in lines if each.origin is Origin.MEASURED})
    return joined(names) if names else ""
