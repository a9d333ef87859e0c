"""Planted faults: a check that lets one of them through is no check."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.case import Accuracy, Case, Protocol, Workload
from attnbench.measure import accuracy
from attnbench.measure.accuracy import (
    ROW_LIMIT,
    Verdict,
    judge,
    poison,
    poison_outputs,
    relative_error,
    sampled_heads,
    worst_row,
)
from attnbench.measure.inputs import Calls, build
from attnbench.measure.runner import measure
from attnbench.registry import Layout, find, mechanisms
from attnbench.semantics import SEMANTICS, TOLERANCES
from attnbench.verification import scope

Target = Callable[..., Tensor]

CPU = torch.device("cpu")
WHOLE = (Workload.FWD, Workload.BWD, Workload.FWD_BWD)  # over whole sequences


def _case(workload: str = "fwd-bwd", **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "mechanism": "m",
        "batch": 2,
        "heads": 4,
        "seq_len": 37,
        "head_dim": 16,
        "dtype": "fp32",
    }
    return Case(workload=Workload(workload), **{**fields, **changes})


def _calls(
    case: Case, target: Target, *, family: str = "decay-linear", layout: Layout = "BHND", seed: int = 0
) -> Calls:
    inputs = build(case, semantics=SEMANTICS[family], layout=layout, device=CPU, seed=seed)
    return Calls(inputs=inputs, target=target)


def _check(
    target: Target,
    *,
    case: Case | None = None,
    family: str = "decay-linear",
    layout: Layout = "BHND",
    seed: int = 0,
) -> Verdict:
    case = case or _case()
    calls = _calls(case, target, family=family, layout=layout, seed=seed)
    poison_outputs(case, calls=calls, device=CPU)
    return judge(case, got=calls.outputs(), calls=calls, semantics=SEMANTICS[family], device=CPU)


# ---------------------------------------------------------------- right ones


def _decay(slopes: Tensor, N: int) -> Tensor:
    distance = torch.arange(N)[:, None] - torch.arange(N)
    return torch.where(distance >= 0, torch.exp(-slopes[:, None, None] * distance.clamp(min=0)), 0.0)


def right_linear(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
    return (scale * (q @ k.mT) * _decay(slopes, q.shape[2]).to(q.dtype)) @ v


def right_softmax(q: Tensor, k: Tensor, v: Tensor, *, slopes: None, scale: float, causal: bool) -> Tensor:
    return scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


@pytest.mark.parametrize("workload", WHOLE, ids=str)
def test_a_right_mechanism_passes_with_its_errors(workload: Workload) -> None:
    verdict = _check(right_linear, case=_case(workload))
    assert verdict.fault is None
    errors = vars(verdict.accuracy)
    expected = ("o",) if workload is Workload.FWD else ("o", "dq", "dk", "dv")
    assert {name for name, error in errors.items() if error is not None} == {f"rel_err_{n}" for n in expected}
    assert all(0 < error < 1e-6 for error in errors.values() if error is not None)


@pytest.mark.parametrize("seq_len", [1, 2, 37], ids=lambda N: f"N{N}")
def test_right_softmax_passes_even_where_gradients_vanish(seq_len: int) -> None:
    """Over one token softmax is constant: dq and dk are zero, and their relative error has no denominator."""
    assert _check(right_softmax, case=_case(seq_len=seq_len), family="softmax").fault is None


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_grouped_heads_gather_their_gradients(causal: bool) -> None:
    case = _case(heads=6, kv_heads=2, value_dim=24, causal=causal)
    assert _check(right_softmax, case=case, family="softmax").fault is None


def test_the_other_layout_is_checked_alike() -> None:
    def transposed(q: Tensor, k: Tensor, v: Tensor, *, slopes: None, scale: float, causal: bool) -> Tensor:
        o = right_softmax(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), slopes=slopes, scale=scale, causal=causal
        )
        return o.transpose(1, 2)

    case = _case(heads=4, kv_heads=2, value_dim=24)
    assert _check(transposed, case=case, family="softmax", layout="BNHD").fault is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_to_the_dtype_is_no_fault(dtype: str) -> None:
    def in_fp32(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return right_linear(q.float(), k.float(), v.float(), **given).to(q.dtype)

    verdict = _check(in_fp32, case=_case(dtype=dtype))
    assert verdict.fault is None
    assert verdict.accuracy.rel_err_o is not None
    assert verdict.accuracy.rel_err_o > 1e-5  # it is there, only within the tolerance


# ---------------------------------------------------------------- planted faults


def not_causal(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
    distance = (torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])).abs()
    return ((q @ k.mT) * torch.exp(-slopes[:, None, None] * distance)) @ v


def mask_one_off(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
    return ((q @ k.mT) * _decay(slopes, q.shape[2]).tril(-1)) @ v


def no_decay(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
    return right_linear(q, k, v, slopes=torch.zeros_like(slopes), scale=scale, causal=causal)


def slopes_reversed(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
    return right_linear(q, k, v, slopes=slopes.flip(0), scale=scale, causal=causal)


def last_row_zero(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    kept = torch.ones(q.shape[2], 1)
    kept[-1] = 0
    return right_linear(q, k, v, **given) * kept


def one_head_wrong(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    factor = torch.ones(*q.shape[:2], 1, 1)
    factor[1, 2] = 1.01
    return right_linear(q, k, v, **given) * factor


def low_precision(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    return right_linear(q.bfloat16(), k.bfloat16(), v.bfloat16(), **given).float()


def a_nan(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    hole = torch.ones(q.shape[2], 1)
    hole[3] = float("nan")
    return right_linear(q, k, v, **given) * hole


FORWARD_FAULTS = (
    not_causal, mask_one_off, no_decay, slopes_reversed, last_row_zero, one_head_wrong, low_precision, a_nan,
)  # fmt: skip


@pytest.mark.parametrize("workload", WHOLE, ids=str)
@pytest.mark.parametrize("target", FORWARD_FAULTS, ids=lambda f: f.__name__)
def test_a_wrong_forward_is_caught(target: Target, workload: Workload) -> None:
    fault = _check(target, case=_case(workload)).fault
    assert fault is not None
    assert "o is off by" in fault
    assert f"fp32 allows {TOLERANCES['fp32']:g}" in fault


def test_a_row_that_is_wrong_is_caught_where_the_norm_hides_it() -> None:
    def forgets_the_last(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        o = right_softmax(q.float(), k.float(), v.float(), **given)
        o[:, :, -1] = 0
        return o.to(q.dtype)

    case = _case(Workload.FWD, seq_len=2048, dtype="bf16")
    verdict = _check(forgets_the_last, case=case, family="softmax")
    assert verdict.accuracy.rel_err_o is not None
    assert f"{verdict.accuracy.rel_err_o:.1%}" == "0.8%"
    assert TOLERANCES["bf16"] == 2 * 0.008
    assert "a row of o is off by 100% of its size" in str(verdict.fault)


def test_rounding_in_16_bits_stays_far_below_that(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spy(value: Tensor, truth: Tensor) -> float:
        seen.append(worst_row(value, truth))
        return seen[-1]

    monkeypatch.setattr(accuracy, "worst_row", spy)
    here = [name for name in mechanisms() if not isinstance(find(name).provider_for("cpu"), str)]
    for name in here:
        case = Case(
            mechanism=name, workload=Workload.FWD, batch=1, heads=2, seq_len=200, head_dim=64, dtype="bf16",
            window=scope.WINDOW if find(name).windowed else None,
        )  # fmt: skip
        assert measure(case, protocol=Protocol(), device=CPU, ceilings=None, verify_only=True).status == "ok"
    assert len(here) >= 10
    assert len(seen) == 2 * len(here)  # with two sets of values
    assert max(seen) < 0.01


@pytest.mark.parametrize(("off", "said"), [(0.2, False), (0.3, True)])
def test_the_limit_of_a_row_is_a_share_of_its_size(off: float, said: bool) -> None:
    truth = torch.randn(1, 4000, 8, dtype=torch.float64)
    value = truth.clone()
    value[0, -1] *= 1 + off
    assert (worst_row(value, truth) > ROW_LIMIT) is said
    value = truth.clone()
    truth[0, -1] *= 1e-6  # what cancels is held to a tenth of the usual size
    value[0, -1] = truth[0, -1] * 2
    assert worst_row(value, truth) < ROW_LIMIT
    assert worst_row(truth * 0, truth * 0) == 0.0


def test_a_missing_scale_is_caught() -> None:
    def unscaled(q: Tensor, k: Tensor, v: Tensor, *, slopes: None, scale: float, causal: bool) -> Tensor:
        return right_softmax(q, k, v, slopes=None, scale=1.0, causal=causal)

    assert "o is off" in str(_check(unscaled, family="softmax").fault)


def test_a_full_softmax_where_a_causal_one_was_asked_is_caught() -> None:
    def full(q: Tensor, k: Tensor, v: Tensor, *, slopes: None, scale: float, causal: bool) -> Tensor:
        return right_softmax(q, k, v, slopes=None, scale=scale, causal=False)

    assert "o is off" in str(_check(full, family="softmax").fault)


def test_heads_grouped_in_the_wrong_order_are_caught() -> None:
    def interleaved(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        group = q.shape[1] // k.shape[1]
        return right_softmax(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), **given)

    assert "o is off" in str(_check(interleaved, case=_case(kv_heads=2), family="softmax").fault)


def test_a_stale_output_is_caught_on_fresh_inputs() -> None:
    kept: list[Tensor] = []

    def caching(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        if not kept:
            kept.append(right_linear(q, k, v, **given))
        return kept[0]

    case = _case("fwd")
    assert _check(caching, case=case, seed=0).fault is None
    assert "o is off" in str(_check(caching, case=case, seed=1).fault)


class _SwappedGradients(torch.autograd.Function):
    """Right forward; dk and dv, of the same shape, in each other's place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, slopes)
        return right_linear(q, k, v, slopes=slopes, scale=1.0, causal=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, slopes = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            o = right_linear(*leaves, slopes=slopes, scale=1.0, causal=True)
        dq, dk, dv = torch.autograd.grad(o, leaves, grads[0])
        return dq, dv, dk, None


def test_swapped_gradients_are_caught_by_name() -> None:
    def swapped(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor, scale: float, causal: bool) -> Tensor:
        apply: Callable[..., Tensor] = _SwappedGradients.apply
        return apply(q, k, v, slopes)

    fault = str(_check(swapped).fault)
    assert "dk is off" in fault
    assert "dv is off" in fault
    assert "dq is off" not in fault
    assert "o is off" not in fault
    assert _check(swapped, case=_case("fwd")).fault is None  # a forward alone cannot show it


class _HalfGradient(torch.autograd.Function):
    """The identity, with half the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / 2


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_each_gradient_is_checked_by_itself(name: str) -> None:
    def halved(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        apply: Callable[..., Tensor] = _HalfGradient.apply
        tensors = {"q": q, "k": k, "v": v}
        tensors[name] = apply(tensors[name])
        return right_linear(tensors["q"], tensors["k"], tensors["v"], **given)

    verdict = _check(halved)
    assert str(verdict.fault).startswith(f"d{name} is off by 5.00e-01 (relative")
    assert getattr(verdict.accuracy, f"rel_err_d{name}") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("factor", "right"), [(1 + 1.5e-5, True), (1 + 2.5e-5, False)], ids=["within", "beyond"]
)
def test_the_tolerance_is_the_border(factor: float, right: bool) -> None:
    def scaled(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return factor * right_linear(q, k, v, **given)

    assert (_check(scaled, case=_case("fwd")).fault is None) is right


# ---------------------------------------------------------------- shape and dtype


def test_a_wrong_shape_is_named() -> None:
    def narrow(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return right_linear(q, k, v, **given)[..., :-1]

    verdict = _check(narrow, case=_case("fwd"))
    assert verdict.fault == "o has shape [2, 4, 37, 15], expected [2, 4, 37, 16]"
    assert verdict.accuracy == Accuracy()


def test_the_wrong_layout_is_named() -> None:
    def transposed(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return right_linear(q, k, v, **given).transpose(1, 2)

    assert "o has shape [2, 37, 4, 16]" in str(_check(transposed, case=_case("fwd")).fault)


def test_a_wrong_dtype_is_named() -> None:
    def wide(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return right_linear(q, k, v, **given).double()

    assert _check(wide, case=_case("fwd")).fault == "o is torch.float64, expected torch.float32"


# ---------------------------------------------------------------- sampling and poison


def test_unsampled_heads_are_still_searched_for_unwritten_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget for one head, an unwritten row elsewhere shows by the poison alone."""

    def unwritten_in_first_head(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        o = right_linear(q, k, v, **given)
        o[0, 0, 5] = float("nan")  # what torch.empty holds after `poison`
        return o

    monkeypatch.setattr(accuracy, "_BUDGET", {"cpu": 1})
    verdict = _check(unwritten_in_first_head, case=_case("fwd"))
    assert "o has unwritten or non-finite elements" in str(verdict.fault)
    assert "off by" not in str(verdict.fault)


def test_the_smallest_budget_still_checks_the_last_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_head_wrong(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        factor = torch.ones(*q.shape[:2], 1, 1)
        factor[-1, -1] = 1.01
        return right_linear(q, k, v, **given) * factor

    monkeypatch.setattr(accuracy, "_BUDGET", {"cpu": 1})
    assert "o is off" in str(_check(last_head_wrong, case=_case("fwd")).fault)


@pytest.mark.parametrize("heads", [1, 7, 64], ids=lambda h: f"H{h}")
@pytest.mark.parametrize("affordable", [0, 1, 2, 5, 10_000], ids=lambda n: f"budget{n}")
def test_sampled_heads_are_spread_and_hold_the_last(heads: int, affordable: int) -> None:
    case = _case(heads=heads, batch=3)
    per_head = 37 * 37  # tokens x score rows, which exceed the head dim here
    sampled = sampled_heads(case, budget=affordable * per_head).tolist()
    total = 3 * heads
    assert len(sampled) == len(set(sampled)) == min(max(affordable, 1), total)
    assert total - 1 in sampled
    assert min(sampled) >= 0
    if len(sampled) > 1:
        assert 0 in sampled


def test_a_shared_key_head_costs_its_whole_group() -> None:
    case = _case(heads=8, kv_heads=2, batch=4)
    assert len(sampled_heads(case, budget=4 * 37 * 37)) == 1
    assert len(sampled_heads(case, budget=8 * 37 * 37)) == 2


def test_memory_is_poisoned_before_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    shapes: list[list[int]] = []

    def recording(*, device: torch.device, like: list[tuple[torch.Size, torch.dtype]]) -> None:
        order.append("poison")
        shapes.extend(list(shape) for shape, _ in like)

    def target(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        order.append("call")
        return right_linear(q, k, v, **given)

    monkeypatch.setattr(accuracy, "poison", recording)
    _check(target, case=_case(value_dim=24))
    assert order == ["poison", "call"]
    assert [math.prod(shape) for shape in shapes] == [2 * 4 * 37 * w for w in (24, 16, 16, 24)]


def test_poison_fills_a_block_of_each_shape_and_dtype_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    fill = torch.full

    def recording(*args: Any, **given: Any) -> Tensor:
        made.append(fill(*args, **given))
        return made[-1]

    monkeypatch.setattr(torch, "full", recording)
    like = [(torch.Size((2, 30, 4, 32)), torch.float32), (torch.Size((5, 7)), torch.float16)]
    poison(device=CPU, like=like)
    assert [(block.shape, block.dtype) for block in made] == like
    assert all(bool(block.isnan().all()) for block in made)


@pytest.mark.gpu
def test_poison_is_what_a_fresh_tensor_finds() -> None:
    """The caching allocator hands a freed block out again; the host's may, so there it is no test."""
    shape = torch.Size((2, 300, 4, 32))
    poison(device=torch.device("cuda"), like=[(shape, torch.float32)])
    assert bool(torch.empty(shape, device="cuda").isnan().all())


# ---------------------------------------------------------------- the error itself


def test_relative_error_is_of_norms() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), truth, fallback=truth) == pytest.approx(0.1)


def test_a_vanishing_truth_takes_the_fallback_as_its_scale() -> None:
    truth, fallback = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 4.0])
    assert relative_error(torch.zeros(2), truth, fallback=fallback) == 0
    assert relative_error(torch.tensor([0.5, 0.0]), truth, fallback=fallback) == pytest.approx(0.1)
    almost = torch.tensor([1e-12, 0.0], dtype=torch.float64)
    assert relative_error(torch.zeros(2), almost, fallback=fallback) < 1e-12


def test_a_small_truth_is_not_a_vanishing_one() -> None:
    truth = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    assert relative_error(torch.zeros(2), truth, fallback=torch.tensor([3.0, 4.0])) == 1


def test_nan_is_never_right() -> None:
    truth = torch.ones(2, dtype=torch.float64)
    error = relative_error(torch.tensor([1.0, float("nan")]), truth, fallback=truth)
    assert not error <= 1e9


def test_what_torch_imports_for_a_first_gradient_is_no_part_of_a_first_call() -> None:
    script = """
import sys, torch
from attnbench.case import Case, Workload
from attnbench.measure.inputs import build
from attnbench.semantics import SEMANTICS
shape = {"batch": 1, "heads": 1, "seq_len": 4, "head_dim": 16, "value_dim": 16}
case = Case(mechanism="lightning2", workload=Workload.BWD, dtype="fp32", **shape)
given = build(case, semantics=SEMANTICS["decay-linear"], layout="BHND", device=torch.device("cpu"), seed=0)
before = set(sys.modules)
torch.autograd.grad(given.q * given.k, (given.q,), given.do)
print(len(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
