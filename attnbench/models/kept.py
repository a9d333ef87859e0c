"""What a model keeps of a context for decoding: states that do not grow, caches that do, caches that are bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from attnbench.models.layers import Angles, rotated
from attnbench.semantics import SINKS

CacheKind = Literal["state", "kv", "kv-interpolated", "kv-streaming"]
SOFTMAX_CACHES: Final[tuple[CacheKind, ...]] = ("kv", "kv-interpolated", "kv-streaming")
TRAINED_LENGTH: Final = (
    2048  # tokens that a model is taken to be trained for, where positions are interpolated
)
WINDOW: Final = (
    TRAINED_LENGTH - SINKS
)  # last tokens in a bounded cache, which has no more rows than that in all


@dataclass
class Position:
    """Tokens taken in so far: a number for the host, and one on the device for captured steps."""

    device: Tensor  # int64 [1]
    host: int = 0

    def move(self, tokens: int) -> None:
        self.device += tokens
        self.host += tokens

    def set(self, tokens: int) -> None:
        self.device.fill_(tokens)
        self.host = tokens


@dataclass
class States:
    """Recurrent states of TransNormerLLM, one a layer: fp32 [B, H, D, E], of the same size at any context."""

    layers: Sequence[Tensor]
    position: Position

    @property
    def bytes(self) -> int:
        return sum(state.nbytes for state in self.layers)

    def rows(self, which: slice) -> States:
        """The same of some of the sequences, sharing memory and position."""
        return States([state[which] for state in self.layers], self.position)

    def clear(self) -> None:
        """Back to no context at all."""
        for state in self.layers:
            state.zero_()
        self.position.set(0)

    def fill(self, context: int) -> None:
        """Random numbers in place of a context of that many tokens: its content does not change what a step costs."""
        for state in self.layers:
            state.normal_()
        self.position.set(context)


@dataclass(frozen=True, kw_only=True)
class SinksNow:
    """Of the sinks, for one step: is the token one, whose row it takes or leaves as it is; angles of all [S, D / 2]."""

    is_one: Tensor  # bool [1]
    row: Tensor  # int64 [1]
    turn: tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Now:
    """For one step: the token's row, int64 [1]; rows then in use, int32 [B]; the token's angles, [1, D / 2]."""

    row: Tensor
    used: Tensor
    turn: tuple[Tensor, Tensor]
    sinks: SinksNow | None = None


@dataclass
class Caches:
    """Keys and values of LLaMA, a pair a layer: [B, capacity, H, D].

    Keys are rotated by their position over `factor`. A bounded cache (`sinks` > 0) holds the first `sinks` tokens and
    the last ones: a token takes the row of the oldest one that is no sink. Attention sees relative positions alone,
    so StreamingLLM's positions "within the cache" (arXiv 2309.17453, section 3.2) are the true ones for the last
    tokens, and for the sinks those that end where the last tokens begin: only the sinks' keys are rotated anew.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    position: Position
    factor: float = 1.0
    sinks: int = 0
    raw_sinks: Sequence[Tensor] = ()  # keys of the sinks before rotation, [B, sinks, H, D] a layer
    now: Now | None = None

    @property
    def capacity(self) -> int:
        return self.layers[0][0].shape[1]

    @property
    def bytes(self) -> int:
        pairs = sum(k.nbytes + v.nbytes for k, v in self.layers)
        return pairs + sum(sinks.nbytes for sinks in self.raw_sinks)

    def rows(self, which: slice) -> Caches:
        """As `States.rows`."""
        return dataclasses.replace(
            self,
            layers=[(k[which], v[which]) for k, v in self.layers],
            raw_sinks=[sinks[which] for sinks in self.raw_sinks],
        )

    def clear(self) -> None:
        """As `States.clear`: rows that are not in use are not read."""
        self.position.set(0)

    def fill(self, context: int) -> None:
        """As `States.fill`."""
        for tensor in (*(t for pair in self.layers for t in pair), *self.raw_sinks):
            tensor.normal_()
        self.position.set(context)

    def put_all(self, layer: int, keys: Tensor, raw: Tensor, values: Tensor) -> None:
        """The first tokens of a context, [B, N, H, D]: no more than there are rows."""
        k, v = self.layers[layer]
        k[:, : keys.shape[1]] = keys
        v[:, : values.shape[1]] = values
        if self.sinks:
            self.raw_sinks[layer][:, : min(self.sinks, raw.shape[1])] = raw[:, : self.sinks]

    def begin(self, angles: Angles) -> None:
        """Look up what is the same in all layers for the token at `position`: before `put`, once a step.

        Nothing here asks the host for the position, so that a step may be captured.
        """
        t = self.position.device
        keys = self.layers[0][0]
        used = (t + 1).clamp(max=self.capacity).to(torch.int32).expand(keys.shape[0]).contiguous()
        turn = angles.at(t, dtype=keys.dtype, factor=self.factor)
        if not self.sinks:
            self.now = Now(row=t, used=used, turn=turn)
            return
        ring = self.capacity - self.sinks
        shift = (t + 1 - self.capacity).clamp(min=0)
        places = torch.arange(self.sinks, device=t.device) + shift
        self.now = Now(
            row=torch.where(t < self.sinks, t, self.sinks + (t - self.sinks) % ring),
            used=used,
            turn=turn,
            sinks=SinksNow(
                is_one=t < self.sinks,
                row=t.clamp(max=self.sinks - 1),
                turn=angles.at(places, dtype=keys.dtype, factor=self.factor),
            ),
        )

    def put(self, layer: int, key: Tensor, raw: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The token at `position`, [B, 1, H, D], takes its row; returns the layer's keys and values."""
        assert self.now is not None, "begin comes first"
        k, v = self.layers[layer]
        k.index_copy_(1, self.now.row, key)
        v.index_copy_(1, self.now.row, value)
        if self.now.sinks is not None:
            sinks, now = self.raw_sinks[layer], self.now.sinks
            there = sinks.index_select(1, now.row)  # the last sink stays, once the token is none
            sinks.index_copy_(1, now.row, torch.where(now.is_one, raw, there))
            k[:, : self.sinks] = rotated(sinks, now.turn)
        return k, v
