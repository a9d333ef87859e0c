"""Regressions that are put up with until a day, and why: a TOML file that people write.

[[waiver]]
case = "lightning2.bwd.*"          # a case_id, or a pattern with * and ?
reason = "the price of the new state layout; the next release has it back"
expires = 2027-01-31               # the last day on which it holds, in UTC
"""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnbench.comparison.found import Compared, Comparison
from attnbench.errors import UserError, nearest

_KEYS = ("case", "reason", "expires")


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """The cases that a pattern names may regress through the day `expires`."""

    case: str
    reason: str
    expires: datetime.date

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.case)


def today() -> datetime.date:
    """The day that expiry dates are held against, in UTC: the same on every runner."""
    return datetime.datetime.now(datetime.UTC).date()


def load(path: Path) -> tuple[Waiver, ...]:
    """The waivers of a file.

    Raises UserError, with the waiver and the reason, for a file that is missing or no TOML, a key that is missing or
    unknown, an empty pattern or reason, and an expiry that is no date.
    """
    document = _document(path)
    for key in document:
        if key != "waiver":
            raise UserError(f"{path}: unknown key '{key}'; expected tables [[waiver]]")
    tables = document.get("waiver", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: expected tables [[waiver]], with two brackets a side")
    return tuple(_waiver(table, place=f"{path}, waiver {n}") for n, table in enumerate(tables, start=1))


def applied(found: Comparison, waivers: Sequence[Waiver], *, day: datetime.date) -> Comparison:
    """The comparison with its regressions waived where a waiver holds on that day.

    A waiver past its day waives nothing and is in `expired`, whether its case still regresses or not: it is to be
    renewed or removed. One that names no case of the comparison is a notice.
    """
    holding = [each for each in waivers if day <= each.expires]
    cases = tuple(_waived(each, holding) for each in found.cases)
    named = [(w, [each for each in found.cases if w.matches(each.name)]) for w in waivers]
    return dataclasses.replace(
        found,
        cases=cases,
        notices=(
            *found.notices,
            *(f"the waiver of {w.case} names no case of this comparison" for w, meant in named if not meant),
        ),
        expired=tuple(_expired(w, meant) for w, meant in named if meant and day > w.expires),
    )


# ------------------------------------------------------------------------------------------------------------


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file of waivers at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the waivers {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML
        raise UserError(f"{path} is no TOML file of waivers: {error}") from error


def _waiver(table: dict[str, Any], *, place: str) -> Waiver:
    for key in table:
        if key not in _KEYS:
            raise UserError(f"{place}: unknown key '{key}'; {nearest(key, _KEYS)}")
    for key in _KEYS:
        if key not in table:
            raise UserError(f"{place}: missing key '{key}' (a waiver has {', '.join(_KEYS)})")
    for key in ("case", "reason"):
        if not isinstance(table[key], str) or not table[key].strip():
            raise UserError(f"{place}: {key} should be a text, got {table[key]!r}")
    expires = table["expires"]
    if isinstance(expires, datetime.datetime) or not isinstance(expires, datetime.date):
        raise UserError(
            f"{place}: expires should be a date such as 2027-01-31, without quotes, got {expires!r}"
        )
    reason = " ".join(table["reason"].split()).rstrip(".")
    return Waiver(case=table["case"].strip(), reason=reason, expires=expires)


def _waived(each: Compared, holding: Sequence[Waiver]) -> Compared:
    by = next((waiver for waiver in holding if waiver.matches(each.name)), None)
    if by is None or not each.regressed:
        return each
    return dataclasses.replace(each, waived=f"waived until {by.expires}: {by.reason}")


def _expired(waiver: Waiver, meant: Sequence[Compared]) -> str:
    still = any(each.regressed and each.waived is None for each in meant)
    now = "its case still regresses" if still else "nothing that it names regresses now: remove it"
    return f"the waiver of {waiver.case} ({waiver.reason}) expired on {waiver.expires}; {now}"
