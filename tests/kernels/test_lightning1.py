"""Lightning Attention-1 against its definition in fp64, and against Lightning Attention-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnbench.kernels import lightning_attention_1, lightning_attention_2
from attnbench.kernels.lightning1 import tiles

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Shape = tuple[int, int, int, int, int]


def shape_id(shape: Shape) -> str:
    return "-".join(f"{name}{size}" for name, size in zip("BHNDE", shape, strict=True))


def errors_against(
    oracle: Callable[..., Any],
    error: Callable[..., float],
    tensors: tuple[torch.Tensor, ...],
    slopes: torch.Tensor | None,
    *,
    scale: float = 1.0,
) -> dict[str, float]:
    """Relative errors of o, dq, dk, dv."""
    q, k, v = tensors
    out = lightning_attention_1(q, k, v, slopes, scale=scale)
    reference, _ = oracle(q, k, v, slopes, scale=scale)
    torch.manual_seed(7)
    d_out = torch.randn_like(out)
    ours = torch.autograd.grad(out, tensors, d_out)
    expected = torch.autograd.grad(reference, tensors, d_out.double())
    names = ("o", "dq", "dk", "dv")
    pairs = zip((out, *ours), (reference, *expected), strict=True)
    return dict(zip(names, (error(a, b) for a, b in pairs), strict=True))


@pytest.mark.parametrize(
    ("seq_len", "law"),
    [
        *((seq_len, "geometric") for seq_len in (1, 2, 63, 64, 65, 127, 200, 257)),
        *((seq_len, "large") for seq_len in (65, 200)),
        (130, "none"),
        (130, "zero"),
    ],
)
def test_lengths_and_slope_laws(
    seq_len: int, law: str, oracle: Any, error: Any, inputs: Any, make_slopes: Any
) -> None:
    errors = errors_against(oracle, error, inputs((1, 2, seq_len, 16, 16)), make_slopes(law, 2), scale=0.5)
    assert max(errors.values()) <= 1e-5, errors


SHAPES = ((2, 2, 70, 32, 48), (1, 1, 129, 96, 32), (1, 1, 130, 48, 80), (1, 1, 33, 16, 256))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        *((shape, torch.bfloat16) for shape in SHAPES[1:3]),
        (SHAPES[0], torch.float16),
        (SHAPES[3], torch.float16),
    ],
    ids=lambda x: shape_id(x) if isinstance(x, tuple) else str(x).removeprefix("torch."),
)
def test_shapes(
    shape: Shape, dtype: torch.dtype, oracle: Any, error: Any, inputs: Any, make_slopes: Any
) -> None:
    tensors = inputs(shape, dtype=dtype)
    errors = errors_against(oracle, error, tensors, make_slopes("geometric", shape[1]), scale=0.3)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


def test_strides(oracle: Any, error: Any, inputs: Any, make_slopes: Any) -> None:
    tensors = inputs((2, 2, 67, 16, 32))
    turned = tuple(x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors)
    errors = errors_against(oracle, error, turned, make_slopes("geometric", 2))
    assert max(errors.values()) <= 1e-5, errors
    q, k, v = turned
    assert lightning_attention_1(q, k, v).stride() == v.stride()


def test_equals_lightning_2(error: Any, inputs: Any, make_slopes: Any) -> None:
    q, k, v = inputs((1, 2, 150, 32, 32))
    slopes = make_slopes("geometric", 2)
    assert error(lightning_attention_1(q, k, v, slopes), lightning_attention_2(q, k, v, slopes)) <= 2e-6


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    heads=st.integers(1, 2),
    seq_len=st.integers(1, 150),
    key_dim=st.integers(1, 5).map(lambda n: 16 * n),
    value_dim=st.integers(1, 5).map(lambda n: 16 * n),
    slope=st.sampled_from([0.0, 1e-3, 0.3, 30.0]),
)
def test_any_shape(
    heads: int, seq_len: int, key_dim: int, value_dim: int, slope: float, oracle: Any, error: Any, inputs: Any
) -> None:
    tensors = inputs((1, heads, seq_len, key_dim, value_dim))
    slopes = torch.full((heads,), slope, device=tensors[0].device)
    errors = errors_against(oracle, error, tensors, slopes)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("dim", [16, 64, 96, 128, 256])
@pytest.mark.parametrize("shared_memory", [101_376, 166_912, 232_448])
def test_tiles_fit_the_shared_memory(dim: int, element_size: int, shared_memory: int) -> None:
    config = tiles(
        key_dim=dim,
        value_dim=dim,
        element_size=element_size,
        shared_memory=shared_memory,
        architecture="hopper",
    )
    assert config.block_m % config.block_n == 0
    rows_q, rows_kv = config.block_m, config.num_stages * config.block_n
    assert element_size * (rows_q * dim + rows_kv * (dim + config.block_e)) <= shared_memory


# ---------------------------------------------------------------- as a custom operator


def test_the_operator_keeps_torchs_rules_and_computes_what_the_function_does(inputs: Any) -> None:
    q, k, v = inputs((1, 2, 19, 16, 32))
    slopes = torch.tensor([0.5, 0.01], device=q.device)
    operator = torch.ops.attnbench.lightning1
    torch.library.opcheck(operator.default, (q, k, v, slopes, 0.5))
    ours, expected = operator(q, k, v, slopes, 0.5), lightning_attention_1(q, k, v, slopes, scale=0.5)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    into = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), into),
        torch.autograd.grad(expected, (q, k, v), into),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
