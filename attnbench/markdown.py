"""Markdown: tables, and text that is shown as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Headings of columns that hold names; all others hold numbers.
NAMES = (
    "case",
    "mechanism",
    "dtype",
    "provider",
    "workload",
    "shape",
    "verdict",
    "kernel",
    "operator",
    "figure",
    "waits most for",
)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; names stand to the left, numbers to the right."""
    lines = [headings, ["---" if name in NAMES else "---:" for name in headings]]
    lines += [[escaped(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no cell ends early, and no HTML comes of a reason."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_|\[\]#])", r"\\\1", plain.replace("&", "&amp;").replace("<", "&lt;"))
