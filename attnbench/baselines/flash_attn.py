"""FlashAttention-2 by its authors' package, flash-attn."""

from __future__ import annotations

import torch
from flash_attn.flash_attn_interface import flash_attn_func, flash_attn_with_kvcache
from torch import Tensor

from attnbench.baselines.contract import Step, need_no_slopes


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


def flash2_decode(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One token over its cache: flash-attn's kernel puts the new row into the cache and attends, split along it.

    q: [B, H, D], k, v: [B, KV, D], k_cache, v_cache: [B, N, KV, D], bf16 or fp16 on CUDA; the step returns o
    [B, H, D] and the caches. The length N - 1 is a tensor on the device: as an int, the library would make one in
    every call.

    Raises ValueError for slopes and, in the step, RuntimeError for what the kernels do not take.
    Source: flash_attn 2.8.3, flash_attn_interface.py.
    """
    need_no_slopes(slopes)
    query, key, value = (x.unsqueeze(1) for x in (q, k, v))
    before = torch.full((q.shape[0],), k_cache.shape[1] - 1, dtype=torch.int32, device=q.device)

    def step() -> tuple[Tensor, ...]:
        o: Tensor = flash_attn_with_kvcache(
            query, k_cache, v_cache, k=key, v=value, cache_seqlens=before, softmax_scale=scale, causal=True
        )
        return o.squeeze(1), k_cache, v_cache

    return step
