"""torch's scaled_dot_product_attention: the backend that it picks, or exactly one of them.

The decode steps take q: [B, H, D], k: [B, KV, D], v: [B, KV, E] and caches [B, KV, N, D] and [B, KV, N, E]; they
copy the token into the caches' last row, as a loop over a static cache does, and return o [B, H, E].

With a single backend allowed there is nothing to fall back to: where it cannot run, the call raises
RuntimeError. All other functions take q: [B, H, N, D], k: [B, KV, N, D], v: [B, KV, N, E] and return [B, H, N, E]
in the input dtype; they raise ValueError for slopes, which softmax attention does not have.
"""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.baselines.contract import Step, need_no_slopes


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale * q k^T + mask) v on the backend that torch picks."""
    need_no_slopes(slopes)
    # Not passed as True for equal heads: the flag alone already rules out some backends.
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)


def sdpa_flash(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """On torch's own copy of FlashAttention-2. (On the CPU the backend of this name is another kernel.)"""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v, slopes=slopes, scale=scale, causal=causal)


def sdpa_cudnn(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """On cuDNN's fused attention."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v, slopes=slopes, scale=scale, causal=causal)


def sdpa_efficient(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """On torch's memory-efficient (CUTLASS) kernels."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return sdpa(q, k, v, slopes=slopes, scale=scale, causal=causal)


def sdpa_math(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Written out in torch operations, the N x N matrix in memory."""
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q, k, v, slopes=slopes, scale=scale, causal=causal)


def sdpa_decode(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One query over all rows of the cache, on the backend that torch picks."""
    return _decode(q, k, v, k_cache, v_cache, slopes=slopes, scale=scale, backend=None)


def sdpa_flash_decode(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One query over all rows of the cache, on torch's own copy of FlashAttention-2."""
    return _decode(q, k, v, k_cache, v_cache, slopes=slopes, scale=scale, backend=SDPBackend.FLASH_ATTENTION)


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    backend: SDPBackend | None,
) -> Step:
    need_no_slopes(slopes)
    query, last_key, last_value = q.unsqueeze(2), k_cache[:, :, -1], v_cache[:, :, -1]

    def step() -> tuple[Tensor, ...]:
        last_key.copy_(k)
        last_value.copy_(v)
        with nullcontext() if backend is None else sdpa_kernel(backend):
            # Not causal: torch aligns its mask at the top left, where the one query would see the first row alone.
            o = sdpa(query, k_cache, v_cache, slopes=None, scale=scale, causal=False)
        return o.squeeze(2), k_cache, v_cache

    return step
