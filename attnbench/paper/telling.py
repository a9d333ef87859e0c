"""What `attnbench paper` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from attnbench.options import make_console
from attnbench.paper.command import as_json
from attnbench.paper.deviations import Verdict, hardware_words
from attnbench.paper.page import Reproduced, overall
from attnbench.paper.tables import claims_table

_STYLES = {Verdict.HOLDS: "green", Verdict.FAILS: "red", Verdict.OPEN: "yellow", Verdict.UNMEASURED: "dim"}


def print_list(rows: Sequence[Mapping[str, Any]], *, json_: bool) -> None:
    """The figures there are."""
    if json_:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="Figures and tables of the papers", title_justify="left")
    for name in ("figure", "what", "from", "values", "claims", "measured by"):
        table.add_column(name, justify="right" if name in ("values", "claims") else "left")
    for row in rows:
        paper = re.sub(r" [(].*?[)]|;.*| at [0-9a-f]{7}", "", row["paper"])
        cells = (row["figure"], row["title"], paper, row["published_values"], row["claims"])
        table.add_row(*(Text(str(cell)) for cell in (*cells, ", ".join(row["measured_by"]))))
    console = make_console()
    console.print(table)
    console.print(
        "Values: those that the source prints. Draw one: attnbench paper fig3; all of them: attnbench paper all",
        highlight=False,
    )


def print_figures(done: Sequence[Reproduced], *, folder: Path, json_: bool) -> None:
    """The claims of one figure, or one line for each of several."""
    if json_:
        print(json.dumps([as_json(each) for each in done], indent=1))
        return
    console = make_console()
    for each in done:
        if len(done) == 1:
            _print_claims(each)
        else:
            console.print(Text(f"{each.figure.name}: {each.sentence}."), soft_wrap=True)
    if len(done) > 1:
        console.print(Text(f"\n{overall(done)}"), soft_wrap=True)
        print(f"Summary: {folder / 'README.md'} and {folder / 'index.html'}")
    elif done[0].pictures:
        print(f"\nFigure: {done[0].pictures[0]}\nTables: {folder / done[0].figure.name}.md")


def _print_claims(done: Reproduced) -> None:
    console = make_console()
    table = Table(title=Text(f"{done.figure.title} ({done.figure.paper})"), title_justify="left")
    claims = claims_table(done.deviations)
    shown = [place for place, name in enumerate(claims.headings) if name != "from"]  # the page has it
    for place in shown:
        table.add_column(claims.headings[place], overflow="fold")
    for row, each in zip(claims.rows, done.deviations, strict=True):
        *cells, verdict = (row[place] for place in shown)
        table.add_row(*map(Text, cells), Text(verdict, style=_STYLES[each.verdict]))
    if done.deviations:
        console.print(table)
    console.print(Text(f"{done.sentence[:1].upper()}{done.sentence[1:]}."), soft_wrap=True)
    for text in (hardware_words(done.figure, done.device), *(f"{each}." for each in done.notes)):
        if text:
            console.print(Text(text), soft_wrap=True)
