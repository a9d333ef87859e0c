"""Linear attention with a feature map and a denominator, by a causal scan without decay that is given.

    o_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s / sum_{s<=t} phi(q_t) . phi(k_s)

The scan runs twice: over v for the numerator, and over 16 columns of ones for the denominator, the narrowest that our
kernels take. Widening v by these columns instead would copy v and make the keys of the backward's scans E + 16 wide,
which rounds 64 up to 128 and 128 up to 256. Features are computed by torch's operators in fp32 and rounded to the
dtype of v: their passes over memory are part of what is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.contract import need_causal, need_no_slopes, need_unit_scale

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k: [B, H, N, F], v: [B, H, N, E] -> [B, H, N, E]

_ONES = 16
# Gradients are differences of nearly equal terms where a query sees few keys: a first token's is exactly 0. In
# sequences this short such rows are a large part of the whole, and 16 bits in between are too few.
_SHORT = 64


def elu_attention(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool, scan: Scan
) -> Tensor:
    """phi(x) = 1 + elu(x).

    q, k: [B, H, N, D], v: [B, H, N, E]; returns [B, H, N, E] in the dtype of v.

    Raises ValueError for slopes, for a scale other than 1 (it would cancel) and for causal=False.
    Source: "Transformers are RNNs" (arXiv 2006.16236), Eq. 7.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)
    phi_q, phi_k = (torch.nn.functional.elu(x.float()) + 1 for x in (q, k))
    return _normalised(phi_q, phi_k, v, scan=scan)


def cosformer_attention(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool, scan: Scan
) -> Tensor:
    """relu(q_t) . relu(k_s) cos(pi (t - s) / 2N), as a product of rows of 2D: relu(x) times a cosine, and a sine.

    Shapes and errors as for `elu_attention`. A denominator is at least 1e-6, as in the authors' code.
    Source: "cosFormer" (arXiv 2202.08791), Eq. 10 and 11.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)
    N = q.shape[2]
    angle = torch.arange(N, device=q.device, dtype=torch.float32)[:, None] * (math.pi / (2 * N))
    cosine, sine = angle.cos(), angle.sin()
    phi_q, phi_k = (torch.cat([x.relu() * cosine, x.relu() * sine], dim=-1) for x in (q, k))
    return _normalised(phi_q, phi_k, v, scan=scan, least=1e-6)


def performer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    projection: Tensor,
    scan: Scan,
) -> Tensor:
    """phi(x) = exp(w_m . y - |y|^2 / 2) with y = sqrt(scale) x, an estimate of softmax attention.

    Shapes as for `elu_attention`; projection: fp32 [H, M, D], M a multiple of 16 up to 256. The largest exponent is
    subtracted, of each query and over all keys of a head: both cancel, and nothing overflows.

    Raises ValueError for slopes and for causal=False.
    Source: "Rethinking Attention with Performers" (arXiv 2009.14794), Lemma 1, and the authors' code (fast_attention).
    """
    _need_plain(slopes, causal=causal)

    def exponents(x: Tensor) -> Tensor:
        y = x.float() * math.sqrt(scale)
        return y @ projection.mT - y.square().sum(-1, keepdim=True) / 2

    of_q, of_k = exponents(q), exponents(k)
    phi_q = (of_q - of_q.detach().amax(-1, keepdim=True)).exp()
    phi_k = (of_k - of_k.detach().amax((-2, -1), keepdim=True)).exp()
    return _normalised(phi_q, phi_k, v, scan=scan)


def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    projection: Tensor,
    scan: Scan,
) -> Tensor:
    """phi(x) = [sin(w_m . x / |x|), cos(w_m . x / |x|)] / sqrt(M), an estimate of a Gaussian kernel; without gates.

    Shapes and errors as for `elu_attention`; projection: fp32 [H, M, D], M a multiple of 8 up to 128.
    Source: "Random Feature Attention" (arXiv 2103.02143), Eq. 4 and section 3.3.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)

    def features(x: Tensor) -> Tensor:
        angle = torch.nn.functional.normalize(x.float(), dim=-1) @ projection.mT
        return torch.cat([angle.sin(), angle.cos()], dim=-1) / math.sqrt(projection.shape[-2])

    return _normalised(features(q), features(k), v, scan=scan)


def _need_plain(slopes: Tensor | None, *, causal: bool) -> None:
    need_causal(causal)
    need_no_slopes(slopes)


def _normalised(phi_q: Tensor, phi_k: Tensor, v: Tensor, *, scan: Scan, least: float = 0.0) -> Tensor:
    """The quotient of two scans; phi_q, phi_k: fp32 [B, H, N, F]."""
    dtype = torch.promote_types(v.dtype, torch.float32) if v.shape[2] <= _SHORT else v.dtype
    phi_q, phi_k, values = (x.to(dtype) for x in (phi_q, phi_k, v))
    ones = values.new_ones(_ONES).expand(*v.shape[:-1], _ONES)
    divide: Callable[..., Tensor] = _Quotient.apply
    o: Tensor = divide(scan(phi_q, phi_k, values), scan(phi_q, phi_k, ones), least)
    return o.to(v.dtype)


class _Quotient(torch.autograd.Function):
    """numerator / max(denominator, least), all columns of the denominator alike.

    The gradient of the denominator is a sum over the rounded gradient of the numerator, and is handed on in two
    columns, its value in 16 bits and what that leaves out: the two gradients must cancel in the scans that follow.
    """

    @staticmethod
    def forward(ctx: Any, numerator: Tensor, denominator: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(numerator, denominator)
        ctx.least = least
        return (numerator / _wide(denominator, least)).to(numerator.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        numerator, denominator = ctx.saved_tensors
        below = _wide(denominator, ctx.least)
        above = (grads[0] / below).to(numerator.dtype)
        held = -(above * (numerator / below)).sum(-1, keepdim=True, dtype=below.dtype)
        if ctx.least:
            held = held.masked_fill(denominator[..., :1] < ctx.least, 0.0)
        high = held.to(denominator.dtype)
        handed = torch.zeros_like(denominator, memory_format=torch.contiguous_format)
        handed[..., :1] = high
        handed[..., 1:2] = held - high
        return above, handed, None


def _wide(denominator: Tensor, least: float) -> Tensor:
    """Its first column in fp32 or wider, [B, H, N, 1]."""
    column = denominator[..., :1].to(torch.promote_types(denominator.dtype, torch.float32))
    return column.clamp(min=least) if least else column
