"""Triton's interpreter without the half of its time that it spends on looking through its own language."""

from __future__ import annotations

import inspect
from typing import Any


def remember_builtins() -> None:
    """Let the interpreter ask once, and not at each launch and each call of a helper, which names hold builtins.

    It replaces the builtins of `triton.language` while a kernel runs, and lists all members of four modules and classes
    to find them. Which of their names hold builtins does not change; which of those are replaced already it still asks.
    """
    from triton.language import core
    from triton.runtime import interpreter

    names: dict[Any, list[str]] = {}

    def patch(package: Any, *given: Any) -> None:
        if package not in names:
            names[package] = [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if core.is_builtin(member):
                interpreter._patch_attr(package, name, member, *given)

    if hasattr(interpreter, "_patch_builtin"):  # a name of its own, which another version may not have
        interpreter._patch_builtin = patch
