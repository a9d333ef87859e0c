"""Lightning Attention 1 and 2 in plain PyTorch: the papers' algorithms for machines without a GPU.

Both compute o_t = scale * sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s and save nothing for the backward
but their inputs. Work is done in fp32, whatever the dtype of the inputs (in fp64 for fp64). With F(q, k, v)
the forward and R its time reverse, a sum over s >= t, the gradients have the same form: dq = F(do, v, k),
dk = R(v, do, q), dv = R(k, q, do).

Source: "Lightning Attention-2" (arXiv 2401.04658), Alg. 1 and 2, with lambda = exp(-slope) and the Lambda
that is defined there, diag(lambda^1, ..., lambda^C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.contract import Step, need_causal
from attnbench.case import Case

CHUNK = 128  # tokens of a block; the paper advises about the head dim, and on CPUs 128 measured fastest


def lightning2(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-2: left product inside a chunk, a running [D, E] state between chunks.

    q, k: [B, H, N, D], v: [B, H, N, E], any strides, slopes: fp32 [H], >= 0, or None for no decay; returns
    [B, H, N, E] in the input dtype. Slopes get no gradient.

    Raises ValueError for causal=False.
    """
    need_causal(causal)
    apply: Callable[..., Tensor] = _operator2 if torch.compiler.is_compiling() else _Lightning2.apply
    return apply(q, k, v, _slopes_like(q, slopes), scale)


def lightning2_decode(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One token by the recurrence, three torch operators and no kernel of ours; the state is updated in place.

        S <- exp(-slope) S + k^T v        o = scale * q S        (arXiv 2401.04658, section 3.1)

    q, k: [B, H, D], v: [B, H, E], state: fp32 [B, H, D, E], slopes: fp32 [H] or None; the step returns o [B, H, E] in
    the dtype of v, and the state.
    """
    decay = None if slopes is None else torch.exp(-slopes.to(state))[:, None, None]

    def step() -> tuple[Tensor, ...]:
        query, key, value = (x.to(state.dtype) for x in (q, k, v))
        if decay is not None:
            state.mul_(decay)
        state.addcmul_(key[..., :, None], value[..., None, :])
        o = torch.matmul(query[..., None, :], state)[..., 0, :]
        return o.mul_(scale).to(v.dtype), state

    return step


def lightning1(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-1: the left product in tiles up to the diagonal; no state, no N x N matrix.

    Shapes and errors as for `lightning2`.
    """
    need_causal(causal)
    apply: Callable[..., Tensor] = _operator1 if torch.compiler.is_compiling() else _Lightning1.apply
    return apply(q, k, v, _slopes_like(q, slopes), scale)


def lightning2_state_bytes(case: Case, device: torch.device) -> int:
    """Bytes of the fp32 recurrent state, [B, H, D, E]."""
    return case.batch * case.heads * case.head_dim * case.value_dim * 4


def lightning2_config(case: Case, device: torch.device) -> dict[str, Any]:
    """Tokens per chunk."""
    return {"chunk": CHUNK}


def lightning1_config(case: Case, device: torch.device) -> dict[str, Any]:
    """Tokens per query tile and per key tile."""
    return {"query_tile": CHUNK, "key_tile": CHUNK}


class _KeepsInputs(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        q, k, v, slopes, scale = inputs
        ctx.save_for_backward(q, k, v, slopes)
        ctx.scale = scale


def _gradients2(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, _ = _forward_sweep(do, v, k, slopes=slopes, scale=scale)
    dk, dv = _reverse_sweep(q, k, v, do, slopes=slopes, scale=scale)
    return dq, dk, dv


def _gradients1(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq = _left_product(do, v, k, slopes=slopes, scale=scale)
    dk = _left_product(v, do, q, slopes=slopes, scale=scale, reverse=True)
    dv = _left_product(k, q, do, slopes=slopes, scale=scale, reverse=True)
    return dq, dk, dv


class _Lightning2(_KeepsInputs):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float) -> Tensor:
        return _forward_sweep(q, k, v, slopes=slopes, scale=scale)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, slopes = ctx.saved_tensors
        return *_gradients2(grads[0], q, k, v, slopes, ctx.scale), None, None


class _Lightning1(_KeepsInputs):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float) -> Tensor:
        return _left_product(q, k, v, slopes=slopes, scale=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, slopes = ctx.saved_tensors
        return *_gradients1(grads[0], q, k, v, slopes, ctx.scale), None, None


_Gradients = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _as_operator(
    name: str, function: Any, gradients: _Gradients, *, like: tuple[int, int, int]
) -> Callable[..., Tensor]:
    """The same for compiled code, which must not look inside: it would trace a loop over all chunks.

    like: whose strides the gradients have, as places among do, q, k and v. Eager calls do not take this way: to those
    who count the memory of operators, it would be one.
    """
    operator: Any = torch.library.custom_op(f"attnbench::{name}", function.forward, mutates_args=())
    backward: Any = torch.library.custom_op(f"attnbench::{name}_backward", gradients, mutates_args=())
    operator.register_fake(lambda q, k, v, slopes, scale: torch.empty_like(v))
    backward.register_fake(lambda *inputs: tuple(torch.empty_like(inputs[place]) for place in like))
    operator.register_autograd(
        lambda ctx, do: (*backward(do, *ctx.saved_tensors, ctx.scale), None, None),
        setup_context=function.setup_context,
    )
    made: Callable[..., Tensor] = operator
    return made


_operator2 = _as_operator("lightning2_torch", _Lightning2, _gradients2, like=(2, 2, 3))
_operator1 = _as_operator("lightning1_torch", _Lightning1, _gradients1, like=(2, 1, 0))


def forward_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """o [B, H, N, E] and S_N [B, H, D, E] of `lightning2` from the state S_0; None: from an empty one. No gradient.

    Shapes as for `lightning2`; states in fp32, in fp64 for fp64 inputs; the scale joins o and never the state, as in
    `attnbench.kernels.lightning_attention_2`.
    """
    return _forward_sweep(q, k, v, slopes=_slopes_like(q, slopes), scale=scale, initial=initial_state)


def key_value_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    dstate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dk [B, H, N, D] and dv [B, H, N, E] of `forward_with_state`, through o and through S_N.

    do: [B, H, N, E]; dstate: [B, H, D, E], the gradient of S_N; None: zero.
    """
    return _reverse_sweep(q, k, v, do, slopes=_slopes_like(q, slopes), scale=scale, dstate=dstate)


def _forward_sweep(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """F(q, k, v) and the last state: chunks from first to last (Alg. 1, and the first loop of Alg. 2)."""
    o = torch.empty_like(v)
    state = _empty_state(q, v, slopes) if initial is None else initial
    for chunk in _chunks(q):
        qc, kc, vc = (_widen(x, chunk, slopes.dtype) for x in (q, k, v))
        decay = _Decay(slopes, len(chunk))
        intra = (qc @ kc.mT * decay.mask) @ vc
        inter = decay.from_start * qc @ state
        o[..., chunk.start : chunk.stop, :] = scale * (intra + inter)
        state = decay.whole * state + (decay.to_end * kc).mT @ vc
    return o, state


def _reverse_sweep(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    *,
    slopes: Tensor,
    scale: float,
    dstate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dk and dv: chunks from last to first with the dKV state that both need (the second loop of Alg. 2)."""
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    state = _empty_state(q, v, slopes) if dstate is None else dstate
    for chunk in reversed(_chunks(q)):
        qc, kc, vc, doc = (_widen(x, chunk, slopes.dtype) for x in (q, k, v, do))
        decay = _Decay(slopes, len(chunk))
        here = slice(chunk.start, chunk.stop)
        dk[..., here, :] = scale * (doc @ vc.mT * decay.mask).mT @ qc + decay.to_end * vc @ state.mT
        dv[..., here, :] = scale * (qc @ kc.mT * decay.mask).mT @ doc + decay.to_end * kc @ state
        # The gradient of the last state comes in without the scale, which therefore joins each token.
        state = decay.whole * state + (scale * decay.from_start * qc).mT @ doc
    return dk, dv


def _empty_state(q: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    return slopes.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])


def _left_product(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, reverse: bool = False
) -> Tensor:
    """F(q, k, v), or R(q, k, v) for reverse: tiles of queries against the tiles of keys on their side."""
    o = torch.empty_like(v)
    tiles = _chunks(q)
    for i, rows in enumerate(tiles):
        qi = _widen(q, rows, slopes.dtype)
        total = slopes.new_zeros(*v.shape[:2], len(rows), v.shape[-1])
        for columns in tiles[i:] if reverse else tiles[: i + 1]:
            kj, vj = (_widen(x, columns, slopes.dtype) for x in (k, v))
            total += (qi @ kj.mT * _tile_mask(slopes, rows, columns, reverse=reverse)) @ vj
        o[..., rows.start : rows.stop, :] = scale * total
    return o


class _Decay:
    """The decay factors of a chunk of C tokens, all <= 1 and broadcastable over [B, H, ...]."""

    def __init__(self, slopes: Tensor, length: int) -> None:
        """slopes: [H]; length: C."""
        tokens = range(length)
        position = torch.arange(1, length + 1, device=slopes.device, dtype=slopes.dtype)[:, None]
        rate = -slopes[:, None, None]
        self.mask = _tile_mask(slopes, tokens, tokens, reverse=False)  # [H, C, C]
        self.from_start = (rate * position).exp()  # Lambda: [H, C, 1], lambda^1 .. lambda^C
        self.to_end = (rate * (length - position)).exp()  # lambda^C Lambda^-1: [H, C, 1], never by division
        self.whole = (rate * length).exp()  # lambda^C: [H, 1, 1]


def _tile_mask(slopes: Tensor, rows: range, columns: range, *, reverse: bool) -> Tensor:
    """lambda^|t - s| on the allowed side of the diagonal (s <= t, or s >= t for reverse), else 0.

    slopes: [H]; rows, columns: the tile's tokens t and s; returns [H, rows, columns].
    """
    t = torch.arange(rows.start, rows.stop, device=slopes.device, dtype=slopes.dtype)[:, None]
    s = torch.arange(columns.start, columns.stop, device=slopes.device, dtype=slopes.dtype)
    distance = s - t if reverse else t - s
    # Clamped, because on the other side of the diagonal the exponential would overflow to inf.
    decay = (-slopes[:, None, None] * distance.clamp(min=0)).exp()
    return decay * (distance >= 0)


def _chunks(x: Tensor) -> list[range]:
    """The tokens of x: [B, H, N, ...] in order, as ranges of CHUNK; the last one may be shorter."""
    tokens = range(x.shape[2])
    return [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)]


def _widen(x: Tensor, chunk: range, dtype: torch.dtype) -> Tensor:
    """The chunk's rows of x: [B, H, N, D] in the dtype that the work is done in."""
    return x[..., chunk.start : chunk.stop, :].to(dtype)


def _slopes_like(q: Tensor, slopes: Tensor | None) -> Tensor:
    """slopes in the dtype of the work, fp32 or wider; zeros for None, since exp(-0) is no decay. [H]"""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_zeros(q.shape[1], dtype=dtype) if slopes is None else slopes.to(q.device, dtype)
