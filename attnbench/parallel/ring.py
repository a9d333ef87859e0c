"""Ring attention: exact causal softmax attention over a sequence that is cut over ranks, keys and values going round.

Each rank keeps its queries and sees the keys and values of one rank after the other, while those of the next are on
their way; what it has seen is merged by the log-sum-exp of the scores. Backward keys and values go round once more,
and with them the sums of their gradients, which come home after a full round. Source: "Ring Attention with Blockwise
Transformers" (arXiv 2310.01889). Its blocks are torch's flash attention. The layout is `sharding.zigzag`, in which
every rank computes as much in every step: all of its own block under the causal mask, and of another rank's either the
front half of the keys for all queries, or all keys for the back half of the queries, without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnbench.parallel.sharding import Sharding, zigzag
from attnbench.parallel.states import state_dtype
from attnbench.parallel.wire import Wire


class RingAttention:
    """Causal softmax attention on one rank of many; made once for a length, called with the rank's own tokens."""

    def __init__(self, seq_len: int, *, wire: Wire, dtype: torch.dtype, device: torch.device) -> None:
        """seq_len: of the whole sequence, N.

        Raises ValueError for fewer tokens than twice the ranks, NotImplementedError for what torch's flash attention
        does not take on a GPU.
        """
        if device.type == "cuda" and dtype not in (torch.float16, torch.bfloat16):
            raise NotImplementedError(f"torch's flash attention takes bf16 and fp16 on a GPU, not {dtype}")
        self.sharding: Sharding = zigzag(seq_len, wire.ranks)
        self.wire = wire
        self.length = self.sharding.lengths[wire.rank]
        self._blocks = _OnGpu() if device.type == "cuda" else _OnCpu()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """o of this rank's tokens. q, k, v: [B, H, n, D], of the same shape; differentiable in all three.

        All ranks call together, and their backwards too, in the same order.

        Raises ValueError for another number of tokens than this rank's, or shapes that differ.
        """
        if not (q.shape == k.shape == v.shape and q.shape[2] == self.length):
            raise ValueError(
                f"q, k and v must hold the {self.length} tokens of rank {self.wire.rank} in one shape, got "
                f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
            )
        run: Any = _Ring.apply
        out: Tensor = run(q.contiguous(), k.contiguous(), v.contiguous(), self, scale)
        return out

    @property
    def blocks(self) -> _OnGpu | _OnCpu:
        return self._blocks

    def owner(self, step: int) -> int:
        """Whose keys and values this rank sees in a step."""
        return (self.wire.rank - step) % self.wire.ranks

    def shape(self, like: Tensor, owner: int) -> tuple[int, ...]:
        """The shape of stacked keys and values of a rank: [2, B, H, n, D]."""
        return (2, *like.shape[:2], self.sharding.lengths[owner], like.shape[-1])

    def seen(self, owner: int) -> _Seen:
        """Which of its queries a rank lets see which of another's keys."""
        rank, lengths = self.wire.rank, self.sharding.lengths
        fronts = [own[0][1] - own[0][0] for own in self.sharding.pieces]
        if owner == rank:
            return _Seen(queries=slice(0, lengths[rank]), keys=slice(0, lengths[rank]), causal=True)
        if owner < rank:
            return _Seen(queries=slice(0, lengths[rank]), keys=slice(0, fronts[owner]), causal=False)
        return _Seen(queries=slice(fronts[rank], lengths[rank]), keys=slice(0, lengths[owner]), causal=False)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A block of scores: which rows, which columns, and whether under the causal mask."""

    queries: slice
    keys: slice
    causal: bool


class _OnCpu:
    """torch's flash attention for CPUs: fp32, fp64 and 16 bits."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """o [B, H, n, D] and the log-sum-exp of the scores, fp32 (fp64) [B, H, n]."""
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return found[0], found[1]

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of a block of scores, o and lse being those of the whole rows."""
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            do, q, k, v, o, lse, 0.0, causal, scale=scale
        )
        return gradients[0], gradients[1], gradients[2]


class _OnGpu:
    """torch's copy of FlashAttention-2, 16 bits."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As of `_OnCpu`."""
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return found[0], found[1]

    def backward(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of `_OnCpu`."""
        seed = torch.zeros(2, dtype=torch.int64, device=q.device)  # of a dropout that is not there
        lengths = (None, None, q.shape[2], k.shape[2])  # all sequences are as long as the tensors
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            do, q, k, v, o, lse, *lengths, 0.0, causal, seed, seed[:1], scale=scale
        )
        return gradients[0], gradients[1], gradients[2]


class _Ring(torch.autograd.Function):
    """Keeps q, k, v, o and the log-sum-exp of its rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: RingAttention, scale: float) -> Tensor:
        total = torch.zeros(q.shape, dtype=state_dtype(q.dtype), device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=total.dtype, device=q.device)
        for seen, keys, values in _round(plan, torch.stack((k, v))):
            rows = seen.queries
            o, block_lse = plan.blocks.forward(
                q[:, :, rows],
                keys[:, :, seen.keys],
                values[:, :, seen.keys],
                causal=seen.causal,
                scale=scale,
            )
            _merge(total[:, :, rows], lse[:, :, rows], o, block_lse)
        o = total.to(q.dtype)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.plan, ctx.scale = plan, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        do = do.contiguous()
        kind = state_dtype(q.dtype)
        dq = torch.zeros(q.shape, dtype=kind, device=q.device)
        sums = torch.zeros(plan.shape(q, plan.wire.rank), dtype=kind, device=q.device)
        arriving: Callable[[], Tensor] | None = None
        for step, (seen, keys, values) in enumerate(_round(plan, torch.stack((k, v)))):
            rows = seen.queries
            found = plan.blocks.backward(
                *(x[:, :, rows] for x in (do, q)),
                *(x[:, :, seen.keys] for x in (keys, values)),
                o[:, :, rows],
                lse[:, :, rows].contiguous(),
                causal=seen.causal,
                scale=scale,
            )
            dq[:, :, rows] += found[0]
            if arriving is not None:
                sums = arriving()
            for total, part in zip(sums, found[1:], strict=True):
                total[:, :, seen.keys] += part
            if (
                plan.wire.ranks > 1
            ):  # on to the rank that sees these keys next; after the last step they are home
                arriving = plan.wire.rotate(sums, shape=plan.shape(q, plan.owner(step + 1)))
        dk, dv = (sums if arriving is None else arriving()).to(q.dtype)
        return dq.to(q.dtype), dk, dv, None, None


def _round(plan: RingAttention, kv: Tensor) -> Any:
    """What a rank sees of each owner's keys and values, its own first; the next are sent for before."""
    steps = plan.wire.ranks
    for step in range(steps):
        coming: Callable[[], Tensor] | None = None
        if step < steps - 1:
            coming = plan.wire.rotate(kv, shape=plan.shape(kv[0], plan.owner(step + 1)))
        yield plan.seen(plan.owner(step)), kv[0], kv[1]
        if coming is not None:
            kv = coming()


def _merge(total: Tensor, lse: Tensor, o: Tensor, block_lse: Tensor) -> None:
    """Join a block into what was seen before, in place: weights are exp of log-sum-exps less that of both together.

    total: [B, H, m, D], lse: [B, H, m], views of the whole; o, block_lse: of the block.
    """
    block_lse = block_lse[..., : lse.shape[-1]].to(lse.dtype)
    both = torch.logaddexp(lse, block_lse)
    total.mul_(torch.exp(lse - both)[..., None]).add_(o * torch.exp(block_lse - both)[..., None])
    lse.copy_(both)
