"""One step of lightning attention: a token joins a state that does not grow with the context."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from attnbench.kernels import _host, _validate
from attnbench.kernels._plan import next_power_of_two

__all__ = ["lightning_decode"]

# Columns of the state per program, and its warps: of 20 pairs the fastest or next to it on an H200 from 1 to 256
# sequences of 64 heads.
_BLOCK_E = 64
_NUM_WARPS = 8


@triton.jit(do_not_specialize=["H", "scale"])
def lightning_decode_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_state,
    p_slopes,
    scale,
    stride_q,
    stride_k,
    stride_v,
    stride_o,
    stride_state,
    H,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One head, one tile of the state's columns: S <- lambda S + k^T v, o = scale * q S."""
    i_e = tl.program_id(1)
    i_bh = tl.program_id(0).to(tl.int64)
    i_b = i_bh // H
    i_h = i_bh % H
    o_d = tl.arange(0, BLOCK_D)
    o_e = i_e * BLOCK_E + tl.arange(0, BLOCK_E)
    m_d = o_d < D
    m_e = o_e < E
    m_s = m_d[:, None] & m_e[None, :]

    p_s = p_state + i_b * stride_state[0] + i_h * stride_state[1]
    p_s += o_d.to(tl.int64)[:, None] * stride_state[2] + o_e[None, :]
    b_s = tl.load(p_s, mask=m_s, other=0.0)  # [BLOCK_D, BLOCK_E]
    b_q = tl.load(p_q + i_b * stride_q[0] + i_h * stride_q[1] + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_k = tl.load(p_k + i_b * stride_k[0] + i_h * stride_k[1] + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_v = tl.load(p_v + i_b * stride_v[0] + i_h * stride_v[1] + o_e, mask=m_e, other=0.0).to(tl.float32)
    if p_slopes is not None:
        b_s *= tl.exp(-tl.load(p_slopes + i_h))
    b_s += b_k[:, None] * b_v[None, :]
    tl.store(p_s, b_s, mask=m_s)
    b_o = tl.sum(b_q[:, None] * b_s, axis=0) * scale  # [BLOCK_E]
    tl.store(p_o + i_b * stride_o[0] + i_h * stride_o[1] + o_e, b_o, mask=m_e)


@functools.lru_cache(maxsize=1024)
def _prepare(
    q: _host.Traits,
    k: _host.Traits,
    v: _host.Traits,
    out: _host.Traits,
    state: _host.Traits,
    slopes: _host.Traits | None,
) -> _host.Launch:
    """All of a launch that does not change from call to call; each slopes has one of its own, for its alignment."""
    batch, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    constants = {
        "stride_q": q.strides[:2],
        "stride_k": k.strides[:2],
        "stride_v": v.strides[:2],
        "stride_o": out.strides[:2],
        "stride_state": state.strides[:3],
        "H": heads,
        "D": key_dim,
        "E": value_dim,
        "BLOCK_D": next_power_of_two(key_dim),
        "BLOCK_E": min(_BLOCK_E, next_power_of_two(value_dim)),
        "num_warps": _NUM_WARPS,
    }
    return _host.Launch(lightning_decode_kernel, (batch * heads, triton.cdiv(value_dim, _BLOCK_E)), constants)


def lightning_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
) -> torch.Tensor:
    """One token of lightning attention; `state` is updated in place.

        S <- exp(-slope) S + k^T v        o = scale * q S

    The recurrence of arXiv 2401.04658, section 3.1. May be captured in a CUDA graph.

    q, k: [B, H, D]; v: [B, H, E]; float32, float16 or bfloat16, any strides with a unit last one; D and E
    multiples of 16 up to 256. state: float32 [B, H, D, E], unit last stride; it carries no scale, and it is
    what lightning_attention_2 returns with return_state. slopes: float32 [H], at least 0, or None for no
    decay; on q's device for speed. scale: a float.

    Returns o [B, H, E] in v's dtype. It has no gradient: inputs that require one are refused where gradients
    are recorded.

    Raises TypeError or ValueError, naming the tensor, for a dtype, shape, device, stride or slope that does
    not fit.
    """
    known = _validate.qkv("lightning_decode", q, k, v, layout="B, H")
    kept = _validate.state("state", state, known[0], known[2], updatable=True)
    _validate.no_gradient("lightning_decode", q=q, k=k, v=v, state=state)
    slopes, _ = _validate.slopes(slopes, q)
    out = _host.empty_in_order_of(v)
    launch = _prepare(*known, _host.traits(out), kept, None if slopes is None else _host.traits(slopes))
    with _host.on_device(q.device):
        launch(q, k, v, out, state, slopes, _validate.scale(scale))
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)
    return out
