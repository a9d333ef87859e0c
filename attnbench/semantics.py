"""What each family computes: its fp64 oracle, its tolerances, its FLOPs and its bytes.

Oracles take a few (batch, head) pairs at a time, as [P, N, D] tensors, so that a check of a long case costs
little next to its timing; `attnbench.measure.accuracy` chooses the pairs. All of them compute in fp64.

A decode step takes one token more into what is kept of its context: a linear family keeps a state, fp32
[B, H, D, E], softmax attention keeps the keys and values themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnbench.case import Case, Workload

# ---------------------------------------------------------------- decay slopes


def geometric_slopes(heads: int) -> Tensor:
    """Decay slopes by head, fp32 [heads], all > 0: s_h = 2^(-8(h+1)/H), as in ALiBi and the TransNormerLLM code.

    A number of heads that is no power of two takes the series of the power below it, then every second value
    of the next power's series. Source: ALiBi (arXiv 2108.12409), and the code of Lightning Attention.
    """
    power = 2 ** int(math.log2(heads))

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]

    return torch.tensor(series(power) + series(2 * power)[0::2][: heads - power], dtype=torch.float32)


# ---------------------------------------------------------------- oracles


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


def _linear_scan(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
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
    o = scale * _linear_scan(q, k, v, decay)
    if do is None:
        return Reference(o=o, rows=rows)

    def reverse(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return _linear_scan(a.flip(1), b.flip(1), c.flip(1), decay).flip(1)

    return Reference(
        o=o,
        rows=rows,
        dq=scale * _linear_scan(do, v, k, decay),
        dk=scale * reverse(v, do, q),
        dv=scale * reverse(k, q, do),
    )


_FULL_SOFTMAX_ROWS = 2048
_TAIL_ROWS, _SPREAD_ROWS = 128, 128


def softmax_oracle(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor | None, *, slopes: Tensor | None, scale: float, causal: bool
) -> Reference:
    """Softmax attention, o = softmax(scale q k^T) v, for [P, N, D] inputs; slopes must be None.

    Up to 2,048 tokens everything is computed. Beyond that: o and dq at the last 128 rows and at 128 rows
    spread evenly, dk and dv (causal only) at the last 128 keys, which just those last rows attend to.
    """
    if slopes is not None:
        raise ValueError("softmax attention takes no decay slopes")
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
        scores = scores.masked_fill(torch.arange(N, device=q.device)[None, :] > rows[:, None], -math.inf)
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


# ---------------------------------------------------------------- oracles of a decode step


@dataclass(frozen=True, kw_only=True)
class StepReference:
    """fp64 truth of one decode step: o, and what is kept of the context after it."""

    o: Tensor  # [P, G, E]: G query heads for each of the P heads
    kept: tuple[Tensor, ...]  # as they were given: [P, D, E], or [P, N, D] and [P, N, E]


StepOracle = Callable[..., StepReference]


def state_step_oracle(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor | None, scale: float
) -> StepReference:
    """S <- exp(-slope) S + k^T v, o = scale * q S.

    q: [P, G, D], k: [P, D], v: [P, E], state: [P, D, E], slopes: [P] or None (no decay). Source: Lightning
    Attention-2 (arXiv 2401.04658), section 3.1.
    """
    decay = torch.ones(k.shape[0], device=k.device) if slopes is None else torch.exp(-slopes.double())
    after = decay.double()[:, None, None] * state.double() + k.double()[:, :, None] * v.double()[:, None, :]
    return StepReference(o=scale * (q.double() @ after), kept=(after,))


def cache_step_oracle(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slopes: Tensor | None, scale: float
) -> StepReference:
    """The new key and value become the last row of the caches; o = softmax(scale q K^T) V over all rows.

    q: [P, G, D], k: [P, D], v: [P, E], k_cache: [P, N, D], v_cache: [P, N, E]; the last rows are not read;
    slopes must be None.
    """
    if slopes is not None:
        raise ValueError("softmax attention takes no decay slopes")
    keys, values = (
        torch.cat([cache[:, :-1].double(), new.double()[:, None]], dim=1)
        for cache, new in ((k_cache, k), (v_cache, v))
    )
    weights = (scale * (q.double() @ keys.mT)).softmax(dim=-1)
    return StepReference(o=weights @ values, kept=(keys, values))


def state_deviation(tokens: int, *, slopes: Tensor | None, heads: int) -> Tensor:
    """Standard deviation of an entry of the state after `tokens` tokens with unit normal keys and values.

    fp64 [heads] on the CPU. An entry is the sum of exp(-slope j) k v over j = 0 .. tokens - 1, and k v has mean 0
    and variance 1: the variance is the geometric series (1 - exp(-2 slope tokens)) / (1 - exp(-2 slope)), or the
    number of tokens where nothing decays.
    """
    rate = torch.zeros(heads, dtype=torch.float64) if slopes is None else slopes.double().cpu()
    series = torch.expm1(-2 * rate * tokens) / torch.expm1(-2 * rate)
    return torch.where(rate > 0, series, float(tokens)).sqrt()


# ---------------------------------------------------------------- the table


Kept = Literal["state", "caches"]
# What a decode step keeps of its context: the names of the tensors, in the order that providers are given them.
KEPT: Mapping[Kept, tuple[str, ...]] = {"state": ("state",), "caches": ("k_cache", "v_cache")}


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """A mathematical function and what is known of it."""

    name: str
    formula: str
    oracle: Oracle
    step_oracle: StepOracle
    kept: Kept  # of the context of a decode step
    decay: bool  # takes decay slopes
    scaled: bool  # scores are scaled by 1/sqrt(head dim)

    def slopes(self, heads: int) -> Tensor | None:
        """The decay slopes of a measurement, fp32 [heads] on the CPU, or None."""
        return geometric_slopes(heads) if self.decay else None

    def scale(self, head_dim: int) -> float:
        """The factor on the scores."""
        return head_dim**-0.5 if self.scaled else 1.0


SEMANTICS: Mapping[str, Semantics] = {
    s.name: s
    for s in (
        Semantics(
            name="decay-linear",
            formula="o_t = sum_{s<=t} exp(-slope (t-s)) (q_t . k_s) v_s",
            oracle=decay_linear_oracle,
            step_oracle=state_step_oracle,
            kept="state",
            decay=True,
            scaled=False,
        ),
        Semantics(
            name="linear",
            formula="o_t = sum_{s<=t} (q_t . k_s) v_s",
            oracle=decay_linear_oracle,
            step_oracle=state_step_oracle,
            kept="state",
            decay=False,
            scaled=False,
        ),
        Semantics(
            name="softmax",
            formula="o_t = sum_{s<=t} softmax_s(q_t . k_s / sqrt(D)) v_s",
            oracle=softmax_oracle,
            step_oracle=cache_step_oracle,
            kept="caches",
            decay=False,
            scaled=True,
        ),
    )
}

# Largest relative error (norm of the difference over norm of the fp64 oracle) that counts as correct. A plain
# fp32 implementation, in the case's dtype at its inputs and outputs, errs by about 5e-7 (fp32), 2e-4 (fp16)
# and 1.7e-3 (bf16); `tests/test_semantics.py` measures that and holds the table to 4 to 60 times it. For the
# 16-bit dtypes the limit is four units of rounding, 4 x 2^-11 and 4 x 2^-8: fast kernels round products on their
# way to the tensor cores, and softmax gradients over two tokens, computed exactly but for an o that was rounded
# to bf16, already err by up to 1.5e-2.
TOLERANCES: Mapping[str, float] = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 1.6e-2}

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


# ---------------------------------------------------------------- FLOPs and bytes


def useful_flops(case: Case, *, cost: Literal["N", "N^2"]) -> float:
    """Floating-point operations that the algorithm needs for one call over whole sequences (a multiply-add is two).

    Cost "N" (recurrence): forward 4 D E per token and head (state update, state times query), backward 10 D E
    (state again, its gradient, dq, dk, dv). Cost "N^2" (left product): the N(N+1)/2 causal pairs only (all N^2
    when not causal); forward 2(D+E) a pair, backward 6 D + 4 E: scores, dq and dk over D, dP and dv over E.
    Work that a kernel adds (blocks on the diagonal, scores computed twice) is not useful and not counted.
    """
    D, E, N = case.head_dim, case.value_dim, case.seq_len
    if cost == "N":
        forward, backward, units = 4.0 * D * E, 10.0 * D * E, float(N)
    else:
        units = N * (N + 1) / 2 if case.causal else float(N) * N
        forward, backward = 2.0 * (D + E), 6.0 * D + 4.0 * E
    per_call = {
        Workload.FWD: forward,
        Workload.BWD: backward,
        Workload.FWD_BWD: forward + backward,
    }
    return case.batch * case.heads * units * per_call[case.workload]


def minimal_bytes(case: Case) -> int:
    """Bytes that one call over whole sequences must move: each input read once, each output written once.

    Forward: q, k, v, o. Backward: q, k, v, do, dq, dk, dv. Recurrent states and statistics are not counted.
    """
    item = TORCH_DTYPES[case.dtype].itemsize
    tokens = case.batch * case.seq_len
    q = tokens * case.heads * case.head_dim * item
    k = tokens * case.kv_heads * case.head_dim * item
    v = tokens * case.kv_heads * case.value_dim * item
    o = tokens * case.heads * case.value_dim * item
    forward, backward = q + k + v + o, 2 * (q + k + v) + o
    per_call = {
        Workload.FWD: forward,
        Workload.BWD: backward,
        Workload.FWD_BWD: forward + backward,
    }
    return per_call[case.workload]


def step_flops(case: Case, *, kept: Kept) -> float:
    """Floating-point operations that one decode step needs (a multiply-add is two).

    A state: 4 D E per head (its update 2 D E, its product with the query 2 D E), whatever the context. Caches:
    2 (D + E) per cached token and query head.
    """
    D, E = case.head_dim, case.value_dim
    per_head = 4.0 * D * E if kept == "state" else 2.0 * (D + E) * case.seq_len
    return case.batch * case.heads * per_head


def step_bytes(case: Case, *, kept: Kept) -> int:
    """Bytes that one decode step must move.

    A state: the fp32 state read and written, q, k, v read, o written. Caches: the keys and values of all seq_len
    tokens read, the new one's among them, q read, o written; the one row that is written is left out.
    """
    D, E, item = case.head_dim, case.value_dim, TORCH_DTYPES[case.dtype].itemsize
    q_and_o = case.heads * (D + E) * item
    k_and_v = case.kv_heads * (D + E) * item
    if kept == "state":
        return case.batch * (case.heads * 2 * 4 * D * E + q_and_o + k_and_v)
    return case.batch * (case.seq_len * k_and_v + q_and_o)
