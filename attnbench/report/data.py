"""What the page draws from: the rows of a run by columns, as small as they get, and how they may be chosen among."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from attnbench.case import Workload
from attnbench.curves import Group, groups_of_rows, line_names
from attnbench.places import ceilings_by_device, highest_ceilings
from attnbench.plots.looks import in_order
from attnbench.report.looks import look
from attnbench.shapes import labels_of_shapes, lists_shapes
from attnbench.words import workload_order, workload_title

_NAMES = (
    *("run_id", "mechanism", "semantics", "provider", "workload", "dtype", "device"),
    *("status", "reason", "config"),
)
_OF_CASE = ("case_id", "mechanism", "workload", "dtype")
_LISTS = ("kernels", "throttle")
_NUMBERS = (
    *("batch", "heads", "kv_heads", "seq_len", "head_dim", "value_dim", "window"),
    *("median_ms", "p10_ms", "p90_ms", "ci_low_ms", "ci_high_ms", "first_call_ms"),
    *("tokens_per_s", "tflops", "gbps", "roofline"),
    *("input_bytes", "output_bytes", "saved_bytes", "state_bytes", "workspace_bytes", "peak_bytes"),
    *("reserved_bytes", "rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv"),
    *("sm_clock_mhz", "mem_clock_mhz", "power_w", "temperature_c", "energy_j"),
)
_ERRORS = ("rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv")
_DIGITS = 5  # of a number that is no count
_LONGEST = 240  # characters of a reason or a kernel's name


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the page: its column, how its numbers are said, and the file stem of the figure like it."""

    key: str
    title: str
    axis: str
    unit: str  # rate, time, bytes, error, share or plain
    x: str = "seq_len"
    figure: str | None = None
    only: Workload | None = None
    note: str = ""


CHARTS = (
    Chart(
        key="tokens_per_s",
        title="Speed",
        axis="tokens/s",
        unit="rate",
        figure="tokens-per-s",
        note="A flat line is constant speed: each token costs the same however long its sequence.",
    ),
    Chart(key="median_ms", title="Time of one call", axis="time", unit="time", figure="time"),
    Chart(key="peak_bytes", title="Peak memory", axis="peak memory", unit="bytes", figure="memory"),
    Chart(
        key="rel_err",
        title="Accuracy",
        axis="relative error",
        unit="error",
        note="The largest of o, dq, dk and dv against the fp64 oracle; the line across is what is allowed.",
    ),
    Chart(
        key="roofline",
        title="Share of the bound",
        axis="share of the bound",
        unit="share",
        figure="share",
        note="Of the roofline that applies to each mechanism. Between mechanisms compare times.",
    ),
    Chart(
        key="tflops",
        title="Roofline",
        axis="TFLOP/s",
        unit="plain",
        x="intensity",
        figure="roofline",
        note="A point for each mechanism and length, by formula; the ceilings were measured in the same run.",
    ),
    Chart(
        key="joules_per_mtok",
        title="Energy",
        axis="J per million tokens",
        unit="plain",
        note="Median power over the sampling times the median call: an upper estimate for what memory bounds.",
    ),
    Chart(
        key="step_ms",
        title="Decode",
        axis="time of one step",
        unit="time",
        only=Workload.DECODE,
        note="One token more for each sequence, against the context it looks back on.",
    ),
)


def document(frame: pd.DataFrame, *, tolerances: Mapping[str, float]) -> dict[str, Any]:
    """The rows of a results frame and what the page needs to draw them, in types that JSON has.

    tolerances: the relative error that is allowed, by dtype.
    """
    listed = lists_shapes(frame)
    derived = _derived(frame)
    begun, seconds = _since_first(frame)
    numbers = {name: _number_column(frame[name]) for name in _NUMBERS} | derived | {"started_s": seconds}
    texts = {name: [_text(value) for value in frame[name]] for name in _NAMES}
    texts |= {name: [_list_text(value) for value in frame[name]] for name in _LISTS}
    texts["line"] = list(line_names(frame))
    texts["shape_id"] = [_shape_id(row) for row in frame[list(_OF_CASE)].to_dict("records")]
    selectors, chosen = _selectors(frame, groups_of_rows(frame), listed=listed)
    texts |= chosen
    if listed:
        texts["shape"] = labels_of_shapes(frame)
    charts = [chart for chart in CHARTS if _is_drawn(chart, numbers=numbers, texts=texts)]
    if listed:  # points over shapes make no line
        charts = [replace(chart, note="") if chart.key == "tokens_per_s" else chart for chart in charts]
    return {
        "rows": len(frame),
        "begun": begun,
        "numbers": {name: column for name, column in numbers.items() if any(v is not None for v in column)},
        "texts": {
            name: _coded(column) for name, column in texts.items() if any(v is not None for v in column)
        },
        "mechanisms": [look(name) for name in in_order(line_names(frame))],
        "workloads": {
            name: workload_title(name) for name in sorted({str(name) for name in frame["workload"]})
        },
        "selectors": selectors,
        "listed": listed,
        "charts": [{**vars(chart), "only": chart.only and str(chart.only)} for chart in charts],
        "tolerances": dict(tolerances),
        "ceilings": _ceilings(frame),
    }


# ------------------------------------------------------------------------------------------------------------


def _derived(frame: pd.DataFrame) -> dict[str, list[float | None]]:
    """Columns that follow from those of a row: counts of samples, worst error, intensity, energy, decode time."""
    errors = frame[list(_ERRORS)].astype(float).max(axis=1)
    tokens = frame["tokens_per_s"].astype(float) * frame["median_ms"].astype(float) * 1e-3
    decode = frame["workload"] == Workload.DECODE
    return {
        "samples": [
            None if not isinstance(each, (np.ndarray, list)) else len(each) for each in frame["samples_ms"]
        ],
        "rel_err": _number_column(errors),
        "intensity": _number_column(frame["tflops"].astype(float) / frame["gbps"].astype(float) * 1e3),
        "joules_per_mtok": _number_column(frame["energy_j"].astype(float) / tokens * 1e6),
        "step_ms": _number_column(frame["median_ms"].astype(float).where(decode)),
    }


def _shape_id(row: Mapping[Any, Any]) -> str:
    """What a case's name says beside mechanism, workload and dtype; few rows have one of their own."""
    name = str(row["case_id"]).removeprefix(f"{row['mechanism']}.{row['workload']}.")
    return name.removesuffix(f".{row['dtype']}")


def _since_first(frame: pd.DataFrame) -> tuple[str | None, list[float | None]]:
    """When the first case started, in ISO 8601, and the seconds from there to each: a fourth of the text."""
    moments = pd.to_datetime(frame["started_at"], utc=True, errors="coerce", format="ISO8601")
    if moments.isna().all():
        return None, [None] * len(frame)
    first = moments.min()
    seconds = (moments - first).dt.total_seconds()
    return first.isoformat(), [None if math.isnan(s) else round(s, 1) for s in seconds]


def _is_drawn(
    chart: Chart, *, numbers: Mapping[str, Sequence[Any]], texts: Mapping[str, Sequence[str | None]]
) -> bool:
    """Is there a value for it, and is it not all that the other charts show anyway?"""
    known = any(value is not None for value in numbers[chart.key])
    return known and (chart.only is None or set(texts["workload"]) != {str(chart.only)})


def _selectors(
    frame: pd.DataFrame, found: Sequence[Group | None], *, listed: bool
) -> tuple[list[dict[str, Any]], dict[str, list[str | None]]]:
    """What a reader chooses, in order, and each row's value of it. Of listed shapes every one may be left open."""
    parts = [None if group is None else _parts(group) for group in found]
    columns: dict[str, list[str | None]] = {
        f"by_{key}": [None if part is None else part[key] for part in parts] for key in _CHOICES
    }
    # A case that never reached its device is shown with any.
    columns["by_device"] = [None if g is None or not g.device else g.device for g in found]
    selectors: list[dict[str, Any]] = [
        {
            "key": "workload",
            "label": "workload",
            "values": sorted({str(name) for name in frame["workload"]}, key=workload_order),
            "open": False,
        }
    ]
    order = sorted({group for group in found if group is not None}, key=lambda group: group.order)
    for key, label in _CHOICES.items():
        known = [group for group in order if group.device or key != "device"]
        values = list(dict.fromkeys(_parts(group)[key] for group in known))
        if len(values) > 1 or (values and key in _ALWAYS and not (listed and key == "work")):
            loose = listed and key not in ("dtype", "device")
            selectors.append({"key": f"by_{key}", "label": label, "values": values, "open": loose})
    return selectors, columns


_CHOICES = {
    "dtype": "dtype",
    "heads": "heads",
    "head_dim": "head dim",
    "work": "batch or tokens",
    "causal": "mask",
    "device": "device",
}
_ALWAYS = ("dtype", "heads", "head_dim", "work")


def _parts(group: Group) -> dict[str, str]:
    parts = group.parts()
    work = next(parts[name] for name in ("batch", "tokens", "context") if name in parts)
    heads = parts["heads"].replace(" heads", "").replace(" head", "")  # the label says what is counted
    return {**parts, "heads": heads, "head_dim": parts["head_dim"].removeprefix("head dim "), "work": work}


def _ceilings(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The ceilings of each model of device, the highest that the runs measured."""
    found: dict[str | None, list[Mapping[str, Any]]] = {}
    for run, record in sorted(frame.attrs.get("runs", {}).items()):
        if run in set(frame["run_id"]):
            for device, ceilings in ceilings_by_device(record):
                found.setdefault(device, []).append(ceilings)
    return [highest_ceilings(measured) for measured in found.values()]


def _number_column(values: Iterable[Any]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    """Counts in full, other numbers to a few digits; unknown and not finite alike are None."""
    if value is None or value is pd.NA or not math.isfinite(value):
        return None
    number = float(value)
    if number == int(number) and abs(number) < 2**53:
        return int(number)
    return float(f"{number:.{_DIGITS}g}")


def _text(value: Any) -> str | None:
    return _short(value) if isinstance(value, str) else None


def _list_text(value: Any) -> str | None:
    if value is None or isinstance(value, float):
        return None
    return ", ".join(_short(str(each)) for each in value) or "none"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Texts as places in a list of the different ones; -1 is unknown."""
    different = list(dict.fromkeys(value for value in values if value is not None))
    places = {value: place for place, value in enumerate(different)}
    return {"values": different, "at": [-1 if value is None else places[value] for value in values]}
