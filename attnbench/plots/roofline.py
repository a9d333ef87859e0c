"""The roofline figure of a run: FLOP rate against intensity under the device's measured ceilings.

Williams, Waterman and Patterson, Roofline: an insightful visual performance model, CACM 52(4), 2009. Intensity and rate
are by formula (columns `tflops` and `gbps`: useful FLOPs and the least bytes), so that a point says how near a call
comes to what its algorithm would allow, whatever its kernel moved in fact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from attnbench.case import Status
from attnbench.curves import length_label, line_names
from attnbench.errors import UserError
from attnbench.places import ceilings_by_device, highest_ceilings
from attnbench.plots.axes import log_ticks
from attnbench.plots.canvas import DPI, EDGE, FAINT, INK, LINE, Canvas, drawing, save
from attnbench.plots.legend import legend, legend_columns
from attnbench.plots.looks import in_order, marker_size, rank, style_of
from attnbench.plots.text import SMALL, TEXT, TITLE, short, text_width, wrap
from attnbench.words import joined, three, workload_order, workload_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 6.4, 3.3  # inches: of the page, and of the axes
_PAD = 1.25  # room about the points, as a factor


@dataclass(frozen=True, kw_only=True)
class Roof:
    """The ceilings of a run in one dtype: bandwidth in GB/s, matrix rate in TFLOP/s."""

    dtype: str
    copy_gbps: float
    matmul_tflops: float

    @property
    def knee(self) -> float:
        """The intensity, in FLOP/byte, from which the matrix rate is the bound."""
        return self.matmul_tflops * 1e3 / self.copy_gbps

    def at(self, intensity: Any) -> Any:
        """The bound in TFLOP/s."""
        return np.minimum(intensity * self.copy_gbps * 1e-3, self.matmul_tflops)


def plot_roofline(
    frame: pd.DataFrame, out_dir: Path | str, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw the roofline of each workload, a point for each mechanism and shape; several runs of a case are a median.

    Files are named `roofline.fwd.png`; of results of several devices each has figures of its own.
    Returns the paths written, in order; equal results give equal bytes.

    Raises UserError when no case has rates, no run has ceilings, a format is unknown, or the folder cannot be written.
    """
    points = _points(frame)
    if points.empty:
        raise UserError(
            "there is no roofline to draw: no case came out ok with rates (columns tflops and gbps)"
        )
    devices = sorted(set(points["device"]))
    roofs = {
        device: _roofs(frame, dtypes=sorted(set(points["dtype"])), device=device, alone=len(devices) == 1)
        for device in devices
    }
    if not any(roofs.values()):
        raise UserError(
            "there is no roofline to draw: no run recorded the ceilings of its device for these dtypes"
        )
    written = []
    with drawing(formats):
        for workload in sorted(set(points["workload"]), key=workload_order):
            for device in (device for device in devices if roofs[device]):
                here = points[(points["workload"] == workload) & (points["device"] == device)]
                if here.empty:
                    continue
                figure = _draw(here, roofs=roofs[device], title=workload_title(workload), device=device)
                stem = ".".join(["roofline", workload, *([device] if len(devices) > 1 else [])])
                stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem)
                written += [save(figure, Path(out_dir) / f"{stem}.{name}") for name in formats]
    return written


# ------------------------------------------------------------------------------------------------------------

_CASE = ["case_id", "mechanism", "workload", "dtype", "seq_len", "device"]


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a case and device: mechanism, workload, dtype, seq_len, intensity (FLOP/byte) and rate (TFLOP/s)."""
    timed = frame[(frame["status"] == Status.OK) & (frame["gbps"] > 0) & (frame["tflops"] > 0)]
    rates = timed[_CASE].assign(
        mechanism=line_names(timed),
        device=timed["device"].fillna("").astype(str),
        rate=timed["tflops"].astype(float),
        intensity=timed["tflops"].astype(float) * 1e3 / timed["gbps"].astype(float),
    )
    return rates.groupby(_CASE, sort=True, as_index=False).median()


def _roofs(frame: pd.DataFrame, *, dtypes: Sequence[str], device: str, alone: bool) -> list[Roof]:
    """The highest ceilings that the runs recorded of a device, by dtype.

    alone: the only device that there are points of; what the records call it is then not asked.
    """
    records: Mapping[str, Mapping[str, Any]] = frame.attrs.get("runs", {})
    known = [
        ceilings
        for run, record in records.items()
        if run in set(frame["run_id"])
        for name, ceilings in ceilings_by_device(record)
        if alone or name in (None, device)
    ]
    top = highest_ceilings(known)
    rates = top.get("matmul_tflops", {})
    return [
        Roof(dtype=dtype, copy_gbps=top["copy_gbps"], matmul_tflops=rates[dtype])
        for dtype in dtypes
        if dtype in rates
    ]


def _draw(points: pd.DataFrame, *, roofs: Sequence[Roof], title: str, device: str) -> Figure:
    names = in_order(points["mechanism"])
    head = wrap(f"{title}: rate against intensity", width=_WIDTH - 2 * EDGE, size=TITLE)
    sub = wrap(_what(points, roofs, device=device), width=_WIDTH - 2 * EDGE, size=SMALL)
    entries = [(name, short(name, 40)) for name in names]
    columns = legend_columns(entries, width=_WIDTH - 2 * EDGE)
    x, y = _ranges(points, roofs)
    ticks = log_ticks(*y, base=10, most=7)
    left = EDGE + 0.3 + max(text_width(_tick(each), size=SMALL) for each in ticks)
    top = EDGE + len(head) * 0.2 + len(sub) * LINE + 0.12
    below = top + _HEIGHT + 0.22
    height = below + LINE + 0.06 + math.ceil(len(entries) / columns) * LINE + EDGE
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    canvas = Canvas(figure=figure, width=_WIDTH, height=height)
    canvas.lines(head, x=EDGE, top=EDGE, size=TITLE, step=0.2, weight="bold")
    canvas.lines(sub, x=EDGE, top=EDGE + len(head) * 0.2, size=SMALL, colour="#555555")
    axes = canvas.axes(x=left, top=top, width=_WIDTH - left - EDGE, height=_HEIGHT)
    _scales(axes, x=x, y=y, ticks=ticks)
    for roof in roofs:
        at = np.geomspace(*x, 200)
        axes.plot(at, roof.at(at), color=INK, linewidth=1.1, zorder=1)
    for name in sorted(names, key=rank, reverse=True):  # ours on top
        _marks(axes, points[points["mechanism"] == name], name=name)
    middle = left + (_WIDTH - left - EDGE) / 2
    canvas.text("intensity (FLOP/byte)", x=middle, top=below, size=TEXT, ha="center")
    canvas.text(
        "TFLOP/s",
        x=EDGE + 0.14,
        top=top + _HEIGHT / 2 - 0.125,
        size=TEXT,
        rotation=90,
        ha="right",
        va="center",
    )
    legend(canvas, entries, columns=columns, top=below + LINE + 0.06)
    return figure


def _what(points: pd.DataFrame, roofs: Sequence[Roof], *, device: str) -> str:
    """The lines and the points, in words."""
    rates = joined([f"{three(roof.matmul_tflops)} TFLOP/s in {roof.dtype}" for roof in roofs])
    lengths = sorted({int(n) for n in points["seq_len"]})
    span = (
        f"{length_label(lengths[0])} to {length_label(lengths[-1])}"
        if len(lengths) > 1
        else f"{lengths[0]:,}"
    )
    where = f"{device}; " if device else ""
    return (
        f"{where}ceilings measured in the same run: {three(roofs[0].copy_gbps)} GB/s copied, {rates} multiplied; "
        f"points by formula, {span} tokens"
    )


def _ranges(points: pd.DataFrame, roofs: Sequence[Roof]) -> tuple[tuple[float, float], tuple[float, float]]:
    """What is shown: all points, and the knee of every roof."""
    across = [*points["intensity"], *(roof.knee for roof in roofs)]
    x = min(across) / _PAD**2, max(across) * _PAD**2
    upwards = [*points["rate"], *(roof.matmul_tflops for roof in roofs)]
    return x, (min(upwards) / _PAD, max(upwards) * _PAD)


def _scales(axes: Axes, *, x: tuple[float, float], y: tuple[float, float], ticks: Sequence[float]) -> None:
    axes.set_xscale("log", base=10)
    axes.set_yscale("log", base=10)
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    for axis, places in ((axes.xaxis, log_ticks(*x, base=10, most=9)), (axes.yaxis, ticks)):
        axis.set_major_locator(FixedLocator(places))
        axis.set_minor_locator(FixedLocator([]))
        axis.set_major_formatter(FixedFormatter([_tick(place) for place in places]))
    axes.tick_params(length=3, width=0.7, labelsize=SMALL, labelcolor=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _marks(axes: Axes, mine: pd.DataFrame, *, name: str) -> None:
    style = style_of(name)
    axes.plot(
        mine["intensity"],
        mine["rate"],
        color=style.colour,
        linestyle="none",
        marker=style.marker,
        markersize=marker_size(style) + 1,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=3,
    )


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
