"""Lightning Attention-2 by its authors' package, lightning-attn."""

from __future__ import annotations

from lightning_attn.ops import lightning_attn_func
from lightning_attn.ops.triton import lightning_attn2_no_decay
from torch import Tensor

from attnbench.baselines.contract import need_causal, need_no_slopes, need_slopes, need_unit_scale


def lightning2_official(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o_t = sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s.

    q, k: [B, H, N, D], v: [B, H, N, E] on CUDA, contiguous (else the package copies them), D and E among 32, 64
    and 128; slopes: fp32 [H], >= 0; returns [B, H, N, E] in the input dtype. Slopes get no gradient.

    Raises ValueError for slopes of None (the package's way without decay reads variables that it has not set),
    for a scale other than 1 (it has none) and for causal=False.
    Source: "Lightning Attention-2" (arXiv 2401.04658), Alg. 1 and 2; lightning_attn 0.0.5,
    ops/triton/lightning_attn2.py.
    """
    need_causal(causal)
    need_unit_scale(scale)
    o: Tensor = lightning_attn_func(q, k, v, need_slopes(slopes))
    return o


def lightning2_official_no_decay(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o_t = sum_{s<=t} (q_t . k_s) v_s. Shapes and errors as for `lightning2_official`; slopes must be None.

    Source: the same package, ops/triton/lightning_attn2_no_decay.py, which its public function does not reach.
    """
    need_causal(causal)
    need_unit_scale(scale)
    need_no_slopes(slopes)
    o: Tensor = lightning_attn2_no_decay(q, k, v)
    return o
