"""fp64 truth of a decode step: one token more joins what is kept of its context.

A linear family keeps a state, fp32 [B, H, D, E], softmax attention keeps the keys and values themselves. Oracles take a
few (batch, head) pairs at a time, P of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kept = Literal["state", "caches"]
# What a decode step keeps of its context: the names of the tensors, in the order that providers are given them.
KEPT: Mapping[Kept, tuple[str, ...]] = {"state": ("state",), "caches": ("k_cache", "v_cache")}


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
