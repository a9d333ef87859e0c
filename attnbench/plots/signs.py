"""The marks of cases without a value: one for each status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.path import Path as MarkerPath

from attnbench.case import Status

# An exclamation mark: as a mathtext marker it would be parsed, and parsing is off.
_EXCLAMATION = MarkerPath.make_compound_path(
    MarkerPath([(-0.13, -0.2), (0.13, -0.2), (0.2, 1), (-0.2, 1), (-0.13, -0.2)], closed=True),
    MarkerPath([(-0.17, -1), (0.17, -1), (0.17, -0.55), (-0.17, -0.55), (-0.17, -1)], closed=True),
)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The mark of a case without a value."""

    marker: str | MarkerPath
    words: str
    filled: bool = False
    size: float = 4.6  # points


SIGNS: Mapping[str, Sign] = {
    Status.INCORRECT: Sign(marker=_EXCLAMATION, words="incorrect output", filled=True, size=7.5),
    Status.OOM: Sign(marker="x", words="out of memory"),
    Status.TIMEOUT: Sign(marker=">", words="timeout"),
    Status.CRASHED: Sign(marker="*", words="crashed", filled=True, size=6.0),
    Status.ERROR: Sign(marker="s", words="error"),
    Status.UNSUPPORTED: Sign(marker="_", words="unsupported", size=5.5),
}
_UNKNOWN_SIGN = Sign(marker=".", words="other")


def sign_style(status: str, *, colour: str) -> dict[str, Any]:
    """The mark of a status as matplotlib takes it."""
    sign = SIGNS.get(status, _UNKNOWN_SIGN)
    return {
        "marker": sign.marker,
        "linestyle": "none",
        "markersize": sign.size,
        "markeredgewidth": 1.2 if not sign.filled else 0.3,
        "markeredgecolor": colour,
        "markerfacecolor": colour if sign.filled else "none",
    }


def sign_words(status: str) -> str:
    """A status in words; one that is not known as it is."""
    return SIGNS[status].words if status in SIGNS else status
