"""The sizes of the models, and what follows from them: parameters and floating-point operations.

Sizes are the matched pairs of "Scaling Laws for Linear Complexity Language Models" (layers, width, width of the gated
unit), with two readings of what it does not print. Its counts come out to the last digit printed if TransNormerLLM's
gate has a bottleneck of 128 channels, and not with a full d x d gate as in the public code of an earlier model. For 1B
it prints 16 heads; 12 give the head dim 128 of the other sizes, and the same count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from attnbench.registry import find

Family = Literal["tnl", "llama"]

VOCABULARY: Final = 64_000  # of the public TransNormerLLM configuration


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model. `gate`: channels of the bottleneck of TransNormerLLM's gate; `glu`: width of the gated unit."""

    family: Family
    size: str
    layers: int
    width: int
    heads: int
    glu: int
    gate: int = 128
    vocabulary: int = VOCABULARY

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def block_weights(self) -> int:
        """Parameters in the matrices of a block; these are multiplied with every token."""
        gate = 2 * self.width * self.gate if self.family == "tnl" else 0
        return 4 * self.width**2 + 3 * self.width * self.glu + gate

    @property
    def body_parameters(self) -> int:
        """All parameters but embedding and head: what the source counts."""
        norms = 0 if self.family == "tnl" else (2 * self.layers + 1) * self.width
        return self.layers * self.block_weights + norms

    @property
    def parameters(self) -> int:
        """All parameters; embedding and head have a matrix each."""
        return self.body_parameters + 2 * self.vocabulary * self.width

    def attention_flops(self, seq_len: int) -> float:
        """Useful operations of the attention of all layers on one sequence, forward and backward, of a step.

        TransNormerLLM: the recurrence, 4 D E a token and head forward and 10 D E backward, where D is doubled in
        the first layer; by whatever algorithm it is computed. LLaMA: the causal half of the scores, 4 D a pair
        forward and 10 D backward. As `attnbench.semantics.work.useful_flops` has them.
        """
        D = self.head_dim
        if self.family == "tnl":
            return (self.layers + 1) * self.heads * seq_len * 14.0 * D * D
        return self.layers * self.heads * (seq_len * (seq_len + 1) / 2) * 14.0 * D

    def step_flops(self, *, sequences: int, seq_len: int) -> float:
        """Operations of a training step that the model needs: 6 a weight and token, and the attention.

        The embedding is looked up, not multiplied. What checkpointing computes again is not counted (model FLOPs,
        as in "PaLM", arXiv 2204.02311, appendix B).
        """
        weights = self.layers * self.block_weights + self.vocabulary * self.width
        return sequences * (6.0 * weights * seq_len + self.attention_flops(seq_len))


def _pair(size: str, *, tnl: int, llama: int, width: int, heads: int, glu: int) -> dict[Family, Shape]:
    first = Shape(family="tnl", size=size, layers=tnl, width=width, heads=heads, glu=glu)
    return {"tnl": first, "llama": dataclasses.replace(first, family="llama", layers=llama)}


def _tiny(family: Family) -> Shape:
    return Shape(family=family, size="tiny", layers=2, width=128, heads=2, glu=256, gate=32, vocabulary=256)


SHAPES: Final[Mapping[str, Mapping[Family, Shape]]] = {
    "tiny": {"tnl": _tiny("tnl"), "llama": _tiny("llama")},
    "0.4B": _pair("0.4B", tnl=25, llama=26, width=1024, heads=8, glu=2816),
    "1B": _pair("1B", tnl=32, llama=32, width=1536, heads=12, glu=4096),
    "3B": _pair("3B", tnl=35, llama=35, width=2560, heads=20, glu=6912),
}

# Non-embedding parameters that the source prints, in millions.
PUBLISHED_MILLIONS: Final[Mapping[tuple[str, Family], float]] = {
    ("0.4B", "llama"): 334.1,
    ("0.4B", "tnl"): 327.7,
    ("1B", "llama"): 906.2,
    ("1B", "tnl"): 918.6,
    ("3B", "llama"): 2775.8,
    ("3B", "tnl"): 2798.4,
}


def family_of(attention: str) -> Family:
    """Which model an attention mechanism belongs to: decayed linear attention to TransNormerLLM, softmax to LLaMA."""
    return "tnl" if find(attention).semantics == "decay-linear" else "llama"
