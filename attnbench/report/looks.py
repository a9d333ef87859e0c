"""How mechanisms look on a page: the styles of the figures, as SVG, and their colours on a dark ground."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from attnbench.plots.looks import Style, style_of

DARK_GROUND = "#15171B"
_CONTRAST = 4.5  # of a line with its ground (WCAG asks for 3 of graphics, 4.5 of text)
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def look(mechanism: str) -> dict[str, Any]:
    """Colours, dashes in pixels, width, and the marker's path about the origin, one unit across."""
    style = style_of(mechanism)
    return {
        "name": mechanism,
        "light": style.colour,
        "dark": on_dark(style.colour),
        "dash": _dashes(style),
        "width": style.width,
        "marker": marker_path(style.marker),
    }


def on_dark(colour: str) -> str:
    """The colour, mixed with as much white as it takes to stand out from the dark ground."""
    channels = _channels(colour)
    for share in np.linspace(0, 1, 51):
        mixed = channels * (1 - share) + share
        if contrast(_hex(mixed), DARK_GROUND) >= _CONTRAST:
            return _hex(mixed)
    return "#FFFFFF"


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours: WCAG 2.1, section 1.4.3."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def marker_path(marker: str) -> str:
    """A marker of matplotlib as the `d` of an SVG path."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    return " ".join(
        _LETTERS[code] + ("" if code == Path.CLOSEPOLY else _numbers(vertices))
        for vertices, code in path.iter_segments(simplify=False)
    )


# ------------------------------------------------------------------------------------------------------------


def _dashes(style: Style) -> list[float]:
    """matplotlib's dashes are in widths of the line."""
    return [] if isinstance(style.dash, str) else [round(part * style.width, 2) for part in style.dash[1]]


def _numbers(vertices: Iterable[float]) -> str:
    signs = (1, -1)  # SVG counts downwards
    return " ".join(f"{signs[place % 2] * value + 0.0:.3g}" for place, value in enumerate(vertices))


def _channels(colour: str) -> Any:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _hex(channels: Any) -> str:
    return "#" + "".join(f"{round(float(value) * 255):02X}" for value in channels)


def _luminance(colour: str) -> float:
    """Relative luminance: WCAG 2.1, its definitions."""
    channels = _channels(colour)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))
