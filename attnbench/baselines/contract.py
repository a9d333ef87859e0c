"""What an adapter refuses: an argument that it cannot honour must not pass unnoticed."""

from __future__ import annotations

import torch


def need_causal(causal: bool) -> None:
    """Raises ValueError for a call that asks a causal-only mechanism for all of the sequence."""
    if not causal:
        raise ValueError("causal=False: this mechanism is causal only")


def need_no_slopes(slopes: torch.Tensor | None) -> None:
    """Raises ValueError for a call that hands decay slopes to a mechanism without decay."""
    if slopes is not None:
        raise ValueError("slopes: this mechanism has no decay, pass None")
