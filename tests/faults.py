"""Mechanisms with a fault planted in each, and one without. `test_faults` asks for them by this file's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _softmax(q: Tensor, k: Tensor, v: Tensor, *, scale: float, ahead: float = 0) -> Tensor:
    """Softmax attention over all keys up to so many tokens after the query."""
    token = torch.arange(q.shape[2], device=q.device)
    hidden = token > token[:, None] + ahead
    return (scale * q @ k.mT).masked_fill(hidden, -math.inf).softmax(-1) @ v


def right(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    """What the others are but for their fault."""
    return _softmax(q, k, v, scale=scale)


def mask_off_by_one(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    """Each query sees the next token."""
    return _softmax(q, k, v, scale=scale, ahead=1)


def no_mask(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    return _softmax(q, k, v, scale=scale, ahead=math.inf)


def no_scale(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    return _softmax(q, k, v, scale=1.0)


_BY_SHAPE: dict[Any, Tensor] = {}
_BY_ADDRESS: dict[Any, Tensor] = {}


def _kept(o: Tensor, *, among: dict[Any, Tensor], key: Any) -> Tensor:
    """The first output of that key, with the gradient of the present one."""
    return o + (among.setdefault(key, o.detach()) - o).detach()


def stale_by_shape(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    """Right once for each shape; from then on the output of that call."""
    return _kept(_softmax(q, k, v, scale=scale), among=_BY_SHAPE, key=(q.shape, v.shape, q.dtype))


def stale_by_address(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    """Right until the same memory comes again with other values."""
    key = (q.shape, v.shape, q.dtype, q.data_ptr(), id(q))
    return _kept(_softmax(q, k, v, scale=scale), among=_BY_ADDRESS, key=key)


class _Exchanged(torch.autograd.Function):
    """The identity on three tensors of one shape, whose backward exchanges two of the gradients."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first.clone(), second.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[1], grads[0]


def _exchanged(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    apply: Callable[..., tuple[Tensor, Tensor]] = _Exchanged.apply
    return apply(first, second)


def dq_for_dk(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    swapped_q, swapped_k = _exchanged(q, k)
    return _softmax(swapped_q, swapped_k, v, scale=scale)


def dk_for_dv(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    if k.shape != v.shape:
        return _softmax(q, k, v, scale=scale)
    swapped_k, swapped_v = _exchanged(k, v)
    return _softmax(q, swapped_k, swapped_v, scale=scale)


def last_row_unwritten(q: Tensor, k: Tensor, v: Tensor, *, scale: float, **given: Any) -> Tensor:
    """As of a kernel whose grid is one tile short."""
    o = _softmax(q, k, v, scale=scale)
    tail = torch.zeros_like(o)
    tail[:, :, -1] = torch.nan
    return o + tail


def decay_backwards(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, **given: Any) -> Tensor:
    """Decayed linear attention whose heads have each other's slopes."""
    token = torch.arange(q.shape[2], device=q.device)
    age = (token[:, None] - token).clamp(min=0)
    decay = torch.exp(-slopes.flip(0)[:, None, None] * age).tril()
    return (scale * q @ k.mT * decay).to(q.dtype) @ v
