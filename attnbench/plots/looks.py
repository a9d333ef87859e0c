"""How mechanisms look: colour, dashes, marker and place in a legend, the same in every figure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Dash = str | tuple[float, tuple[float, ...]]


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


def marker_size(style: Style) -> float:
    """Points across."""
    return 5.4 if style.width > 2 else 4.6


def rank(mechanism: str) -> tuple[int, str]:
    """Where a mechanism stands among others: in the order of the table above, then by name."""
    known = list(STYLES)
    return (known.index(mechanism) if mechanism in STYLES else len(known), mechanism)


def in_order(mechanisms: Iterable[str]) -> tuple[str, ...]:
    """Each mechanism once, by `rank`."""
    return tuple(sorted(set(mechanisms), key=rank))
