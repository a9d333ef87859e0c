"""Lightning Attention-1: the left product (q k^T * M) v by tiles, in time quadratic in N.

FlashAttention's loop without its softmax. As for Lightning-2, one kernel serves the forward and all
gradients: with F the forward and R the same in reversed time, dq = F(do, v, k), dk = R(v, do, q), dv = R(k,
q, do).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from attnbench.kernels import _host, _validate
from attnbench.kernels._configs import Tiles, tile_config
from attnbench.kernels._plan import next_power_of_two
from attnbench.kernels._tiles import first_row, load_tile, row_offsets, zero_accumulator

__all__ = ["Tiles", "left_product", "lightning_attention_1"]


@triton.jit(do_not_specialize=["N", "H", "scale"])
def lightning1_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_slopes,
    scale,
    stride_q,
    stride_k,
    stride_v,
    stride_o,
    N,
    H,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    REVERSE: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """One tile of queries of one head, one tile of value columns; keys up to the diagonal, in scan order."""
    E_TILES: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    MASK_D: tl.constexpr = D != BLOCK_D
    MASK_E: tl.constexpr = E % BLOCK_E != 0
    # The longest rows start first, so that the short ones even out the end.
    i_m = tl.num_programs(1) - 1 - tl.program_id(1)
    i_e = tl.program_id(0) % E_TILES
    i_bh = (tl.program_id(0) // E_TILES).to(tl.int64)
    i_b = i_bh // H
    i_h = i_bh % H

    slope = 0.0
    if p_slopes is not None:
        slope = tl.load(p_slopes + i_h)

    i_start = i_m * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_e = i_e * BLOCK_E + tl.arange(0, BLOCK_E)
    m_m = o_m < N - i_start
    m_d = o_d < D
    m_e = o_e < E

    p_q = first_row(p_q, stride_q, i_b, i_h, i_start, N, REVERSE)
    p_o = first_row(p_o, stride_o, i_b, i_h, i_start, N, REVERSE)
    p_k = first_row(p_k, stride_k, i_b, i_h, 0, N, REVERSE)
    p_v = first_row(p_v, stride_v, i_b, i_h, 0, N, REVERSE)
    o_q = row_offsets(o_m, stride_q, INDEX, REVERSE)[:, None] + o_d[None, :]  # [BLOCK_M, BLOCK_D]
    o_o = row_offsets(o_m, stride_o, INDEX, REVERSE)[:, None] + o_e[None, :]  # [BLOCK_M, BLOCK_E]
    o_k = row_offsets(o_n, stride_k, INDEX, REVERSE)[:, None] + o_d[None, :]  # [BLOCK_N, BLOCK_D]
    o_v = row_offsets(o_n, stride_v, INDEX, REVERSE)[:, None] + o_e[None, :]  # [BLOCK_N, BLOCK_E]
    step: tl.constexpr = -BLOCK_N if REVERSE else BLOCK_N
    step_k = tl.cast(stride_k[2], tl.int64) * step
    step_v = tl.cast(stride_v[2], tl.int64) * step

    b_q = load_tile(p_q, o_q, m_m, m_d, DTYPE, True, MASK_D)
    b_o = zero_accumulator(o_m, o_e, scale)  # [BLOCK_M, BLOCK_E]

    # Left of the diagonal lambda^{i-j} splits at the first query and at the end of the key block:
    # lambda^{i - start} * lambda^{start - end} * lambda^{end - j}, each factor at most 1.
    b_column = tl.exp(-slope * (BLOCK_N - o_n).to(tl.float32))  # [BLOCK_N]
    for i_n in range(0, i_start, BLOCK_N):
        b_k = load_tile(p_k, o_k, o_n, m_d, DTYPE, False, MASK_D)
        b_v = load_tile(p_v, o_v, o_n, m_e, DTYPE, False, MASK_E)
        decay = tl.exp(-slope * (i_start - i_n - BLOCK_N).to(tl.float32))
        b_p = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        b_p *= (b_column * decay)[None, :]
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision="ieee")
        p_k += step_k
        p_v += step_v
    b_o *= tl.exp(-slope * o_m.to(tl.float32))[:, None]

    for i_n in tl.range(0, BLOCK_M, BLOCK_N, num_stages=1):
        m_n = o_n < N - i_start - i_n
        b_k = load_tile(p_k, o_k, m_n, m_d, DTYPE, True, MASK_D)
        b_v = load_tile(p_v, o_v, m_n, m_e, DTYPE, True, MASK_E)
        b_gap = o_m[:, None] - (i_n + o_n)[None, :]  # [BLOCK_M, BLOCK_N]
        b_mask = tl.where(b_gap >= 0, tl.exp(-slope * tl.maximum(b_gap, 0).to(tl.float32)), 0.0)
        b_p = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * b_mask  # [BLOCK_M, BLOCK_N]
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision="ieee")
        p_k += step_k
        p_v += step_v

    tl.store(p_o + o_o, b_o * scale, mask=m_m[:, None] & m_e[None, :])


def tiles(
    *,
    key_dim: int,
    value_dim: int,
    element_size: int,
    shared_memory: int,
    architecture: str,
    config: Tiles | None = None,
) -> Tiles:
    """The launch configuration for these dims: that of the architecture's table, or `config` in the place of
    its row, with as many stages as fit the shared memory (bytes)."""
    block_d = next_power_of_two(key_dim)
    row = config or tile_config(architecture, element_size=element_size, key_dim=key_dim)
    block_m, block_n, num_stages = row.block_m, row.block_n, row.num_stages
    block_e = min(row.block_e, next_power_of_two(value_dim))

    def shared() -> int:
        return element_size * (block_m * block_d + num_stages * block_n * (block_d + block_e))

    while shared() > shared_memory and (num_stages > 1 or block_m > block_n):
        if num_stages > 1:
            num_stages -= 1
        else:
            block_m //= 2
    return Tiles(
        block_m=block_m, block_n=block_n, block_e=block_e, num_warps=row.num_warps, num_stages=num_stages
    )


def left_product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    slopes: torch.Tensor | None,
    scale: float,
    reverse: bool = False,
    config: Tiles | None = None,
) -> None:
    """Launches out = F(q, k, v), or R(q, k, v) with reverse. Nothing is checked or waited for.

    q, k: [B, H, N, D]; v, out: [B, H, N, E]; slopes: fp32 [H] or None. config: in the place of the table's
    row.
    """
    launch = _prepare(
        *map(_host.traits, (q, k, v, out)), None if slopes is None else _host.traits(slopes), reverse, config
    )
    with _host.on_device(q.device):
        launch(q, k, v, out, slopes, scale)


@functools.lru_cache(maxsize=1024)
def _prepare(
    q: _host.Traits,
    k: _host.Traits,
    v: _host.Traits,
    out: _host.Traits,
    slopes: _host.Traits | None,
    reverse: bool,
    config: Tiles | None,
) -> _host.Launch:
    """All of a launch that does not change from call to call."""
    limits = _host.limits(q.device)
    batch, heads, seq_len, key_dim = q.shape
    value_dim = v.shape[-1]
    chosen = tiles(
        key_dim=key_dim,
        value_dim=value_dim,
        element_size=q.dtype.itemsize,
        shared_memory=limits.shared_memory,
        architecture=limits.architecture,
        config=config,
    )
    programs = triton.cdiv(value_dim, chosen.block_e) * batch * heads
    constants = {
        "stride_q": q.strides[:3],
        "stride_k": k.strides[:3],
        "stride_v": v.strides[:3],
        "stride_o": out.strides[:3],
        "N": seq_len,
        "H": heads,
        "D": key_dim,
        "E": value_dim,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_D": next_power_of_two(key_dim),
        "BLOCK_E": chosen.block_e,
        "REVERSE": reverse,
        "DTYPE": _host.operand_dtype(q.dtype),
        "INDEX": _host.index_dtype(chosen.block_m, q, k, v, out),
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
    }
    return _host.Launch(lightning1_kernel, (programs, triton.cdiv(seq_len, chosen.block_m)), constants)


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """o; nothing is checked."""
    out = _host.empty_in_order_of(v)
    left_product(q, k, v, out=out, slopes=slopes, scale=scale)
    return out


def _backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    *,
    scale: float,
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """dq, dk and dv: those of them that are needed, else None."""
    need_q, need_k, need_v = needed
    dq = dk = dv = None
    if do.stride(-1) != 1:
        do = do.contiguous()
    if need_q:
        dq = _host.empty_in_order_of(q)
        left_product(do, v, k, out=dq, slopes=slopes, scale=scale)
    if need_k:
        dk = _host.empty_in_order_of(k)
        left_product(v, do, q, out=dk, slopes=slopes, scale=scale, reverse=True)
    if need_v:
        dv = _host.empty_in_order_of(v)
        left_product(k, q, do, out=dv, slopes=slopes, scale=scale, reverse=True)
    return dq, dk, dv


class _LightningAttention1(torch.autograd.Function):
    """Keeps q, k, v and the slopes for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v, slopes)
        ctx.scale = scale
        return _forward(q, k, v, slopes, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[:3]
        dq, dk, dv = _backward(do, *ctx.saved_tensors, scale=ctx.scale, needed=needed)
        return dq, dk, dv, None, None


def lightning_attention_1(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
) -> torch.Tensor:
    """Causal linear attention with constant decay by the left product: work quadratic in N, memory linear.

        o_t = scale * sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s

    Lightning Attention-1, the predecessor that arXiv 2401.04658 compares with: tiles of (q k^T * M) v, o
    written once.

    q, k: [B, H, N, D]; v: [B, H, N, E]; float32, float16 or bfloat16, any strides with a unit last one; D and
    E multiples of 16 up to 256; N at least 1. slopes: float32 [H], at least 0, or None for no decay; on the
    CPU, or on q's device as a CUDA graph needs. scale: a float.

    Returns o [B, H, N, E] in v's dtype, its dimensions in memory in the order of v's. Differentiable in q, k
    and v.

    Raises TypeError or ValueError, naming the tensor, for a dtype, shape, device, stride or slope that does
    not fit.
    """
    scale = _validate.scale(scale)
    out: torch.Tensor
    if _host.seen_by_torch():  # the operator checks its inputs when it runs
        out = _lightning1(q, k, v, slopes, scale)
        return out
    _validate.qkv("lightning_attention_1", q, k, v, layout="B, H, N")
    slopes, _ = _validate.slopes(slopes, q)
    out = _LightningAttention1.apply(q, k, v, slopes, scale)
    return out


# The same as custom operators, as in `lightning2`, whose comment says for whom.


@torch.library.custom_op("attnbench::lightning1", mutates_args=())
def _lightning1(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None, scale: float
) -> torch.Tensor:
    _validate.qkv("lightning_attention_1", q, k, v, layout="B, H, N")
    slopes, _ = _validate.slopes(slopes, q, read=False)
    return _forward(q, k, v, slopes, scale)


@_lightning1.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None, scale: float
) -> torch.Tensor:
    return _host.empty_in_order_of(v)


@torch.library.custom_op("attnbench::lightning1_backward", mutates_args=())
def _lightning1_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    scale: float,
    needed: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    slopes, _ = _validate.slopes(slopes, q, read=False)
    gradients = _backward(do, q, k, v, slopes, scale=scale, needed=needed)
    dq, dk, dv = (q.new_empty(0) if x is None else x for x in gradients)
    return dq, dk, dv


@_lightning1_backward.register_fake
def _(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    scale: float,
    needed: Sequence[bool],
) -> tuple[torch.Tensor, ...]:
    return tuple(
        _host.empty_in_order_of(x) if need else q.new_empty(0)
        for x, need in zip((q, k, v), needed, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    q, k, v, slopes, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, slopes)


def _gradients(ctx: Any, do: torch.Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.attnbench.lightning1_backward(do, *ctx.saved_tensors, ctx.scale, needed)
    dq, dk, dv = (x if need else None for x, need in zip(gradients, needed, strict=True))
    return dq, dk, dv, None, None


_lightning1.register_autograd(_gradients, setup_context=_setup_context)
