"""FlexAttention: softmax attention whose mask is a function, compiled by torch into kernels of its own.

On CUDA the call is compiled for each shape; elsewhere it runs uncompiled, without a backward, for tests of the masks.
A block mask is made once for a length, outside of what is timed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attnbench.baselines.compiled import compiled
from attnbench.baselines.contract import need_causal, need_no_slopes

_BLOCK = 128  # tokens of a block of the mask, torch's default


def flex(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    q: [B, H, N, D], k: [B, KV, N, D], v: [B, KV, N, E]; returns [B, H, N, E] in the input dtype.

    Raises ValueError for slopes. Source: torch.nn.attention.flex_attention.
    """
    need_no_slopes(slopes)
    mask = block_mask(q.shape[2], window=None, sinks=0, device=q.device) if causal else None
    return _attend(q, k, v, scale=scale, mask=mask)


def streaming_llm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    slopes: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    sinks: int,
) -> Tensor:
    """Softmax over the last `window` tokens, the query's own among them, and the first `sinks`. Shapes as for `flex`.

    Raises ValueError for slopes and for causal=False.
    Source: "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453), section 3.2, as attention
    over whole sequences, without the positions inside its cache.
    """
    need_causal(causal)
    need_no_slopes(slopes)
    mask = block_mask(q.shape[2], window=window, sinks=sinks, device=q.device)
    return _attend(q, k, v, scale=scale, mask=mask)


@functools.lru_cache(maxsize=8)
def block_mask(length: int, *, window: int | None, sinks: int, device: torch.device) -> BlockMask:
    """The causal mask of so many tokens, with a window if there is one, by blocks of 128 by 128.

    Which blocks are empty, and which are full, is worked out from their corners: create_block_mask would look at every
    pair of tokens.
    """
    first = torch.arange(0, length, _BLOCK, device=device)
    last = first + _BLOCK - 1
    nearest = (
        first[:, None] - last
    )  # the least distance from a query of a block to a key of a block, and the largest
    farthest = last[:, None] - first
    seen = farthest >= 0
    whole = (nearest >= 0) & (last[:, None] < length) & (last < length)
    if window is not None:
        seen &= (nearest < window) | (first < sinks)
        whole &= (farthest < window) | (last < sinks)
    in_part, in_full = _ordered(seen & ~whole), _ordered(whole)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = key <= query
        return causal if window is None else causal & ((query - key < window) | (key < sinks))

    return BlockMask.from_kv_blocks(
        *in_part, *in_full, BLOCK_SIZE=_BLOCK, mask_mod=visible, seq_lengths=(length, length)
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of a matrix of blocks: how many there are in each row, and their columns, those that are there first."""
    count = blocks.sum(-1, dtype=torch.int32)
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
    return count[None, None], columns[None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: BlockMask | None) -> Tensor:
    attend: Any = compiled(flex_attention, dynamic=False) if q.is_cuda else flex_attention
    o: Tensor = attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return o
