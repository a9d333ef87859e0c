"""What a run found, on a terminal: tables, then sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from attnbench.shapes import Standings
from attnbench.summary.found import Leader, Section, Summary
from attnbench.summary.words import (
    alone_words,
    closing,
    crossing_words,
    energy_words,
    fastest_words,
    heading,
    leading_crossings,
    standing_words,
)
from attnbench.words import bytes_text, count_text, factor, rate_text, signed, time_text, workload_title

if TYPE_CHECKING:
    from rich.console import Console

_DETAILED = 4  # up to so many sections, each gets its tables


def render(summary: Summary, console: Console, *, detail: bool | None = None) -> None:
    """Print the summary: tables, then sentences.

    detail: the tables of every section, one line for each length; otherwise one line for each section. By
    default the former for up to four sections, and neither for a sweep whose shapes are listed one by one.
    """
    for each in summary.standings:
        _render_standings(each, console)
    detailed = len(summary.sections) <= _DETAILED if detail is None else detail
    if summary.standings and detail is None:
        return _render_rest(summary, console)
    for section in summary.sections if detailed else ():
        _render_section(section, console)
    if not detailed:
        for workload, same in groupby(summary.sections, key=lambda section: section.workload):
            console.print(_overview(workload, tuple(same)))
            _say(console)
    return _render_rest(summary, console)


def _render_section(section: Section, console: Console) -> None:
    # Text, never a string: rich would read a bracket in a name as markup.
    table = Table(title=Text(heading(section)), title_justify="left", title_style="bold")
    for name in ("tokens", "fastest", "speed", "time", "peak memory", "the next"):
        table.add_column(name, justify="left" if name in ("fastest", "the next") else "right")
    for leader in section.leaders:
        peak = "" if leader.peak_bytes is None else bytes_text(leader.peak_bytes)
        cells = (f"{leader.seq_len:,}", leader.mechanism, rate_text(leader.tokens_per_s))
        table.add_row(*map(Text, (*cells, time_text(leader.median_ms), peak, _ahead(leader))))
    console.print(table)
    console.print(_flatness_table(section))
    for text in (*alone_words(section), *crossing_words(section), *energy_words(section)):
        _say(console, f"{text[0].upper()}{text[1:]}." if text.startswith("energy") else f"{text}.")
    _say(console)


def _flatness_table(section: Section) -> Table:
    table = Table()
    for name in ("mechanism", "max / min", "slope", "highest speed", "lowest speed"):
        table.add_column(name, justify="left" if name == "mechanism" else "right")
    for each in section.flatness:
        if each.slope is None:
            cells = ("", "", f"{rate_text(each.fastest)} at {each.fastest_at:,}", "")
        else:
            high = f"{rate_text(each.fastest)} at {each.fastest_at:,}"
            low = f"{rate_text(each.slowest)} at {each.slowest_at:,}"
            cells = (factor(each.flatness), signed(each.slope), high, low)
        table.add_row(Text(each.mechanism), *map(Text, cells))
    return table


def _render_standings(found: Standings, console: Console) -> None:
    title = f"{workload_title(found.workload)}, {count_text(found.shapes, 'shape')}"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in (
        "mechanism",
        "shapes",
        "of its bound",
        "at the worst",
        "which is",
        f"over {found.reference}",
    ):
        table.add_column(name, justify="left" if name in ("mechanism", "which is") else "right")
    for each in found.standings:
        share = "" if each.share is None else f"{each.share:.0%}"
        worst = "" if each.worst_share is None else f"{each.worst_share:.0%}"
        times = ""
        if each.times is not None and each is not found.standings[0]:
            assert each.least_times is not None
            assert each.most_times is not None
            times = f"{factor(each.times)} ({factor(each.least_times)} to {factor(each.most_times)})"
        cells = (each.mechanism, str(each.shapes), share, worst, each.worst_at or "", times)
        table.add_row(*map(Text, cells))
    console.print(table)
    _say(console, standing_words(found))
    _say(console)


def _overview(workload: str, sections: Sequence[Section]) -> Table:
    parts = [section.group.parts() for section in sections]
    names = dict.fromkeys(name for part in parts for name in part)
    common = [name for name in names if len({part.get(name) for part in parts}) == 1]
    title = ", ".join([workload_title(workload), *(parts[0][name] for name in common)])
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in ("curve", "fastest", "max / min speed", "crossings"):
        table.add_column(name)
    for section in sections:
        flat = (
            f"{each.mechanism} {factor(each.flatness)}" for each in section.flatness if each.slope is not None
        )
        crossings = (each.short() for each in leading_crossings(section))
        cells = (fastest_words(section), "\n".join(flat), "\n".join(crossings))
        table.add_row(Text(section.group.label(without=common)), *map(Text, cells))
    return table


def _render_rest(summary: Summary, console: Console) -> None:
    for each in summary.incorrect:
        _say(console, f"INCORRECT: {each.sentence()}.", style="bold red")
    if summary.missing:
        _say(console, "Not measured:", style="bold")
    for each in summary.missing:
        _say(console, f"  {each.sentence()}")
    for text in summary.warnings:
        _say(console, f"Warning: {text}.", style="yellow")
    _say(console, closing(summary), style="bold red" if summary.incorrect else "bold")


def _ahead(leader: Leader) -> str:
    if leader.next is None or leader.ahead is None:
        return "nothing else was measured" if leader.alone else ""
    by = f"{leader.next} takes {factor(leader.ahead)} the time"
    return by if leader.clear else f"{by} (intervals overlap)"


def _say(console: Console, text: str = "", *, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
