"""What a sweep leaves to the mechanisms: the width of their values, and the window of those that have one."""

from __future__ import annotations

from attnbench.registry import find
from attnbench.semantics import SEMANTICS, Semantics

WINDOW = 1024  # tokens that a windowed mechanism sees where a sweep does not say


def value_dim_of(mechanism: str, *, head_dim: int) -> int:
    """Channels of a value head by the mechanism's semantics."""
    known = _semantics(mechanism)
    return head_dim * (1 if known is None else known.value_ratio)


def windows_of(mechanism: str, *, asked: tuple[int, ...]) -> tuple[int | None, ...]:
    """The windows of a mechanism: those asked for, or its default; (None,) where it has none."""
    known = _semantics(mechanism)
    return (asked or (WINDOW,)) if known is not None and known.windowed else (None,)


def _semantics(mechanism: str) -> Semantics | None:
    """None for one that a plugin made up: its cases end with an error that names it."""
    return SEMANTICS.get(find(mechanism).semantics)
