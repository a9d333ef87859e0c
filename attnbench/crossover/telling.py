"""A crossover on the terminal: the points around it, and what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from attnbench.crossings import Point
from attnbench.crossover.finding import Finding, failures, sentence
from attnbench.words import factor, status_words

if TYPE_CHECKING:
    from rich.console import Console


def render(found: Iterable[Finding], console: Console, *, resolution: float | None = None) -> None:
    """Each finding: a table with a line for each length, and the sentence. resolution: as for `sentence`."""
    for each in found:
        console.print(Text(each.heading, style="bold"), soft_wrap=True)
        console.print(_table(each))
        console.print(Text(sentence(each, resolution=resolution)), soft_wrap=True)
        console.print()


def _table(found: Finding) -> Table:
    # Text, never a string: rich would read a bracket in a name as markup.
    table = Table()
    table.add_column("tokens", justify="right")
    table.add_column(Text(f"time of {found.b} over {found.a}"), justify="right")
    table.add_column("interval")
    table.add_column("ahead")
    for point in found.points:
        table.add_row(*map(Text, _cells(found, point)))
    return table


def _cells(found: Finding, point: Point) -> tuple[str, str, str, str]:
    ahead = {1: found.a, -1: found.b, 0: "not told apart"}[point.ahead]
    if point.ratio is None or point.low is None or point.high is None:
        ends = ", ".join(f"{each.mechanism}: {status_words(each.status)}" for each in failures(found, point))
        return f"{point.seq_len:,}", "", ends, f"{ahead}, by failure" if point.ahead else ""
    interval = f"{factor(point.low)} to {factor(point.high)}"
    return f"{point.seq_len:,}", factor(point.ratio), interval, ahead
