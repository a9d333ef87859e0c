"""The command line's layer of a sweep, one layer over another, and whether they fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.case import Launch, Protocol
from attnbench.errors import UserError
from attnbench.sweeps.axes import NAME_KEYS, SHAPE_KEYS, Axes, cases_of
from attnbench.sweeps.files import Where

Given = str | int | Sequence[str | int] | None


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line says instead of the sweep, as typed ("1k,2k", ["fwd", "bwd"]) or parsed.

    None: nothing. `protocol` holds fields of Protocol by name, numbers as numbers.
    """

    mechanism: Given = None
    workload: Given = None
    dtype: Given = None
    seq_len: Given = None
    batch: Given = None
    tokens: Given = None
    heads: Given = None
    head_dim: Given = None
    value_dim: Given = None
    kv_heads: Given = None
    window: Given = None
    causal: bool | None = None
    protocol: Mapping[str, object] = dataclasses.field(default_factory=dict)


def replaced(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One layer over another; what the upper one says in another way is gone from the lower one."""
    gone: set[str] = set()
    if "batch" in above:
        gone.add("tokens")
    if "tokens" in above:
        gone.add("batch")
    if "shapes" in above:
        gone.update(SHAPE_KEYS)
    elif any(key in above for key in SHAPE_KEYS):
        gone.add("shapes")
    return {key: value for key, value in below.items() if key not in gone} | dict(above)


def grid_over(
    keys: Mapping[str, Any], more: Mapping[str, Any], own_keys: Mapping[str, Any]
) -> dict[str, Any]:
    """A further grid over the first one: of the names it gives, those that the command line has too."""
    grid = replaced(keys, more)
    for key in NAME_KEYS:
        if key in more and key in own_keys:
            grid[key] = tuple(name for name in more[key] if name in own_keys[key])
    return grid


def asked_of(keys: Mapping[str, Any], own_keys: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """A grid of the file under what the command line says; complete, or UserError."""
    for key in SHAPE_KEYS:
        if "shapes" in keys and key in own_keys:
            raise UserError(
                f"{_flag(key)}: {label} lists its shapes one by one; choose a sweep with axes instead"
            )
    grid = replaced(keys, own_keys)
    _complete(grid, label=label)
    return grid


def _complete(keys: Mapping[str, Any], *, label: str) -> None:
    """Is every axis there?"""
    needed = ["mechanism", "workload", "dtype"]
    if "shapes" not in keys:
        needed += ["seq_len", "heads", "head_dim"]
    for key in needed:
        if key not in keys:
            raise UserError(f"{label}: missing key '{key}'")
    if not any(key in keys for key in ("shapes", "batch", "tokens")):
        raise UserError(f"{label}: missing key 'batch' (or 'tokens')")


def consistent(axes: Axes, *, label: str) -> None:
    """Do the values of the layers fit together?"""
    tokens = axes.tokens
    for seq_len in axes.seq_len:
        if tokens is not None and tokens % seq_len:
            raise UserError(
                f"{label}: tokens {tokens} is not a multiple of seq_len {seq_len}; change one of them "
                "or give batch in place of tokens (batch = tokens / seq_len)"
            )
    for heads in axes.heads or [heads for _, heads, _, _ in axes.shapes]:
        for kv_heads in axes.kv_heads:
            if heads % kv_heads:
                raise UserError(f"{label}: heads {heads} is not a multiple of kv_heads {kv_heads}")
    if axes.window and all(case.window is None for case in cases_of(axes)):
        raise UserError(f"{label}: a window is given, and none of {', '.join(axes.mechanism)} has one")


def feasible(protocol: Protocol, *, device: str, label: str) -> None:
    """Can the sampling rule be met at all, and calls be launched like that?"""
    if device == "cpu" and protocol.launch is Launch.GRAPH:
        raise UserError(
            f"{label}: launch 'graph' needs a CUDA device; on the CPU it is 'eager', in [cpu.protocol] or by --launch"
        )
    if not protocol.min_samples_floor <= protocol.min_samples <= protocol.max_samples:
        raise UserError(
            f"{label}: the protocol needs min_samples_floor <= min_samples <= max_samples, got "
            f"{protocol.min_samples_floor}, {protocol.min_samples} and {protocol.max_samples}"
        )


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def flags(*_table: str) -> Where:
    """The places of this layer, as `SweepFile.places` gives those of a file: its keys are options."""
    return _flag
