"""The left product in PyTorch: ((Q K^T) * M) V, with every N x N matrix in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.baselines.contract import need_causal


def linear_quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o = scale * ((Q K^T) * M) V with M_ts = exp(-slope (t - s)) for t >= s, else 0.

    q, k: [B, H, N, D], v: [B, H, N, E], slopes: fp32 [H] or None for no decay; returns [B, H, N, E]. Both
    products run in the input dtype, as in the papers' code. Memory is O(B*H*N^2), and each call builds its
    mask. The gradient is autograd's.

    Raises ValueError for causal=False.
    Source: "Vanilla" in Fig. 4 of "Various Lengths, Constant Speed" (arXiv 2405.17381).
    """
    need_causal(causal)
    scores = q @ k.transpose(-1, -2)  # [B, H, N, N]
    # The scale rides in the mask, which saves a pass over the scores.
    return (scores * decay_mask(q, slopes=slopes, scale=scale)) @ v


def decay_mask(q: Tensor, *, slopes: Tensor | None, scale: float) -> Tensor:
    """scale * exp(-slope (t - s)) for t >= s, else 0, in the dtype of q.

    [H, N, N], or [N, N] without slopes.
    """
    N = q.shape[-2]
    if slopes is None:
        return q.new_full((N, N), scale).tril_()
    # In fp32 until the end (wider for fp64 inputs): bf16 does not hold distances above 256 exactly, and an
    # exponent rounded to 8 bits turns into a relative error of slope * (t - s) * 2^-9 in the decay.
    wide = torch.promote_types(q.dtype, torch.float32)
    position = torch.arange(N, device=q.device, dtype=wide)
    # Clamped, because above the diagonal the exponential would overflow to inf.
    distance = (position[:, None] - position).clamp_(min=0)
    return (-slopes.to(wide)[:, None, None] * distance).exp_().mul_(scale).tril_().to(q.dtype)
