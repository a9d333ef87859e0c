"""What a sweep leaves to the mechanisms: the width of their values, and the window of those that have one."""

from __future__ import annotations

from attnbench.registry import find

WINDOW = 1024  # tokens that a windowed mechanism sees where a sweep does not say


def value_dim_of(mechanism: str, *, head_dim: int) -> int:
    """Channels of a value head, as the mechanism has them by itself."""
    return head_dim * find(mechanism).value_ratio


def windows_of(mechanism: str, *, asked: tuple[int, ...]) -> tuple[int | None, ...]:
    """The windows of a mechanism: those asked for, or the default; (None,) where it has none."""
    return (asked or (WINDOW,)) if find(mechanism).windowed else (None,)
