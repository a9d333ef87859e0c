"""The form `curves`: panels of lines over length (or over steps), and below each what has no value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from matplotlib.ticker import FixedFormatter, FixedLocator

from attnbench.curves import Floats, length_label
from attnbench.paper.figures import UNITS, Panel
from attnbench.paper.lines import Line, Origin
from attnbench.paper.sheet import (
    DASHES,
    WIDTH,
    Entry,
    Sheet,
    axis_scale,
    axis_unit,
    columns_of,
    entries_height,
    head_height,
    head_lines,
    kind_words,
    mark_style,
    notes,
    page,
    put_entries,
    put_head,
    rows_of,
    series_entries,
    sign_entries,
    sign_style,
    tick_text,
)
from attnbench.plots.axes import log_ticks
from attnbench.plots.canvas import EDGE, FAINT, INK, LINE, STRIP, Canvas
from attnbench.plots.looks import marker_size, style_of
from attnbench.plots.text import SMALL, TEXT

_LEFT, _GAP, _HEIGHT, _ROW = 0.72, 0.62, 1.95, 0.11
_X_WORDS = {"seq_len": "sequence length (tokens)", "context": "context (tokens)", "step": "updates"}

_PUBLISHED_DASHES = ((0, (1, 1.6)), (0, (5, 1.6, 1, 1.6)))


def render(sheet: Sheet, *, axes: str) -> Drawn:
    """The whole page with axes of one kind: linear, log, or log-linear (x alone logarithmic)."""
    title, below = head_lines(sheet)
    entries = [*series_entries(sheet), *_kind_entries(sheet), *sign_entries(sheet)]
    footer = notes(sheet)
    columns, rows = columns_of(len(sheet.panels)), rows_of(len(sheet.panels))
    strip = _strip_height(sheet)
    row_height = LINE + 0.04 + _HEIGHT + strip + 0.26
    first = head_height(title, below)
    label = first + rows * row_height
    legend = label + LINE + 0.08
    foot = legend + entries_height(entries) + 0.06
    figure, canvas = page(foot + len(footer) * LINE + EDGE)
    put_head(canvas, title, below)
    width = (WIDTH - EDGE - _LEFT - (columns - 1) * _GAP) / columns
    for number, panel in enumerate(sheet.panels):
        row, column = divmod(number, columns)
        x, top = _LEFT + column * (width + _GAP), first + row * row_height
        canvas.text(f"{panel.title}, {axis_unit(panel)}", x=x, top=top, size=TEXT)
        _panel(canvas, sheet, panel, x=x, top=top + LINE + 0.04, width=width, kind=axes)
    canvas.text(_X_WORDS[sheet.figure.x], x=WIDTH / 2, top=label, size=TEXT, ha="center")
    put_entries(canvas, entries, top=legend)
    canvas.lines(footer, x=EDGE, top=foot, size=SMALL, colour="#555555")
    return figure


def drawn_lines(sheet: Sheet, panel: Panel) -> list[Line]:
    """The lines of a panel: of several published tables the first, and what only the others have."""
    found: dict[tuple[object, ...], Line] = {}
    for line in sheet.here(panel):
        edition = line.edition if line.origin is Origin.MEASURED else ""
        found.setdefault((line.origin, edition, line.series), line)
    return list(found.values())


# --- one panel ----------------------------------------------------------------------------------------------


def _panel(
    canvas: Canvas, sheet: Sheet, panel: Panel, *, x: float, top: float, width: float, kind: str
) -> None:
    there = drawn_lines(sheet, panel)
    axes = canvas.axes(x=x, top=top, width=width, height=_HEIGHT)
    span = _x_range(sheet, kind, own=there if sheet.figure.x == "step" else None)
    for line in sorted(there, key=lambda line: list(Origin).index(line.origin)):
        _line(axes, sheet, line, panel=panel)
    _scales(axes, panel, there, kind=kind, span=span, width=width)
    if panel.limit is not None and kind == "linear":
        _paper_limit(axes, panel)
    rows = _strip_rows(sheet)
    if rows:
        below = canvas.axes(x=x, top=top + _HEIGHT + 0.05, width=width, height=len(rows) * _ROW)
        _strip(below, sheet, there, rows=rows, log=kind != "linear", span=span)
        axes.tick_params(axis="x", labelbottom=False, length=0)
        _x_ticks(below, span=span, kind=kind, step=sheet.figure.x == "step", width=width)


def _line(axes: Axes, sheet: Sheet, line: Line, *, panel: Panel) -> None:
    series = next(each for each in sheet.series if each.key == line.series)
    style = style_of(series.look)
    unit = axis_scale(panel)
    measured = line.origin is Origin.MEASURED
    known = ~np.isnan(line.low)
    if measured and known.any():
        low, high = line.low / unit, line.high / unit
        axes.fill_between(line.x, low, high, where=known.tolist(), color=style.colour, alpha=0.2, linewidth=0)
    many = len(line) > 40  # a curve of steps: no mark at each
    look = mark_style(line.origin, colour=style.colour, marker=style.marker, size=marker_size(style))
    axes.plot(
        line.x,
        line.value / unit,
        color=style.colour,
        linestyle=_dash(sheet, line.origin, line.edition),
        linewidth=1.6 if measured else 0.9,
        zorder=3 if measured else 2.5,
        **({} if many else look),
    )


def _dash(sheet: Sheet, origin: Origin, edition: str) -> Any:
    """Each edition has a dash of its own: of published ones the first is dotted."""
    editions = [each for kind, each in sheet.kinds if kind is origin]
    dashes = DASHES if origin is Origin.MEASURED else _PUBLISHED_DASHES
    return dashes[editions.index(edition) % len(dashes)]


def _paper_limit(axes: Axes, panel: Panel) -> None:
    assert panel.limit is not None
    limit = panel.limit * UNITS[panel.unit] / axis_scale(panel)
    axes.axhline(limit, color="#888888", linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    axes.text(
        0.02, limit, "end of the paper's axis", transform=axes.get_yaxis_transform(), fontsize=SMALL - 1,
        color="#777777", va="bottom",
    )  # fmt: skip


def _strip_rows(sheet: Sheet) -> list[tuple[str, bool]]:
    """Series and whether it was measured, of lines with points that have no value."""
    order = [series.key for series in sheet.series]
    found = {
        (line.series, line.origin is Origin.MEASURED)
        for panel in sheet.panels
        for line in drawn_lines(sheet, panel)
        if line.gaps
    }
    return sorted(found, key=lambda row: (order.index(row[0]), row[1]))


def _strip_height(sheet: Sheet) -> float:
    rows = _strip_rows(sheet)
    return len(rows) * _ROW + 0.05 if rows else 0.0


def _strip(
    axes: Axes,
    sheet: Sheet,
    there: Sequence[Line],
    *,
    rows: Sequence[tuple[str, bool]],
    log: bool,
    span: tuple[float, float],
) -> None:
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xlim(*span)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_facecolor(STRIP)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    looks = {series.key: series.look for series in sheet.series}
    for line in there:
        measured = line.origin is Origin.MEASURED
        for gap in line.gaps:
            how = sign_style(gap.status, colour=style_of(looks[line.series]).colour, hollow=not measured)
            axes.plot([gap.x], [rows.index((line.series, measured))], clip_on=False, **how)


# --- scales -------------------------------------------------------------------------------------------------


def _scales(
    axes: Axes,
    panel: Panel,
    there: Sequence[Line],
    *,
    kind: str,
    span: tuple[float, float],
    width: float,
) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="both", which="both", labelsize=SMALL, labelcolor=INK, length=3, width=0.7, pad=2)
    if kind != "linear":
        axes.set_xscale("log", base=2)
    axes.set_xlim(*span)
    _x_ticks(axes, span=span, kind=kind, step=kind == "log-linear", width=width)
    values = _shown(there) / axis_scale(panel)
    if kind == "log":
        low, high = float(values.min()), float(values.max())
        # Noise must not look like a slope.
        half = max(math.sqrt(high / low), math.sqrt(8.0)) * 1.3
        middle = math.sqrt(low * high)
        axes.set_yscale("log", base=10)
        axes.set_ylim(middle / half, middle * half)
        ticks = log_ticks(middle / half, middle * half, base=10, most=6)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(FixedLocator([]))
        axes.yaxis.set_major_formatter(FixedFormatter([tick_text(tick) for tick in ticks]))
        return
    if kind == "linear":
        limit = 0.0 if panel.limit is None else panel.limit * UNITS[panel.unit] / axis_scale(panel)
        axes.set_ylim(0, max(float(values.max()), limit) * 1.08)
    else:  # equal losses must look equal
        low, high = float(values.min()), float(values.max())
        pad = max(0.06 * (high - low), 0.02 * high)
        axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_formatter(lambda value, _: tick_text(value))


def _shown(there: Sequence[Line]) -> Floats:
    """All that is drawn: values, and the ends of the intervals of measured ones."""
    measured = [line for line in there if line.origin is Origin.MEASURED]
    ends = [end for line in measured for end in (line.low, line.high)]
    every = np.concatenate([np.empty(0), *(line.value for line in there), *ends])
    known = every[~np.isnan(every)]
    return known if len(known) else np.ones(1)


def _x_range(sheet: Sheet, kind: str, *, own: Sequence[Line] | None) -> tuple[float, float]:
    """What all panels show; of steps each panel has its own."""
    lines = own or [line for panel in sheet.panels for line in drawn_lines(sheet, panel)]
    at = [float(x) for line in lines for x in [*line.x, *(gap.x for gap in line.gaps)]]
    low, high = min(at), max(at)
    if kind == "linear":
        return 0.0, high * 1.04
    half = max(math.sqrt(high / low), 2.0) * 1.2
    middle = math.sqrt(low * high)
    return middle / half, middle * half


def _x_ticks(axes: Axes, *, span: tuple[float, float], kind: str, step: bool, width: float) -> None:
    most = max(3, int(width / 0.42))
    if step:
        places = log_ticks(*span, base=10, most=most)
        labels = [f"{place:,.0f}" for place in places]
    elif kind == "linear":
        unit = 2.0 ** math.ceil(math.log2(span[1] / most))
        places = [unit * n for n in range(int(span[1] / unit) + 1)]
        labels = [length_label(round(place)) for place in places]
    else:
        places = log_ticks(*span, base=2, most=most)
        labels = [length_label(round(place)) for place in places]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.tick_params(axis="x", labelsize=SMALL, labelcolor=INK, length=3, width=0.7, pad=2)


def _kind_entries(sheet: Sheet) -> list[Entry]:
    """What full, dotted and dashed lines are."""
    shown = {(line.origin, line.edition) for panel in sheet.panels for line in drawn_lines(sheet, panel)}
    found = []
    for kind in (each for each in sheet.kinds if each in shown):
        measured = kind[0] is Origin.MEASURED
        how = {
            "color": INK, "linestyle": _dash(sheet, *kind), "linewidth": 1.6 if measured else 0.9,
            **mark_style(kind[0], colour=INK, marker="o"),
        }  # fmt: skip
        found.append(Entry(text=kind_words(kind, sheet), how=how))
    return found
