"""Attention sinks and a sliding window in plain PyTorch, for machines without a GPU: a mask for all pairs of tokens."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.baselines.contract import need_causal, need_no_slopes


def sink_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    sinks: int,
) -> Tensor:
    """Softmax over the last `window` tokens, the query's own among them, and the first `sinks`.

    q: [B, H, N, D], k: [B, KV, N, D], v: [B, KV, N, E]; returns [B, H, N, E] in the input dtype. The N x N mask is
    made once for a length; the scores inside and outside of it are computed alike.

    Raises ValueError for slopes and for causal=False.
    Source: "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), section 3.2.
    """
    need_causal(causal)
    need_no_slopes(slopes)
    mask = _mask(q.shape[2], window=window, sinks=sinks, device=q.device)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


@functools.lru_cache(maxsize=4)
def _mask(length: int, *, window: int, sinks: int, device: torch.device) -> Tensor:
    """bool [N, N], true where the query of a row sees the key of a column."""
    token = torch.arange(length, device=device)
    distance = token[:, None] - token
    return (distance >= 0) & ((distance < window) | (token < sinks))
