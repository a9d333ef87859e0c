"""The form `dots`: a row for each series, a mark for each source of its value, on an axis that begins at zero."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from matplotlib.ticker import MaxNLocator

from attnbench.paper.figures import Panel, Series
from attnbench.paper.lines import Line, Origin, value_text
from attnbench.paper.sheet import (
    MARKS,
    WIDTH,
    Entry,
    Sheet,
    axis_scale,
    axis_unit,
    entries_height,
    head_height,
    head_lines,
    kind_words,
    mark_style,
    notes,
    page,
    put_entries,
    put_head,
    sign_entries,
    sign_style,
    tick_text,
    widest,
)
from attnbench.plots.canvas import EDGE, FAINT, INK, LINE, Canvas
from attnbench.plots.looks import style_of
from attnbench.plots.text import SMALL, TEXT, short

_ROW, _TICKS = 0.27, 0.24


def render(sheet: Sheet, *, axes: str) -> Drawn:
    """The whole page; `axes` is linear, as lengths from zero are compared."""
    title, below = head_lines(sheet)
    entries = [*_kind_entries(sheet), *sign_entries(sheet)]
    footer = notes(sheet)
    first = head_height(title, below)
    tops = []
    top = first
    for panel in sheet.panels:
        tops.append(top)
        top += LINE + 0.04 + len(_rows(sheet, panel)) * _ROW + _TICKS + 0.1
    legend = top + 0.04
    foot = legend + entries_height(entries) + 0.06
    figure, canvas = page(foot + len(footer) * LINE + EDGE)
    put_head(canvas, title, below)
    left = EDGE + 0.08 + widest([series.label for series in sheet.series])
    told = [values_text(sheet, panel, series) for panel in sheet.panels for series in _rows(sheet, panel)]
    right = WIDTH - EDGE - max(0.75, 0.1 + widest(told))
    for panel, at in zip(sheet.panels, tops, strict=True):
        _panel(canvas, sheet, panel, left=left, right=right, top=at)
    put_entries(canvas, entries, top=legend)
    canvas.lines(footer, x=EDGE, top=foot, size=SMALL, colour="#555555")
    return figure


def _panel(canvas: Canvas, sheet: Sheet, panel: Panel, *, left: float, right: float, top: float) -> None:
    rows = _rows(sheet, panel)
    where = f" at {sheet.figure.at:,.0f} tokens" if sheet.figure.x == "seq_len" and sheet.figure.at else ""
    canvas.text(f"{panel.title}{where}, {axis_unit(panel)}", x=left, top=top, size=TEXT)
    start = top + LINE + 0.04
    axes = canvas.axes(x=left, top=start, width=right - left, height=len(rows) * _ROW)
    _frame(axes, rows=len(rows))
    for place, series in enumerate(rows):
        middle = start + (place + 0.5) * _ROW - 0.085
        canvas.text(short(series.label, 40), x=left - 0.08, top=middle, size=SMALL, ha="right")
        for line in _lines(sheet, panel, series):
            _row(axes, sheet, line, place=place, look=series.look, panel=panel)
        canvas.text(values_text(sheet, panel, series), x=right + 0.08, top=middle, size=SMALL)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.03)


def _lines(sheet: Sheet, panel: Panel, series: Series) -> list[Line]:
    """Those of a row, in the order of the legend."""
    there = [line for line in sheet.here(panel) if line.series == series.key]
    return sorted(there, key=lambda line: sheet.kinds.index((line.origin, line.edition)))


def values_text(sheet: Sheet, panel: Panel, series: Series) -> str:
    """The measured values of a row, or else the corrected or published one."""
    known = [
        (line.origin, value)
        for line in _lines(sheet, panel, series)
        if sheet.figure.at is not None and (value := line.at(sheet.figure.at)) is not None
    ]
    measured = [value for origin, value in known if origin is Origin.MEASURED]
    values = measured or [value for _, value in known[-1:]]
    return " / ".join(value_text(value, panel.quantity).removesuffix(" tokens/s") for value in values)


def _row(axes: Axes, sheet: Sheet, line: Line, *, place: int, look: str, panel: Panel) -> None:
    """The mark of one line in its row."""
    colour = style_of(look).colour
    value = line.at(sheet.figure.at) if sheet.figure.at is not None else None
    # What coincides is still seen: marks of one row lie a little above each other.
    kinds = [
        kind for kind in sheet.kinds if kind in {(each.origin, each.edition) for each in sheet.here(panel)}
    ]
    shift = (kinds.index((line.origin, line.edition)) - (len(kinds) - 1) / 2) * 0.16
    if value is None:
        for gap in line.gaps:
            if gap.x == sheet.figure.at:
                hollow = line.origin is not Origin.MEASURED
                axes.plot(
                    [0],
                    [place + shift],
                    clip_on=False,
                    **sign_style(gap.status, colour=colour, hollow=hollow),
                )
        return
    marker = _mark(sheet, line.origin, line.edition)
    axes.plot(
        [value / axis_scale(panel)],
        [place + shift],
        linestyle="none",
        zorder=3,
        **mark_style(line.origin, colour=colour, marker=marker, size=6.2),
    )


def _frame(axes: Axes, *, rows: int) -> None:
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(rows))
    axes.set_yticklabels([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="both", labelsize=SMALL, labelcolor=INK, length=3, width=0.7, pad=2)
    axes.tick_params(axis="y", length=0)


def _rows(sheet: Sheet, panel: Panel) -> Sequence[Series]:
    """The series that have a line in a panel, in order."""
    named = {line.series for line in sheet.here(panel)}
    return [series for series in sheet.series if series.key in named]


def _kind_entries(sheet: Sheet) -> list[Entry]:
    """What the marks are."""
    return [
        Entry(
            text=kind_words(kind, sheet),
            how={
                "linestyle": "none",
                **mark_style(kind[0], colour=INK, marker=_mark(sheet, *kind), size=6.2),
            },
        )
        for kind in sheet.kinds
    ]


def _mark(sheet: Sheet, origin: Origin, edition: str) -> str:
    """The mark of an edition; corrected ones are diamonds."""
    if origin is Origin.CORRECTED:
        return "D"
    return MARKS[[name for kind, name in sheet.kinds if kind is origin].index(edition) % len(MARKS)]
