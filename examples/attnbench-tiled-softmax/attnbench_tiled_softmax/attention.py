"""The computation. attnbench imports it in its worker process, when it is measured."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 128  # keys at a time


def tiled_softmax(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """softmax(scale * q k^T + mask) v, keys by tiles, with the largest score so far subtracted.

    q, k: [B, H, N, D], v: [B, H, N, E]; returns [B, H, N, E] in the input dtype. The gradient is autograd's.

    Raises ValueError for slopes: softmax attention has no decay.
    """
    if slopes is not None:
        raise ValueError("slopes: softmax attention has no decay, pass None")
    N = q.shape[2]
    token = torch.arange(N, device=q.device)
    query = q.float() * scale
    largest = query.new_full((*q.shape[:3], 1), -torch.inf)
    weight, total = torch.zeros_like(largest), query.new_zeros(*q.shape[:3], v.shape[-1])
    for start in range(0, N, TILE):
        keys, values = (x[:, :, start : start + TILE].float() for x in (k, v))
        scores = query @ keys.mT
        if causal:
            scores = scores.masked_fill(token[start : start + TILE] > token[:, None], -torch.inf)
        # The first key is in sight of every query, so the maximum is finite after the first tile.
        higher = torch.maximum(largest, scores.detach().amax(-1, keepdim=True))
        shrunk, probabilities = (largest - higher).exp(), (scores - higher).exp()
        weight = weight * shrunk + probabilities.sum(-1, keepdim=True)
        total = total * shrunk + probabilities @ values
        largest = higher
    return (total / weight).to(q.dtype)
