"""Lightning Attention-2: linear attention with constant decay in one pass over chunks, in time linear in N."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch.autograd.function import once_differentiable

from attnbench.kernels import _host, _validate
from attnbench.kernels._scan import Hints, Scan, run_scans

__all__ = ["lightning_attention_2"]


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    scale: float,
    return_state: bool,
    hints: Hints,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """o, in `out` if that is given, and S_N if it is asked for; nothing is checked."""
    out = _host.empty_in_order_of(v) if out is None else out
    state = None
    if return_state:
        shape = (*q.shape[:2], q.shape[3], v.shape[3])
        state = torch.empty(shape, dtype=torch.float32, device=q.device)
    scan = Scan(q=q, k=k, v=v, out=out, scale_out=scale, scale_state=1.0, initial=initial_state, final=state)
    run_scans([scan], slopes=slopes, hints=hints)
    return out, state


def _backward(
    do: torch.Tensor | None,
    dstate: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    *,
    scale: float,
    hints: Hints,
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """dq, dk, dv and the gradient of the initial state: those of them that are needed, else None."""
    need_q, need_k, need_v, need_initial = needed
    dq = dk = dv = dinitial = None
    if do is None:
        need_q = False
        do = torch.zeros_like(v)
    elif do.stride(-1) != 1:
        do = do.contiguous()
    scans = []
    if need_q:
        dq = _host.empty_in_order_of(q)
        before = None if initial_state is None else initial_state.transpose(2, 3)
        scans.append(Scan(q=do, k=v, v=k, out=dq, scale_out=scale, scale_state=1.0, initial=before))
    # The gradient of the state comes in without the scale, which therefore joins each token instead.
    back = functools.partial(Scan, scale_out=1.0, scale_state=scale, reverse=True)
    if need_k:
        dk = _host.empty_in_order_of(k)
        after = None if dstate is None else dstate.transpose(2, 3)
        scans.append(back(q=v, k=do, v=q, out=dk, initial=after))
    if need_v or need_initial:
        dv = _host.empty_in_order_of(v)
        if need_initial:
            assert initial_state is not None
            dinitial = _host.empty_in_order_of(initial_state)
        scans.append(back(q=k, k=q, v=do, out=dv, initial=dstate, final=dinitial))
    if scans:
        run_scans(scans, slopes=slopes, hints=hints)
    return dq, dk, dv if need_v else None, dinitial


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
        hints: Hints,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, slopes, initial_state)
        ctx.scale, ctx.hints = scale, hints
        return _forward(q, k, v, slopes, initial_state, scale, return_state, hints)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: torch.Tensor | None, dstate: torch.Tensor | None) -> tuple[Any, ...]:
        if do is None and dstate is None:
            return (None,) * 8
        need_q, need_k, need_v, _, need_initial, _, _, _ = ctx.needs_input_grad
        needed = (need_q, need_k, need_v, need_initial)
        dq, dk, dv, dinitial = _backward(
            do, dstate, *ctx.saved_tensors, scale=ctx.scale, hints=ctx.hints, needed=needed
        )
        return dq, dk, dv, None, dinitial, None, None, None


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
    segments: int | None = None,
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
    segments: int | None = None,
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
    segments: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Causal linear attention with constant decay, in time linear in N and without an N x N matrix.

        o_t = scale * (sum_{s<=t} exp(-slope (t - s)) (q_t . k_s) v_s + exp(-slope (t + 1)) q_t S_0)
        S_N = exp(-slope N) S_0 + sum_s exp(-slope (N - 1 - s)) k_s^T v_s

    Lightning Attention-2, arXiv 2401.04658: Algorithm 1 forward; the gradients of Algorithm 2 by the same
    scan.

    q, k: [B, H, N, D]; v: [B, H, N, E]; float32, float16 or bfloat16, any strides with a unit last one; D and
    E multiples of 16 up to 256; N at least 1. slopes: float32 [H], at least 0, or None for no decay; on the
    CPU, or on q's device as a CUDA graph needs. scale: a float; it multiplies the output and never the state.
    initial_state: float32 [B, H, D, E], S_0. segments: into how many parts a sequence is cut, that run side by side;
    None: as many as suit the device, 1: the paper's algorithm as it stands.

    Returns o [B, H, N, E] in v's dtype, its dimensions in memory in the order of v's; with return_state the
    pair (o, S_N), S_N float32 [B, H, D, E]. Differentiable in q, k, v and initial_state, through o and
    through S_N; the slopes get no gradient.

    Products accumulate in float32. The state is float32 and is rounded to the dtype of q where it meets q, so
    with float16 its entries must stay below 65504.

    Raises TypeError or ValueError, naming the tensor, for a dtype, shape, device, stride or slope that does
    not fit.
    """
    scale = _validate.scale(scale)
    _validate.segments(segments)
    if _host.seen_by_torch():  # the operator checks its inputs when it runs
        out, state = _lightning2(q, k, v, slopes, initial_state, scale, return_state, segments)
        return (out, state) if return_state else out
    slopes, values = _checked_slopes(q, k, v, slopes, initial_state)
    hints = Hints(values=values, segments=segments)
    run: Any = _LightningAttention2.apply if _host.needs_gradient(q, k, v, initial_state) else _forward
    out, state = run(q, k, v, slopes, initial_state, scale, return_state, hints)
    return (out, state) if return_state else out


def forward_into(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | None:
    """`lightning_attention_2` for one piece of a sequence: o is written to `out`, a view of a longer one; no gradient.

    Arguments and errors as there; out: [B, H, N, E] in v's dtype with a unit last stride. Returns S_N if it is asked
    for, else None.
    """
    slopes, values = _checked_slopes(q, k, v, slopes, initial_state)
    if out.shape != v.shape or out.dtype != v.dtype or out.stride(-1) != 1:
        raise ValueError(
            f"out must be {v.dtype} of the shape {list(v.shape)} with a unit last stride, got {out.dtype}, "
            f"{list(out.shape)} and the strides {list(out.stride())}"
        )
    hints = Hints(values=values)
    scale = _validate.scale(scale)
    return _forward(q, k, v, slopes, initial_state, scale, return_state, hints, out)[1]


def key_value_gradients(
    do: torch.Tensor,
    dstate: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dk and dv of `lightning_attention_2`, in one launch, where dq was had otherwise: dq = F(do, v, k) from S_0^T.

    do: [B, H, N, E]; dstate: float32 [B, H, D, E], the gradient of S_N, or None for zero; q, k, v, slopes, scale and
    errors as there. Returns dk [B, H, N, D] and dv [B, H, N, E] in the dtypes of k and v.

    Source: arXiv 2401.04658, Algorithm 2.
    """
    slopes, values = _checked_slopes(q, k, v, slopes, dstate)
    gradients = _backward(
        do,
        dstate,
        q,
        k,
        v,
        slopes,
        None,
        scale=_validate.scale(scale),
        hints=Hints(values=values),
        needed=(False, True, True, False),
    )
    _, dk, dv, _ = gradients
    assert dk is not None
    assert dv is not None
    return dk, dv


def gradients(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv of `lightning_attention_2` from an empty state, without a graph: one launch where D = E.

    do: [B, H, N, E]; q, k, v, slopes, scale and errors as there. Returns dq, dk [B, H, N, D] and dv [B, H, N, E] in the
    dtypes of q, k and v.

    Source: arXiv 2401.04658, Algorithm 2.
    """
    slopes, values = _checked_slopes(q, k, v, slopes, None)
    hints, needed = Hints(values=values), (True, True, True, False)
    found = _backward(
        do, None, q, k, v, slopes, None, scale=_validate.scale(scale), hints=hints, needed=needed
    )
    dq, dk, dv, _ = found
    assert dq is not None
    assert dk is not None
    assert dv is not None
    return dq, dk, dv


def _checked_slopes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    *,
    read: bool = True,
) -> tuple[torch.Tensor | None, tuple[float, ...] | None]:
    """Rejects inputs that do not fit; returns the slopes as the kernel takes them, and their values if known."""
    known = _validate.qkv("lightning_attention_2", q, k, v, layout="B, H, N")
    if initial_state is not None:
        _validate.state("initial_state", initial_state, known[0], known[2])
    return _validate.slopes(slopes, q, read=read)


# The same as custom operators, for torch.compile and for selective checkpointing alone: called eagerly they would cost
# the host more than the autograd function does. What they return may not be None, so an output that is not asked for
# is empty. They do not read the values of slopes on a device, as compiled code hands them a tensor object of its own in
# every call.


@torch.library.custom_op("attnbench::lightning2", mutates_args=())
def _lightning2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    scale: float,
    return_state: bool,
    segments: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    slopes, values = _checked_slopes(q, k, v, slopes, initial_state, read=False)
    hints = Hints(values=values, segments=segments)
    out, state = _forward(q, k, v, slopes, initial_state, scale, return_state, hints)
    return out, q.new_empty(0, dtype=torch.float32) if state is None else state


@_lightning2.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    scale: float,
    return_state: bool,
    segments: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*q.shape[:2], q.shape[3], v.shape[3]) if return_state else (0,)
    return _host.empty_in_order_of(v), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("attnbench::lightning2_backward", mutates_args=())
def _lightning2_backward(
    do: torch.Tensor,
    dstate: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    scale: float,
    needed: Sequence[bool],
    segments: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    slopes, values = _validate.slopes(slopes, q, read=False)
    hints = Hints(values=values, segments=segments)
    gradients = _backward(do, dstate, q, k, v, slopes, initial_state, scale=scale, hints=hints, needed=needed)
    dq, dk, dv, dinitial = (q.new_empty(0) if x is None else x for x in gradients)
    return dq, dk, dv, dinitial


@_lightning2_backward.register_fake
def _(
    do: torch.Tensor,
    dstate: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    scale: float,
    needed: Sequence[bool],
    segments: int | None = None,
) -> tuple[torch.Tensor, ...]:
    inputs = (q, k, v, initial_state)
    return tuple(
        _host.empty_in_order_of(x) if need and x is not None else q.new_empty(0)
        for x, need in zip(inputs, needed, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, slopes, initial_state, ctx.scale, ctx.return_state, ctx.segments = inputs
    ctx.save_for_backward(q, k, v, slopes, initial_state)


def _gradients(ctx: Any, do: torch.Tensor, dstate: torch.Tensor) -> tuple[Any, ...]:
    need_q, need_k, need_v, _, need_initial, *_ = ctx.needs_input_grad
    needed = [need_q, need_k, need_v, need_initial]
    gradients = torch.ops.attnbench.lightning2_backward(
        do, dstate if ctx.return_state else None, *ctx.saved_tensors, ctx.scale, needed, ctx.segments
    )
    dq, dk, dv, dinitial = (x if need else None for x, need in zip(gradients, needed, strict=True))
    return dq, dk, dv, None, dinitial, None, None, None


_lightning2.register_autograd(_gradients, setup_context=_setup_context)
