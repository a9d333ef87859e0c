"""What `attnbench list` says of each mechanism: what it computes, who provides it here, or why nobody does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from attnbench.providers import Mechanism, Provider
from attnbench.registry import find, mechanisms
from attnbench.semantics import SEMANTICS


def rows(device: str, *, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One row a mechanism, in types that JSON has; names: of some, `flash2@torch` by that provider alone."""
    asked = mechanisms().values() if names is None else map(find, names)
    return [_row(mechanism, device=device) for mechanism in asked]


def _row(mechanism: Mechanism, *, device: str) -> dict[str, Any]:
    chosen = mechanism.provider_for(device)
    here = chosen if isinstance(chosen, Provider) else None
    semantics = SEMANTICS.get(mechanism.semantics)
    fitting = [p for p in mechanism.providers if device in p.devices]
    known = (here,) if here is not None else fitting or mechanism.providers
    return {
        "mechanism": mechanism.name,
        "semantics": mechanism.semantics,
        "formula": None if semantics is None else semantics.formula,
        "summary": mechanism.summary,
        "cost": mechanism.cost,
        "workloads": _workloads(mechanism, known),
        "dtypes": None if here is None else list(here.dtypes),
        "grouped_heads": any(p.grouped_heads for p in known),
        "non_causal": any(p.non_causal for p in known),
        "window": mechanism.windowed,
        "provider": None if here is None else here.label,
        "why_not": chosen if isinstance(chosen, str) else None,
        "providers": [_of_provider(p, mechanism=mechanism, device=device) for p in mechanism.providers],
    }


def _workloads(mechanism: Mechanism, providers: Iterable[Provider]) -> list[str]:
    return list(dict.fromkeys(str(w) for p in providers for w in mechanism.workloads_of(p)))


def _of_provider(provider: Provider, *, mechanism: Mechanism, device: str) -> dict[str, Any]:
    return {
        "name": f"{mechanism.name}@{provider.distribution}",
        "label": provider.label,
        "devices": list(provider.devices),
        "dtypes": list(provider.dtypes),
        "available": provider.available and device in provider.devices,
        "install": provider.install,
    }


def table(found: list[dict[str, Any]], *, device: str) -> Table:
    """The rows as a table."""
    drawn = Table(title=f"Mechanisms on {device}", title_justify="left")
    for name in ("mechanism", "semantics", "cost", "workloads", "dtypes", "provider here, or why not"):
        # Workloads in few lines, so that the reasons have room.
        width = len("fwd bwd fwd-bwd") if name == "workloads" else None
        drawn.add_column(name, overflow="fold", no_wrap=name in ("mechanism", "semantics"), max_width=width)
    for row in found:
        drawn.add_row(
            row["mechanism"],
            row["semantics"],
            row["cost"],
            " ".join([*row["workloads"], *_beyond(row)]),
            " ".join(row["dtypes"] or ()),
            escape(_who(row)),
        )
    return drawn


def _beyond(row: dict[str, Any]) -> list[str]:
    """What it takes beside causal cases with as many key-value heads as query heads."""
    words = {"grouped_heads": "gqa", "non_causal": "full", "window": "window"}
    return [word for name, word in words.items() if row[name]]


def _who(row: dict[str, Any]) -> str:
    if row["provider"] is None:
        return f"not here: {row['why_not']}"
    others = [p["name"] for p in row["providers"] if p["available"] and p["label"] != row["provider"]]
    return str(row["provider"]) + (f" (also {', '.join(others)})" if others else "")
