"""From a page to a figure, in inches from the top down: title, panels, legends, notes."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from attnbench.plots.canvas import DPI, EDGE, LINE, Canvas
from attnbench.plots.legend import legend, legend_columns
from attnbench.plots.notes import legend_entries, notes_of, panel_title, sign_legend, signs_in_rows
from attnbench.plots.page import Page, tick_width
from attnbench.plots.panel import STRIP_GAP, STRIP_ROW, draw_panel
from attnbench.plots.text import SMALL, TEXT, TITLE, short, text_width, wrap
from attnbench.words import workload_title

_PANEL_GAP_X, _TICKS, _AXIS_LABEL = 0.2, 0.2, 0.2


def draw_page(page: Page) -> Figure:
    """The figure of a page; its height follows from what is on it."""
    left = _left_margin(page)
    panel = page.width or 5.5 - left - EDGE
    width = left + page.columns * panel + (page.columns - 1) * _PANEL_GAP_X + EDGE
    figure = Figure(figsize=(width, 1.0), dpi=DPI, facecolor="white")
    title = workload_title(page.workload)
    head = wrap(f"{title}: {page.quantity.title}", width=width - 2 * EDGE, size=TITLE)
    fixed = [text for name, text in page.groups[0].parts().items() if name not in page.varying]
    sub = wrap(
        ", ".join([*fixed, *([page.protocol] if page.protocol else [])]),
        width=width - 2 * EDGE,
    )
    titles = [panel_title(page, group, width=panel) for group in page.groups]
    entries = legend_entries(page)
    notes = [line for note in notes_of(page) for line in wrap(note, width=width - 2 * EDGE, size=SMALL)]

    # Distances from the top; the height of the figure is known only at the end.
    strip = len(page.strip) * STRIP_ROW + STRIP_GAP if page.strip else 0.0
    top = EDGE + len(head) * 0.2 + len(sub) * LINE + 0.08
    tops = []
    rows = math.ceil(len(page.groups) / page.columns)
    for row in range(rows):
        lines = max(len(text) for text in titles[row * page.columns : (row + 1) * page.columns])
        top += lines * LINE + (0.04 if lines else 0.0)
        tops.append(top)
        # A row needs room for tick labels when nothing is below one of its panels.
        labelled = (row + 2) * page.columns > len(page.groups)
        top += page.height + strip + (_TICKS if labelled else 0.04) + (0.07 if row < rows - 1 else 0.0)
    axis_label = top + 0.02
    top = axis_label + _AXIS_LABEL + 0.06
    columns = legend_columns(entries, width=width - 2 * EDGE)
    legend_top = top
    top += math.ceil(len(entries) / columns) * LINE
    signs = top + 0.05
    sign_rows = signs_in_rows(page, width=width - 2 * EDGE)
    top = signs + len(sign_rows) * LINE if sign_rows else top
    note_top = top + 0.05
    height = note_top + len(notes) * LINE + EDGE - (0.0 if notes else 0.05)
    figure.set_size_inches(width, height)

    canvas = Canvas(figure=figure, width=width, height=height)
    canvas.lines(head, x=EDGE, top=EDGE, size=TITLE, step=0.2, weight="bold")
    canvas.lines(sub, x=EDGE, top=EDGE + len(head) * 0.2, size=TEXT)
    for number, group in enumerate(page.groups):
        row, column = divmod(number, page.columns)
        x = left + column * (panel + _PANEL_GAP_X)
        canvas.lines(titles[number], x=x, top=tops[row] - 0.04 - len(titles[number]) * LINE, size=TEXT)
        last = number + page.columns >= len(page.groups)
        draw_panel(
            canvas, page=page, group=group, x=x, top=tops[row], width=panel, first=column == 0, last=last
        )
    middle = left + (width - left - EDGE) / 2
    canvas.text("sequence length (tokens)", x=middle, top=axis_label, size=TEXT, ha="center")
    legend(canvas, entries, columns=columns, top=legend_top)
    sign_legend(canvas, sign_rows, top=signs)
    canvas.lines(notes, x=EDGE, top=note_top, size=SMALL, colour="#555555")
    return figure


def _left_margin(page: Page) -> float:
    """Room for the axis label and the tick labels, or for the names of the rows of the strip."""
    of_ticks = 0.36 + tick_width(page)
    of_strip = max((text_width(short(name, 24), size=SMALL) for name in page.strip), default=0.0) + 0.2
    return max(of_ticks, of_strip)
