"""What all figures share: fonts, sizes and colours, a canvas laid out in inches, legends, and how files are written.

Drawn through matplotlib's object interface, with no global state: the same results give the same bytes.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from attnbench.errors import UserError, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
DPI = 200

_FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same
_RC: dict[Any, Any] = {
    "font.family": _FONT,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "attnbench",
    "svg.fonttype": "path",
    "axes.linewidth": 0.7,
    "path.simplify": False,
}
_METADATA: Mapping[str, Mapping[str, str | None]] = {
    "png": {"Software": "attnbench"},
    "svg": {"Creator": "attnbench", "Date": None},
    "pdf": {"Creator": "attnbench", "Producer": "attnbench", "CreationDate": None},
}

# Sizes in points; nothing is smaller than 8.
TITLE, TEXT, SMALL = 10.5, 8.5, 8.0
LINE = 0.165  # inches from one line of text to the next
INK, FAINT, STRIP = "#222222", "#E4E4E4", "#F3F3F3"

Dash = str | tuple[float, tuple[float, ...]]

EDGE = 0.12


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a mechanism is drawn: dashes and marker tell it apart where colour does not."""

    colour: str
    dash: Dash = "-"
    marker: str = "o"
    width: float = 1.5


_DASHED, _DOTTED, _DASH_DOT = (0.0, (4.0, 1.6)), (0.0, (1.2, 1.4)), (0.0, (5.0, 1.5, 1.2, 1.5))
_LONG, _DASH_DOT_DOT = (0.0, (8.0, 2.0)), (0.0, (4.0, 1.3, 1.2, 1.3, 1.2, 1.3))

# The colours of Okabe and Ito (Color Universal Design, 2008), yellow left out, extended by darker ones.
STYLES: Mapping[str, Style] = {
    "lightning2": Style(colour="#D55E00", marker="o", width=2.6),
    "lightning2-paper": Style(colour="#F0986B", dash=_DOTTED, marker="o"),
    "lightning2-no-decay": Style(colour="#B85C00", dash=_DASHED, marker="H"),
    "lightning1": Style(colour="#E69F00", dash=_DASHED, marker="s"),
    "linear-cumsum": Style(colour="#009E73", dash=_DASH_DOT, marker="^"),
    "linear-quadratic": Style(colour="#882255", dash=_DOTTED, marker="v"),
    "flash2": Style(colour="#0072B2", marker="D"),
    "sdpa": Style(colour="#111111", dash=_LONG, marker="P"),
    "sdpa-flash": Style(colour="#3C6E9F", dash=_DASH_DOT_DOT, marker="D"),
    "sdpa-cudnn": Style(colour="#56B4E9", marker="h"),
    "sdpa-efficient": Style(colour="#CC79A7", dash=_DASH_DOT, marker="<"),
    "sdpa-math": Style(colour="#777777", dash=_DOTTED, marker="p"),
    "xformers": Style(colour="#6B7A00", dash=_DASHED, marker="d"),
    "flash3": Style(colour="#003F66", dash=_DASHED, marker="D"),
    "flex": Style(colour="#7A5195", dash=_DASH_DOT_DOT, marker="8"),
    "lightning2-official": Style(colour="#A63A00", dash=_LONG, marker="H"),
    "official-no-decay": Style(colour="#7F2A00", dash=_DASH_DOT, marker="D"),
    "fla-simple-gla": Style(colour="#332288", dash=_DASHED, marker="8"),
    "fla-retention": Style(colour="#117733", dash=_LONG, marker="p"),
    "fla-linear": Style(colour="#44AA99", dash=_DASH_DOT_DOT, marker="d"),
    "tfla": Style(colour="#5A3E1B", dash=_DASH_DOT, marker="s"),
    "retnet": Style(colour="#B2182B", marker="X"),
    "gla": Style(colour="#4D7C0F", dash=_DASHED, marker=">"),
    "linear-elu": Style(colour="#CC6677", marker="^"),
    "cosformer": Style(colour="#8C510A", dash=_DASHED, marker="X"),
    "performer": Style(colour="#762A83", dash=_DASH_DOT, marker="v"),
    "rfa": Style(colour="#2C5AA0", dash=_DOTTED, marker=">"),
    "flash4": Style(colour="#0E7C86", dash=_DOTTED, marker="D"),
    "lightning2-lasp": Style(colour="#E8A33D", dash=_DASHED, marker="v"),
    "lightning2-lasp2": Style(colour="#C44E00", marker="p", width=2.0),
    "ring-attention": Style(colour="#0A5C8C", marker="s"),
    "streaming-llm": Style(colour="#B8860B", dash=_LONG, marker=">"),
}

_OTHER_COLOURS = ("#1B7F79", "#8C510A", "#762A83", "#4D7C0F", "#B2182B", "#2C5AA0", "#5E5E5E", "#9C6B98")
_OTHER_DASHES: tuple[Dash, ...] = ("-", _DASHED, _DASH_DOT, _DOTTED, _LONG, _DASH_DOT_DOT)
_OTHER_MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<", "p", "d", "8")


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


def style_of(mechanism: str) -> Style:
    """The style of a mechanism, the same in every figure; an unknown one's depends on its name alone.

    One provider of a mechanism, or one of its windows, has the mechanism's colour.
    """
    if mechanism in STYLES:
        return STYLES[mechanism]
    family = STYLES.get(re.split(r"@| W", mechanism)[0])
    number = zlib.crc32(mechanism.encode())  # hash() differs from process to process
    number, colour = divmod(number, len(_OTHER_COLOURS))
    number, dash = divmod(number, len(_OTHER_DASHES))
    return Style(
        colour=_OTHER_COLOURS[colour] if family is None else family.colour,
        dash=_OTHER_DASHES[dash],
        marker=_OTHER_MARKERS[number % len(_OTHER_MARKERS)],
    )


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A figure on which things are placed in inches from its top left corner."""

    figure: Figure
    width: float
    height: float

    def axes(self, *, x: float, top: float, width: float, height: float) -> Axes:
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
        for number, line in enumerate(lines):
            self.text(line, x=x, top=top + number * step, **how)

    def line(self, xs: Sequence[float], *, top: float, **how: Any) -> None:
        """Markers or a horizontal line, at `top` inches."""
        ys = [self.height - top] * len(xs)
        self.figure.add_artist(Line2D(xs, ys, transform=self.figure.dpi_scale_trans, **how))


HANDLE, ENTRY_GAP = 0.46, 0.22


def legend_columns(entries: Sequence[tuple[str, str]], *, width: float) -> int:
    widest = max(text_width(text, size=SMALL) for _, text in entries) + HANDLE + ENTRY_GAP
    return max(1, min(len(entries), int((width + ENTRY_GAP) / widest)))


def legend(canvas: Canvas, entries: Sequence[tuple[str, str]], *, columns: int, top: float) -> None:
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


def save(figure: Figure, path: Path) -> Path:
    kind = path.suffix[1:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=kind, dpi=DPI, metadata=dict(_METADATA[kind]))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def rank(mechanism: str) -> tuple[int, str]:
    known = list(STYLES)
    return (known.index(mechanism) if mechanism in STYLES else len(known), mechanism)


def in_order(mechanisms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(mechanisms), key=rank))


def log_ticks(low: float, high: float, *, base: int, most: int) -> list[float]:
    """Round numbers of a logarithmic axis: the densest set that has at most `most` of them."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    powers = [float(base) ** n for n in range(first, last + 1)]
    sets = [[p * m for p in powers for m in (1, 2, 5)], [p * m for p in powers for m in (1, 3)]]
    if base != 10:
        sets = []
    sets += [powers[-first % step :: step] for step in range(1, len(powers) + 1)]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in sets]
    return next((ticks for ticks in inside if len(ticks) <= most), inside[-1])


def marker_size(style: Style) -> float:
    return 5.4 if style.width > 2 else 4.6


def plain(text: str) -> str:
    """Without characters that would break a line or that no font shows."""
    return "".join(char if char.isprintable() else " " for char in text)


def short(text: str, most: int) -> str:
    text = plain(text)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


@lru_cache(maxsize=4096)
def text_width(text: str, *, size: float, weight: str = "normal") -> float:
    """The width of a line of text in inches."""
    font = FontProperties(family=_FONT, size=size, weight=weight)
    width: float = text_to_path.get_text_width_height_descent(plain(text), font, ismath=False)[0]
    return width / 72


def wrap(text: str, *, width: float, size: float = TEXT) -> list[str]:
    """The text in lines of at most `width` inches; a word longer than that is broken."""
    weight = "bold" if size == TITLE else "normal"
    lines: list[str] = []
    words = text.split()
    while words:
        word = words.pop(0)
        fits = len(word)
        while fits > 1 and text_width(word[:fits], size=size, weight=weight) > width:
            fits -= 1
        word, rest = word[:fits], word[fits:]
        words = [rest, *words] if rest else words
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size=size, weight=weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
