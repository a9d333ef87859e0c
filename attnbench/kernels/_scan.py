"""The scan kernel of Lightning Attention-2, and its launches: the forward and all gradients are scans.

With F the forward and R the same in reversed time,

    o = F(q, k, v)    dq = F(do, v, k)    dk = R(v, do, q)    dv = R(k, q, do)

Each program owns one tile of value columns of one head and keeps its state, transposed, in registers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from attnbench.kernels import _host
from attnbench.kernels._plan import (
    Plan,
    padded_key_dim,
    passes_states,
    plan,
    remembered_tokens,
    segment_length,
)
from attnbench.kernels._tiles import (
    first_row,
    load_tile,
    pick,
    pick_strides,
    row_offsets,
    state_tile,
    zero_accumulator,
)

__all__ = ["NO_HINTS", "REACH", "Hints", "Scan", "can_specialise", "run_scans"]

# A token whose weight fell to e^-REACH is left out: 2^-25 is below the rounding of the fp32 state that it would be
# added to; 16-bit outputs are rounded at 2^-9 and 2^-12, seven bits above what they leave out.
REACH = {
    torch.float32: 25 * math.log(2.0),
    torch.float16: 19 * math.log(2.0),
    torch.bfloat16: 16 * math.log(2.0),
}


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


@triton.jit(do_not_specialize=["N", "B", "H", "segments", "segment_len", "reach"])
def lightning2_scan_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_slopes,
    p_initial,
    p_final,
    p_segments,
    scale_o,
    scale_s,
    stride_q,
    stride_k,
    stride_v,
    stride_o,
    stride_initial,
    stride_final,
    N,
    B,
    H,
    segments,
    segment_len,
    reach,
    REVERSE: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    WRITE_OUTPUT: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    SAME_ROWS: tl.constexpr,
    SCANS: tl.constexpr,
    SEGMENTED: tl.constexpr,
):
    """One segment of one head of one scan, one tile of value columns.

    All that differs between the scans of a launch is a tuple with an entry for each. In scan order, with X the state
    that comes in, decayed to the segment's first token:

        o_i = scale_o * (scale_s * sum_{j<=i} lambda^{i-j} (q_i . k_j) v_j + lambda^i q_i X)
        X'  = lambda^L X + scale_s * sum_j lambda^{L-j} k_j^T v_j

    A token is forgotten when e^-reach is all that its decay leaves of it. A head forgets if it does so within two
    segments. Then X is what the last reach / slope tokens before the segment amount to, and those tokens are walked
    once more: no state travels.
    WRITE_OUTPUT False: the first pass over a segmented sequence, for the heads that do not forget; only X' from
    X = 0, into p_segments. There is none, and p_segments is None, where the host knows that all heads forget.
    WRITE_OUTPUT True: X is built from p_initial, and from the earlier segments' states or tokens, as far back as
    they are remembered.
    Forward, p_initial and p_final are states at a token; reversed, they are X and X' themselves.
    SAME_ROWS: q and k have one row stride, so that one set of offsets serves both and registers are saved.
    """
    E_TILES: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    MASK_D: tl.constexpr = D != BLOCK_D
    MASK_E: tl.constexpr = E % BLOCK_E != 0
    # Tiles and scans of one head and segment start together: they read the same rows. The last head, of the
    # weakest decay by the usual slope laws, has the most tokens to walk and therefore starts first.
    i_program = tl.program_id(0)
    i_e = i_program % E_TILES
    i_program //= E_TILES
    i_scan = i_program % SCANS
    i_program //= SCANS
    i_segment = i_program % segments
    i_program //= segments
    i_b = (i_program % B).to(tl.int64)
    i_h = (H - 1 - i_program // B).to(tl.int64)
    i_bh = (i_scan * B + i_b) * H + i_h

    p_q = pick(p_q, i_scan, SCANS)
    p_k = pick(p_k, i_scan, SCANS)
    p_v = pick(p_v, i_scan, SCANS)
    stride_q = pick_strides(stride_q, i_scan, SCANS)
    stride_k = pick_strides(stride_k, i_scan, SCANS)
    stride_v = pick_strides(stride_v, i_scan, SCANS)
    scale_o = pick(scale_o, i_scan, SCANS)
    scale_s = pick(scale_s, i_scan, SCANS)
    reverse = pick(REVERSE, i_scan, SCANS)

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

    # States of segments lie as [segment, scan * batch * head, E, D].
    o_segment = o_e[:, None] * D + o_d[None, :]  # [BLOCK_E, BLOCK_D]
    segment_stride = tl.cast(SCANS * E * D, tl.int64) * B * H
    b_s = zero_accumulator(o_e, o_d, scale_o)  # [BLOCK_E, BLOCK_D]
    i_start = i_segment * segment_len
    if WRITE_OUTPUT:
        m_x = m_s
        if SEGMENTED:
            forgets = True if p_segments is None else slope * segment_len * 2 >= reach
            remembered = tl.minimum(reach / tl.maximum(slope, 1e-30), i_start)  # tokens
            state_chunks = tl.where(forgets, tl.ceil(remembered / BLOCK_C).to(tl.int32), 0)
            earlier = tl.minimum(tl.ceil(remembered / segment_len).to(tl.int32), i_segment)  # segments
            m_x &= tl.where(forgets, state_chunks * BLOCK_C == i_start, earlier == i_segment)
        if p_initial is not None:
            p_tile = state_tile(p_initial, stride_initial, i_scan, SCANS, i_b, i_h, o_d, o_e)
            b_s = tl.load(p_tile, mask=m_x, other=0.0)
            b_s *= tl.where(reverse, 1.0, tl.exp(-slope))
        if p_segments is not None:
            segment_decay = tl.exp(-slope * segment_len.to(tl.float32))
            earlier = tl.where(forgets, 0, earlier)
            p_x = p_segments + i_bh * (E * D) + (i_segment - earlier) * segment_stride
            for _ in tl.range(0, earlier, num_stages=1):
                b_s = b_s * segment_decay + tl.load(p_x + o_segment, mask=m_s, other=0.0)
                p_x += segment_stride
    else:
        forgets = slope * segment_len * 2 >= reach
        state_chunks = tl.where(forgets, 0, segment_len // BLOCK_C)

    p_q = first_row(p_q, stride_q, i_b, i_h, i_start, N, reverse)
    p_k = first_row(p_k, stride_k, i_b, i_h, i_start, N, reverse)
    p_v = first_row(p_v, stride_v, i_b, i_h, i_start, N, reverse)
    o_q = row_offsets(o_c, stride_q, INDEX, reverse)[:, None] + o_d[None, :]  # [BLOCK_C, BLOCK_D]
    o_k = o_q
    if not SAME_ROWS:
        o_k = row_offsets(o_c, stride_k, INDEX, reverse)[:, None] + o_d[None, :]  # [BLOCK_C, BLOCK_D]
    o_v = row_offsets(o_c, stride_v, INDEX, reverse)[:, None] + o_e[None, :]  # [BLOCK_C, BLOCK_E]
    step = tl.where(reverse, -BLOCK_C, BLOCK_C)
    step_q = tl.cast(stride_q[2], tl.int64) * step
    step_k = tl.cast(stride_k[2], tl.int64) * step
    step_v = tl.cast(stride_v[2], tl.int64) * step

    if SEGMENTED:  # the chunks that only add to the state: those that are remembered, or the whole segment
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
        stride_o = pick_strides(stride_o, i_scan, SCANS)
        p_o = first_row(pick(p_o, i_scan, SCANS), stride_o, i_b, i_h, i_start, N, reverse)
        o_o = row_offsets(o_c, stride_o, INDEX, reverse)[None, :] + o_e[:, None]  # [BLOCK_E, BLOCK_C]
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
            if i_segment == segments - 1:
                # To the last token forward, one further reversed; by exponents, as a division could overflow.
                last = tl.where(reverse, tail, tail - 1)
                b_column = tl.exp(-slope * tl.maximum(last - o_c, 0).to(tl.float32)) * scale_s  # [BLOCK_C]
                b_s = _chunk_state(b_k, b_v, b_s, b_column, tl.exp(-slope * last.to(tl.float32)))
                p_tile = state_tile(p_final, stride_final, i_scan, SCANS, i_b, i_h, o_d, o_e)
                tl.store(p_tile, b_s, mask=m_s)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """out = F(q, k, v), or R(q, k, v) with reverse.

    q, k: [B, H, N, D]; v, out: [B, H, N, E]; initial, final: fp32 [B, H, D, E] of any strides, or None. scale_out
    multiplies the output, scale_state each k^T v, so that an initial state is free of the latter. Forward, initial
    and final are the states before and after the sequence. Reversed, initial is the state already decayed to the
    last token, and final the state decayed to the token before the first.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    scale_out: float
    scale_state: float
    reverse: bool = False
    initial: torch.Tensor | None = None
    final: torch.Tensor | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Scans of one kind can share a launch."""
        return self.q.shape[-1], self.v.shape[-1], self.initial is None, self.final is None


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a launch may be planned by, beside its tensors.

    values: those of the slopes, where the host knows them; else a launch is planned for the geometric law, and right
    for any. segments: in the place of the plan's.
    """

    values: tuple[float, ...] | None = None
    segments: int | None = None


NO_HINTS = Hints()


class _ScanTraits(NamedTuple):
    """What a launch depends on of one scan."""

    q: _host.Traits
    k: _host.Traits
    v: _host.Traits
    out: _host.Traits
    initial: _host.Traits | None
    final: _host.Traits | None
    reverse: bool


# The leading arguments that are q, k, v and the output of each scan in turn.
_Operands = Callable[[Sequence[torch.Tensor]], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """The launches of some scans, in order, and the shape of the states between them."""

    passes: tuple[_host.Launch, ...]
    operands: _Operands
    states: tuple[int, ...] | None


def run_scans(
    scans: Sequence[Scan],
    *,
    slopes: torch.Tensor | None,
    hints: Hints = NO_HINTS,
    plan: Plan | None = None,
) -> None:
    """Enqueues the scans of one sequence, those of a kind in one launch. Nothing is checked or waited for.

    All have the same B, H, N and dtype. slopes: fp32 [H] or None. plan: for every launch; None: the one that
    `plan` chooses for it.
    """
    kinds: dict[tuple[object, ...], list[Scan]] = {}
    for scan in scans:
        kinds.setdefault(scan.kind, []).append(scan)
    with _host.on_device(scans[0].q.device):
        for together in kinds.values():
            _run_together(together, slopes=slopes, hints=hints, plan=plan)


def _run_together(
    scans: Sequence[Scan], *, slopes: torch.Tensor | None, hints: Hints, plan: Plan | None
) -> None:
    """Enqueues scans of one kind."""
    asked = tuple(
        _ScanTraits(
            _host.traits(scan.q),
            _host.traits(scan.k),
            _host.traits(scan.v),
            _host.traits(scan.out),
            None if scan.initial is None else _host.traits(scan.initial),
            None if scan.final is None else _host.traits(scan.final),
            scan.reverse,
        )
        for scan in scans
    )
    prepared = _prepare(asked, None if slopes is None else _host.traits(slopes), hints, plan)
    first = scans[0]
    states = None
    if prepared.states is not None:
        states = torch.empty(prepared.states, dtype=torch.float32, device=first.q.device)
    operands = prepared.operands([x for scan in scans for x in (scan.q, scan.k, scan.v, scan.out)])
    for run in prepared.passes:
        run(
            *operands,
            slopes,
            None if first.initial is None else tuple([scan.initial for scan in scans]),
            None if first.final is None else tuple([scan.final for scan in scans]),
            states,
            tuple([scan.scale_out for scan in scans]),
            tuple([scan.scale_state for scan in scans]),
        )


@functools.lru_cache(maxsize=1024)
def _prepare(
    scans: tuple[_ScanTraits, ...], slopes: _host.Traits | None, hints: Hints, asked: Plan | None
) -> _Passes:
    """All of a launch that does not change from call to call."""
    first = scans[0]
    batch, heads, seq_len, key_dim = first.q.shape
    value_dim = first.v.shape[-1]
    reach = REACH[first.q.dtype]
    values = (0.0,) * heads if slopes is None else hints.values
    remembered = tuple(remembered_tokens(slope, reach=reach) for slope in values or _geometric(heads))
    plan = asked or _plan_for(scans, remembered=remembered)
    if hints.segments is not None:
        plan = replace(plan, segments=hints.segments)
    length = segment_length(plan, seq_len)
    segments = triton.cdiv(seq_len, length)
    programs = triton.cdiv(value_dim, plan.block_e) * len(scans) * batch * heads
    constants: dict[str, Any] = {
        "stride_initial": None
        if first.initial is None
        else _strides([scan.initial for scan in scans], dims=4),
        "stride_final": None if first.final is None else _strides([scan.final for scan in scans], dims=4),
        "N": seq_len,
        "B": batch,
        "H": heads,
        "segment_len": length,
        "reach": reach,
        "REVERSE": tuple(scan.reverse for scan in scans),
        "D": key_dim,
        "E": value_dim,
        "BLOCK_C": plan.block_c,
        "BLOCK_D": padded_key_dim(key_dim, specialised=plan.specialised),
        "BLOCK_E": plan.block_e,
        "SCANS": len(scans),
        "SEGMENTED": segments > 1,
        "num_warps": plan.num_warps,
        "maxnreg": plan.max_registers,
    }
    kernel, operands, own = (_specialised if plan.specialised else _portable)(scans, plan)

    def launch(*, segments: int, write_output: bool) -> _host.Launch:
        chosen = {**constants, **own, "segments": segments, "WRITE_OUTPUT": write_output}
        return _host.Launch(kernel, (programs * segments,), chosen)

    last = launch(segments=segments, write_output=True)
    if not passes_states(plan, seq_len=seq_len, remembered=None if values is None else remembered):
        return _Passes(passes=(last,), operands=operands, states=None)
    return _Passes(
        passes=(launch(segments=segments - 1, write_output=False), last),
        operands=operands,
        states=(segments - 1, len(scans), batch, heads, value_dim, key_dim),
    )


def _portable(scans: Sequence[_ScanTraits], plan: Plan) -> tuple[Any, _Operands, dict[str, Any]]:
    """This module's kernel, how it takes tensors, and its own constants."""
    constants = {
        "stride_q": _strides([scan.q for scan in scans], dims=3),
        "stride_k": _strides([scan.k for scan in scans], dims=3),
        "stride_v": _strides([scan.v for scan in scans], dims=3),
        "stride_o": _strides([scan.out for scan in scans], dims=3),
        "DTYPE": _host.operand_dtype(scans[0].q.dtype),
        "INDEX": _host.index_dtype(plan.block_c, *(x for scan in scans for x in scan[:4])),
        "SAME_ROWS": all(scan.q.strides[2] == scan.k.strides[2] for scan in scans),
        "num_stages": plan.num_stages,
    }
    return lightning2_scan_kernel, _by_role, constants


def _by_role(tensors: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], ...]:
    """All q, all k, all v, all outputs."""
    return tuple(tuple(tensors[role::4]) for role in range(4))


def _specialised(scans: Sequence[_ScanTraits], plan: Plan) -> tuple[Any, _Operands, dict[str, Any]]:
    """The same of the kernel whose warps specialise."""
    hopper = _hopper()
    assert hopper is not None
    operands = hopper.operands(
        [x for scan in scans for x in scan[:4]],
        block_c=plan.block_c,
        block_d=padded_key_dim(scans[0].q.shape[-1], specialised=True),
        block_e=plan.block_e,
    )
    constants = {
        "stride_o": _strides([scan.out for scan in scans], dims=3),
        "STAGES": plan.num_stages,
        "REGISTERS": hopper.REGISTERS[plan.block_e // hopper.COLUMNS],
    }
    return hopper.lightning2_scan_hopper_kernel, operands, constants


@functools.cache
def _hopper() -> ModuleType | None:
    """The module of the kernel whose warps specialise, where Triton knows its language as of 3.6."""
    try:
        from attnbench.kernels import _hopper as found
    except ImportError:
        return None
    return found


def can_specialise() -> bool:
    """Whether plans may have warps that specialise, for tensors as torch allocates them."""
    return _hopper() is not None


def _plan_for(scans: Sequence[_ScanTraits], *, remembered: tuple[float, ...]) -> Plan:
    """The plan for one launch of these scans on their device."""
    q, v = scans[0].q, scans[0].v
    limits = _host.limits(q.device)
    hopper = _hopper()
    batch, heads, seq_len, key_dim = q.shape
    return plan(
        scans=len(scans),
        batch=batch,
        heads=heads,
        seq_len=seq_len,
        key_dim=key_dim,
        value_dim=v.shape[-1],
        element_size=q.dtype.itemsize,
        remembered=remembered,
        multiprocessors=limits.multiprocessors,
        shared_memory=limits.shared_memory,
        architecture=limits.architecture,
        specialised=hopper is not None and all(hopper.describable(x) for scan in scans for x in scan[:4]),
    )


def _geometric(heads: int) -> Sequence[float]:
    """The usual slopes, 2^(-8 (h + 1) / H): what a launch is planned for while their values are unknown."""
    return [2.0 ** (-8 * (head + 1) / heads) for head in range(heads)]


def _strides(tensors: Sequence[_host.Traits | None], *, dims: int) -> tuple[tuple[int, ...], ...]:
    """For each of the leading dims the strides of all tensors."""
    return tuple(zip(*(x.strides[:dims] for x in tensors if x is not None), strict=True))
