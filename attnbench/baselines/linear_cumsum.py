"""Linear attention as the textbook writes it: the prefix sum of k^T v, then one product with q."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.baselines.contract import need_causal, need_no_slopes


def linear_cumsum(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """o_t = scale * q_t S_t with S_t = sum_{s<=t} k_s^T v_s, all N states materialised.

    q, k: [B, H, N, D], v: [B, H, N, E]; returns [B, H, N, E] in the input dtype. The states take
    B*H*N*D*E*4 bytes, and their outer products as much again while they are summed. The gradient is
    autograd's.

    Raises ValueError for slopes (a plain sum has no decay) and for causal=False.
    Source: Katharopoulos et al., "Transformers are RNNs" (arXiv 2006.16236), section 3.3, without feature map
    and denominator.
    """
    need_causal(causal)
    need_no_slopes(slopes)
    # The states are fp32: a running sum of N terms kept in 8 or 11 bits of significand stops growing after a
    # few hundred tokens, because each new term falls below half a unit of the sum's last place.
    wide = torch.promote_types(q.dtype, torch.float32)
    outer = k.to(wide).unsqueeze(-1) * v.to(wide).unsqueeze(-2)  # [B, H, N, D, E]
    states = outer.cumsum(dim=2)
    o = (scale * q.to(wide)).unsqueeze(-2) @ states  # [B, H, N, 1, E]
    return o.squeeze(-2).to(q.dtype)
