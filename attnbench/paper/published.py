"""The published numbers as lines: as printed, without what is known to be wrong with them, and those of a neighbour."""

from __future__ import annotations

import csv
import dataclasses

from attnbench.paper.figures import UNITS, Correction, Figure, figures, folder
from attnbench.paper.lines import Line, Origin, Point, line


def published(figure: Figure) -> tuple[Line, ...]:
    """What the figure's source prints, line by line; none where only curves were drawn."""
    if not figure.data:
        return ()
    text = (folder() / figure.data).read_text(encoding="utf-8")
    points: dict[tuple[str, str, str], list[Point]] = {}
    for row in csv.DictReader(text.splitlines()):
        unit = UNITS[figure.panel_of(row["panel"]).unit]
        value = float(row["value"]) * unit if row["value"] else None
        key = (row["edition"], row["panel"], row["series"])
        points.setdefault(key, []).append(Point(x=float(row["x"]), value=value, status=row["status"]))
    return tuple(
        line(there, origin=Origin.PUBLISHED, edition=edition, panel=panel, series=series)
        for (edition, panel, series), there in points.items()
    )


def corrected(figure: Figure) -> tuple[Line, ...]:
    """Published lines without what does not belong to them; none where nothing is known to be wrong."""
    return tuple(
        _without(each, correction)
        for each in published(figure)
        for correction in figure.correction
        if (each.panel, each.edition) == (correction.panel, correction.edition)
    )


def borrowed(figure: Figure) -> tuple[Line, ...]:
    """Published lines of other figures that stand beside this one's, where it has the panel and the series."""
    own_panels = {panel.key for panel in figure.panel}
    own_series = {series.key for series in figure.series}
    return tuple(
        each
        for wanted in figure.borrows
        for each in published(figures()[wanted.figure])
        if each.edition == wanted.edition and each.panel in own_panels and each.series in own_series
    )


def _without(published_line: Line, correction: Correction) -> Line:
    extra = correction.per_token * published_line.x
    return dataclasses.replace(published_line, origin=Origin.CORRECTED, value=published_line.value - extra)
