"""A figure with its lines, and what it has on paper in either form: head, legends, marks, notes, in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure as Drawn

from attnbench.paper.figures import Figure, Panel, Series
from attnbench.paper.lines import Line, Origin
from attnbench.plots.canvas import DPI, EDGE, INK, LINE, Canvas
from attnbench.plots.legend import ENTRY_GAP, HANDLE
from attnbench.plots.looks import marker_size, style_of
from attnbench.plots.signs import SIGNS
from attnbench.plots.text import SMALL, TITLE, short, text_width, wrap

WIDTH = 7.4
_TITLE_STEP = 0.2
# Of several devices or settings the first has full lines.
DASHES: Sequence[Any] = ("-", (0, (5, 1.6)), (0, (2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKS = ("o", "s", "^", "v", "P", "X")  # of the editions of `dots`


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A figure with its lines, as it is drawn."""

    figure: Figure
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]  # what stands below it, sentences without a full stop

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """The series that have anything to show."""
        named = {line.series for line in self.lines if len(line) or line.gaps}
        return tuple(each for each in self.figure.series if each.key in named)

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The panels that have anything to show."""
        named = {line.panel for line in self.lines if len(line) or line.gaps}
        return tuple(each for each in self.figure.panel if each.key in named)

    @cached_property
    def kinds(self) -> tuple[tuple[Origin, str], ...]:
        """Origins and editions in order: published, corrected, measured."""
        found = {(line.origin, line.edition): None for line in self.lines}
        return tuple(sorted(found, key=lambda kind: list(Origin).index(kind[0])))

    def here(self, panel: Panel) -> list[Line]:
        """The lines of a panel."""
        return [line for line in self.lines if line.panel == panel.key]


def head_lines(sheet: Sheet) -> tuple[list[str], list[str]]:
    """Title and what is below it, wrapped."""
    figure = sheet.figure
    width = WIDTH - 2 * EDGE
    level = "operator level, one attention call" if figure.level == "operator" else "model level"
    assumed = f"; {figure.assumed}" if figure.assumed else ""
    return (
        wrap(figure.title, width=width, size=TITLE),
        wrap(f"{figure.paper}; {level}{assumed}", width=width, size=SMALL),
    )


def head_height(title: Sequence[str], below: Sequence[str]) -> float:
    """Inches from the top of the page to the end of the head."""
    return EDGE + len(title) * _TITLE_STEP + len(below) * LINE + 0.12


def put_head(canvas: Canvas, title: Sequence[str], below: Sequence[str]) -> None:
    """Title and what is below it, at the top."""
    canvas.lines(title, x=EDGE, top=EDGE, size=TITLE, step=_TITLE_STEP, weight="bold")
    canvas.lines(below, x=EDGE, top=EDGE + len(title) * _TITLE_STEP, size=SMALL, colour="#555555")


def page(height: float) -> tuple[Drawn, Canvas]:
    """An empty page."""
    figure = Drawn(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    return figure, Canvas(figure=figure, width=WIDTH, height=height)


def notes(sheet: Sheet) -> list[str]:
    """The remarks, wrapped."""
    return [row for text in sheet.remarks for row in wrap(text, width=WIDTH - 2 * EDGE, size=SMALL)]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a legend: how its handle looks, and its words."""

    text: str
    how: dict[str, Any]


def entries_height(entries: Sequence[Entry]) -> float:
    """Inches that a legend takes."""
    return len(_rows(entries)) * LINE


def put_entries(canvas: Canvas, entries: Sequence[Entry], *, top: float) -> None:
    """A legend in rows, each entry as wide as it needs."""
    for number, row in enumerate(_rows(entries)):
        y = top + number * LINE
        for x, entry in row:
            ends = [x, x + HANDLE / 2 - 0.04, x + HANDLE - 0.08]
            canvas.line(ends, top=y + 0.085, markevery=[1], **entry.how)
            canvas.text(entry.text, x=x + HANDLE, top=y, size=SMALL)


def _rows(entries: Sequence[Entry]) -> list[list[tuple[float, Entry]]]:
    rows: list[list[tuple[float, Entry]]] = []
    x = EDGE
    for entry in entries:
        need = HANDLE + text_width(entry.text, size=SMALL)
        if not rows or x + need > WIDTH - EDGE:
            rows.append([])
            x = EDGE
        rows[-1].append((x, entry))
        x += need + ENTRY_GAP
    return rows


def mark_style(origin: Origin, *, colour: str, marker: str, size: float = 4.8) -> dict[str, Any]:
    """A mark: solid of what was measured, hollow of what was published, thickly so of what was corrected."""
    if origin is Origin.MEASURED:
        return {
            "marker": marker, "markersize": size, "markerfacecolor": colour, "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }  # fmt: skip
    hollow = {
        "marker": marker, "markersize": size, "markerfacecolor": "white", "markeredgecolor": colour,
        "markeredgewidth": 1.0,
    }  # fmt: skip
    return {**hollow, "markeredgewidth": 1.8} if origin is Origin.CORRECTED else hollow


def series_entries(sheet: Sheet) -> list[Entry]:
    """Colours and marks of the series."""
    found = []
    for series in sheet.series:
        style = style_of(series.look)
        how = {"color": style.colour, "linewidth": 1.2, **_solid(style.colour, style.marker)}
        found.append(Entry(text=short(series.label, 48), how={**how, "markersize": marker_size(style)}))
    return found


def _solid(colour: str, marker: str) -> dict[str, Any]:
    return mark_style(Origin.MEASURED, colour=colour, marker=marker)


def kind_words(kind: tuple[Origin, str], sheet: Sheet) -> str:
    """What a kind of line is, in the legend."""
    origin, edition = kind
    if origin is Origin.MEASURED:
        return f"measured: {edition}"
    borrowed = next((b for b in sheet.figure.borrows if b.edition == edition), None)
    source = f"{edition}, the authors' repository" if borrowed else edition
    hardware = sheet.figure.hardware
    on = (
        "GPU not named"
        if "not named" in hardware or borrowed
        else hardware.replace("not stated", "hardware not stated")
    )
    return f"{origin}: {source} ({on})"


def sign_entries(sheet: Sheet) -> list[Entry]:
    """The signs of points without a value."""
    present = {gap.status for line in sheet.lines for gap in line.gaps}
    return [
        Entry(
            text=SIGNS[status].words if status in SIGNS else status,
            how={"linestyle": "none", **sign_style(status, colour=INK, hollow=False)},
        )
        for status in sorted(present)
    ]


def sign_style(status: str, *, colour: str, hollow: bool) -> dict[str, Any]:
    """How a point without a value is drawn."""
    sign = SIGNS.get(status)
    return {
        "marker": sign.marker if sign else ".",
        "linestyle": "none",
        "markersize": sign.size if sign else 4.0,
        "markeredgewidth": 0.7 if hollow else 1.5,
        "markeredgecolor": colour,
        "markerfacecolor": "none" if hollow or not (sign and sign.filled) else colour,
    }


def axis_scale(panel: Panel) -> float:
    """What one of an axis is in the unit of lines."""
    return 2.0**30 if panel.quantity == "memory" else 1.0


def axis_unit(panel: Panel) -> str:
    """The unit of an axis."""
    return {"time": "ms", "rate": "tokens/s", "memory": "GiB", "loss": "nats"}[panel.quantity]


def tick_text(value: float) -> str:
    """A place of an axis: 12.5, 5,000, 20k, 3M; nothing of it is rounded away."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit * 10 or (name == "M" and value >= unit):
            return f"{value / unit:g}{name}"
    return f"{value:,.6g}"


def widest(labels: Sequence[str]) -> float:
    """The width of the widest of some labels, in inches."""
    return max((text_width(label, size=SMALL) for label in labels), default=0.0)


def columns_of(count: int) -> int:
    """Panels in a row."""
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(count, 3)


def rows_of(count: int) -> int:
    """Rows of panels."""
    return math.ceil(count / columns_of(count))
