"""What ran on both sides: another launch configuration or another kernel is a reason for another time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMED = 3  # differences, or kernels, that are written out


def difference(base: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> str | None:
    """In what the rows of two sides ran something else, in words without a full stop; None: in nothing known.

    Rows have `config` (JSON) and `kernels` (names), null where a process does not tell.
    """
    configs = [_configs(rows) for rows in (base, new)]
    if all(configs) and configs[0] != configs[1]:
        return f"it ran in another configuration: {_changed(*configs)}"
    kernels = [{name for row in rows for name in _names(row["kernels"])} for rows in (base, new)]
    if all(kernels) and kernels[0] != kernels[1]:
        gone, come = kernels[0] - kernels[1], kernels[1] - kernels[0]
        told = [f"{_some(gone)} before" if gone else "", f"{_some(come)} now" if come else ""]
        return f"other kernels ran: {', '.join(filter(None, told))}"
    return None


# ------------------------------------------------------------------------------------------------------------


def _configs(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {row["config"] for row in rows if isinstance(row["config"], str)}


def _changed(base: Iterable[str], new: Iterable[str]) -> str:
    """`stages 3 before, 4 now`, of each key whose values differ between two sets of JSON objects."""
    sides = [[_flat(json.loads(text)) for text in sorted(texts)] for texts in (base, new)]
    keys = dict.fromkeys(key for side in sides for config in side for key in config)
    found = []
    for key in keys:
        before, now = (" or ".join(sorted({c[key] for c in side if key in c})) or "none" for side in sides)
        if before != now:
            found.append(f"{key} {before} before, {now} now")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """The leaves of a JSON value by their path."""
    if not isinstance(value, dict):
        return {name or "value": json.dumps(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}" if name else str(key))
    return flat


def _names(value: Any) -> list[str]:
    """A list of names; none where it is null."""
    return [] if value is None or isinstance(value, float) else [str(name) for name in value]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(name[:80] for name in ordered[:_NAMED]) + more
