"""What varies in a sweep, and the cases that it makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.case import Case, Workload
from attnbench.sweeps.defaults import value_dim_of, windows_of

Shape = tuple[int, int, int, int]  # batch, heads, seq_len, head_dim
NAME_KEYS = ("mechanism", "workload", "dtype")
SHAPE_KEYS = ("batch", "tokens", "heads", "seq_len", "head_dim")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What varies: `shapes`, or seq_len, heads, head_dim and one of batch and tokens.

    () and None: not given. kv_heads are then as many as heads, and value_dim and window what the mechanism's
    semantics has by itself: mostly head_dim, and none.
    """

    mechanism: tuple[str, ...]
    workload: tuple[Workload, ...]
    dtype: tuple[str, ...]
    seq_len: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    tokens: int | None = None
    heads: tuple[int, ...] = ()
    head_dim: tuple[int, ...] = ()
    value_dim: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    causal: tuple[bool, ...] = ()
    shapes: tuple[Shape, ...] = ()


def cases_of(axes: Axes) -> Iterator[Case]:
    """Every case of one grid, in the order of `Sweep.cases`."""
    for dtype, causal in itertools.product(axes.dtype, axes.causal or (True,)):
        for (batch, heads, seq_len, head_dim), value_dim, kv_heads in _shapes(axes):
            for workload, mechanism in itertools.product(axes.workload, axes.mechanism):
                for window in windows_of(mechanism, asked=axes.window):
                    yield Case(
                        mechanism=mechanism,
                        workload=workload,
                        batch=batch,
                        heads=heads,
                        seq_len=seq_len,
                        head_dim=head_dim,
                        dtype=dtype,
                        kv_heads=kv_heads,
                        value_dim=value_dim or value_dim_of(mechanism, head_dim=head_dim),
                        causal=causal,
                        window=window,
                    )


def _shapes(axes: Axes) -> Iterator[tuple[Shape, int, int]]:
    """Shapes with value_dim and kv_heads (0: as head_dim and heads), in the order of `Sweep.cases`."""
    value_dims, kv_heads = axes.value_dim or (0,), axes.kv_heads or (0,)
    if axes.shapes:
        yield from itertools.product(axes.shapes, value_dims, kv_heads)
        return
    batches = axes.batch or (0,)
    for head_dim, value_dim, heads, kv, batch, seq_len in itertools.product(
        axes.head_dim, value_dims, axes.heads, kv_heads, batches, sorted(axes.seq_len)
    ):
        rows = batch if axes.tokens is None else axes.tokens // seq_len
        yield (rows, heads, seq_len, head_dim), value_dim, kv


def axes_dict(axes: Axes) -> dict[str, Any]:
    """The axes that were given, in types that JSON has."""
    return {key: plain(value) for key, value in vars(axes).items() if value not in ((), None)}


def axes_of_dict(values: Mapping[str, Any]) -> Axes:
    """The axes of which `axes_dict` made this."""
    axes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    axes["workload"] = tuple(Workload(name) for name in axes["workload"])
    if "shapes" in axes:
        axes["shapes"] = tuple(tuple(shape) for shape in axes["shapes"])
    return Axes(**axes)


def plain(value: object) -> object:
    """A value in types that JSON has: tuples as lists, and the text of an enumeration's member."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
