"""Flash Linear Attention (fla-core): its chunked kernels, for decay by head, by channel, and none."""

from __future__ import annotations

from fla.ops.gla import chunk_gla
from fla.ops.linear_attn import chunk_linear_attn
from fla.ops.retention import chunk_retention
from fla.ops.simple_gla import chunk_simple_gla
from torch import Tensor

from attnbench.baselines.contract import need_causal, need_no_slopes, need_slopes


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


def linear(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """o_t = scale * sum_{s<=t} (q_t . k_s) v_s, by the library's linear attention without its denominator.

    Shapes and errors as for `simple_gla`; slopes must be None.
    Source: fla-core 0.6.0, ops/linear_attn/chunk.py.
    """
    need_causal(causal)
    need_no_slopes(slopes)
    o: Tensor = chunk_linear_attn(q, k, v, scale=scale, normalize=False)[0]
    return o


def retention(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o_t = scale * sum_{s<=t} (1 - 2^(-5-head))^(t-s) (q_t . k_s) v_s.

    Shapes and errors as for `simple_gla`. The library has this law of decay built in: the values of the slopes are
    not read, and others than these would show as a wrong output.
    Source: "Retentive Network" (arXiv 2307.08621); fla-core 0.6.0, ops/retention/chunk.py.
    """
    need_causal(causal)
    need_slopes(slopes)
    o: Tensor = chunk_retention(q, k, v, scale=scale)[0]
    return o


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    gates: Tensor,
) -> Tensor:
    """S_t = diag(exp(gates_t)) S_{t-1} + k_t^T v_t, o_t = scale q_t S_t.

    q, k, gates: [B, N, H, D], v: [B, N, H, E] on CUDA, contiguous; the gates are logarithms. Returns [B, N, H, E]. The
    backward computes the gradient of the gates too, whether it is asked for or not.

    Raises ValueError for slopes and for causal=False.
    Source: "Gated Linear Attention" (arXiv 2312.06635); fla-core 0.6.0, ops/gla/chunk.py.
    """
    need_causal(causal)
    need_no_slopes(slopes)
    o: Tensor = chunk_gla(q, k, v, gates, scale=scale)[0]
    return o
