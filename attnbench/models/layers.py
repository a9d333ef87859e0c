"""What blocks are made of besides attention: norms, gated units, rotations by position. No biases anywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_STD = 0.02  # of the weights at the start


def linear(inputs: int, outputs: int, *, dtype: torch.dtype) -> nn.Linear:
    """A matrix without bias."""
    made = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    nn.init.normal_(made.weight, std=_STD)
    return made


def embedding(vocabulary: int, width: int, *, dtype: torch.dtype) -> nn.Embedding:
    """A vector of each token, of about unit length once it is multiplied by sqrt(width)."""
    made = nn.Embedding(vocabulary, width, dtype=dtype)
    nn.init.normal_(made.weight, std=width**-0.5)
    return made


def srms_norm(x: Tensor) -> Tensor:
    """x / (||x||_2 / sqrt(d)) over the last dimension, computed in fp32; nothing is learned.

    The source adds 1e-6 to the root of the mean square; here 1e-12 is added under the root, which differs by less
    than 1e-6 of that root's unit and is one fused operator. Source: TransNormerLLM (arXiv 2307.14995), section 3.
    """
    return functional.rms_norm(x, x.shape[-1:], eps=1e-12)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) times a learned weight. Source: LLaMA (arXiv 2302.13971), section 2.2."""

    def __init__(self, width: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=1e-5)


class GatedUnit(nn.Module):
    """((x W_g) * (x W_u)) W_o: SGLU; with `silu` on the first factor SwiGLU."""

    def __init__(self, width: int, inner: int, *, silu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self._silu = silu
        self.up = linear(width, 2 * inner, dtype=dtype)
        self.down = linear(inner, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down((functional.silu(gate) if self._silu else gate) * up)
        return out


class Angles(nn.Module):
    """cos and sin of position times frequency, 10000^(-i / count) for i < count; angles are computed in fp64.

    The table of a length is kept for the next forward. `factor` divides positions (position interpolation, arXiv
    2306.15595). Source of the frequencies: RoFormer (arXiv 2104.09864), section 3.2.2.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._table: tuple[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] | None = None

    def of_length(self, length: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The tables [length, count] of positions 0 to length - 1."""
        key = (length, device, dtype)
        if self._table is None or self._table[0] != key:
            positions = torch.arange(length, device=device)
            self._table = key, self.at(positions, dtype=dtype)
        return self._table[1]

    def at(self, positions: Tensor, *, dtype: torch.dtype, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """cos and sin [P, count] at positions [P]."""
        i = torch.arange(self._count, device=positions.device, dtype=torch.float64)
        frequencies = torch.pow(10000.0, -i / self._count)
        angles = positions.to(torch.float64)[:, None] / factor * frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


def linearised(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """LRPE: concat(x cos, x sin), x: [B, N, H, D], angles: [N, D]; returns [B, N, H, 2 D].

    q_t . k_s becomes sum_i q_i k_i cos(theta_i (t - s)). Source: "Linearized Relative Positional Encoding"
    (arXiv 2307.09270), as TransNormerLLM's code has it.
    """
    cos, sin = (table.to(x.dtype)[:, None, :] for table in angles)
    return torch.cat((x * cos, x * sin), dim=-1)


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE on x: [B, N, H, D] by angles [N, D / 2], whose halves are the planes' two coordinates; as x, contiguous."""
    cos, sin = (table.to(x.dtype)[:, None, :] for table in angles)
    if torch.compiler.is_compiling():  # which makes one pass of the formula, and knows its gradient
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
    apply: Any = _Rotation.apply
    out: Tensor = apply(x, cos, sin)
    return out


class _Rotation(torch.autograd.Function):
    """Four passes over the halves, in place, where the formula as written makes nine; its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, sign=1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, sign=-1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, sign: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x1, x2 = x.chunk(2, dim=-1)
    o1, o2 = out.chunk(2, dim=-1)
    torch.mul(x1, cos, out=o1)
    o1.addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=o2)
    o2.addcmul_(x1, sin, value=sign)
    return out
