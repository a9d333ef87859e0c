"""xFormers' memory_efficient_attention, and the operator that it dispatches a case to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from xformers.ops import LowerTriangularMask, fmha, memory_efficient_attention

from attnbench.baselines.contract import need_no_slopes
from attnbench.case import Case
from attnbench.semantics import TORCH_DTYPES

# Dispatch looks at dtype, strides, head dims and equal lengths, never at the length itself (xformers 0.0.35,
# ops/fmha/dispatch.py), so the probe need not be as long as the case.
_PROBE_TOKENS = 4096


def xformers_attention(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """softmax(scale * q k^T + mask) v on the operator that xFormers picks.

    q, k: [B, N, H, D], v: [B, N, H, E] on CUDA, unit stride in the last dimension; returns [B, N, H, E].

    Raises ValueError for slopes, NotImplementedError when xFormers has no operator for the inputs.
    """
    need_no_slopes(slopes)
    o: Tensor = memory_efficient_attention(q, k, v, attn_bias=_mask(causal), scale=scale)
    return o


def xformers_operator(case: Case, device: torch.device) -> dict[str, Any]:
    """Names of the operators that a case runs on, e.g. {"operator_fwd": "fa2F@2.8.3-pt"}.

    Asks xFormers' own dispatch with uninitialised tensors of the case's shape, batch 1 and at most 4,096
    tokens. "operator_bwd" is there for workloads with a backward. Names ending in "-pt" are torch's kernels.

    Raises NotImplementedError when xFormers has no operator for the case.
    """
    size = (1, min(case.seq_len, _PROBE_TOKENS), case.heads)
    dtype = TORCH_DTYPES[case.dtype]
    qk = torch.empty(*size, case.head_dim, dtype=dtype, device=device)
    v = torch.empty(*size, case.value_dim, dtype=dtype, device=device)
    inputs = fmha.Inputs(query=qk, key=qk, value=v, attn_bias=_mask(case.causal), scale=1.0)
    backward = case.workload.has_backward
    # The choice of a forward depends on whether a backward follows.
    names = {"operator_fwd": fmha._dispatch_fw(inputs, backward).NAME}
    if backward:
        names["operator_bwd"] = fmha._dispatch_bw(inputs, varlen_lse_packed=None).NAME
    return names


def _mask(causal: bool) -> LowerTriangularMask | None:
    return LowerTriangularMask() if causal else None
