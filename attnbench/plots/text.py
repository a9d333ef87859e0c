"""Text on a page: its sizes, how wide it comes out, and how it is shortened and broken into lines."""

from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same

# Sizes in points; nothing is smaller than 8.
TITLE, TEXT, SMALL = 10.5, 8.5, 8.0


def plain(text: str) -> str:
    """Without characters that would break a line or that no font shows."""
    return "".join(char if char.isprintable() else " " for char in text)


def short(text: str, most: int) -> str:
    """The text, with an ellipsis where it has more than `most` characters."""
    text = plain(text)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


@lru_cache(maxsize=4096)
def text_width(text: str, *, size: float, weight: str = "normal") -> float:
    """The width of a line of text in inches."""
    font = FontProperties(family=FONT, size=size, weight=weight)
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
