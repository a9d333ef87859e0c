"""The oracle, and inputs, of the kernels' tests. Without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it must stand before the kernels are imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quadratic_oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state by their definition, in fp64, with an N x N matrix."""
    q, k, v = q.double(), k.double(), v.double()
    heads, seq_len = q.shape[1], q.shape[2]
    t = torch.arange(seq_len, dtype=torch.float64, device=q.device)
    slope = torch.zeros(heads, device=q.device) if slopes is None else slopes
    slope = slope.double()[:, None, None]
    gap = t[:, None] - t[None, :]
    mask = torch.where(gap >= 0, torch.exp(-slope * gap.clamp(min=0)), 0.0)
    out = scale * ((q @ k.mT) * mask) @ v
    state = (k * torch.exp(-slope * (seq_len - 1 - t)[:, None])).mT @ v
    if initial_state is not None:
        before = initial_state.double()
        out = out + scale * torch.exp(-slope * (t + 1)[:, None]) * (q @ before)
        state = state + torch.exp(-slope * seq_len) * before
    return out, state


def relative_error(x: torch.Tensor | None, reference: torch.Tensor | None) -> float:
    """Norm of the difference over the norm of the reference; NaN in x gives NaN, which no bound accepts."""
    assert x is not None
    assert reference is not None
    assert x.shape == reference.shape
    x, reference = x.detach().double(), reference.detach().double()
    return float((x - reference).norm() / reference.norm())


def random_inputs(
    shape: tuple[int, int, int, int, int], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v of the shape (B, H, N, D, E), normally distributed, that require gradients."""
    batch, heads, seq_len, key_dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def leaf(dim: int) -> torch.Tensor:
        x = torch.randn(batch, heads, seq_len, dim, generator=generator)
        return x.to(device=DEVICE, dtype=dtype).requires_grad_()

    return leaf(key_dim), leaf(key_dim), leaf(value_dim)


def random_state(shape: tuple[int, int, int, int, int], *, seed: int = 1) -> torch.Tensor:
    """A state fp32 [B, H, D, E] for that shape (B, H, N, D, E); requires a gradient."""
    batch, heads, _, key_dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, key_dim, value_dim, generator=generator).to(DEVICE).requires_grad_()


def slopes_of(law: str, heads: int) -> torch.Tensor | None:
    """`none`, `zero`, `geometric` (2^{-8(h+1)/H}), or `large` (one token forgets almost all)."""
    if law == "none":
        return None
    values = {
        "zero": torch.zeros(heads),
        "geometric": 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads),
        "large": torch.linspace(5.0, 200.0, heads),
    }
    return values[law].to(DEVICE)


@pytest.fixture(scope="session")
def oracle() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return quadratic_oracle


@pytest.fixture(scope="session")
def error() -> Callable[..., float]:
    return relative_error


@pytest.fixture(scope="session")
def inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return random_inputs


@pytest.fixture(scope="session")
def make_state() -> Callable[..., torch.Tensor]:
    return random_state


@pytest.fixture(scope="session")
def make_slopes() -> Callable[..., torch.Tensor | None]:
    return slopes_of


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, so an element that a kernel forgets to write cannot pass."""

    def poison(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = allocate(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
