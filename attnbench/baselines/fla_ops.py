"""Flash Linear Attention (fla-core): the chunked kernels of Simple GLA, with a constant decay per head."""

from __future__ import annotations

from fla.ops.simple_gla import chunk_simple_gla
from torch import Tensor

from attnbench.baselines.contract import need_causal


def simple_gla(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o_t = scale * sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s.

    q, k: [B, N, H, D], v: [B, N, H, E] on CUDA, contiguous (else the library copies them), D and E even;
    slopes: fp32 [H] or None for no decay; returns [B, N, H, E] in the input dtype. The forward keeps the states
    between chunks of 64 tokens in the input dtype, the backward in fp32. The first call of each width tunes.

    Raises ValueError for causal=False.
    Source: Yang et al., "Gated Linear Attention" (arXiv 2312.06635) with scalar gates; fla-core 0.6.0,
    ops/simple_gla/chunk.py, whose g_gamma is the logarithm of the decay.
    """
    need_causal(causal)
    # One launch over H numbers; its own default for the scale, D^-0.5, is never meant.
    log_decay = None if slopes is None else -slopes
    o: Tensor = chunk_simple_gla(q, k, v, g_gamma=log_decay, scale=scale)[0]
    return o
