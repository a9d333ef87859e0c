"""What is said around the panels of curves: their titles, the legends of mechanisms and statuses, the notes."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.curves import Group, flatness
from attnbench.plots.canvas import EDGE, INK, LINE, Canvas
from attnbench.plots.legend import ENTRY_GAP
from attnbench.plots.page import Page
from attnbench.plots.signs import sign_style, sign_words
from attnbench.plots.text import SMALL, short, text_width, wrap
from attnbench.words import within


def panel_title(page: Page, group: Group, *, width: float) -> list[str]:
    """What of a panel differs from other panels, in lines."""
    text = ", ".join(part for name, part in group.parts().items() if name in page.varying)
    return wrap(text, width=width) if text else []


def legend_entries(page: Page) -> list[tuple[str, str]]:
    """Mechanism and text of each entry; figures of speed give the largest flatness score of all panels."""
    entries = []
    for name in page.drawn:
        same = [c for c in page.curves if c.mechanism == name and len(c) > 1]
        known = [(flatness(c.tokens_per_s), c.seq_len[-1] / c.seq_len[0]) for c in same]
        score = f" ({flatness_words(known)})" if known and page.quantity.flatness else ""
        entries.append((name, f"{short(name, 40)}{score}"))
    return entries


def flatness_words(known: Sequence[tuple[float, float]]) -> str:
    """How flat curves are: `flat within 1.05×`, or `varies 310×` for what nobody would call flat.

    known: of each its flatness, and its longest over its shortest length. Flat is what changes by less than a half, and
    by less than the fourth root of what a cost per token like N would make of those lengths.
    """
    score = max(flat for flat, _ in known)
    if all(flat < min(1.5, span**0.25) or flat == 1 for flat, span in known):
        return f"flat within {within(score)}×"
    return f"varies {score:.1f}×" if score < 9.95 else f"varies {score:,.0f}×"


def signs_in_rows(page: Page, *, width: float) -> list[list[tuple[float, str]]]:
    """The legend of statuses: rows of (distance from the left, status)."""
    rows: list[list[tuple[float, str]]] = []
    x = start = text_width("no value:", size=SMALL) + 0.12
    for status in page.signs:
        need = 0.2 + text_width(sign_words(status), size=SMALL)
        if not rows or x + need > width:
            rows.append([])
            x = start
        rows[-1].append((x, status))
        x += need + ENTRY_GAP
    return rows


def sign_legend(canvas: Canvas, rows: Sequence[Sequence[tuple[float, str]]], *, top: float) -> None:
    """Draw the legend of statuses, as `signs_in_rows` lays it out."""
    if rows:
        canvas.text("no value:", x=EDGE, top=top, size=SMALL)
    for number, row in enumerate(rows):
        for x, status in row:
            y = top + number * LINE
            canvas.line([EDGE + x + 0.06], top=y + 0.085, **sign_style(status, colour=INK))
            canvas.text(sign_words(status), x=EDGE + x + 0.18, top=y, size=SMALL)


def notes_of(page: Page) -> list[str]:
    """What ran, what is not here, and what a score means: lines below the legends, not yet broken."""
    notes = []
    providers = {name: page.providers[name] for name in page.drawn if name in page.providers}
    if providers and all(len(text) <= 30 for text in providers.values()):
        by_provider: dict[str, list[str]] = {}
        for name, provider in providers.items():
            by_provider.setdefault(provider, []).append(short(name, 40))
        ran = "; ".join(f"{', '.join(names)}: {provider}" for provider, names in by_provider.items())
        notes.append(f"what ran: {ran}")
    if page.absent:
        here = "; ".join(f"{name} ({short(why, 60)})" if why else name for name, why in page.absent.items())
        notes.append(f"not here: {here}")
    if page.quantity.flatness and len(page.groups) > 1:
        notes.append(
            "flat within, varies: largest over smallest tokens/s of a curve; the largest of all panels"
        )
    return notes
