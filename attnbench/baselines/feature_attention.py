"""Linear attention with a feature map and a denominator, by a causal scan without decay that is given.

    o_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s / sum_{s<=t} phi(q_t) . phi(k_s)

The scan runs twice: over v for the numerator, and over 16 columns of ones for the denominator, the narrowest that our
kernels take. Widening v by these columns instead would copy v and make the keys of the backward's scans E + 16 wide,
which rounds 64 up to 128 and 128 up to 256. Features are computed by torch's operators in fp32 and rounded to the
dtype of v. `fuse` is given each function of elements and rows, and may return one that computes the same in fewer
passes over memory, such as torch.compile makes; these passes are part of what is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.contract import need_causal, need_no_slopes, need_unit_scale

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k: [B, H, N, F], v: [B, H, N, E] -> [B, H, N, E]
Fuse = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


def as_written(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Nothing is fused: the function itself."""
    return function


_ONES = 16
# Gradients are differences of nearly equal terms where a query sees few keys: a first token's is exactly 0. In
# sequences this short such rows are a large part of the whole, and 16 bits in between are too few.
_SHORT = 64


def elu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    scan: Scan,
    fuse: Fuse = as_written,
) -> Tensor:
    """phi(x) = 1 + elu(x).

    q, k: [B, H, N, D], v: [B, H, N, E]; returns [B, H, N, E] in the dtype of v.

    Raises ValueError for slopes, for a scale other than 1 (it would cancel) and for causal=False.
    Source: "Transformers are RNNs" (arXiv 2006.16236), Eq. 7.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)
    phi_q, phi_k = (fuse(_elu)(x, _between(v)) for x in (q, k))
    return _normalised(phi_q, phi_k, v, scan=scan, fuse=fuse)


def cosformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    scan: Scan,
    fuse: Fuse = as_written,
) -> Tensor:
    """relu(q_t) . relu(k_s) cos(pi (t - s) / 2N), as a product of rows of 2D: relu(x) times a cosine, and a sine.

    Shapes and errors as for `elu_attention`. A denominator is at least 1e-6, as in the authors' code.
    Source: "cosFormer" (arXiv 2202.08791), Eq. 10 and 11.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)
    phi_q, phi_k = (fuse(_cosine)(x, _between(v)) for x in (q, k))
    return _normalised(phi_q, phi_k, v, scan=scan, fuse=fuse, least=1e-6)


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
    fuse: Fuse = as_written,
) -> Tensor:
    """phi(x) = exp(w_m . y - |y|^2 / 2) with y = sqrt(scale) x, an estimate of softmax attention.

    Shapes as for `elu_attention`; projection: fp32 [H, M, D], M a multiple of 16 up to 256. The largest exponent is
    subtracted, of each query and over all keys of a head: both cancel, and nothing overflows.

    Raises ValueError for slopes and for causal=False.
    Source: "Rethinking Attention with Performers" (arXiv 2009.14794), Lemma 1, and the authors' code (fast_attention).
    """
    _need_plain(slopes, causal=causal)
    phi_q = fuse(_positive_of_queries)(q, projection, scale, _between(v))
    phi_k = fuse(_positive_of_keys)(k, projection, scale, _between(v))
    return _normalised(phi_q, phi_k, v, scan=scan, fuse=fuse)


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
    fuse: Fuse = as_written,
) -> Tensor:
    """phi(x) = [sin(w_m . x / |x|), cos(w_m . x / |x|)] / sqrt(M), an estimate of a Gaussian kernel; without gates.

    Shapes and errors as for `elu_attention`; projection: fp32 [H, M, D], M a multiple of 8 up to 128.
    Source: "Random Feature Attention" (arXiv 2103.02143), Eq. 4 and section 3.3.
    """
    _need_plain(slopes, causal=causal)
    need_unit_scale(scale)
    phi_q, phi_k = (fuse(_trigonometric)(x, projection, _between(v)) for x in (q, k))
    return _normalised(phi_q, phi_k, v, scan=scan, fuse=fuse)


def _need_plain(slopes: Tensor | None, *, causal: bool) -> None:
    need_causal(causal)
    need_no_slopes(slopes)


def _between(v: Tensor) -> torch.dtype:
    """The dtype of features, and of what the scans give."""
    return torch.promote_types(v.dtype, torch.float32) if v.shape[2] <= _SHORT else v.dtype


# --- maps: x [B, H, N, D] -> features [B, H, N, F] in a dtype -----------------------------------------------


def _elu(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (torch.nn.functional.elu(x.float()) + 1).to(dtype)


def _cosine(x: Tensor, dtype: torch.dtype) -> Tensor:
    N = x.shape[2]
    angle = torch.arange(N, device=x.device, dtype=torch.float32)[:, None] * (math.pi / (2 * N))
    return torch.cat([x.relu() * angle.cos(), x.relu() * angle.sin()], dim=-1).to(dtype)


def _exponents(x: Tensor, projection: Tensor, scale: float) -> Tensor:
    y = x.float() * math.sqrt(scale)
    return y @ projection.mT - y.square().sum(-1, keepdim=True) / 2


def _positive_of_queries(q: Tensor, projection: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    exponents = _exponents(q, projection, scale)
    return (exponents - exponents.detach().amax(-1, keepdim=True)).exp().to(dtype)


def _positive_of_keys(k: Tensor, projection: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    exponents = _exponents(k, projection, scale)
    return (exponents - exponents.detach().amax((-2, -1), keepdim=True)).exp().to(dtype)


def _trigonometric(x: Tensor, projection: Tensor, dtype: torch.dtype) -> Tensor:
    angle = torch.nn.functional.normalize(x.float(), dim=-1) @ projection.mT
    return (torch.cat([angle.sin(), angle.cos()], dim=-1) / math.sqrt(projection.shape[-2])).to(dtype)


# --- the quotient -------------------------------------------------------------------------------------------


def _normalised(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, *, scan: Scan, fuse: Fuse, least: float = 0.0
) -> Tensor:
    """The quotient of two scans; phi_q, phi_k: [B, H, N, F]."""
    values = v.to(phi_q.dtype)
    ones = values.new_ones(_ONES).expand(*v.shape[:-1], _ONES)
    divide: Callable[..., Tensor] = _Quotient.apply
    o = divide(scan(phi_q, phi_k, values), scan(phi_q, phi_k, ones), least, fuse)
    return o.to(v.dtype)


class _Quotient(torch.autograd.Function):
    """numerator / max(denominator, least), all columns of the denominator alike.

    The gradient of the denominator is a sum over the rounded gradient of the numerator, and is handed on in two
    columns, its value in 16 bits and what that leaves out: the two gradients must cancel in the scans that follow.
    What is rounded lies in memory before it is read again, as fused code would go on with what is not.
    """

    @staticmethod
    def forward(ctx: Any, numerator: Tensor, denominator: Tensor, least: float, fuse: Fuse) -> Tensor:
        ctx.save_for_backward(numerator, denominator)
        ctx.least, ctx.fuse = least, fuse
        # Detached: for tensors that want gradients torch.compile makes another graph of the same function.
        return fuse(_divided)(numerator.detach(), denominator.detach(), least)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        numerator, denominator = (x.detach() for x in ctx.saved_tensors)
        above = ctx.fuse(_divided)(grads[0], denominator, ctx.least)
        held = ctx.fuse(_held)(above, numerator, denominator, ctx.least)
        high = held.to(denominator.dtype)
        handed = torch.zeros_like(denominator, memory_format=torch.contiguous_format)
        handed[..., :1] = high
        handed[..., 1:2] = held - high
        return above, handed, None, None


def _divided(above: Tensor, denominator: Tensor, least: float) -> Tensor:
    return (above / _wide(denominator, least)).to(above.dtype)


def _held(above: Tensor, numerator: Tensor, denominator: Tensor, least: float) -> Tensor:
    """The gradient of the denominator in fp32 or wider, [B, H, N, 1]; above: that of the numerator."""
    below = _wide(denominator, least)
    held = -(above * (numerator / below)).sum(-1, keepdim=True, dtype=below.dtype)
    return held.masked_fill(denominator[..., :1] < least, 0.0) if least else held


def _wide(denominator: Tensor, least: float) -> Tensor:
    """Its first column in fp32 or wider, [B, H, N, 1]."""
    column = denominator[..., :1].to(torch.promote_types(denominator.dtype, torch.float32))
    return column.clamp(min=least) if least else column
