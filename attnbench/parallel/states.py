"""The algebra of segment states under decay: how states of pieces of a sequence become the state before each piece.

With lambda = exp(-slope), a segment of n tokens turns the state before it, P, into lambda^n P + L, L being its own
state from an empty one (LASP, arXiv 2404.02882, Eq. 8 to 10, for ragged lengths). Backwards in time the gradients of
states obey the same law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.kernels._scan import REACH

# A token whose weight fell below e^-reach is less than the rounding of what it would be part of, as in our kernels.
_REACH = {**REACH, torch.float64: 60 * math.log(2)}
# A sum over fewer tokens is one matrix product for each head; longer ones are cut into so many that a GPU is filled.
_BLOCK = 4096
_PRODUCTS = 512


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states of inputs of a dtype: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, kw_only=True)
class Decay:
    """Slopes [H] with what a rank derives from them once; None: no decay."""

    slopes: Tensor | None
    reach: float  # tokens after which every head has forgotten a token; infinite without decay

    @classmethod
    def of(cls, slopes: Tensor | None, *, dtype: torch.dtype) -> Decay:
        """slopes: fp32 [H] on any device; dtype: of the inputs. Reads the values, which waits for the device."""
        if slopes is None:
            return cls(slopes=None, reach=math.inf)
        least = float(slopes.min())
        return cls(slopes=slopes, reach=math.ceil(_REACH[dtype] / least) if least > 0 else math.inf)

    def within(self, length: int) -> int:
        """How many of `length` tokens beside a border matter across it."""
        return int(min(self.reach, length))

    def powers(self, exponents: Tensor, *, dtype: torch.dtype) -> Tensor:
        """lambda^e for each head: [H, *exponents.shape]; ones without decay are [1, ...]. Exponents must be >= 0."""
        if self.slopes is None:
            return torch.ones((1, *exponents.shape), dtype=dtype, device=exponents.device)
        slopes = self.slopes.to(exponents.device, torch.float64)
        rate = slopes.reshape(-1, *(1 for _ in exponents.shape))
        return torch.exp(-rate * exponents.double()).to(dtype)

    def token_weights(self, exponents: Tensor, *, dtype: torch.dtype) -> Tensor | None:
        """lambda^e for tokens: [H, n, 1], or None where nothing decays."""
        return None if self.slopes is None else self.powers(exponents, dtype=dtype)[..., None]


def border_distances(lengths: Sequence[int], rank: int, *, reverse: bool, reach: float) -> list[int]:
    """Tokens between the segment of `rank` and each segment before it, in order; reverse: after it.

    Those are left out of which every head has forgotten all, `reach` tokens or more away.
    """
    if reverse:
        found = [sum(lengths[rank + 1 : j]) for j in range(rank + 1, len(lengths))]
    else:
        found = [sum(lengths[j + 1 : rank]) for j in range(rank)]
    return [tokens for tokens in found if tokens < reach]


def combine(states: Tensor, weights: Tensor | None) -> Tensor:
    """sum_j weights_j states_j: states [J, B, H, D, E] and weights [H, J], or None for ones, to [B, H, D, E]."""
    if weights is not None:
        states = states * weights.mT[:, None, :, None, None]
    return states[0] if len(states) == 1 else states.sum(dim=0)


def advanced(before: Tensor | None, own: Tensor, factor: Tensor) -> Tensor:
    """lambda^n P + L. before, own: [B, H, D, E], or None for an empty state; factor: [H, 1, 1] or [1, 1, 1]."""
    return own if before is None else torch.addcmul(own, before, factor)


def summed_products(a: Tensor, b: Tensor, *, weights: Tensor | None, scale: float = 1.0) -> Tensor:
    """scale sum_t w_t a_t^T b_t: a [B, H, n, D], b [B, H, n, E], weights [H, n, 1] or None for ones; [B, H, D, E].

    A scale other than 1 costs an operator, which weights that contain it do not. Summed in fp32, in fp64 for fp64;
    16-bit products run on a GPU's matrix units.
    """
    a = weighted(a, weights)
    total = _products(a, b)
    return total if scale == 1.0 else total.mul_(scale)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """sum_t a_t^T b_t."""
    if a.device.type == "cpu":
        dtype = state_dtype(a.dtype)
        return a.to(dtype).mT @ b.to(dtype)
    return by_blocks(a, b)


def by_blocks(a: Tensor, b: Tensor) -> Tensor:
    """sum_t a_t^T b_t: one product for each sequence, or one for each of its blocks and a sum of these."""
    dtype = state_dtype(a.dtype)
    shape = (*a.shape[:2], a.shape[-1], b.shape[-1])
    parts, rest = _blocks(a.shape[2], sequences=a.shape[0] * a.shape[1])
    whole = a.shape[2] - rest
    x, y = (each[:, :, :whole].unflatten(2, (parts, -1)).flatten(0, 2) for each in (a, b))
    total = torch.bmm(x.mT, y) if a.dtype == dtype else torch.bmm(x.mT, y, out_dtype=dtype)
    if parts > 1:
        total = total.unflatten(0, (-1, parts)).sum(dim=1)
    total = total.view(shape)
    return total.add_(by_blocks(a[:, :, whole:], b[:, :, whole:])) if rest else total


def _blocks(tokens: int, *, sequences: int) -> tuple[int, int]:
    """Into how many equal blocks the tokens of so many sequences are cut, and how many tokens are left over.

    Rather fewer blocks, down to half as many, than tokens left over: with them blocks are no views.
    """
    most = max(1, min(tokens // _BLOCK, -(-_PRODUCTS // sequences)))
    parts = next((count for count in range(most, most // 2, -1) if tokens % count == 0), most)
    return parts, tokens % parts


def add_decayed(o: Tensor, q: Tensor, state: Tensor, *, weights: Tensor | None, scale: float = 1.0) -> None:
    """o_t += scale w_t q_t S, in place. o [B, H, m, E], q [B, H, m, D], S [B, H, D, E], weights [H, m, 1] or None."""
    flat = o.view(-1, *o.shape[2:])  # o is contiguous but for a cut along its tokens
    flat.baddbmm_(weighted(q, weights).flatten(0, 1), state.flatten(0, 1).to(q.dtype), alpha=scale)


def weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """Tokens times their weights, rounded once, to the dtype of x."""
    return x if weights is None else torch.mul(x, weights, out=torch.empty_like(x))
