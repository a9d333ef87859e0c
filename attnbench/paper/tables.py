"""The tables of a figure, as rows of text: claims with their verdicts, and values point by point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.paper.deviations import Deviation
from attnbench.paper.figures import Figure, Panel
from attnbench.paper.lines import Line, Origin, value_text
from attnbench.words import factor, three

_MOST_POINTS = 24  # a curve of steps is shown at its ends alone


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings and rows of cells, all text; the first columns are words, the rest are numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a table of Markdown, under its title."""
        lines = [self.headings, tuple("---" for _ in self.headings), *self.rows]
        text = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return f"{self.title}\n\n{text}" if self.title else text


def claims_table(found: Sequence[Deviation]) -> Table:
    """Each claim, what the published lines show, what is shown here, and the verdict."""
    return Table(
        title="",
        headings=("claim", "from", "panel", "published", "here", "verdict"),
        rows=tuple(
            (
                each.claim,
                each.source,
                each.panel,
                each.published or "no value printed",
                _here(each, found),
                str(each.verdict),
            )
            for each in found
        ),
    )


def value_tables(figure: Figure, lines: Sequence[Line]) -> list[Table]:
    """For each panel the values of every line at every x, and each measured one over what was published."""
    return [table for panel in figure.panel if (table := _values(figure, panel, lines)) is not None]


# ------------------------------------------------------------------------------------------------------------


def _here(each: Deviation, found: Sequence[Deviation]) -> str:
    """What is shown here, with the device where there are several."""
    several = len({one.device for one in found if one.device}) > 1
    if each.here is None:
        return ""
    return f"{each.device}: {each.here}" if several else each.here


def _values(figure: Figure, panel: Panel, lines: Sequence[Line]) -> Table | None:
    here = [line for line in lines if line.panel == panel.key and (len(line) or line.gaps)]
    if not here:
        return None
    order = [series.key for series in figure.series]
    here.sort(key=lambda line: (order.index(line.series), list(Origin).index(line.origin)))
    places = sorted({float(x) for line in here for x in [*line.x, *(gap.x for gap in line.gaps)]})
    if len(places) > _MOST_POINTS:
        places = [places[0], places[len(places) // 2], places[-1]]
    labels = {series.key: series.label for series in figure.series}
    rows = []
    for place in places:
        cells = [_cell(line, place, here, panel) for line in here]
        rows.append((f"{place:,.0f}", *cells))
    headings = [_heading(line, labels[line.series], here) for line in here]
    name = {"seq_len": "tokens", "context": "context", "step": "updates"}[figure.x]
    return Table(title=f"**{panel.title}**", headings=(name, *headings), rows=tuple(rows))


def _heading(line: Line, label: str, here: Iterable[Line]) -> str:
    editions = {each.edition for each in here if each.origin is line.origin}
    which = f" ({line.edition})" if len(editions) > 1 else ""
    return f"{label}, {'here' if line.origin is Origin.MEASURED else line.origin}{which}"


def _cell(line: Line, x: float, here: Sequence[Line], panel: Panel) -> str:
    value = line.at(x)
    if value is None:
        return next((gap.status for gap in line.gaps if gap.x == x), "")
    said = value_text(value, panel.quantity).removesuffix(" tokens/s")
    if line.origin is not Origin.MEASURED:
        return said
    # Held to what is right where that is known, else to what was published first.
    others = sorted(
        (each for each in here if each.series == line.series and each.origin is not Origin.MEASURED),
        key=lambda each: each.origin is not Origin.CORRECTED,
    )
    held = next((there for each in others if (there := each.at(x)) is not None), None)
    return said if held is None or panel.quantity == "loss" else f"{said} ({_times(value / held)})"


def _times(ratio: float) -> str:
    return factor(ratio) if ratio >= 0.0995 else f"{three(ratio)}×"
