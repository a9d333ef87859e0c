"""FlashAttention-2 by its authors' package, flash-attn."""

from __future__ import annotations

from flash_attn.flash_attn_interface import flash_attn_func
from torch import Tensor

from attnbench.baselines.contract import need_no_slopes


def flash2(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    q: [B, N, H, D], k, v: [B, N, KV, D], bf16 or fp16 on CUDA, unit stride in the last dimension; returns
    [B, N, H, D].

    Raises ValueError for slopes (flash-attn's alibi_slopes mean another thing: a bias inside the softmax) and
    RuntimeError for what the kernels do not take.
    Source: Dao, "FlashAttention-2" (arXiv 2307.08691); flash_attn 2.8.3, flash_attn_interface.py.
    """
    need_no_slopes(slopes)
    o: Tensor = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    return o
