"""FlashAttention-4 by its authors' package, flash-attn-4 (CuTe DSL)."""

from __future__ import annotations

from typing import Any

from flash_attn.cute import flash_attn_func
from torch import Tensor

from attnbench.baselines.contract import need_no_slopes


def flash4(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    q: [B, N, H, D], k, v: [B, N, KV, D], bf16 or fp16 on a Hopper or Blackwell GPU, unit stride in the last
    dimension; returns [B, N, H, D].

    Raises ValueError for slopes and an error of the package for what its kernels do not take.
    Source: flash-attn-4, flash_attn/cute/interface.py.
    """
    need_no_slopes(slopes)
    result: Any = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    o: Tensor = result[0] if isinstance(result, tuple) else result  # most versions return (o, log-sum-exp)
    return o
