"""The scan of `_scan` for Hopper: the same function of its inputs, by warps that specialise.

A program is two or three groups of four warps. One asks the copy engine for tiles of q, k and v, in a ring of shared
memory, and turns k and q into the masked products of a chunk; each of the others keeps the state of 64 value columns
in its registers. They meet at barriers in shared memory only, so while one scales an output the tensor cores
work for another. Written in Gluon, as Triton's own language leaves the order of such work to its compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnbench.kernels._configs import GROUP_COLUMNS
from attnbench.kernels._host import Traits
from attnbench.kernels._tiles import pick, state_tile

__all__ = [
    "COLUMNS",
    "DESCRIPTORS",
    "REGISTERS",
    "Operands",
    "describable",
    "lightning2_scan_hopper_kernel",
    "operands",
]

COLUMNS = GROUP_COLUMNS
_WHOLE = 128  # columns of the keys, up to which a state is kept in one part
# Registers of a thread in the workers, by the groups that keep states; what is left has the first of them.
REGISTERS = {1: (88,), 2: (208, 88)}
DESCRIPTORS = 12  # of one launch at most: four tensors for each of three scans
_ALIGNMENT = 16  # bytes: what the copy engine wants of addresses and strides


@gluon.jit
def _next(slot, phase, COUNT: gl.constexpr):
    """The next slot of a ring, and the parity of its barrier, which turns with every round."""
    slot += 1
    return gl.where(slot == COUNT, 0, slot), gl.where(slot == COUNT, phase ^ 1, phase)


@gluon.jit
def _ask(d_q, d_k, d_v, ring, full, slot, where, with_q):
    """Asks for the tiles of one chunk; full turns when they are there."""
    i_b, i_h, i_n, i_e = where
    m_q, m_k, m_v = ring
    b_full = full.index(slot)
    mbarrier.expect(b_full, d_k.block_type.nbytes + d_v.block_type.nbytes, pred=with_q == 0)
    mbarrier.expect(
        b_full, d_q.block_type.nbytes + d_k.block_type.nbytes + d_v.block_type.nbytes, pred=with_q
    )
    tma.async_copy_global_to_shared(d_k, [i_b, i_h, i_n, 0], b_full, m_k.index(slot))
    tma.async_copy_global_to_shared(d_v, [i_b, i_h, i_n, i_e], b_full, m_v.index(slot))
    tma.async_copy_global_to_shared(d_q, [i_b, i_h, i_n, 0], b_full, m_q.index(slot), pred=with_q)


@gluon.jit
def _products(SCANS: gl.constexpr, descriptors, memory, place, factors, walked, chunks):
    """Keeps the ring full, and computes the masked products k q^T."""
    ring, m_p, _, _, full, empty, p_full, p_empty = memory
    i_scan, i_b, i_h, i_n, i_e, step, reverse = place
    slope, scale_o, scale_s = factors
    STAGES: gl.constexpr = ring[0].shape[0]
    C: gl.constexpr = ring[0].shape[3]
    DTYPE: gl.constexpr = ring[0].dtype
    # With four slots or more one lies idle, so that the next chunk is asked for before the last one is done with.
    AHEAD: gl.constexpr = STAGES - 1 if STAGES < 4 else STAGES - 2
    L_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    # lambda^{i-j}, keys by queries; the clamp keeps the excluded half from overflowing.
    b_gap = (
        gl.arange(0, C, gl.SliceLayout(0, L_P))[None, :] - gl.arange(0, C, gl.SliceLayout(1, L_P))[:, None]
    )
    b_gap = gl.where(reverse, -b_gap, b_gap)
    b_mask = gl.exp(-slope * gl.maximum(b_gap, 0).to(gl.float32))
    b_mask = gl.where(b_gap >= 0, b_mask * (scale_o * scale_s), 0.0)
    b_zero = gl.zeros([C, C], gl.float32, L_P)
    total = walked + chunks
    slot, phase = 0, 0
    into, into_phase = 0, 1
    for i in range(total + AHEAD):
        if i < total:
            mbarrier.wait(empty.index(into), into_phase)
            for scan in gl.static_range(SCANS):
                if i_scan == scan:
                    d_q, d_k, d_v = (
                        descriptors[4 * scan],
                        descriptors[4 * scan + 1],
                        descriptors[4 * scan + 2],
                    )
                    _ask(d_q, d_k, d_v, ring, full, into, (i_b, i_h, i_n, i_e), i >= walked)
            i_n += step
            into, into_phase = _next(into, into_phase, STAGES)
        if i >= AHEAD:
            turn = i - AHEAD - walked
            if turn >= 0:
                mbarrier.wait(full.index(slot), phase)
                m_q = ring[0].index(slot).reshape((C, ring[0].shape[4]))
                m_k = ring[1].index(slot).reshape((C, ring[1].shape[4]))
                b_p = warpgroup_mma(m_k, m_q.permute((1, 0)), b_zero, use_acc=False, is_async=True)
                b_p = warpgroup_mma_wait(0, deps=[b_p])
                mbarrier.wait(p_empty.index(turn & 1), ((turn >> 1) & 1) ^ 1)
                m_p.index(turn & 1).store((b_p * b_mask).to(DTYPE))
                fence_async_shared()
                mbarrier.arrive(p_full.index(turn & 1))
            slot, phase = _next(slot, phase, STAGES)


@gluon.constexpr_function
def _parts(block_d, scans):
    """Into how many parts a group's state is cut by the keys' columns. What several scans need to tell their tensors
    apart are registers too."""
    return 1 if block_d <= _WHOLE else block_d // (64 if scans == 1 else 32)


@gluon.jit
def _take_up(b_s, b_w, m_k, decay, PARTS: gl.constexpr):
    """The state after a chunk, of whose product with the weighted values nothing has been waited for."""
    PART: gl.constexpr = m_k.shape[1] // PARTS
    b_next = ()
    for part in gl.static_range(PARTS):
        m_x = m_k.slice(part * PART, PART, 1)
        b_next += (warpgroup_mma(b_w, m_x, b_s[part] * decay, is_async=True),)
    return b_next


@gluon.jit
def _wait_for_state(b_s, b_w, PARTS: gl.constexpr):
    """The same when it is there."""
    return warpgroup_mma_wait(0, deps=b_s + (b_w,))[:PARTS]  # noqa: RUF005 - not in this language


@gluon.jit
def _columns(
    GROUP: gl.constexpr,
    SCANS: gl.constexpr,
    D: gl.constexpr,
    E: gl.constexpr,
    WRITE_OUTPUT: gl.constexpr,
    descriptors,
    output,
    memory,
    place,
    factors,
    walked,
    chunks,
    before,
    after,
    between,
):
    """The state of one group's columns, transposed, through all chunks, and the outputs of those that have one."""
    ring, m_p, m_o, m_factors, full, empty, p_full, p_empty = memory
    i_scan, i_b, i_h, i_n, i_e, step, reverse = place
    slope, scale_o, scale_s = factors
    p_initial, stride_initial, keeps_initial = before
    p_final, stride_final, ends, last = after
    p_segments, o_states, segment_stride, earlier, segment_decay, reduces = between
    STAGES: gl.constexpr = ring[0].shape[0]
    C: gl.constexpr = ring[0].shape[3]
    BLOCK_D: gl.constexpr = ring[0].shape[4]
    BLOCK_E: gl.constexpr = ring[2].shape[4]
    WIDTH: gl.constexpr = m_o.shape[4]
    DTYPE: gl.constexpr = ring[0].dtype
    # The state lies in parts of the keys' columns. Where registers are short there are several: one at a time is made
    # an operand, decays within a chunk wait in shared memory, and the chunk is taken up when its output is done with.
    PARTS: gl.constexpr = _parts(BLOCK_D, SCANS)
    SHORT: gl.constexpr = PARTS > 1
    PART: gl.constexpr = BLOCK_D // PARTS
    L_S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    L_O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    L_SA: gl.constexpr = gl.DotOperandLayout(0, L_O, 2)
    L_WA: gl.constexpr = gl.DotOperandLayout(0, L_S, 2)
    i_e += GROUP * WIDTH

    # Positions in scan order: reversed, a tile's last row comes first.
    o_row = gl.arange(0, C, gl.SliceLayout(0, L_O))
    o_row = gl.where(reverse, C - 1 - o_row, o_row)
    o_column = gl.arange(0, C, gl.SliceLayout(0, L_WA))
    o_column = gl.where(reverse, C - 1 - o_column, o_column)
    b_row = gl.exp(-slope * o_row.to(gl.float32)) * scale_o  # [C]
    b_column = gl.exp(-slope * (C - o_column).to(gl.float32)) * scale_s  # [C]
    decay = gl.exp(-slope * C)
    m_row = m_factors.index(2 * GROUP)
    m_column = m_factors.index(2 * GROUP + 1)
    if SHORT:
        m_row.store(b_row)
        m_column.store(b_column)

    o_e = i_e + gl.arange(0, WIDTH, gl.SliceLayout(1, L_S))
    b_s = ()  # PARTS of [WIDTH, PART]
    for part in gl.static_range(PARTS):
        o_d = part * PART + gl.arange(0, PART, gl.SliceLayout(0, L_S))
        m_s = (o_e < E)[:, None] & (o_d < D)[None, :]
        # Zeros that the compiler cannot see: known ones would serialise the wgmma instructions (see `_tiles`).
        b_x = (o_e[:, None] + o_d[None, :]).to(gl.float32) * scale_o * 0.0
        if WRITE_OUTPUT:
            if p_initial is not None:
                p_tile = state_tile(p_initial, stride_initial, i_scan, SCANS, i_b, i_h, o_d, o_e)
                b_x = gl.load(p_tile, mask=m_s & keeps_initial, other=0.0)
                b_x *= gl.where(reverse, 1.0, gl.exp(-slope))
            if p_segments is not None:
                p_x = p_segments + o_states + (o_e[:, None] * D + o_d[None, :])
                for _ in range(earlier):
                    b_x = b_x * segment_decay + gl.load(p_x, mask=m_s, other=0.0)
                    p_x += segment_stride
        b_s += (b_x,)

    slot, phase = 0, 0
    for _ in range(walked):
        mbarrier.wait(full.index(slot), phase)
        m_k = ring[1].index(slot).reshape((C, BLOCK_D))
        m_v = ring[2].index(slot).reshape((C, BLOCK_E)).slice(GROUP * WIDTH, WIDTH, 1)
        if SHORT:
            b_column = m_column.load(gl.SliceLayout(0, L_WA))
        b_v = m_v.permute((1, 0)).load(L_WA)
        b_w = (b_v.to(gl.float32) * b_column[None, :]).to(DTYPE)
        b_s = _take_up(b_s, b_w, m_k, decay, PARTS)
        b_s = _wait_for_state(b_s, b_w, PARTS)
        mbarrier.arrive(empty.index(slot))
        i_n += step
        slot, phase = _next(slot, phase, STAGES)

    if not WRITE_OUTPUT:
        if reduces:
            for part in gl.static_range(PARTS):
                o_d = part * PART + gl.arange(0, PART, gl.SliceLayout(0, L_S))
                p_x = p_segments + o_states + (o_e[:, None] * D + o_d[None, :])
                gl.store(p_x, b_s[part], mask=(o_e < E)[:, None] & (o_d < D)[None, :])
    else:
        b_zero = gl.zeros([WIDTH, C], gl.float32, L_O)
        m_out = m_o.index(GROUP)
        for i in range(chunks):
            mbarrier.wait(full.index(slot), phase)
            m_q = ring[0].index(slot).reshape((C, BLOCK_D))
            m_k = ring[1].index(slot).reshape((C, BLOCK_D))
            m_v = ring[2].index(slot).reshape((C, BLOCK_E)).slice(GROUP * WIDTH, WIDTH, 1)
            if p_final is not None:  # noqa: SIM102 - decided by the compiler, the next one by the program
                if i == chunks - 1:
                    # Where the sequence ends the decay reaches to its last token; by exponents, as a division
                    # could overflow.
                    b_column = gl.exp(-slope * gl.maximum(last - o_column, 0).to(gl.float32)) * scale_s
                    decay = gl.exp(-slope * last.to(gl.float32))
                    if SHORT:
                        m_column.store(b_column)
            b_o = b_zero
            for part in gl.static_range(PARTS):
                b_sa = gl.convert_layout(b_s[part].to(DTYPE), L_SA)
                m_x = m_q.slice(part * PART, PART, 1).permute((1, 0))
                b_o = warpgroup_mma(b_sa, m_x, b_o, use_acc=part > 0, is_async=True)
                if SHORT:
                    b_o, b_sa = warpgroup_mma_wait(0, deps=[b_o, b_sa])
            if SHORT:
                b_o = b_o * m_row.load(gl.SliceLayout(0, L_O))[None, :]
                mbarrier.wait(p_full.index(i & 1), (i >> 1) & 1)
                b_o = warpgroup_mma(m_v.permute((1, 0)), m_p.index(i & 1), b_o, is_async=True)
                b_o = warpgroup_mma_wait(0, deps=[b_o])
            else:
                b_v = m_v.permute((1, 0)).load(L_SA)
                b_w = (gl.convert_layout(b_v, L_WA).to(gl.float32) * b_column[None, :]).to(DTYPE)
                b_s = _take_up(b_s, b_w, m_k, decay, PARTS)
                b_o, b_sa = warpgroup_mma_wait(1, deps=[b_o, b_sa])
                b_o = b_o * b_row[None, :]
                mbarrier.wait(p_full.index(i & 1), (i >> 1) & 1)
                b_o = warpgroup_mma(b_v, m_p.index(i & 1), b_o, is_async=True)
                b_o, b_v = warpgroup_mma_wait(0, deps=[b_o, b_v])
                b_s = _wait_for_state(b_s, b_w, PARTS)
                mbarrier.arrive(empty.index(slot))
            mbarrier.arrive(p_empty.index(i & 1))
            tma.store_wait(0)  # the output before this one has left
            m_out.reshape((C, WIDTH)).permute((1, 0)).store(b_o.to(DTYPE))
            fence_async_shared()
            if i_n >= 0:
                for scan in gl.static_range(SCANS):
                    if i_scan == scan:
                        tma.async_copy_shared_to_global(
                            descriptors[4 * scan + 3], [i_b, i_h, i_n, i_e], m_out
                        )
            if SHORT:
                b_v = m_v.permute((1, 0)).load(L_WA)
                b_w = (b_v.to(gl.float32) * m_column.load(gl.SliceLayout(0, L_WA))[None, :]).to(DTYPE)
                b_s = _take_up(b_s, b_w, m_k, decay, PARTS)
                b_s = _wait_for_state(b_s, b_w, PARTS)
                mbarrier.arrive(empty.index(slot))
            i_n += step
            slot, phase = _next(slot, phase, STAGES)
        if p_final is not None:  # noqa: SIM102 - as above
            if ends:
                for part in gl.static_range(PARTS):
                    o_d = part * PART + gl.arange(0, PART, gl.SliceLayout(0, L_S))
                    p_tile = state_tile(p_final, stride_final, i_scan, SCANS, i_b, i_h, o_d, o_e)
                    gl.store(p_tile, b_s[part], mask=(o_e < E)[:, None] & (o_d < D)[None, :])
        tma.store_wait(0)
        if i_n + C < 0:
            # Reversed, the last chunk may begin before the sequence. The copy engine reads such a tile but cannot write
            # one, so its rows are stored from registers.
            L_OUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
            o_n = i_n + C + gl.arange(0, C, gl.SliceLayout(1, L_OUT))
            o_v = i_e + gl.arange(0, WIDTH, gl.SliceLayout(0, L_OUT))
            p_o, stride_o = output
            p_o = pick(p_o, i_scan, SCANS)
            p_o += i_b * pick(stride_o[0], i_scan, SCANS) + i_h * pick(stride_o[1], i_scan, SCANS)
            p_o += o_n.to(gl.int64)[:, None] * pick(stride_o[2], i_scan, SCANS) + o_v[None, :]
            gl.store(
                p_o, m_out.reshape((C, WIDTH)).load(L_OUT), mask=(o_n >= 0)[:, None] & (o_v < E)[None, :]
            )


@gluon.jit(do_not_specialize=["N", "B", "H", "segments", "segment_len", "reach"])
def lightning2_scan_hopper_kernel(
    d_0,
    d_1,
    d_2,
    d_3,
    d_4,
    d_5,
    d_6,
    d_7,
    d_8,
    d_9,
    d_10,
    d_11,
    p_o,
    p_slopes,
    p_initial,
    p_final,
    p_segments,
    scale_o,
    scale_s,
    stride_o,
    stride_initial,
    stride_final,
    N,
    B,
    H,
    segments,
    segment_len,
    reach,
    REVERSE: gl.constexpr,
    D: gl.constexpr,
    E: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_E: gl.constexpr,
    WRITE_OUTPUT: gl.constexpr,
    SCANS: gl.constexpr,
    SEGMENTED: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """One segment of one head of one scan, BLOCK_E value columns: `lightning2_scan_kernel` says what it computes.

    d_0 to d_11: descriptors of q, k, v and the output [B, H, N, columns] of each scan in turn, then None; p_o: the
    outputs once more, by address. REGISTERS: of
    a thread of the workers, in their order. Rows and columns outside a tensor are read as zeros and not
    written, so no tile is masked.
    """
    GROUPS: gl.constexpr = BLOCK_E // 64
    E_TILES: gl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    DTYPE: gl.constexpr = d_0.dtype
    L_M: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    L_T: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    # The order of the programs is that of `lightning2_scan_kernel`.
    i_program = gl.program_id(0)
    i_e = (i_program % E_TILES) * BLOCK_E
    i_program //= E_TILES
    i_scan = i_program % SCANS
    i_program //= SCANS
    i_segment = i_program % segments
    i_program //= segments
    i_b = i_program % B
    i_h = H - 1 - i_program // B
    scale_o = pick(scale_o, i_scan, SCANS)
    scale_s = pick(scale_s, i_scan, SCANS)
    reverse = pick(REVERSE, i_scan, SCANS)
    slope = gl.to_tensor(0.0)
    if p_slopes is not None:
        slope = gl.load(p_slopes + i_h)

    i_start = i_segment * segment_len
    length = gl.minimum(N - i_start, segment_len)
    walked = gl.to_tensor(0)
    earlier = gl.to_tensor(0)
    keeps_initial = gl.to_tensor(True)
    reduces = gl.to_tensor(False)
    # States of segments lie as [segment, scan * batch * head, E, D].
    segment_stride = gl.to_tensor(SCANS * E * D).to(gl.int64) * B * H
    o_states = ((i_scan * B + i_b) * H + i_h).to(gl.int64) * (E * D)
    chunks = (length + BLOCK_C - 1) // BLOCK_C
    if WRITE_OUTPUT:
        if SEGMENTED:
            forgets = gl.to_tensor(True)
            if p_segments is not None:
                forgets = slope * segment_len * 2 >= reach
            remembered = gl.minimum(reach / gl.maximum(slope, 1e-30), i_start.to(gl.float32))  # tokens
            walked = gl.where(forgets, gl.ceil(remembered / BLOCK_C).to(gl.int32), 0)
            earlier = gl.minimum(gl.ceil(remembered / segment_len).to(gl.int32), i_segment)  # segments
            keeps_initial = gl.where(forgets, walked * BLOCK_C == i_start, earlier == i_segment)
            if p_segments is not None:
                earlier = gl.where(forgets, 0, earlier)
                o_states += (i_segment - earlier) * segment_stride
    else:
        reduces = slope * segment_len * 2 < reach
        walked = gl.where(reduces, segment_len // BLOCK_C, 0)
        chunks = 0
        o_states += i_segment * segment_stride

    # To the last token forward, one further reversed; a chunk's worth where the sequence goes on.
    tail = length - ((length - 1) // BLOCK_C) * BLOCK_C
    ends = i_segment == segments - 1
    last = gl.where(ends, gl.where(reverse, tail, tail - 1), BLOCK_C)
    i_first = i_start
    if WRITE_OUTPUT:
        i_first = i_start - walked * BLOCK_C
    i_n = gl.where(reverse, N - i_first - BLOCK_C, i_first)
    step = gl.where(reverse, -BLOCK_C, BLOCK_C)

    m_q = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK_C, BLOCK_D], L_T)
    m_k = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK_C, BLOCK_D], L_T)
    m_v = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK_C, BLOCK_E], L_T)
    m_p = gl.allocate_shared_memory(DTYPE, [2, BLOCK_C, BLOCK_C], L_M)
    m_o = gl.allocate_shared_memory(DTYPE, [GROUPS, 1, 1, BLOCK_C, 64], L_T)
    m_factors = gl.allocate_shared_memory(
        gl.float32, [2 * GROUPS, BLOCK_C], gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    p_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    p_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    for i in gl.static_range(2):
        mbarrier.init(p_full.index(i), count=1)
        mbarrier.init(p_empty.index(i), count=GROUPS)
    fence_async_shared()

    memory = ((m_q, m_k, m_v), m_p, m_o, m_factors, full, empty, p_full, p_empty)
    place = (i_scan, i_b, i_h, i_n, i_e, step, reverse)
    factors = (slope, scale_o, scale_s)
    descriptors = (d_0, d_1, d_2, d_3, d_4, d_5, d_6, d_7, d_8, d_9, d_10, d_11)
    output = (p_o, stride_o)
    before = (p_initial, stride_initial, keeps_initial)
    after = (p_final, stride_final, ends, last)
    between = (p_segments, o_states, segment_stride, earlier, gl.exp(-slope * segment_len), reduces)
    # Compile-time values stay such in a tuple that is written where it is used.
    # fmt: off
    if GROUPS == 1:
        gl.warp_specialize([
            (_columns, (gl.constexpr(0), SCANS, D, E, WRITE_OUTPUT, descriptors, output, memory, place, factors, walked,
                        chunks, before, after, between)),
            (_products, (SCANS, descriptors, memory, place, factors, walked, chunks)),
        ], [4], REGISTERS)
    else:
        gl.warp_specialize([
            (_columns, (gl.constexpr(0), SCANS, D, E, WRITE_OUTPUT, descriptors, output, memory, place, factors, walked,
                        chunks, before, after, between)),
            (_columns, (gl.constexpr(1), SCANS, D, E, WRITE_OUTPUT, descriptors, output, memory, place, factors, walked,
                        chunks, before, after, between)),
            (_products, (SCANS, descriptors, memory, place, factors, walked, chunks)),
        ], [4, 4], REGISTERS)
    # fmt: on


def describable(x: Traits) -> bool:
    """Whether the copy engine can reach a tensor [B, H, N, columns]: addresses and strides of whole 16 bytes."""
    whole = _ALIGNMENT // x.dtype.itemsize
    outer = [stride for size, stride in zip(x.shape[:-1], x.strides[:-1], strict=True) if size > 1]
    return x.aligned and all(stride > 0 and stride % whole == 0 for stride in outer)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Descriptors of q, k, v and the output of each scan of a launch, but for their addresses; then all outputs."""

    fields: tuple[dict[str, Any], ...]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The kernel's leading arguments."""
        found: list[Any] = []
        for tensor, fields in zip(tensors, self.fields, strict=True):
            # Its constructor checks what `describable` has checked already, in more time than the launch takes.
            descriptor = object.__new__(TensorDescriptor)
            descriptor.__dict__.update(fields, base=tensor)
            found.append(descriptor)
        return (*found, *[None] * (DESCRIPTORS - len(found)), tuple(tensors[3::4]))


def operands(tensors: Sequence[Traits], *, block_c: int, block_d: int, block_e: int) -> Operands:
    """How to describe q, k, v and the output of each scan in turn."""
    widths = (block_d, block_d, block_e, COLUMNS)
    return Operands(
        fields=tuple(
            _fields(x, block_c=block_c, width=widths[i % len(widths)]) for i, x in enumerate(tensors)
        )
    )


def _fields(x: Traits, *, block_c: int, width: int) -> dict[str, Any]:
    """All of a descriptor but its tensor. The stride of a dimension of one is nobody's, but has to be a valid one."""
    whole = _ALIGNMENT // x.dtype.itemsize
    strides = [s if n > 1 else whole for n, s in zip(x.shape[:-1], x.strides[:-1], strict=True)]
    return {
        "shape": list(x.shape),
        "strides": [*strides, 1],
        "block_shape": [1, 1, block_c, width],
        "layout": gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4),
        "padding": "zero",
    }
