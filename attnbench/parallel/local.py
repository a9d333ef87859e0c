"""Lightning Attention over one segment, with the states at its borders: our kernels on a GPU, PyTorch elsewhere."""

from __future__ import annotations

from torch import Tensor

from attnbench.baselines import lightning_torch
from attnbench.kernels import lightning2


def attend_into(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    before: Tensor | None = None,
    return_state: bool = False,
    by_kernel: bool,
) -> Tensor | None:
    """o of a segment into `out`, and the state behind it if it is asked for, which makes another, slower kernel.

    q, k: [B, H, n, D]; v, out: [B, H, n, E]. before: the state in front of it, [B, H, D, E], or None.
    """
    if by_kernel:
        return lightning2.forward_into(
            out, q, k, v, slopes, scale=scale, initial_state=before, return_state=return_state
        )
    o, state = lightning_torch.forward_with_state(q, k, v, slopes=slopes, scale=scale, initial_state=before)
    out.copy_(o)
    return state if return_state else None


def whole(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float) -> Tensor:
    """o of a sequence that is not cut, by our kernel; differentiable."""
    return lightning2.lightning_attention_2(q, k, v, slopes, scale=scale)


def gradients(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, by_kernel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of a segment between empty states."""
    if by_kernel:
        return lightning2.gradients(do, q, k, v, slopes, scale=scale)
    dq, _ = lightning_torch.forward_with_state(do, v, k, slopes=slopes, scale=scale)
    return dq, *lightning_torch.key_value_gradients(q, k, v, do, slopes=slopes, scale=scale)


def key_value_gradients(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    after: Tensor | None,
    by_kernel: bool,
) -> tuple[Tensor, Tensor]:
    """dk and dv of a segment. after: the gradient of the state behind it, [B, H, D, E], or None for zero."""
    if by_kernel:
        return lightning2.key_value_gradients(do, after, q, k, v, slopes, scale=scale)
    return lightning_torch.key_value_gradients(q, k, v, do, slopes=slopes, scale=scale, dstate=after)
