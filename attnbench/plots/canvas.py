"""The canvas on which all figures are laid out in inches, and how it becomes a file.

Drawn through matplotlib's object interface, with no global state: the same results give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from attnbench.errors import UserError, unknown
from attnbench.plots.text import FONT, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
DPI = 200

_RC: dict[Any, Any] = {
    "font.family": FONT,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "attnbench",
    "svg.fonttype": "path",
    "axes.linewidth": 0.7,
    "path.simplify": False,
}
_METADATA: Mapping[str, Mapping[str, str | None]] = {
    "png": {},
    "svg": {"Creator": "attnbench", "Date": None},
    "pdf": {"Creator": "attnbench", "Producer": "attnbench", "CreationDate": None},
}

LINE = 0.165  # inches from one line of text to the next
EDGE = 0.12
INK, FAINT, STRIP = "#222222", "#E4E4E4", "#F3F3F3"


@contextmanager
def drawing(formats: Sequence[str]) -> Iterator[None]:
    """matplotlib as every machine has it: a matplotlibrc of the user must not change the figures.

    Raises UserError for an unknown format.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("figure format", name, FORMATS)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A figure on which things are placed in inches from its top left corner."""

    figure: Figure
    width: float
    height: float

    def axes(self, *, x: float, top: float, width: float, height: float) -> Axes:
        """New axes; `top` is the upper end of their frame."""
        bottom = (self.height - top - height) / self.height
        return self.figure.add_axes((x / self.width, bottom, width / self.width, height / self.height))

    def text(self, text: str, *, x: float, top: float, size: float, colour: str = INK, **how: Any) -> None:
        """One line of text; `top` is the top of its line, the baseline is 0.125 inches below."""
        self.figure.text(
            x,
            self.height - top - 0.125,
            plain(text),
            transform=self.figure.dpi_scale_trans,
            fontsize=size,
            color=colour,
            **{"va": "baseline", **how},
        )

    def lines(self, lines: Sequence[str], *, x: float, top: float, step: float = LINE, **how: Any) -> None:
        """Lines of text, `step` inches apart."""
        for number, line in enumerate(lines):
            self.text(line, x=x, top=top + number * step, **how)

    def line(self, xs: Sequence[float], *, top: float, **how: Any) -> None:
        """Markers or a horizontal line, at `top` inches."""
        ys = [self.height - top] * len(xs)
        self.figure.add_artist(Line2D(xs, ys, transform=self.figure.dpi_scale_trans, **how))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of its suffix; the path. Raises UserError where that cannot be done."""
    kind = path.suffix[1:]
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=DPI, metadata=dict(_METADATA[kind]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "png":
            save_with_palette(Image.open(drawn), path)
        else:
            path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def save_with_palette(picture: Image.Image, path: Path) -> None:
    """Write a picture of few colours as PNG: with a palette of 256 it is a quarter of the bytes, and looks the same.

    Raises OSError when it cannot be written.
    """
    few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
