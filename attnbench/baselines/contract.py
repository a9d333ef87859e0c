"""What adapters share: the type of a decode step, and what they refuse, since nothing may pass unnoticed."""

from __future__ import annotations

from collections.abc import Callable

import torch

# A decode step as `attnbench.registry` describes it: o, then what is kept of the context after it.
Step = Callable[[], tuple[torch.Tensor, ...]]


def need_causal(causal: bool) -> None:
    """Raises ValueError for a call that asks a causal-only mechanism for all of the sequence."""
    if not causal:
        raise ValueError("causal=False: this mechanism is causal only")


def need_slopes(slopes: torch.Tensor | None) -> torch.Tensor:
    """The slopes.

    Raises ValueError for a call without them to a mechanism that always decays.
    """
    if slopes is None:
        raise ValueError("slopes: this mechanism always decays, pass fp32 [H]")
    return slopes


def need_no_slopes(slopes: torch.Tensor | None) -> None:
    """Raises ValueError for a call that hands decay slopes to a mechanism without decay."""
    if slopes is not None:
        raise ValueError("slopes: this mechanism has no decay, pass None")


def need_unit_scale(scale: float) -> None:
    """Raises ValueError for a call that asks a mechanism without a scale for one."""
    if scale != 1.0:
        raise ValueError(f"scale={scale}: this mechanism does not scale, pass 1.0")
