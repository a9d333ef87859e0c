"""One panel of a page of curves, with the strip of cases without a value below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from attnbench.curves import Curve, Group, length_label
from attnbench.plots.canvas import FAINT, INK, STRIP, Canvas
from attnbench.plots.looks import marker_size, rank, style_of
from attnbench.plots.page import Page, tick_width, y_tick_places
from attnbench.plots.quantities import Quantity, has_values
from attnbench.plots.signs import sign_style
from attnbench.plots.text import SMALL, TEXT, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_ROW = 0.155  # inches of one row of the strip
STRIP_GAP = 0.06


def draw_panel(
    canvas: Canvas, *, page: Page, group: Group, x: float, top: float, width: float, first: bool, last: bool
) -> None:
    """One panel: the axes with the curves, and below it the strip of cases without a value.

    first: it is the leftmost of its row, and carries the labels of the vertical axis; last: none is below it,
    and it carries those of the horizontal axis.
    """
    axes = canvas.axes(x=x, top=top, width=width, height=page.height)
    here = [c for c in page.curves if c.group == group]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=page.quantity.base)
    for c in sorted(here, key=lambda c: rank(c.mechanism), reverse=True):
        _line(axes, c, quantity=page.quantity)
    axes.set_xlim(*page.x)
    axes.set_ylim(*page.y)
    axes.grid(True, which="major", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _y_ticks(axes, page=page, labels=first)
    bottom = axes
    if page.strip:
        below = top + page.height + STRIP_GAP
        bottom = canvas.axes(x=x, top=below, width=width, height=len(page.strip) * STRIP_ROW)
        _strip(bottom, page=page, here=here)
        if first:
            for number, mechanism in enumerate(page.strip):
                name = short(mechanism, 24)
                canvas.text(name, x=x - 0.07, top=below + number * STRIP_ROW - 0.01, size=SMALL, ha="right")
    for each in {axes, bottom}:
        _x_ticks(each, page=page, width=width, labels=last and each is bottom, marks=each is bottom)
    if not any(has_values(c, page.quantity) for c in here):
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", va="center", fontsize=TEXT)
    if first:
        canvas.text(
            page.quantity.axis,
            x=x - tick_width(page) - 0.12,
            top=top + page.height / 2 - 0.125,
            size=TEXT,
            rotation=90,
            ha="right",
            va="center",
        )


def _line(axes: Axes, c: Curve, *, quantity: Quantity) -> None:
    values = quantity.value(c)
    good = values > 0  # False for NaN
    if not good.any():
        return
    style = style_of(c.mechanism)
    # Where curves coincide, the thick one shows beneath the thin ones, and a full line between dashes.
    order = 2.5 if style.width > 2 else 3.0 if style.dash == "-" else 3.5
    if quantity.ends is not None:
        low, high = quantity.ends(c)
        axes.fill_between(
            c.seq_len,
            low,
            high,
            where=good & (low > 0),
            color=style.colour,
            alpha=0.22,
            linewidth=0,
            zorder=2,
        )
    axes.plot(
        c.seq_len[good],
        values[good],
        color=style.colour,
        linestyle=style.dash,
        linewidth=style.width,
        marker=style.marker,
        markersize=marker_size(style),
        markeredgecolor="white",
        markeredgewidth=0.4,
        zorder=order,
    )


def _strip(axes: Axes, *, page: Page, here: Sequence[Curve]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*page.x)
    axes.set_ylim(len(page.strip) - 0.5, -0.5)
    axes.set_facecolor(STRIP)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    for c in here:
        for gap in c.gaps if c.mechanism in page.strip else ():
            how = sign_style(gap.status, colour=style_of(c.mechanism).colour)
            axes.plot([gap.seq_len], [page.strip.index(c.mechanism)], **how)


def _x_ticks(axes: Axes, *, page: Page, width: float, labels: bool, marks: bool) -> None:
    """Powers of two, as many as there is room to label, counted from the longest."""
    low, high = math.ceil(math.log2(page.x[0])), math.floor(math.log2(page.x[1]))
    powers = [2.0**n for n in range(low, high + 1)]
    step = max(1, math.ceil(len(powers) * 0.37 / width))
    major = powers[::-1][::step][::-1]
    axes.xaxis.set_major_locator(FixedLocator(major))
    axes.xaxis.set_minor_locator(FixedLocator([n for n in powers if n not in major]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FixedFormatter([length_label(round(n)) if labels else "" for n in major]))
    axes.tick_params(axis="x", which="both", length=0, labelsize=SMALL, labelcolor=INK)
    if marks:
        axes.tick_params(axis="x", which="major", length=3, width=0.7)
        axes.tick_params(axis="x", which="minor", length=2, width=0.5)


def _y_ticks(axes: Axes, *, page: Page, labels: bool) -> None:
    ticks = y_tick_places(page)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FixedFormatter([page.quantity.tick(t) if labels else "" for t in ticks]))
    axes.tick_params(axis="y", length=3 if labels else 0, width=0.7, labelsize=SMALL, labelcolor=INK, pad=2)
