"""The figure of a sweep over listed shapes: how near to its bound each mechanism comes at each shape."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from attnbench.errors import UserError
from attnbench.plots.canvas import DPI, EDGE, FAINT, INK, LINE, Canvas, drawing, save
from attnbench.plots.legend import legend, legend_columns
from attnbench.plots.looks import in_order, marker_size, rank, style_of
from attnbench.plots.text import SMALL, TEXT, TITLE, short, text_width, wrap
from attnbench.shapes import Shares, shares
from attnbench.words import joined, workload_title

if TYPE_CHECKING:
    import pandas as pd

_ROW, _WIDTH = 0.3, 6.4  # inches


def plot_shapes(
    frame: pd.DataFrame, out_dir: Path | str, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw a results frame: for each workload the share of the bound, a row for each shape.

    Files are named `share.fwd.png`. Returns the paths written, in order; equal results give equal bytes.

    Raises UserError when no share is known, a format is unknown, or the folder cannot be written.
    """
    found = [each for each in shares(frame) if each.known]
    if not found:
        raise UserError("there is nothing to draw: no case has a share of its bound (column roofline)")
    devices = joined(sorted({str(name) for name in frame["device"].dropna()}))
    written = []
    with drawing(formats):
        for each in found:
            stem = f"share.{re.sub(r'[^A-Za-z0-9_-]', '_', each.workload)}"
            figure = _draw(each, devices=devices)
            written += [save(figure, Path(out_dir) / f"{stem}.{name}") for name in formats]
    return written


def _draw(found: Shares, *, devices: str) -> Figure:
    names = in_order({name for row in found.known.values() for name in row})
    left = EDGE + max(text_width(short(label, 40), size=SMALL) for label in found.known) + 0.1
    head = wrap(
        f"{workload_title(found.workload)}: share of the bound at each shape",
        width=_WIDTH - 2 * EDGE,
        size=TITLE,
    )
    sub = wrap(
        "of the roofline that applies to each mechanism, memory or matrix products, by ceilings measured on "
        f"{devices or 'the device'}: between mechanisms compare times",
        width=_WIDTH - 2 * EDGE,
        size=SMALL,
    )
    entries = [(name, short(name, 40)) for name in names]
    columns = legend_columns(entries, width=_WIDTH - 2 * EDGE)
    top = EDGE + len(head) * 0.2 + len(sub) * LINE + 0.1
    tall = len(found.known) * _ROW
    ticks = top + tall + 0.28
    height = ticks + LINE + math.ceil(len(entries) / columns) * LINE + EDGE + 0.1
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    canvas = Canvas(figure=figure, width=_WIDTH, height=height)
    canvas.lines(head, x=EDGE, top=EDGE, size=TITLE, step=0.2, weight="bold")
    canvas.lines(sub, x=EDGE, top=EDGE + len(head) * 0.2, size=SMALL, colour="#555555")
    axes = canvas.axes(x=left, top=top, width=_WIDTH - left - EDGE - 0.1, height=tall)
    for number, (label, row) in enumerate(found.known.items()):
        canvas.text(
            short(label, 40), x=left - 0.08, top=top + (number + 0.5) * _ROW - 0.085, size=SMALL, ha="right"
        )
        for name in sorted(row, key=rank, reverse=True):  # ours on top
            style = style_of(name)
            axes.plot(
                [100 * row[name]],
                [number + 0.5],
                color=style.colour,
                marker=style.marker,
                markersize=marker_size(style) + 1,
                markeredgecolor="white",
                markeredgewidth=0.5,
                linestyle="none",
                clip_on=False,
            )
    most = max(1.0, *(share for row in found.known.values() for share in row.values()))
    axes.set_xlim(0, 100 * most)
    axes.set_ylim(len(found.known), 0)
    marks = list(range(0, math.floor(100 * most) + 1, 20))
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{mark} %" for mark in marks]))
    axes.yaxis.set_major_locator(FixedLocator([number + 0.5 for number in range(len(found.known))]))
    axes.yaxis.set_major_formatter(FixedFormatter([""] * len(found.known)))
    axes.tick_params(axis="x", length=3, width=0.7, labelsize=SMALL, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    middle = left + (_WIDTH - left - EDGE) / 2
    canvas.text("share of the bound", x=middle, top=ticks - 0.05, size=TEXT, ha="center")
    legend(canvas, entries, columns=columns, top=ticks + LINE + 0.03)
    return figure
