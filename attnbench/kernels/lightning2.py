"""Lightning Attention-2: linear attention with constant decay in one pass over chunks, in time linear in N.

One scan kernel serves the forward and all gradients. With F the forward and R the same in reversed time,

    o = F(q, k, v)    dq = F(do, v, k)    dk = R(v, do, q)    dv = R(k, q, do)

Each program owns one tile of value columns of one head and keeps its state, transposed, in registers.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, overload

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from attnbench.kernels import _host, _validate
from attnbench.kernels._plan import MAX_SEGMENTS, Plan, next_power_of_two, plan, segment_length, state_bytes
from attnbench.kernels._tiles import first_row, load_tile, row_offsets, zero_accumulator

# A token whose weight fell to e^-REACH = 2^-25 is below the rounding of the fp32 state that it would be added to.
REACH = 25 * math.log(2.0)

__all__ = ["MAX_SEGMENTS", "Plan", "lightning_attention_2", "plan", "scan", "segment_length", "state_bytes"]


@triton.jit
def _state_tile(p_x, stride, i_b, i_h, o_d, o_e):
    """Pointers to a tile of a state [B, H, D, E], transposed: [BLOCK_E, BLOCK_D]."""
    p_x += i_b * stride[0] + i_h * stride[1]
    return p_x + o_e.to(tl.int64)[:, None] * stride[3] + o_d.to(tl.int64)[None, :] * stride[2]


@triton.jit
def _chunk_output(b_q, b_k, b_v, b_s, b_mask, b_row):
    """Transposed output of one chunk, [BLOCK_E, BLOCK_C], from its own keys and from the state before it."""
    # k q^T, not (q k^T)^T: a transposed accumulator as an operand is wrong on Hopper before triton 3.7.1.
    b_p = tl.dot(b_k, tl.trans(b_q), input_precision="ieee") * b_mask  # [BLOCK_C keys, BLOCK_C queries]
    b_o = tl.dot(b_s.to(b_q.dtype), tl.trans(b_q), input_precision="ieee")  # [BLOCK_E, BLOCK_C]
    b_o *= b_row[None, :]
    return tl.dot(tl.trans(b_v), b_p.to(b_v.dtype), b_o, input_precision="ieee")


@triton.jit
def _chunk_state(b_k, b_v, b_s, b_column, decay):
    """Transposed state after one chunk, [BLOCK_E, BLOCK_D]."""
    b_w = (tl.trans(b_v) * b_column[None, :]).to(b_k.dtype)  # [BLOCK_E, BLOCK_C]
    return tl.dot(b_w, b_k, b_s * decay, input_precision="ieee")


@triton.jit(do_not_specialize=["N", "H", "segment_len", "scale_o", "scale_s", "reach"])
def lightning2_scan_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_slopes,
    p_initial,
    p_final,
    p_segments,
    stride_q,
    stride_k,
    stride_v,
    stride_o,
    stride_initial,
    stride_final,
    N,
    H,
    segment_len,
    scale_o,
    scale_s,
    reach,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    REVERSE: tl.constexpr,
    WRITE_OUTPUT: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    """One segment of one head, one tile of value columns.

    In scan order, with X the state that comes in, decayed to the segment's first token:

        o_i = scale_o * (scale_s * sum_{j<=i} lambda^{i-j} (q_i . k_j) v_j + lambda^i q_i X)
        X'  = lambda^L X + scale_s * sum_j lambda^{L-j} k_j^T v_j

    A head forgets if e^-reach is all that its decay leaves of a token two segments back. Then X is what the last
    reach / slope tokens before the segment amount to, and those tokens are walked once more: no state travels.
    WRITE_OUTPUT False: the first pass over a segmented sequence, for the heads that do not forget; only X' from
    X = 0, into p_segments.
    WRITE_OUTPUT True: X is built from p_initial, and from the earlier segments' states or tokens.
    Forward, p_initial and p_final are states at a token; reversed, they are X and X' themselves.
    SAME_ROWS: q and k have one row stride, so that one set of offsets serves both and registers are saved.
    """
    i_segment = tl.program_id(1)
    E_TILES: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    MASK_D: tl.constexpr = D != BLOCK_D
    MASK_E: tl.constexpr = E % BLOCK_E != 0
    i_e = tl.program_id(0) % E_TILES
    i_bh = (tl.program_id(0) // E_TILES).to(tl.int64)
    i_b = i_bh // H
    i_h = i_bh % H

    slope = 0.0
    if p_slopes is not None:
        slope = tl.load(p_slopes + i_h)

    o_c = tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    o_e = i_e * BLOCK_E + tl.arange(0, BLOCK_E)
    m_d = o_d < D
    m_e = o_e < E
    m_s = m_e[:, None] & m_d[None, :]  # [BLOCK_E, BLOCK_D]

    # lambda^{i-j}, keys by queries; the clamp keeps the excluded half from overflowing.
    b_gap = o_c[None, :] - o_c[:, None]
    b_mask = tl.exp(-slope * tl.maximum(b_gap, 0).to(tl.float32))
    b_mask = tl.where(b_gap >= 0, b_mask * (scale_o * scale_s), 0.0)  # [BLOCK_C, BLOCK_C]
    b_row = tl.exp(-slope * o_c.to(tl.float32)) * scale_o  # [BLOCK_C]
    b_column = tl.exp(-slope * (BLOCK_C - o_c).to(tl.float32)) * scale_s  # [BLOCK_C]
    chunk_decay = tl.exp(-slope * BLOCK_C)

    # States of segments lie as [segment, batch * head, E, D].
    o_segment = o_e[:, None] * D + o_d[None, :]  # [BLOCK_E, BLOCK_D]
    segment_stride = (tl.num_programs(0) // E_TILES).to(tl.int64) * (E * D)
    b_s = zero_accumulator(o_e, o_d, scale_o)  # [BLOCK_E, BLOCK_D]
    i_start = i_segment * segment_len
    # The chunks that only add to the state: the whole segment, or those before it that it still remembers.
    forgets = slope * segment_len * 2 >= reach
    if WRITE_OUTPUT:
        remembered = tl.minimum(reach / tl.maximum(slope, 1e-30), i_start)  # tokens
        state_chunks = tl.where(forgets, tl.ceil(remembered / BLOCK_C).to(tl.int32), 0)
    else:
        state_chunks = tl.where(forgets, 0, segment_len // BLOCK_C)
    if WRITE_OUTPUT:
        if p_initial is not None:
            m_x = m_s & (not forgets or state_chunks * BLOCK_C == i_start)
            b_s = tl.load(_state_tile(p_initial, stride_initial, i_b, i_h, o_d, o_e), mask=m_x, other=0.0)
            if not REVERSE:
                b_s *= tl.exp(-slope)
        if p_segments is not None:
            segment_decay = tl.exp(-slope * segment_len.to(tl.float32))
            p_x = p_segments + i_bh * (E * D)
            for _ in tl.range(0, tl.where(forgets, 0, i_segment), num_stages=1):
                b_s = b_s * segment_decay + tl.load(p_x + o_segment, mask=m_s, other=0.0)
                p_x += segment_stride

    p_q = first_row(p_q, stride_q, i_b, i_h, i_start, N, REVERSE)
    p_k = first_row(p_k, stride_k, i_b, i_h, i_start, N, REVERSE)
    p_v = first_row(p_v, stride_v, i_b, i_h, i_start, N, REVERSE)
    o_q = row_offsets(o_c, stride_q, INDEX, REVERSE)[:, None] + o_d[None, :]  # [BLOCK_C, BLOCK_D]
    o_k = o_q
    if not SAME_ROWS:
        o_k = row_offsets(o_c, stride_k, INDEX, REVERSE)[:, None] + o_d[None, :]  # [BLOCK_C, BLOCK_D]
    o_v = row_offsets(o_c, stride_v, INDEX, REVERSE)[:, None] + o_e[None, :]  # [BLOCK_C, BLOCK_E]
    step: tl.constexpr = -BLOCK_C if REVERSE else BLOCK_C
    step_q = tl.cast(stride_q[2], tl.int64) * step
    step_k = tl.cast(stride_k[2], tl.int64) * step
    step_v = tl.cast(stride_v[2], tl.int64) * step

    if p_segments is not None:
        if WRITE_OUTPUT:
            p_k -= state_chunks.to(tl.int64) * step_k
            p_v -= state_chunks.to(tl.int64) * step_v
        for _ in range(state_chunks):
            b_k = load_tile(p_k, o_k, o_c, m_d, DTYPE, False, MASK_D)
            b_v = load_tile(p_v, o_v, o_c, m_e, DTYPE, False, MASK_E)
            b_s = _chunk_state(b_k, b_v, b_s, b_column, chunk_decay)
            p_k += step_k
            p_v += step_v

    if not WRITE_OUTPUT:
        if not forgets:
            p_x = p_segments + i_segment * segment_stride + i_bh * (E * D)
            tl.store(p_x + o_segment, b_s, mask=m_s)
    else:
        p_o = first_row(p_o, stride_o, i_b, i_h, i_start, N, REVERSE)
        o_o = row_offsets(o_c, stride_o, INDEX, REVERSE)[None, :] + o_e[:, None]  # [BLOCK_E, BLOCK_C]
        step_o = tl.cast(stride_o[2], tl.int64) * step
        length = tl.minimum(N - i_start, segment_len)
        # The last chunk, full or not, waits until after the loop: where it ends the sequence its decay differs.
        full_chunks = (length - 1) // BLOCK_C
        for _ in range(full_chunks):
            b_k = load_tile(p_k, o_k, o_c, m_d, DTYPE, False, MASK_D)
            b_q = load_tile(p_q, o_q, o_c, m_d, DTYPE, False, MASK_D)
            b_v = load_tile(p_v, o_v, o_c, m_e, DTYPE, False, MASK_E)
            b_o = _chunk_output(b_q, b_k, b_v, b_s, b_mask, b_row)
            if MASK_E:
                tl.store(p_o + o_o, b_o, mask=m_e[:, None])
            else:
                tl.store(p_o + o_o, b_o)
            b_s = _chunk_state(b_k, b_v, b_s, b_column, chunk_decay)
            p_q += step_q
            p_k += step_k
            p_v += step_v
            p_o += step_o

        tail = length - full_chunks * BLOCK_C
        m_c = o_c < tail
        b_k = load_tile(p_k, o_k, m_c, m_d, DTYPE, True, MASK_D)
        b_q = load_tile(p_q, o_q, m_c, m_d, DTYPE, True, MASK_D)
        b_v = load_tile(p_v, o_v, m_c, m_e, DTYPE, True, MASK_E)
        b_o = _chunk_output(b_q, b_k, b_v, b_s, b_mask, b_row)
        tl.store(p_o + o_o, b_o, mask=m_e[:, None] & m_c[None, :])
        if p_final is not None:  # noqa: SIM102 - decided by the compiler, the next one by the program
            if i_segment == tl.num_programs(1) - 1:
                # To the last token forward, one further reversed; by exponents, as a division could overflow.
                last = tail if REVERSE else tail - 1
                b_column = tl.exp(-slope * tl.maximum(last - o_c, 0).to(tl.float32)) * scale_s  # [BLOCK_C]
                b_s = _chunk_state(b_k, b_v, b_s, b_column, tl.exp(-slope * last.to(tl.float32)))
                tl.store(_state_tile(p_final, stride_final, i_b, i_h, o_d, o_e), b_s, mask=m_s)


def _plan_for(q: torch.Tensor, v: torch.Tensor, *, decays: bool) -> Plan:
    """The plan for a scan over these tensors on their device."""
    limits = _host.limits(q.device)
    batch, heads, seq_len, key_dim = q.shape
    return plan(
        batch=batch,
        heads=heads,
        seq_len=seq_len,
        key_dim=key_dim,
        value_dim=v.shape[-1],
        element_size=q.element_size(),
        decays=decays,
        multiprocessors=limits.multiprocessors,
        shared_memory=limits.shared_memory,
    )


def scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    slopes: torch.Tensor | None,
    scale_out: float,
    scale_state: float,
    reverse: bool = False,
    initial: torch.Tensor | None = None,
    final: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> None:
    """Launches one scan: out = F(q, k, v), or R(q, k, v) with reverse. Nothing is checked or waited for.

    q, k: [B, H, N, D]; v, out: [B, H, N, E]; slopes: fp32 [H] or None; initial, final: fp32 [B, H, D, E] of
    any strides, or None. scale_out multiplies the output, scale_state each k^T v, so that an initial state is
    free of the latter. Forward, initial and final are the states before and after the sequence. Reversed,
    initial is the state already decayed to the last token, and final the state decayed to the token before
    the first.
    """
    plan = plan or _plan_for(q, v, decays=slopes is not None)
    batch, heads, seq_len, key_dim = q.shape
    value_dim = v.shape[-1]
    length = segment_length(plan, seq_len)
    segments = triton.cdiv(seq_len, length)
    states = None
    if segments > 1:
        shape = (segments - 1, batch, heads, value_dim, key_dim)
        states = torch.empty(shape, dtype=torch.float32, device=q.device)
    programs = triton.cdiv(value_dim, plan.block_e) * batch * heads
    run = functools.partial(
        _host.launch,
        p_q=q,
        p_k=k,
        p_v=v,
        p_o=out,
        p_slopes=slopes,
        p_initial=initial,
        p_final=final,
        p_segments=states,
        stride_q=q.stride()[:3],
        stride_k=k.stride()[:3],
        stride_v=v.stride()[:3],
        stride_o=out.stride()[:3],
        stride_initial=(0, 0, 0, 0) if initial is None else initial.stride(),
        stride_final=(0, 0, 0, 0) if final is None else final.stride(),
        N=seq_len,
        H=heads,
        segment_len=length,
        scale_o=scale_out,
        scale_s=scale_state,
        reach=REACH,
        D=key_dim,
        E=value_dim,
        BLOCK_C=plan.block_c,
        BLOCK_D=next_power_of_two(key_dim),
        BLOCK_E=plan.block_e,
        REVERSE=reverse,
        DTYPE=_host.operand_dtype(q.dtype),
        INDEX=_host.index_dtype(plan.block_c, q, k, v, out),
        SAME_ROWS=q.stride(2) == k.stride(2),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    with _host.on_device(q.device):
        if states is not None:
            run(lightning2_scan_kernel, (programs, segments - 1), WRITE_OUTPUT=False)
        run(lightning2_scan_kernel, (programs, segments), WRITE_OUTPUT=True)


class _LightningAttention2(torch.autograd.Function):
    """Keeps q, k, v, the slopes and the initial state for the backward, which recomputes everything else."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor | None,
        initial_state: torch.Tensor | None,
        scale: float,
        return_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = _host.empty_in_order_of(v)
        state = None
        if return_state:
            state_shape = (*q.shape[:2], q.shape[3], v.shape[3])
            state = torch.empty(state_shape, dtype=torch.float32, device=q.device)
        run = functools.partial(scan, slopes=slopes, scale_out=scale, scale_state=1.0)
        run(q, k, v, out=out, initial=initial_state, final=state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, slopes, initial_state)
        ctx.scale = scale
        return out, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor | None, dstate: torch.Tensor | None) -> tuple[Any, ...]:
        q, k, v, slopes, initial_state = ctx.saved_tensors
        need_q, need_k, need_v, _, need_initial, _, _ = ctx.needs_input_grad
        if do is None and dstate is None:
            return (None,) * 7
        dq = dk = dv = dinitial = None
        if do is None:
            need_q = False
            do = torch.zeros_like(v)
        elif do.stride(-1) != 1:
            do = do.contiguous()
        if need_q:
            dq = _host.empty_in_order_of(q)
            before = None if initial_state is None else initial_state.transpose(2, 3)
            scan(do, v, k, out=dq, slopes=slopes, scale_out=ctx.scale, scale_state=1.0, initial=before)
        # The gradient of the state comes in without the scale, which therefore joins each token instead.
        scan_back = functools.partial(scan, slopes=slopes, scale_out=1.0, scale_state=ctx.scale, reverse=True)
        if need_k:
            dk = _host.empty_in_order_of(k)
            after = None if dstate is None else dstate.transpose(2, 3)
            scan_back(v, do, q, out=dk, initial=after)
        if need_v or need_initial:
            dv = _host.empty_in_order_of(v)
            dinitial = _host.empty_in_order_of(initial_state) if need_initial else None
            scan_back(k, q, do, out=dv, initial=dstate, final=dinitial)
        return dq, dk, dv if need_v else None, None, dinitial, None, None


@overload
def lightning_attention_2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: Literal[False] = False,
) -> torch.Tensor: ...


@overload
def lightning_attention_2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


def lightning_attention_2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Causal linear attention with constant decay, in time linear in N and without an N x N matrix.

        o_t = scale * (sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s + exp(-slope (t + 1)) q_t S_0)
        S_N = exp(-slope N) S_0 + sum_s exp(-slope (N - 1 - s)) k_s^T v_s

    Lightning Attention-2, arXiv 2401.04658: Algorithm 1 forward; the gradients of Algorithm 2 by the same
    scan.

    q, k: [B, H, N, D]; v: [B, H, N, E]; float32, float16 or bfloat16, any strides with a unit last one; D and
    E multiples of 16 up to 256; N at least 1. slopes: float32 [H], at least 0, or None for no decay; on the
    CPU, or on q's device as a CUDA graph needs. scale: a float; it multiplies the output and never the state.
    initial_state: float32 [B, H, D, E], S_0.

    Returns o [B, H, N, E] in v's dtype, its dimensions in memory in the order of v's; with return_state the
    pair (o, S_N), S_N float32 [B, H, D, E]. Differentiable in q, k, v and initial_state, through o and
    through S_N; the slopes get no gradient.

    Products accumulate in float32. The state is float32 and is rounded to the dtype of q where it meets q, so
    with float16 its entries must stay below 65504.

    Raises TypeError or ValueError, naming the tensor, for a dtype, shape, device, stride or slope that does
    not fit.
    """
    _validate.qkv("lightning_attention_2", q, k, v, layout="B, H, N")
    if initial_state is not None:
        _validate.state("initial_state", initial_state, q, v)
    slopes = _validate.slopes(slopes, q)
    out, state = _LightningAttention2.apply(
        q, k, v, slopes, initial_state, _validate.scale(scale), return_state
    )
    return (out, state) if return_state else out
