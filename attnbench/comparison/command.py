"""What `attnbench compare` is asked, and how it and the gate hand over what they found.

The words of a command line are checked before any file is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.comparison import formats, sides, waivers, words
from attnbench.comparison.comparing import THRESHOLD, compare
from attnbench.comparison.formats import Wanted
from attnbench.comparison.found import Comparison
from attnbench.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import Console

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"  # names the file of a step's summary, where GitHub runs the step


@dataclass(frozen=True, kw_only=True)
class Request:
    """Two sides of one or more paths each; threshold and noise as shares; the format of what is said."""

    base: Sequence[Path]
    new: Sequence[Path]
    threshold: float
    noise: float | None
    waivers: Path | None
    format: str


def request(
    *,
    sides_given: Sequence[str],
    base: Sequence[str],
    new: Sequence[str],
    threshold: str | None,
    noise: str | None,
    waivers: Path | None,
    format_: str,
) -> Request:
    """The request behind the words: BASE and NEW, or each side by its option, or both together.

    Raises UserError for a side without a path, a percentage that is none, and an unknown format.
    """
    if len(sides_given) not in (0, 2):
        raise UserError(
            f"expected two sides, BASE and NEW, not {len(sides_given)}; several files of a side are separated "
            "by commas, or given by --base and --new"
        )
    words = [[*sides_given[place : place + 1], *more] for place, more in enumerate((base, new))]
    paths = [sides.paths_of(each) for each in words]
    for name, found in zip(sides.NAMES, paths, strict=True):
        if not found:
            raise UserError(f"the {name} side names no file: attnbench compare BASE NEW, or --base and --new")
    return Request(
        base=paths[0],
        new=paths[1],
        threshold=THRESHOLD if threshold is None else percentage(threshold, option="--threshold"),
        noise=None if noise is None else percentage(noise, option="--noise"),
        waivers=waivers,
        format=known_format(format_),
    )


def known_format(name: str) -> str:
    """The name of a format.

    Raises UserError, with the nearest one, where there is none of that name.
    """
    if name not in formats.TEXTS:
        raise unknown("format", name, formats.TEXTS)
    return name


def percentage(text: str, *, option: str) -> float:
    """`5%` as 0.05.

    Raises UserError for anything else, a number without its sign included: 0.05 may mean either.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", text, re.ASCII)
    share = float(match[1]) / 100 if match else math.nan
    if not 0 < share < 1:
        raise UserError(f"{option} expects a percentage between 0% and 100% such as 3%, not '{text}'")
    return share


def run(asked: Request, *, allow_different: bool) -> Comparison:
    """Read both sides and compare them.

    Raises UserError for files that cannot be read or compared.
    """
    known = waivers.load(asked.waivers) if asked.waivers is not None else ()
    found = compare(
        sides.load_side(asked.base, name="base"),
        sides.load_side(asked.new, name="new"),
        threshold=asked.threshold,
        noise=asked.noise,
        allow_different=allow_different,
    )
    return waivers.applied(found, known, day=waivers.today())


def hand_over(found: Comparison, wanted: Wanted, *, form: str, out: Path | None, console: Console) -> None:
    """Print a report, or write it to `out` and print its closing sentence.

    The format `github` also appends the Markdown report to the step summary, where GitHub names a file for it.

    Raises UserError when a file cannot be written.
    """
    if out is not None:
        save(formats.TEXTS[form](found, wanted), out)
        print(words.closing(found))
    elif form == "table":
        formats.table(found, wanted, console)
    else:
        print(formats.TEXTS[form](found, wanted), end="")
    summary = os.environ.get(STEP_SUMMARY)
    if form == "github" and summary:
        save(f"## {wanted.title}\n\n{formats.markdown(found, wanted)}\n", Path(summary), mode="a")


def save(text: str, path: Path, *, mode: str = "w") -> None:
    """Write a report to a file, or with mode "a" append it.

    Raises UserError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
