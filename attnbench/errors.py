"""What goes wrong by the user's hand: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input; its text is one sentence that says what was expected and what came."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The tail of an error sentence: the nearest valid name, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(known)}"


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """An unknown mechanism, preset, workload, dtype, ... with the nearest valid name."""
    return UserError(f"unknown {kind} '{name}'; {nearest(name, choices)}")
