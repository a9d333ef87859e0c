"""FLOPs and bytes of one call, as the algorithms need them: what rates and the roofline are reckoned from."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnbench.case import Case, Workload
from attnbench.providers import Cost
from attnbench.semantics.parameters import SINKS
from attnbench.semantics.steps import Kept

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def _pairs(case: Case) -> float:
    """Pairs of a query and a key that it sees, for one sequence and head."""
    N = case.seq_len
    if not case.causal:
        return float(N) * N
    if case.window is None:
        return N * (N + 1) / 2
    near = min(N, case.window)
    beyond = N - near  # queries with tokens outside the window, of which the first still see the sinks
    few = min(beyond, SINKS)
    return near * (near + 1) / 2 + beyond * near + few * (few + 1) / 2 + (beyond - few) * SINKS


def useful_flops(case: Case, *, cost: Cost, features: int | None = None, projected: bool = False) -> float:
    """Floating-point operations that the algorithm needs for one call over whole sequences (a multiply-add is two).

    Cost "N" (recurrence): forward 4 F E per token and head (state update, state times query), backward 10 F E
    (state again, its gradient, dq, dk, dv), where F is D or the number of `features` of a query or key; with features
    a denominator is one more column, and where they are `projected` q and k are multiplied by a matrix: 4 D F each
    way. Other costs (left product): the N(N+1)/2 causal pairs only (all N^2 when not causal, with a window those
    inside it or on a sink); forward 2(D+E) a pair, backward 6 D + 4 E: scores, dq and dk over D, dP and dv over E.
    Work that a kernel adds (blocks on the diagonal, scores computed twice) is not useful and not counted.
    """
    D, E = case.head_dim, case.value_dim
    if cost == "N":
        F, columns = (D, E) if features is None else (features, E + 1)
        directions = 4.0 * D * F if projected else 0.0
        forward, backward = 4.0 * F * columns + directions, 10.0 * F * columns + directions
        units = float(case.seq_len)
    else:
        forward, backward, units = 2.0 * (D + E), 6.0 * D + 4.0 * E, _pairs(case)
    per_call = {
        Workload.FWD: forward,
        Workload.BWD: backward,
        Workload.FWD_BWD: forward + backward,
    }
    return case.batch * case.heads * units * per_call[case.workload]


def minimal_bytes(case: Case, *, gates: bool = False) -> int:
    """Bytes that one call over whole sequences must move: each input read once, each output written once.

    Forward: q, k, v, o. Backward: q, k, v, do, dq, dk, dv. With gates, shaped like k, those are read as well.
    Recurrent states, statistics and what is shared by all tokens are not counted.
    """
    item = TORCH_DTYPES[case.dtype].itemsize
    tokens = case.batch * case.seq_len
    q = tokens * case.heads * case.head_dim * item
    k = tokens * case.kv_heads * case.head_dim * item
    v = tokens * case.kv_heads * case.value_dim * item
    o = tokens * case.heads * case.value_dim * item
    read = k if gates else 0
    forward, backward = q + k + v + read + o, 2 * (q + k + v) + read + o
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
