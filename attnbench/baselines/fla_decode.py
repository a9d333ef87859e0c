"""One token more by flash-linear-attention's recurrent kernel of simple GLA."""

from __future__ import annotations

from fla.ops.simple_gla import fused_recurrent_simple_gla
from torch import Tensor

from attnbench.baselines.contract import Step


def simple_gla_decode(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One token by the recurrence; the state after it is a tensor of its own, as the library returns it.

    q, k: [B, H, D], v: [B, H, E], state: fp32 [B, H, D, E] on CUDA, slopes: fp32 [H] or None; the step returns o
    [B, H, E] in the dtype of q, and the new state. A model would hand that to its next step; here every step starts
    from `state`, which is the same work and keeps all addresses fixed for a CUDA graph.

    Source: fla-core 0.6.0, ops/simple_gla/fused_recurrent.py: g_gamma is the logarithm of the decay.
    """
    query, key, value = (x.unsqueeze(1) for x in (q, k, v))  # its layout is [B, N, H, D]
    log_decay = None if slopes is None else -slopes

    def step() -> tuple[Tensor, ...]:
        o, after = fused_recurrent_simple_gla(
            query,
            key,
            value,
            g_gamma=log_decay,
            scale=scale,
            initial_state=state,
            output_final_state=True,
        )
        return o.squeeze(1), after

    return step
