"""A profile, or two beside each other, on the terminal, as Markdown, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnbench.case import Status
from attnbench.markdown import escaped, markdown_table
from attnbench.profiling import words
from attnbench.profiling.comparing import Beside
from attnbench.profiling.found import Profile, as_dict
from attnbench.profiling.words import Grid
from attnbench.words import time_text

PAGE = "profile.md"


def show(profile: Profile, console: Console) -> None:
    """Print a profile: tables, facts, caveats, and the diagnosis last."""
    _say(console, words.title(profile), style="bold")
    for grid in words.grids(profile):
        _table(grid, console)
    for line in words.facts(profile):
        _say(console, line)
    for line in words.caveats(profile):
        _say(console, f"Note: {line}", style="yellow")
    _diagnosis(profile, console)


def markdown(profile: Profile) -> str:
    """A short page: the diagnosis first, with the figures that say so."""
    parts = [f"# {_code(profile.label)}"]
    where = ", ".join(text for text in (profile.device, profile.provider) if text)
    if where:
        parts.append(f"{where}.")
    parts.append(f"**{escaped(words.verdict(profile))}**")
    if profile.diagnosis is not None and profile.diagnosis.figures:
        parts.append(_list(profile.diagnosis.figures))
    if words.facts(profile):
        parts += ["## Figures", _list(words.facts(profile))]
    for grid in words.grids(profile):
        parts.append(_markdown(grid))
    if words.caveats(profile):
        parts += ["## Notes", _list(words.caveats(profile))]
    if profile.command:
        parts.append(f"Made by `attnbench {' '.join(profile.command)}`.")
    return "\n\n".join(parts) + "\n"


def index(profiles: Sequence[tuple[str, Profile]]) -> str:
    """A page over several: for each its time, how its kernels sum to that of the profiled calls, what bounds it, and
    where its own page is."""
    rows = []
    for _, profile in profiles:
        time = "" if profile.time_us is None else time_text(profile.time_us / 1e3)
        deviation = "" if profile.deviation is None else f"{profile.deviation:+.1%}"
        bound = str(profile.status) if profile.diagnosis is None else str(profile.diagnosis.bound)
        rows.append((profile.label, time, deviation, bound))
    table = markdown_table(("case", "time", "kernels, beside events", "bound by"), rows)
    pages = [
        f"- [{profile.label}]({folder}/{PAGE}): {escaped(words.verdict(profile))}"
        for folder, profile in profiles
    ]
    return f"# Profiles\n\n{table}\n\n{chr(10).join(pages)}\n"


def show_beside(found: Beside, console: Console) -> None:
    """Print two profiles side by side."""
    for grid in found.grids():
        _table(grid, console)
    for line in found.sentences():
        _say(console, line)


def markdown_beside(found: Beside) -> str:
    """The same as Markdown."""
    parts = [f"# {found.title()}", *map(_markdown, found.grids()), _list(found.sentences())]
    return "\n\n".join(parts) + "\n"


def json_text(profiles: Sequence[Profile], beside: Sequence[Beside] = ()) -> str:
    """All of it, for scripts."""
    document: dict[str, Any] = {"profiles": [as_dict(profile) for profile in profiles]}
    if beside:
        document["comparisons"] = [found.as_dict() for found in beside]
    return json.dumps(document, indent=1, allow_nan=False)


# ------------------------------------------------------------------------------------------------------------


def _diagnosis(profile: Profile, console: Console) -> None:
    if profile.diagnosis is not None:
        for line in profile.diagnosis.figures:
            _say(console, f"  {line}")
    _say(console, words.closing(profile), style="bold" if profile.status is Status.OK else "bold red")


def _table(grid: Grid, console: Console) -> None:
    table = Table(title=grid.title, title_justify="left")
    for place, name in enumerate(grid.headings):
        table.add_column(name, justify="left" if place < grid.left else "right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print(table)
    if grid.closing:
        _say(console, grid.closing)


def _markdown(grid: Grid) -> str:
    closing = f"\n\n{grid.closing}" if grid.closing else ""
    return f"## {grid.title}\n\n{markdown_table(grid.headings, grid.rows)}{closing}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
