"""Linear attention with feature maps: the maps of `feature_attention`, compiled, over our Triton scan."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from attnbench.baselines import feature_attention
from attnbench.kernels import lightning_attention_2


def linear_elu(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """1 + elu with its denominator. Shapes and errors as for `feature_attention.elu_attention`."""
    return feature_attention.elu_attention(
        q, k, v, slopes=slopes, scale=scale, causal=causal, scan=_scan, fuse=_fuse(q)
    )


def cosformer(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """cosFormer. Shapes and errors as for `feature_attention.cosformer_attention`; D up to 128."""
    return feature_attention.cosformer_attention(
        q, k, v, slopes=slopes, scale=scale, causal=causal, scan=_scan, fuse=_fuse(q)
    )


def performer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    projection: Tensor,
) -> Tensor:
    """Performer with positive features. Shapes and errors as for `feature_attention.performer_attention`."""
    return feature_attention.performer_attention(
        q, k, v, slopes=slopes, scale=scale, causal=causal, projection=projection, scan=_scan, fuse=_fuse(q)
    )


def rfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    projection: Tensor,
) -> Tensor:
    """Random Feature Attention. Shapes and errors as for `feature_attention.random_feature_attention`."""
    return feature_attention.random_feature_attention(
        q, k, v, slopes=slopes, scale=scale, causal=causal, projection=projection, scan=_scan, fuse=_fuse(q)
    )


def _scan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return lightning_attention_2(q, k, v)


def _fuse(q: Tensor) -> feature_attention.Fuse:
    """On a GPU by torch.compile, once for all shapes; elsewhere, where kernels are interpreted, not at all."""
    if not q.is_cuda:
        return feature_attention.as_written
    from attnbench.baselines.compiled import compiled  # imports the compiler, for seconds

    return partial(compiled, dynamic=True)
