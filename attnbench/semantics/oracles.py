"""fp64 truth over whole sequences, for a few (batch, head) pairs at a time, as [P, N, D] tensors.

A check of a long case so costs little next to its timing; `attnbench.measure.accuracy` chooses the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reference:
    """fp64 truth for P heads: o and dq at the query `rows`, dk and dv from `first_key` on; None: not computed."""

    o: Tensor  # [P, R, E]
    rows: Tensor  # [R], whole numbers
    dq: Tensor | None = None  # [P, R, D]
    dk: Tensor | None = None  # [P, N - first_key, D]
    dv: Tensor | None = None  # [P, N - first_key, E]
    first_key: int = 0


Oracle = Callable[..., Reference]

_ORACLE_CHUNK = 128


def linear_scan(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """o_t = sum_{s<=t} exp(-slope (t-s)) (q_t . k_s) v_s in fp64 for [P, N, D] inputs, by chunks.

    The inside of a chunk is the definition itself; what came before it is carried as a state per chunk. All
    decay factors are <= 1, so nothing overflows whatever the slope.
    """
    P, N, D = q.shape
    E, C = v.shape[-1], min(_ORACLE_CHUNK, N)
    pad = -N % C
    q, k, v = (
        torch.nn.functional.pad(x.double(), (0, 0, 0, pad)).reshape(P, -1, C, x.shape[-1]) for x in (q, k, v)
    )
    s = slopes.double().to(q.device)[:, None, None]
    i = torch.arange(C, device=q.device, dtype=torch.float64)
    distance = i[:, None] - i[None, :]
    within = torch.where(distance >= 0, torch.exp(-s * distance.clamp(min=0)), 0.0)  # [P, C, C]
    from_start = torch.exp(-s[..., 0] * (i + 1))  # [P, C]: decay of the incoming state at each row
    to_end = torch.exp(-s[..., 0] * (C - 1 - i))
    whole = torch.exp(-s * C)  # [P, 1, 1]
    added = torch.einsum("ptcd,ptce->ptde", k * to_end[:, None, :, None], v)
    states = torch.zeros_like(added)
    running = torch.zeros(P, D, E, dtype=torch.float64, device=q.device)
    for t in range(added.shape[1]):
        states[:, t] = running
        running = whole * running + added[:, t]
    intra = ((q @ k.transpose(-1, -2)) * within[:, None]) @ v
    inter = (q * from_start[:, None, :, None]) @ states
    return (intra + inter).reshape(P, N + pad, E)[:, :N]


def decay_linear_oracle(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor | None, *, slopes: Tensor | None, scale: float, causal: bool
) -> Reference:
    """Causal linear attention with exponential decay, no denominator.

    q, k: [P, N, D], v, do: [P, N, E], slopes: [P] or None (no decay). Source: Lightning Attention-2
    (arXiv 2401.04658), Eq. 4 to 7; gradients by the identity dq = F(do, v, k), dk = R(v, do, q),
    dv = R(k, q, do), F being the forward and R its time reverse.
    """
    if not causal:
        raise ValueError("decayed linear attention is defined for causal cases only")
    decay = torch.zeros(q.shape[0], device=q.device) if slopes is None else slopes
    rows = torch.arange(q.shape[1], device=q.device)
    o = scale * linear_scan(q, k, v, decay)
    if do is None:
        return Reference(o=o, rows=rows)

    def reverse(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return linear_scan(a.flip(1), b.flip(1), c.flip(1), decay).flip(1)

    return Reference(
        o=o,
        rows=rows,
        dq=scale * linear_scan(do, v, k, decay),
        dk=scale * reverse(v, do, q),
        dv=scale * reverse(k, q, do),
    )


_FULL_SOFTMAX_ROWS = 2048
_TAIL_ROWS, _SPREAD_ROWS = 128, 128


def softmax_oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    window: int | None = None,
    sinks: int = 0,
) -> Reference:
    """Softmax attention, o = softmax(scale q k^T) v, for [P, N, D] inputs; slopes must be None.

    With a window (causal only) a query sees the last `window` tokens, its own among them, and the first `sinks`.
    Up to 2,048 tokens everything is computed. Beyond that: o and dq at the last 128 rows and at 128 rows
    spread evenly, dk and dv (causal only) at the last 128 keys, which just those last rows attend to.
    """
    if slopes is not None:
        raise ValueError("softmax attention takes no decay slopes")
    if window is not None and not causal:
        raise ValueError("a window is defined for causal cases only")
    N = q.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    tail = min(_TAIL_ROWS, N)
    everything = N <= _FULL_SOFTMAX_ROWS
    if everything:
        rows = torch.arange(N, device=q.device)
    else:
        spread = torch.linspace(0, N - tail - 1, _SPREAD_ROWS, device=q.device).long()
        rows = torch.cat([spread, torch.arange(N - tail, N, device=q.device)])
    scores = scale * (q[:, rows] @ k.transpose(1, 2))  # [P, R, N]
    if causal:
        distance = rows[:, None] - torch.arange(N, device=q.device)[None, :]
        hidden = distance < 0
        if window is not None:
            hidden[:, sinks:] |= distance[:, sinks:] >= window
        scores = scores.masked_fill(hidden, -math.inf)
    p = scores.softmax(dim=-1)
    o = p @ v
    if do is None:
        return Reference(o=o, rows=rows)
    do_rows = do.double()[:, rows]
    ds = p * (do_rows @ v.transpose(1, 2) - (do_rows * o).sum(-1, keepdim=True))
    dq = scale * (ds @ k)
    if not everything and not causal:
        return Reference(o=o, rows=rows, dq=dq)
    first_key = 0 if everything else N - tail
    seen = slice(None) if everything else slice(-tail, None)  # the rows that attend to those keys
    dk = scale * (ds[:, seen, first_key:].transpose(1, 2) @ q[:, rows[seen]])
    dv = p[:, seen, first_key:].transpose(1, 2) @ do_rows[:, seen]
    return Reference(o=o, rows=rows, dq=dq, dk=dk, dv=dv, first_key=first_key)


_GATED_CHUNK = 32  # tokens over which decays are divided by one another: in fp64 room for gates down to e^-20


def gated_linear_oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    gates: Tensor,
) -> Reference:
    """Linear attention with a forget gate for every token and key channel, no denominator.

        S_t = diag(exp(gates_t)) S_{t-1} + k_t^T v_t        o_t = scale q_t S_t

    q, k, gates: [P, N, D], the gates as logarithms, from -20 to 0; v, do: [P, N, E]. Source: "Gated Linear Attention"
    (arXiv 2312.06635), Eq. 3 and 4; gradients by autograd, in fp64.
    """
    if slopes is not None:
        raise ValueError("gated linear attention takes its decay from gates, not from slopes")
    if not causal:
        raise ValueError("gated linear attention is defined for causal cases only")
    if not bool(((gates <= 0) & (gates >= -20)).all()):
        raise ValueError("gates must be logarithms from -20 to 0")
    rows = torch.arange(q.shape[1], device=q.device)
    q64, k64, v64 = (x.detach().double().requires_grad_(do is not None) for x in (q, k, v))
    with torch.set_grad_enabled(do is not None):
        o = scale * _gated_scan(q64, k64, v64, gates)
    if do is None:
        return Reference(o=o, rows=rows)
    dq, dk, dv = torch.autograd.grad(o, (q64, k64, v64), do.double())
    return Reference(o=o.detach(), rows=rows, dq=dq, dk=dk, dv=dv)


def _gated_scan(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The sum of `gated_linear_oracle` without its scale, by chunks whose states are carried one after the other."""
    P, N, _ = q.shape
    pad = -N % _GATED_CHUNK
    q, k, v, gates = (
        torch.nn.functional.pad(x.double(), (0, 0, 0, pad)).reshape(P, -1, _GATED_CHUNK, x.shape[-1])
        for x in (q, k, v, gates)
    )
    decay = gates.cumsum(dim=2)  # [P, T, C, D], from a chunk's start to each of its tokens
    whole = decay[:, :, -1]
    decayed = q * decay.exp()
    within = (decayed @ (k * (-decay).exp()).mT).tril() @ v
    added = (k * (whole[:, :, None] - decay).exp()).mT @ v  # [P, T, D, E]
    running = torch.zeros_like(added[:, 0])
    before = []
    for t in range(added.shape[1]):
        before.append(running)
        running = whole[:, t].exp()[..., None] * running + added[:, t]
    o = within + decayed @ torch.stack(before, dim=1)
    return o.reshape(P, N + pad, -1)[:, :N]
