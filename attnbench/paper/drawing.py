"""The figures in the papers' form: what was measured in full lines and solid marks, what was published hollow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench.errors import UserError
from attnbench.paper import curve_panels, dot_panels
from attnbench.paper.sheet import Sheet
from attnbench.plots.canvas import drawing, save


def draw(sheet: Sheet, folder: Path, *, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw a figure once for each kind of its axes: `fig3.png`, `fig3.log.png`. Returns the paths written.

    Raises UserError when there is no point at all, a format is unknown, or the folder cannot be written.
    """
    if not any(len(line) for line in sheet.lines):
        raise UserError(
            f"there is nothing to draw of {sheet.figure.name}: it prints no value, and nothing was measured"
        )
    panels = curve_panels if sheet.figure.form == "curves" else dot_panels
    written = []
    with drawing(formats):
        for number, axes in enumerate(sheet.figure.axes):
            figure = panels.render(sheet, axes=axes)
            stem = sheet.figure.name if number == 0 else f"{sheet.figure.name}.{axes}"
            written += [save(figure, folder / f"{stem}.{name}") for name in formats]
    return written
