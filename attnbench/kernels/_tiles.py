"""Addresses and loads of tiles of rows, in scan order: forwards, or from the last token to the first."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pick(options, i, COUNT: tl.constexpr):
    """Option i of COUNT scalars or pointers; i is known to the running program only."""
    x = options[0]
    for other in tl.static_range(1, COUNT):
        x = tl.where(i == other, options[other], x)
    return x


@triton.jit
def pick_strides(options, i, COUNT: tl.constexpr):
    """Strides (batch, head, token) of option i; options: for each of the three a tuple of COUNT."""
    return pick(options[0], i, COUNT), pick(options[1], i, COUNT), pick(options[2], i, COUNT)


@triton.jit
def state_tile(p_x, stride, i_scan, SCANS: tl.constexpr, i_b, i_h, o_d, o_e):
    """Pointers to a tile of one scan's state [B, H, D, E], transposed: as wide as o_d, as high as o_e."""
    p_x = pick(p_x, i_scan, SCANS)
    p_x += i_b * pick(stride[0], i_scan, SCANS) + i_h * pick(stride[1], i_scan, SCANS)
    p_x += o_d.to(tl.int64)[None, :] * pick(stride[2], i_scan, SCANS)
    return p_x + o_e.to(tl.int64)[:, None] * pick(stride[3], i_scan, SCANS)


@triton.jit
def first_row(p_x, stride, i_b, i_h, i_n, N, reverse):
    """Pointer to row i_n, in scan order, of one head; stride = (batch, head, token); i_b and i_h are
    int64."""
    i_n = tl.where(reverse, N - 1 - i_n, i_n)
    return p_x + i_b * stride[0] + i_h * stride[1] + tl.cast(i_n, tl.int64) * stride[2]


@triton.jit
def row_offsets(o_n, stride, INDEX: tl.constexpr, reverse):
    """Offsets of a tile's rows o_n from its first, in scan order, in the integer type INDEX."""
    o_n = tl.where(reverse, -o_n, o_n)
    return o_n.to(INDEX) * stride[2]


@triton.jit
def load_tile(p_x, o_x, m_n, m_x, DTYPE: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):
    """One [rows, columns] tile; zero where a mask that is in use excludes it."""
    if MASK_ROWS and MASK_COLUMNS:
        b_x = tl.load(p_x + o_x, mask=m_n[:, None] & m_x[None, :], other=0.0)
    elif MASK_ROWS:
        b_x = tl.load(p_x + o_x, mask=m_n[:, None], other=0.0)
    elif MASK_COLUMNS:
        b_x = tl.load(p_x + o_x, mask=m_x[None, :], other=0.0)
    else:
        b_x = tl.load(p_x + o_x)
    return b_x.to(DTYPE)


@triton.jit
def zero_accumulator(o_m, o_n, factor):
    """Zeros [rows, columns] in fp32, which the compiler cannot see to be zeros; factor: any finite float.

    Plain zeros are one constant, copied into every accumulator register, and on Hopper that makes ptxas wait
    after each wgmma instruction of the loop (its note C7515: "serialized due to non wgmma instructions
    defining accumulator registers").
    """
    return (o_m[:, None] + o_n[None, :]).to(tl.float32) * factor * 0.0
