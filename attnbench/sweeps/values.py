"""Sizes and names as a person writes them, on the command line or in a sweep file."""

from __future__ import annotations

import re
from collections.abc import Collection
from fractions import Fraction

from attnbench.errors import UserError, nearest
from attnbench.mechanism_files import names_a_file, remember
from attnbench.registry import find, mechanisms

FACTORS = {"": 1, "k": 1024, "m": 1024 * 1024}
LARGEST = 2**31 - 1

# No leading zeros: "1,024" is a list of 1 and 024, and must not pass for 1 and 24.
_SIZE = re.compile(r"((?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,20})?)([kKmM]?)")


def shown(value: object, *, longest: int = 60) -> str:
    """A value as an error sentence quotes it: one line, not long."""
    try:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # Python refuses to write out an integer of more than 4300 digits
        text = "a number of thousands of digits"
    text = text if text.isprintable() else ascii(text)[1:-1]
    return f"'{text}'" if len(text) <= longest else f"'{text[: longest - 3]}...'"


def parse_size(value: object, *, axis: str) -> int:
    """A count: 4096, "4096", "4k" (k = 1024), "1M" (M = 1024 * 1024) or "1.5k" (1536).

    `axis` opens the error sentence, e.g. "--seq-len". Raises UserError for anything but a whole number
    from 1 to `LARGEST`.
    """
    size = _whole(value)
    if size is None or size < 1:
        raise UserError(
            f"{axis}: expected a positive whole number such as 4096, 4k or 1M, got {shown(value)}"
        )
    if size > LARGEST:
        raise UserError(f"{axis}: expected at most {LARGEST}, got {shown(value)}")
    return size


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    size = Fraction(match[1]) * FACTORS[match[2].lower()]
    return size.numerator if size.denominator == 1 else None


def parse_sizes(value: object, *, axis: str) -> tuple[int, ...]:
    """Counts from one value, a text such as "1k,2k,4k", or a list of either; repeated ones are merged.

    Raises UserError as `parse_size` does, and for an empty list.
    """
    return tuple(dict.fromkeys(parse_size(item, axis=axis) for item in _items(value, axis=axis)))


def parse_names(
    value: object, *, kind: str, choices: Collection[str], axis: str | None = None
) -> tuple[str, ...]:
    """Names from a text such as "bf16,fp16", or from a list of such; repeated ones are merged.

    `axis` opens the error sentence (default: `kind`). Raises UserError for an empty list, for anything but
    text and, with the nearest choice, for an unknown name.
    """
    axis = axis or kind
    names: dict[str, None] = {}
    for name in _texts(value, kind=kind, axis=axis):
        if name not in choices:
            raise UserError(f"{axis}: unknown {kind} {shown(name)}; {nearest(name, choices)}")
        names[name] = None
    return tuple(names)


def parse_mechanisms(value: object, *, axis: str = "mechanism") -> tuple[str, ...]:
    """Names of mechanisms: registered ones, `name@distribution`, or `path/to/file.py:name`, which is registered here.

    Raises UserError as `parse_names` does, and for a file that does not hold what is asked of it.
    """
    names: dict[str, None] = {}
    for name in _texts(value, kind="mechanism", axis=axis):
        if names_a_file(name):
            try:
                names[remember(name, taken=mechanisms()).name] = None
            except UserError as error:
                raise UserError(f"{axis}: {error}") from error
            mechanisms.cache_clear()
        elif "@" in name:
            (plain,) = parse_names(name.partition("@")[0], kind="mechanism", choices=mechanisms(), axis=axis)
            try:
                names[find(f"{plain}@{name.partition('@')[2]}").name] = None
            except UserError as error:
                raise UserError(f"{axis}: {error}") from error
        else:
            names |= dict.fromkeys(parse_names(name, kind="mechanism", choices=mechanisms(), axis=axis))
    return tuple(names)


def _texts(value: object, *, kind: str, axis: str) -> list[str]:
    texts = []
    for item in _items(value, axis=axis):
        text = item.strip() if isinstance(item, str) else ""
        if not text:
            raise UserError(f"{axis}: expected the name of a {kind}, got {shown(item)}")
        texts.append(text)
    return texts


def _items(value: object, *, axis: str) -> list[object]:
    items: list[object] = []
    for part in value if isinstance(value, list | tuple) else [value]:
        items += part.split(",") if isinstance(part, str) else [part]
    if not items:
        raise UserError(f"{axis}: empty grid: give at least one value")
    return items
