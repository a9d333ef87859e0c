"""The legend that all figures share: a line with its mark and a name for each mechanism, column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attnbench.plots.canvas import EDGE, LINE, Canvas
from attnbench.plots.looks import marker_size, style_of
from attnbench.plots.text import SMALL, text_width

HANDLE, ENTRY_GAP = 0.46, 0.22


def legend_columns(entries: Sequence[tuple[str, str]], *, width: float) -> int:
    """How many columns of (mechanism, text) fit into a width, in inches."""
    widest = max(text_width(text, size=SMALL) for _, text in entries) + HANDLE + ENTRY_GAP
    return max(1, min(len(entries), int((width + ENTRY_GAP) / widest)))


def legend(canvas: Canvas, entries: Sequence[tuple[str, str]], *, columns: int, top: float) -> None:
    """Draw the legend, LINE inches for each of its rows."""
    rows = math.ceil(len(entries) / columns)
    x = EDGE
    for first in range(0, len(entries), rows):  # column by column, each as wide as it needs
        column = entries[first : first + rows]
        for number, (name, text) in enumerate(column):
            style, y = style_of(name), top + number * LINE
            canvas.line(
                [x, x + HANDLE / 2 - 0.04, x + HANDLE - 0.08],
                top=y + 0.085,
                color=style.colour,
                linestyle=style.dash,
                linewidth=style.width,
                marker=style.marker,
                markevery=[1],
                markersize=marker_size(style),
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
            canvas.text(text, x=x + HANDLE, top=y, size=SMALL)
        x += max(text_width(text, size=SMALL) for _, text in column) + HANDLE + ENTRY_GAP
