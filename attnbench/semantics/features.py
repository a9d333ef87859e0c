"""fp64 truth of linear attention with a feature map and a denominator.

    o_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s / sum_{s<=t} phi(q_t) . phi(k_s)

The maps are the papers' formulas as they stand, in fp64, where no stabiliser is needed: implementations that subtract
maxima compute the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.semantics.oracles import Oracle, Reference, linear_scan

RANDOM_FEATURES = 256  # of a token; the default of Performer's code (google-research, fast_attention.py)
LEAST_DENOMINATOR = 1e-6  # of cosFormer, whose weights may all be zero; the default of its code

FeatureMap = Callable[..., Tensor]  # (x: [P, N, D], *, scale, parameters) -> [P, N, F]


def elu_features(x: Tensor, *, scale: float) -> Tensor:
    """1 + elu(x); the scale cancels.

    Source: "Transformers are RNNs" (arXiv 2006.16236), Eq. 7.
    """
    return torch.nn.functional.elu(x) + 1


def cosine_features(x: Tensor, *, scale: float) -> Tensor:
    """relu(x) times cos and sin of pi i / 2N at position i, side by side: F = 2D; the scale cancels.

    Their product is relu(q_i) . relu(k_j) cos(pi (i - j) / 2N). Source: "cosFormer" (arXiv 2202.08791), Eq. 10.
    """
    angle = math.pi / 2 * torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None] / x.shape[1]
    positive = x.relu()
    return torch.cat([positive * angle.cos(), positive * angle.sin()], dim=-1)


def positive_features(x: Tensor, *, scale: float, projection: Tensor) -> Tensor:
    """exp(w_m . y - |y|^2 / 2) / sqrt(M) with y = sqrt(scale) x: an estimate of exp(scale q . k).

    projection: [P, M, D], the rows w_m. Source: "Rethinking Attention with Performers" (arXiv 2009.14794), Lemma 1.
    """
    y = math.sqrt(scale) * x
    exponent = y @ projection.to(y).mT - (y * y).sum(-1, keepdim=True) / 2
    return exponent.exp() / math.sqrt(projection.shape[-2])


def trigonometric_features(x: Tensor, *, scale: float, projection: Tensor) -> Tensor:
    """sin and cos of w_m . x / |x|, side by side, over sqrt(M): F = 2M; an estimate of exp(-|q - k|^2 / 2).

    projection: [P, M, D], the rows w_m; queries and keys are brought to length 1, so no scale is asked for.
    Source: "Random Feature Attention" (arXiv 2103.02143), Eq. 4 and section 3.3, with sigma = 1 and without gates.
    """
    angle = torch.nn.functional.normalize(x, dim=-1) @ projection.to(x).mT
    return torch.cat([angle.sin(), angle.cos()], dim=-1) / math.sqrt(projection.shape[-2])


def normalised_oracle(features: FeatureMap, *, least: float = 0.0) -> Oracle:
    """The oracle of a feature map; denominators are at least `least`.

    With w = [v, 1] the sum over keys is a linear scan of width E + 1, whose last column is the denominator, and the
    gradients follow by the identity of `oracles.decay_linear_oracle`; those of the map are autograd's, in fp64.
    """

    def oracle(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        do: Tensor | None,
        *,
        slopes: Tensor | None,
        scale: float,
        causal: bool,
        **parameters: Any,
    ) -> Reference:
        if slopes is not None:
            raise ValueError("linear attention with a feature map takes no decay slopes")
        if not causal:
            raise ValueError("linear attention with a feature map is checked for causal cases only")
        with torch.enable_grad():
            q64, k64 = (x.detach().double().requires_grad_() for x in (q, k))
            phi_q, phi_k = (features(x, scale=scale, **parameters) for x in (q64, k64))
        a, b = phi_q.detach(), phi_k.detach()
        still = torch.zeros(q.shape[0], device=q.device)
        w = torch.cat([v.double(), v.new_ones(*v.shape[:2], 1, dtype=torch.float64)], dim=-1)
        sums = linear_scan(a, b, w, still)
        below = sums[..., -1:]
        denominator = below.clamp(min=least)
        o = sums[..., :-1] / denominator
        rows = torch.arange(q.shape[1], device=q.device)
        if do is None:
            return Reference(o=o, rows=rows)
        above = do.double() / denominator
        held = (above * o).sum(-1, keepdim=True).masked_fill(below < least, 0.0)
        dsums = torch.cat([above, -held], dim=-1)

        def reverse(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return linear_scan(x.flip(1), y.flip(1), z.flip(1), still).flip(1)

        (dq,) = torch.autograd.grad(phi_q, q64, linear_scan(dsums, w, b, still))
        (dk,) = torch.autograd.grad(phi_k, k64, reverse(w, dsums, a))
        return Reference(o=o, rows=rows, dq=dq, dk=dk, dv=reverse(b, a, dsums)[..., :-1])

    return oracle
