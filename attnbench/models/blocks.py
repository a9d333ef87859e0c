"""The two mixers of tokens: TransNormerLLM's gated linear attention and LLaMA's softmax attention, as parts of a block.

A mixer takes x [B, N, d] in three ways: `forward` over whole sequences, for training; `advance` over the tokens that
come next, leaving in `kept` what decoding needs of them; `step` over one token more of each sequence. `forward` is
what is compiled: it is handed the tables of its positions, and reads nothing that differs between layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnbench.models.attention import Attention, advance, attend_cache, layer_slopes
from attnbench.models.kept import Caches, States
from attnbench.models.layers import Angles, GatedUnit, RMSNorm, linear, linearised, rotated, srms_norm
from attnbench.models.shapes import Shape

Tables = tuple[Tensor, Tensor]  # cos and sin of the positions of a sequence, as `Angles.of_length` makes them
Kept = Any  # States of TransNormerLLM, Caches of LLaMA
StateStep = Callable[..., Tensor]


class SRMSNorm(nn.Module):
    """`srms_norm` as a module: it learns nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return srms_norm(x)


class GatedLinearAttention(nn.Module):
    """SRMSNorm(attention(silu(q), silu(k), v)) * gate, projected; q and k with LRPE in the first layer.

    The gate is a product of two thin matrices (`Shape.gate` channels between them), as the source's counts of
    parameters have it. LRPE doubles the key dim of the first layer: D = 2 E there.
    Source: TransNormerLLM (arXiv 2307.14995), section 3.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        layer: int,
        attention: Attention,
        angles: Angles | None,
        step: StateStep | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._shape, self._layer, self._attention, self._step = shape, layer, attention, step
        d, r = shape.width, shape.gate
        self.project = linear(d, 3 * d + r, dtype=dtype)
        self.gate = linear(r, d, dtype=dtype)
        self.out = linear(d, d, dtype=dtype)
        self.angles = angles  # of the first layer
        slopes = layer_slopes(shape.heads, layer=layer, layers=shape.layers)
        self.slopes: Tensor
        self.register_buffer("slopes", slopes, persistent=False)

    @property
    def key_dim(self) -> int:
        return self._shape.head_dim * (2 if self.angles is not None else 1)

    def forward(self, x: Tensor, tables: Tables | None) -> Tensor:
        qk, v, low = self._projected(x)
        if tables is not None:
            qk = linearised(qk, tables)
        q, k = qk.chunk(2, dim=2)
        return self._gated(self._attention(q, k, v, slopes=self.slopes, scale=1.0), low)

    def advance(self, x: Tensor, kept: States) -> Tensor:
        start = kept.position.host
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        q, k, v, low = self._placed(x, positions)
        return self._gated(advance(q, k, v, kept.layers[self._layer], slopes=self.slopes), low)

    def step(self, x: Tensor, kept: States) -> Tensor:
        assert self._step is not None, "a model that decodes is built with its step"
        q, k, v, low = self._placed(x, kept.position.device)
        o = self._step(q[:, 0], k[:, 0], v[:, 0], kept.layers[self._layer], self.slopes)
        return self._gated(o[:, None], low)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """silu(q) and silu(k) [B, N, 2 H, D], v [B, N, H, D], the gate's bottleneck [B, N, r]."""
        d, dim = self._shape.width, self._shape.head_dim
        qk, v, low = self.project(x).split((2 * d, d, self._shape.gate), dim=-1)
        return functional.silu(qk).unflatten(-1, (-1, dim)), v.unflatten(-1, (-1, dim)), low

    def _placed(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        qk, v, low = self._projected(x)
        if self.angles is not None:
            qk = linearised(qk, self.angles.at(positions, dtype=qk.dtype))
        q, k = qk.chunk(2, dim=2)
        return q, k, v, low

    def _gated(self, o: Tensor, low: Tensor) -> Tensor:
        out: Tensor = self.out(srms_norm(o.flatten(2)) * self.gate(low))
        return out


class SoftmaxAttention(nn.Module):
    """Causal softmax attention with RoPE on q and k, projected. Source: LLaMA (arXiv 2302.13971), section 2.2."""

    def __init__(
        self, shape: Shape, *, layer: int, attention: Attention, angles: Angles, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._shape, self._layer, self._attention = shape, layer, attention
        self.project = linear(shape.width, 3 * shape.width, dtype=dtype)
        self.out = linear(shape.width, shape.width, dtype=dtype)
        self.angles = angles  # of all layers together

    def forward(self, x: Tensor, tables: Tables | None) -> Tensor:
        assert tables is not None, "every layer rotates"
        qk, v = self._projected(x)
        q, k = rotated(qk, tables).chunk(2, dim=2)
        return self._attended(q, k, v)

    def advance(self, x: Tensor, kept: Caches) -> Tensor:
        """The first tokens of a context, all at once: kept.position is 0."""
        qk, v = self._projected(x)
        positions = torch.arange(x.shape[1], device=x.device)
        turned = rotated(qk, self.angles.at(positions, dtype=qk.dtype, factor=kept.factor))
        q, k = turned.chunk(2, dim=2)
        kept.put_all(self._layer, k, qk.chunk(2, dim=2)[1], v)
        return self._attended(q, k, v)

    def step(self, x: Tensor, kept: Caches) -> Tensor:
        qk, v = self._projected(x)
        assert kept.now is not None, "Caches.begin comes first"
        q, k = rotated(qk, kept.now.turn).chunk(2, dim=2)
        keys, values = kept.put(self._layer, k, qk.chunk(2, dim=2)[1], v)
        flash = self._attention.provider.distribution == "flash-attn"
        out: Tensor = self.out(attend_cache(q, keys, values, lengths=kept.now.used, flash=flash).flatten(2))
        return out

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k before rotation [B, N, 2 H, D], v [B, N, H, D]."""
        d, dim = self._shape.width, self._shape.head_dim
        qk, v = self.project(x).split((2 * d, d), dim=-1)
        return qk.unflatten(-1, (-1, dim)), v.unflatten(-1, (-1, dim))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = self._attention(q, k, v, slopes=None, scale=self._shape.head_dim**-0.5)
        out: Tensor = self.out(o.flatten(2))
        return out


class Block(nn.Module):
    """x + mixer(norm(x)), then x + unit(norm(x)), in both families."""

    def __init__(
        self, shape: Shape, mixer: GatedLinearAttention | SoftmaxAttention, *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        softmax = shape.family == "llama"
        self.mixer = mixer
        self.unit = GatedUnit(shape.width, shape.glu, silu=softmax, dtype=dtype)
        self.before_mixer, self.before_unit = (norm(shape, dtype=dtype) for _ in range(2))

    def forward(self, x: Tensor, tables: Tables | None) -> Tensor:
        return self._fed(x + self.mixer(self.before_mixer(x), tables))

    def advance(self, x: Tensor, kept: Kept) -> Tensor:
        return self._fed(x + self.mixer.advance(self.before_mixer(x), kept))

    def step(self, x: Tensor, kept: Kept) -> Tensor:
        return self._fed(x + self.mixer.step(self.before_mixer(x), kept))

    def _fed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.unit(self.before_unit(x))
        return out


def norm(shape: Shape, *, dtype: torch.dtype) -> nn.Module:
    """The norm of a family."""
    return SRMSNorm() if shape.family == "tnl" else RMSNorm(shape.width, dtype=dtype)
