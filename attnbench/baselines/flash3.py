"""FlashAttention-3 by its authors' package, built from the folder hopper of the flash-attention repository."""

from __future__ import annotations

from typing import Any

from flash_attn_interface import flash_attn_func
from torch import Tensor

from attnbench.baselines.contract import need_no_slopes


def flash3(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    q: [B, N, H, D], k, v: [B, N, KV, D], bf16 or fp16 on a Hopper GPU, unit stride in the last dimension; returns
    [B, N, H, D].

    Raises ValueError for slopes and RuntimeError for what the kernels do not take.
    Source: Shah et al., "FlashAttention-3" (arXiv 2407.08608); hopper/flash_attn_interface.py.
    """
    need_no_slopes(slopes)
    result: Any = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    o: Tensor = result[0] if isinstance(result, tuple) else result  # earlier versions return (o, log-sum-exp)
    return o
