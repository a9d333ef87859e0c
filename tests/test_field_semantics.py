"""Oracles of the wider field against their formulas, written out for every pair of tokens, with autograd in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.case import Case, Workload
from attnbench.semantics import (
    SEMANTICS,
    SINKS,
    Reference,
    retention_slopes,
    useful_flops,
)
from attnbench.semantics.parameters import GATES, ORTHOGONAL_PROJECTION
from attnbench.semantics.work import _pairs

P, D, E, M = 3, 16, 24, 64
LENGTHS = (1, 2, 31, 32, 33, 129)
SCALE = 0.3


def _inputs(N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N)
    q, k, v, do = (torch.randn(P, N, w, generator=generator, dtype=torch.float64) for w in (D, D, E, E))
    return q, k, v, do


def _ages(N: int) -> Tensor:
    """How long before the query of a row the key of a column is; [N, N]."""
    return torch.arange(N, dtype=torch.float64)[:, None] - torch.arange(N)


def _normalised(weights: Tensor, v: Tensor, *, least: float = 0.0) -> Tensor:
    seen = weights.tril()
    return seen @ v / seen.sum(-1, keepdim=True).clamp(min=least)


def retention(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor) -> Tensor:
    decay = torch.exp(-slopes.double()[:, None, None] * _ages(q.shape[1]).clamp(min=0)).tril()
    return SCALE * (q @ k.mT * decay) @ v


def gated(q: Tensor, k: Tensor, v: Tensor, *, gates: Tensor) -> Tensor:
    """The recurrence of GLA, one token after the other."""
    state = q.new_zeros(P, D, E)
    rows = []
    for t in range(q.shape[1]):
        state = gates[:, t, :, None].double().exp() * state + k[:, t, :, None] * v[:, t, None, :]
        rows.append(SCALE * (q[:, t, None, :] @ state)[:, 0])
    return torch.stack(rows, dim=1)


def elu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    return _normalised(phi(q) @ phi(k).mT, v)


def cosformer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    N = q.shape[1]
    weights = q.clamp(min=0) @ k.clamp(min=0).mT * torch.cos(math.pi / 2 * _ages(N) / N)
    return _normalised(weights, v, least=1e-6)


def performer(q: Tensor, k: Tensor, v: Tensor, *, projection: Tensor) -> Tensor:
    def phi(x: Tensor) -> Tensor:
        y = x * math.sqrt(SCALE)
        exponents = [(y * w[:, None]).sum(-1) - (y * y).sum(-1) / 2 for w in projection.double().unbind(1)]
        return torch.stack(exponents, dim=-1).exp() / math.sqrt(M)

    return _normalised(phi(q) @ phi(k).mT, v)


def random_feature(q: Tensor, k: Tensor, v: Tensor, *, projection: Tensor) -> Tensor:
    """The mean over directions of cos(w . (q - k)), which sines and cosines of either factor give."""
    unit_q, unit_k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    angle_q, angle_k = (x @ projection.double().mT for x in (unit_q, unit_k))
    weights = torch.cos(angle_q[:, :, None] - angle_k[:, None]).mean(-1)
    return _normalised(weights, v)


def sink_window(q: Tensor, k: Tensor, v: Tensor, *, window: int, sinks: int) -> Tensor:
    rows = []
    for t in range(q.shape[1]):
        seen = [s for s in range(t + 1) if s > t - window or s < sinks]
        weights = (SCALE * q[:, t, None] @ k[:, seen].mT).softmax(-1)
        rows.append((weights @ v[:, seen])[:, 0])
    return torch.stack(rows, dim=1)


def _no_parameters(N: int) -> dict[str, Any]:
    return {}


def _gates(N: int) -> dict[str, Any]:
    return {"gates": GATES.values(torch.randn(P, N, D, generator=torch.Generator().manual_seed(1)))}


def _strong_gates(N: int) -> dict[str, Any]:
    return {"gates": torch.full((P, N, D), -15.0)}


def _projection(N: int) -> dict[str, Any]:
    return {"projection": torch.randn(P, M, D, generator=torch.Generator().manual_seed(2))}


def _window(N: int) -> dict[str, Any]:
    return {"window": 5, "sinks": 2}


Definition = Callable[..., Tensor]
FIELD: Mapping[str, tuple[str, Definition, Callable[[int], dict[str, Any]]]] = {
    "retention": ("retention", retention, lambda N: {"slopes": retention_slopes(P)}),
    "gla": ("gated-linear", gated, _gates),
    "gla-strong": ("gated-linear", gated, _strong_gates),
    "elu": ("elu-linear", elu, _no_parameters),
    "cosformer": ("cosformer", cosformer, _no_parameters),
    "performer": ("performer", performer, _projection),
    "rfa": ("random-feature", random_feature, _projection),
    "sink-window": ("sink-window", sink_window, _window),
    "window-1": ("sink-window", sink_window, lambda N: {"window": 1, "sinks": 0}),
}


@pytest.mark.parametrize("N", LENGTHS, ids=lambda N: f"N{N}")
@pytest.mark.parametrize("name", FIELD)
def test_an_oracle_is_its_definition(name: str, N: int) -> None:
    semantics, definition, parameters = FIELD[name]
    q, k, v, do = _inputs(N)
    given = parameters(N)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    o = definition(*leaves, **given)
    truth = dict(zip(("o", "dq", "dk", "dv"), (o.detach(), *torch.autograd.grad(o, leaves, do)), strict=True))
    reference = SEMANTICS[semantics].oracle(
        q, k, v, do, **{"slopes": None, "scale": SCALE, "causal": True, **given}
    )
    assert reference.rows.tolist() == list(range(N))
    for output, value in truth.items():
        torch.testing.assert_close(getattr(reference, output), value, rtol=1e-9, atol=1e-10, msg=output)


@pytest.mark.parametrize("name", FIELD)
def test_an_oracle_without_do_has_no_gradients(name: str) -> None:
    semantics, definition, parameters = FIELD[name]
    q, k, v, _ = _inputs(7)
    given = {"slopes": None, "scale": SCALE, "causal": True, **parameters(7)}
    reference: Reference = SEMANTICS[semantics].oracle(q, k, v, None, **given)
    assert (reference.dq, reference.dk, reference.dv) == (None, None, None)
    torch.testing.assert_close(reference.o, definition(q, k, v, **parameters(7)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in FIELD if n != "retention"])
def test_oracles_of_the_field_refuse_what_they_do_not_define(name: str) -> None:
    semantics, _, parameters = FIELD[name]
    q, k, v, _ = _inputs(5)
    oracle = SEMANTICS[semantics].oracle
    with pytest.raises(ValueError, match="slopes"):
        oracle(q, k, v, None, slopes=torch.ones(P), scale=1.0, causal=True, **parameters(5))
    with pytest.raises(ValueError, match="causal"):
        oracle(q, k, v, None, slopes=None, scale=1.0, causal=False, **parameters(5))


def test_gates_that_grow_are_refused() -> None:
    q, k, v, _ = _inputs(5)
    with pytest.raises(ValueError, match="from -20 to 0"):
        SEMANTICS["gated-linear"].oracle(
            q, k, v, None, slopes=None, scale=1.0, causal=True, gates=torch.full((P, 5, D), 0.1)
        )


def test_a_row_without_any_weight_is_zero_and_has_no_gradient() -> None:
    """cosFormer's relu may leave nothing of a first key."""
    q, k, v, do = _inputs(3)
    q[:, 0], k[:, 0] = -1.0, 1.0
    reference = SEMANTICS["cosformer"].oracle(q, k, v, do, slopes=None, scale=1.0, causal=True)
    assert reference.dq is not None
    assert (reference.o[:, 0] == 0).all()
    assert (reference.dq[:, 0] == 0).all()
    assert torch.isfinite(reference.dk if reference.dk is not None else torch.tensor(torch.nan)).all()


# ---------------------------------------------------------------- slopes and parameters


@pytest.mark.parametrize("heads", [1, 4, 16, 40], ids=lambda h: f"H{h}")
def test_slopes_of_retention_follow_its_law(heads: int) -> None:
    kept = torch.exp(-retention_slopes(heads).double())
    law = 1 - torch.tensor([2.0 ** (-5 - h) for h in range(heads)], dtype=torch.float64)
    torch.testing.assert_close(kept, law, rtol=1e-8, atol=0)
    assert bool((retention_slopes(heads) > 0).all())


def test_gates_are_sixteenth_roots_of_sigmoids() -> None:
    x = torch.tensor([[-8.0, 0.0, 8.0]])
    torch.testing.assert_close(GATES.values(x).exp() ** 16, x.sigmoid(), rtol=1e-5, atol=0)
    assert GATES.values(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("dim", [16, 48, 64], ids=lambda d: f"D{d}")
def test_projections_are_orthogonal_in_blocks_and_keep_their_lengths(dim: int) -> None:
    x = torch.randn(2, 256, dim, generator=torch.Generator().manual_seed(0))
    rows = ORTHOGONAL_PROJECTION.values(x)
    assert rows.shape == x.shape
    torch.testing.assert_close(rows.norm(dim=-1), x.norm(dim=-1))
    block = torch.nn.functional.normalize(rows[:, :dim], dim=-1)
    torch.testing.assert_close(block @ block.mT, torch.eye(dim).expand(2, dim, dim), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["performer", "random-feature"])
def test_random_features_estimate_their_kernel(name: str) -> None:
    """With many directions the function is the attention that it stands for."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 20, w, generator=generator, dtype=torch.float64) for w in (8, 8, 4))
    projection = torch.randn(2, 50_000, 8, generator=generator)
    o = SEMANTICS[name].oracle(q, k, v, None, slopes=None, scale=0.1, causal=True, projection=projection).o
    if name == "performer":
        weights = (0.1 * q @ k.mT).exp()
    else:
        weights = (
            torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
        ).exp()
    torch.testing.assert_close(o, _normalised(weights, v), rtol=0.05, atol=0.05)


# ---------------------------------------------------------------- FLOPs


def _case(**changes: Any) -> Case:
    sizes = {"batch": 2, "heads": 3, "seq_len": 100, "head_dim": 64, "dtype": "bf16"}
    return Case(mechanism="m", **{"workload": Workload.FWD, **sizes, **changes})


@pytest.mark.parametrize("window", [1, 3, 5, 60, 100, 500], ids=lambda w: f"W{w}")
@pytest.mark.parametrize("N", [1, 4, 7, 100], ids=lambda N: f"N{N}")
def test_pairs_inside_a_window_are_counted_one_by_one(N: int, window: int) -> None:
    seen = sum(s > t - window or s < SINKS for t in range(N) for s in range(t + 1))
    assert _pairs(_case(seq_len=N, window=window)) == seen


def test_flops_of_a_window_grow_with_length_as_it_does() -> None:
    short, long = (useful_flops(_case(seq_len=n, window=64), cost="N W") for n in (10_000, 20_000))
    assert long / short == pytest.approx(2, rel=0.01)


def test_features_and_their_projection_are_work() -> None:
    n = 2 * 3 * 100
    performer = SEMANTICS["performer"]
    assert performer.flops(_case(), cost="N") == n * (4 * 256 * 65 + 4 * 64 * 256)
    assert performer.flops(_case(workload=Workload.BWD), cost="N") == n * (10 * 256 * 65 + 4 * 64 * 256)
    assert SEMANTICS["cosformer"].flops(_case(), cost="N") == n * 4 * 128 * 65
    assert SEMANTICS["retention"].flops(_case(value_dim=128), cost="N") == n * 4 * 64 * 128


def test_gates_are_read() -> None:
    plain, gated_ = (SEMANTICS[name].moved_bytes(_case()) for name in ("retention", "gated-linear"))
    assert gated_ - plain == 2 * 3 * 100 * 64 * 2
