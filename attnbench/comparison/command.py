"""What `attnbench compare` is asked: the words of a command line, checked before any file is read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.comparison import formats, sides
from attnbench.comparison.comparing import THRESHOLD, Comparison, compare
from attnbench.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class Request:
    """Two sides of one or more paths each; threshold and noise as shares; the format of what is said."""

    base: Sequence[Path]
    new: Sequence[Path]
    threshold: float
    noise: float | None
    format: str


def request(
    *,
    sides_given: Sequence[str],
    base: Sequence[str],
    new: Sequence[str],
    threshold: str | None,
    noise: str | None,
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
    if format_ not in formats.TEXTS:
        raise unknown("format", format_, formats.TEXTS)
    return Request(
        base=paths[0],
        new=paths[1],
        threshold=THRESHOLD if threshold is None else percentage(threshold, option="--threshold"),
        noise=None if noise is None else percentage(noise, option="--noise"),
        format=format_,
    )


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
    return compare(
        sides.load_side(asked.base, name="base"),
        sides.load_side(asked.new, name="new"),
        threshold=asked.threshold,
        noise=asked.noise,
        allow_different=allow_different,
    )


def save(text: str, path: Path) -> None:
    """Write a report to a file.

    Raises UserError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
