"""Which tokens of a sequence each rank holds. Any number of ranks, and lengths that they do not divide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def even_lengths(total: int, parts: int) -> tuple[int, ...]:
    """`total` tokens in `parts` pieces whose lengths differ by one at most, the longer ones first."""
    return tuple(total // parts + (i < total % parts) for i in range(parts))


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The pieces [start, stop) that each rank holds, in the order in which they lie in its tensors."""

    pieces: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens on each rank."""
        return tuple(sum(stop - start for start, stop in own) for own in self.pieces)

    def take(self, x: Tensor, rank: int) -> Tensor:
        """The tokens of a rank: [B, H, N, ...] to [B, H, n, ...], contiguous."""
        return torch.cat([x[:, :, start:stop] for start, stop in self.pieces[rank]], dim=2)

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        """The whole from the tokens of all ranks: the inverse of `take`."""
        placed = {
            start: part
            for own, shard in zip(self.pieces, shards, strict=True)
            for (start, _), part in zip(own, shard.split([b - a for a, b in own], dim=2), strict=True)
        }
        return torch.cat([placed[start] for start in sorted(placed)], dim=2)


def contiguous(seq_len: int, ranks: int) -> Sharding:
    """A piece for each rank, in order.

    Raises ValueError for fewer tokens than ranks.
    """
    if seq_len < ranks:
        raise ValueError(f"seq_len must be at least the number of ranks, {ranks}, got {seq_len}")
    edges = _edges(even_lengths(seq_len, ranks))
    return Sharding(pieces=tuple((edge,) for edge in edges))


def zigzag(seq_len: int, ranks: int) -> Sharding:
    """Two pieces for each rank, one from the front and one from the back, so that causal work is the same on all.

    Source: the balanced layout of "Striped Attention" (arXiv 2311.09431) in halves, as Llama 3 (arXiv 2407.21783,
    section 3.3.2) and torch's context parallelism have it.

    Raises ValueError for fewer tokens than twice the ranks, unless there is one rank.
    """
    if ranks == 1:
        return contiguous(seq_len, 1)
    if seq_len < 2 * ranks:
        raise ValueError(
            f"seq_len must be at least twice the number of ranks, {2 * ranks}, for a balanced layout, got {seq_len}"
        )
    edges = _edges(even_lengths(seq_len, 2 * ranks))
    return Sharding(pieces=tuple((edges[r], edges[2 * ranks - 1 - r]) for r in range(ranks)))


def _edges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    edges, start = [], 0
    for length in lengths:
        edges.append((start, start + length))
        start += length
    return edges
