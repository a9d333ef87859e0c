"""Lightning Attention over a sequence that is cut over ranks: `lightning2-lasp` and `lightning2-lasp2`.

Rank r holds the r-th piece of the sequence. Forward it needs the state P before its piece, backward the gradient U of
the state behind it; both are [B, H, D, E], whatever the length. What travels is that and nothing else:

    forward   L = sum_s lambda^(n-1-s) k_s^T v_s, exchanged to P        o_t = local o_t + scale lambda^(t+1) q_t P
    backward  D = scale sum_t lambda^(t+1) q_t^T do_t, exchanged to U   dq = F(do, v, k) from P^T; dk, dv from U

LASP (arXiv 2404.02882) hands P from rank to rank; LASP-2 (arXiv 2502.07563) gathers all L, once forward and once
backward, and every rank adds up what concerns it. While states travel the head of the piece is computed, and backward
dq; where all heads forget within a piece that is all of it, both ways, and the tokens at its borders are corrected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnbench.parallel import local
from attnbench.parallel.sharding import Sharding, contiguous
from attnbench.parallel.states import (
    Decay,
    add_decayed,
    advanced,
    border_distances,
    combine,
    state_dtype,
    summed_products,
)
from attnbench.parallel.wire import Wire

# Without decay the state before a piece concerns all of it. Its first eighth is computed while states travel and is
# corrected then; the rest starts from the right state, as a correction costs three quarters of what it corrects.
HEAD_SHARE = 8


Arriving = Callable[[], Tensor | None]


class Exchange(Protocol):
    """From the state of each segment to the state before (reverse: behind) this one; None where nothing is."""

    def __call__(self, own: Tensor, *, reverse: bool) -> Arriving: ...


class LightningParallel:
    """Lightning Attention-2 on one rank of many; made once for a length, called with the rank's own tokens."""

    def __init__(
        self,
        seq_len: int,
        *,
        wire: Wire,
        slopes: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        gathers: bool,
        by_kernel: bool | None = None,
    ) -> None:
        """seq_len: of the whole sequence, N; slopes: fp32 [H] or None. gathers: LASP-2's exchange, else LASP's ring.

        by_kernel: our Triton kernels or PyTorch; None: the kernels on CUDA.

        Raises ValueError for fewer tokens than ranks.
        """
        self.sharding: Sharding = contiguous(seq_len, wire.ranks)
        self.wire = wire
        self.slopes = None if slopes is None else slopes.to(device)
        self.by_kernel = device.type == "cuda" if by_kernel is None else by_kernel
        self._decay = Decay.of(slopes, dtype=dtype)
        lengths, rank = self.sharding.lengths, wire.rank
        self.length = lengths[rank]
        self.border = self._decay.within(self.length)  # tokens that matter across a border of the piece
        self.forgets = self.border < self.length  # every head, within this piece
        whole = self.forgets or wire.ranks == 1
        self.head = self.length if whole else -(-self.length // HEAD_SHARE)
        self._kind, self._device = state_dtype(dtype), device
        steps = torch.arange(self.border, device=device)
        self.from_start = self._decay.token_weights(steps + 1, dtype=self._kind)  # lambda^1 .. lambda^border
        self.to_end = self._decay.token_weights(steps.flip(0), dtype=self._kind)  # lambda^(border-1) .. 1
        self.over_head = self._over(self.head)
        self._scaled: tuple[float, Tensor | None] = (1.0, self.from_start)
        self._exchange: Exchange
        if gathers:
            self._exchange = _Gather(self, lengths=lengths)
        else:
            self._exchange = _Chain(self, factor=self._over(self.length))

    def _over(self, tokens: int) -> Tensor:
        """The decay over so many tokens: [H or 1, 1, 1]."""
        exponents = torch.full((1, 1), float(tokens), device=self._device)
        return self._decay.powers(exponents, dtype=self._kind)

    def distances(self, lengths: Sequence[int], *, reverse: bool) -> list[int]:
        """Tokens between this segment and those before (reverse: behind) it whose states it feels."""
        return border_distances(lengths, self.wire.rank, reverse=reverse, reach=self._decay.reach)

    def weights(self, distances: Sequence[int]) -> Tensor | None:
        """The decay over distances: [H, segments], or None for ones."""
        if self.slopes is None or not any(distances):
            return None
        exponents = torch.tensor(distances, dtype=torch.float64, device=self._device)
        return self._decay.powers(exponents, dtype=self._kind)

    def from_start_times(self, scale: float) -> Tensor | None:
        """scale lambda^1 .. scale lambda^border, made once for a scale; None without decay."""
        if self._scaled[0] != scale:
            self._scaled = (scale, None if self.from_start is None else self.from_start * scale)
        return self._scaled[1]

    def exchange(self, own: Callable[[], Tensor], *, reverse: bool) -> Arriving:
        """Begin to exchange the states that `own` computes; alone there is nothing to exchange."""
        return _nothing if self.wire.ranks == 1 else self._exchange(own(), reverse=reverse)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
        """o of this rank's tokens. q, k: [B, H, n, D]; v: [B, H, n, E]; differentiable in all three.

        All ranks call together, and their backwards too, in the same order.

        Raises ValueError for another number of tokens than this rank's.
        """
        if q.shape[2] != self.length:
            raise ValueError(
                f"q must hold the {self.length} tokens of rank {self.wire.rank}, got the shape {list(q.shape)}"
            )
        if self.wire.ranks == 1 and self.by_kernel:  # whose backward is one launch
            return local.whole(q, k, v, slopes=self.slopes, scale=scale)
        run: Any = _Lightning.apply
        out: Tensor = run(q.contiguous(), k.contiguous(), v.contiguous(), self, scale)
        return out


class _Gather:
    """LASP-2: everybody learns every state, and adds up what lies on its side."""

    def __init__(self, owner: LightningParallel, *, lengths: Sequence[int]) -> None:
        self._owner = owner
        # Of either direction: the segments whose states are felt, next to this one, and their weights.
        distances = [owner.distances(lengths, reverse=reverse) for reverse in (False, True)]
        before, behind = (len(each) for each in distances)
        rank = owner.wire.rank
        self._felt = (slice(rank - before, rank), slice(rank + 1, rank + 1 + behind))
        self._weights = [owner.weights(each) for each in distances]

    def __call__(self, own: Tensor, *, reverse: bool) -> Arriving:
        coming = self._owner.wire.gather(own)

        def arrive() -> Tensor | None:
            # Waited for even where none concerns this rank: they must not be freed before.
            states = coming()[self._felt[reverse]]
            return combine(states, self._weights[reverse]) if len(states) else None

        return arrive


class _Chain:
    """LASP: each state is passed on to the next rank, with what this one adds."""

    def __init__(self, owner: LightningParallel, *, factor: Tensor) -> None:
        self._owner, self._factor = owner, factor

    def __call__(self, own: Tensor, *, reverse: bool) -> Arriving:
        return self._owner.wire.chain(own, factor=self._factor, reverse=reverse) or _nothing


def _nothing() -> None:
    """There is no state on that side."""


class _Lightning(torch.autograd.Function):
    """Keeps q, k, v and the state before the piece."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: LightningParallel, scale: float) -> Tensor:
        border, head, length = plan.border, plan.head, plan.length
        near = slice(length - border, length)
        coming = plan.exchange(
            lambda: summed_products(k[:, :, near], v[:, :, near], weights=plan.to_end), reverse=False
        )
        o = torch.empty_like(v)
        attend = _attend(plan, scale)
        state = attend(o[:, :, :head], *(x[:, :, :head] for x in (q, k, v)), return_state=head < length)
        before = coming()
        if before is not None:
            if plan.forgets:
                before = before.to(q.dtype)  # it meets nothing but q, and do in the backward
            reached = min(border, head)
            weights = None if plan.from_start is None else plan.from_start[:, :reached]
            add_decayed(o[:, :, :reached], q[:, :, :reached], before, weights=weights, scale=scale)
        if state is not None:
            if before is not None:  # all of the piece is within reach of the border, the head too
                state = advanced(before, state, plan.over_head)
            attend(o[:, :, head:], *(x[:, :, head:] for x in (q, k, v)), before=state)
        ctx.save_for_backward(q, k, v, before)
        ctx.plan, ctx.scale = plan, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, before = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        do = do.contiguous()
        near = slice(0, plan.border)
        weights = plan.from_start_times(scale)
        coming = plan.exchange(
            lambda: summed_products(
                q[:, :, near], do[:, :, near], weights=weights, scale=scale if weights is None else 1.0
            ),
            reverse=True,
        )
        own: dict[str, Any] = {"slopes": plan.slopes, "scale": scale, "by_kernel": plan.by_kernel}
        if not plan.forgets:
            dq = torch.empty_like(q)
            local.attend_into(dq, do, v, k, before=None if before is None else before.mT, **own)
            dk, dv = local.key_value_gradients(do, q, k, v, after=coming(), **own)
            return dq, dk, dv, None, None
        dq, dk, dv = local.gradients(do, q, k, v, **own)  # in one launch, as on a single GPU
        if before is not None:
            add_decayed(dq[:, :, near], do[:, :, near], before.mT, weights=weights)
        after = coming()
        if after is not None:
            after, last = after.to(q.dtype), slice(plan.length - plan.border, plan.length)
            add_decayed(dk[:, :, last], v[:, :, last], after.mT, weights=plan.to_end)
            add_decayed(dv[:, :, last], k[:, :, last], after, weights=plan.to_end)
        return dq, dk, dv, None, None


def _attend(plan: LightningParallel, scale: float) -> Callable[..., Tensor | None]:
    return functools.partial(local.attend_into, slopes=plan.slopes, scale=scale, by_kernel=plan.by_kernel)
