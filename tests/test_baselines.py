"""Every baseline against the definition of what it computes, in fp64 with autograd's gradients."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attnbench.baselines
from attnbench.baselines import lightning_torch, sdpa
from attnbench.baselines.lightning_torch import lightning1, lightning2
from attnbench.baselines.linear_cumsum import linear_cumsum
from attnbench.baselines.linear_quadratic import linear_quadratic
from attnbench.case import Cache, Case, Workload
from attnbench.measure.clock import open_clock
from attnbench.measure.trace import missing_kernel, trace
from attnbench.registry import Provider, find, mechanisms
from attnbench.semantics import TOLERANCES, TORCH_DTYPES

Target = Callable[..., Tensor]

B, H, D, E = 2, 3, 32, 48
LENGTHS = (1, 2, 63, 64, 65, 128, 130, 257)
# The project's table, but closer where plain PyTorch has no excuse.
TOLERANCE = {TORCH_DTYPES[name]: limit for name, limit in TOLERANCES.items()} | {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}
WHOLE = (Workload.FWD, Workload.BWD, Workload.FWD_BWD)  # over whole sequences
SLOPES = ("none", "zero", "geometric", "large")

DECAYED: dict[str, Target] = {
    "lightning2": lightning2,
    "lightning1": lightning1,
    "linear-quadratic": linear_quadratic,
}
LINEAR: dict[str, Target] = {**DECAYED, "linear-cumsum": linear_cumsum}
SOFTMAX: dict[str, Target] = {
    "sdpa": sdpa.sdpa,
    "sdpa-math": sdpa.sdpa_math,
    "sdpa-flash": sdpa.sdpa_flash,  # on the CPU: torch's own C++ kernel of that name
}


# ---------------------------------------------------------------- definitions


def decay_linear(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    assert causal
    t = torch.arange(q.shape[2], dtype=q.dtype, device=q.device)
    distance = t[:, None] - t
    rate = q.new_zeros(q.shape[1]) if slopes is None else slopes.to(q)
    decay = torch.exp(-rate[:, None, None] * distance.abs())
    mask = torch.where(distance >= 0, decay, 0.0)
    return scale * (mask * (q @ k.mT)) @ v


def softmax(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    assert slopes is None
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = scale * q @ k.mT
    if causal:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ v


# ---------------------------------------------------------------- machinery


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On matrices this small several threads mostly wait, the longer the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """q, k: [B, H, N, D], v, do: [B, H, N, E]."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(q=change(self.q), k=change(self.k), v=change(self.v), do=change(self.do))


def random_inputs(
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kv_heads: int = H,
    head_dim: int = D,
    value_dim: int = E,
) -> Inputs:
    generator = torch.Generator().manual_seed(n)

    def normal(heads: int, dim: int) -> Tensor:
        return torch.randn(B, heads, n, dim, generator=generator).to(device, dtype)

    return Inputs(
        q=normal(H, head_dim),
        k=normal(kv_heads, head_dim),
        v=normal(kv_heads, value_dim),
        do=normal(H, value_dim),
    )


def decay_slopes(kind: str, *, device: str = "cpu") -> Tensor | None:
    rates = {
        "zero": [0.0] * H,
        "geometric": [2.0 ** (-8 * (h + 1) / H) for h in range(H)],
        "large": [50.0] * H,
    }
    return None if kind == "none" else torch.tensor(rates[kind], device=device)


def outputs(
    target: Target,
    inputs: Inputs,
    *,
    slopes: Tensor | None = None,
    scale: float = 0.3,
    causal: bool = True,
    layout: str = "BHND",
) -> dict[str, Tensor]:
    """o, dq, dk, dv of a target, all in BHND, whatever layout the target takes."""
    arranged = inputs if layout == "BHND" else inputs.map(lambda x: x.transpose(1, 2).contiguous())
    leaves = [x.detach().requires_grad_() for x in (arranged.q, arranged.k, arranged.v)]
    o = target(*leaves, slopes=slopes, scale=scale, causal=causal)
    results = (o.detach(), *torch.autograd.grad(o, leaves, arranged.do))
    if layout != "BHND":
        results = tuple(x.transpose(1, 2) for x in results)
    return dict(zip(("o", "dq", "dk", "dv"), results, strict=True))


def assert_matches(got: dict[str, Tensor], want: dict[str, Tensor], *, dtype: torch.dtype) -> None:
    for name, reference in want.items():
        actual = got[name]
        assert actual.shape == reference.shape, name
        assert actual.dtype == dtype, name
        norm = reference.norm()
        if (
            norm < 1e-9
        ):  # softmax over one key has no gradient in q and k: measure against unit-normal entries
            norm = torch.tensor(float(reference.numel())).sqrt()
        error = float((actual.double() - reference).norm() / norm)
        assert error <= TOLERANCE[dtype], f"{name}: relative error {error:.2e} over {TOLERANCE[dtype]:.0e}"


def check(target: Target, definition: Target, inputs: Inputs, **call: Any) -> None:
    """`target` on the inputs against `definition` on the same values in fp64."""
    layout = call.pop("layout", "BHND")
    want = outputs(definition, inputs.map(Tensor.double), **call)
    assert_matches(outputs(target, inputs, layout=layout, **call), want, dtype=inputs.q.dtype)


def ids(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


# ---------------------------------------------------------------- linear attention


@pytest.mark.parametrize("n", LENGTHS, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("kind", SLOPES)
@pytest.mark.parametrize("name", DECAYED)
def test_decayed_attention_matches_its_definition(name: str, kind: str, n: int) -> None:
    check(DECAYED[name], decay_linear, random_inputs(n), slopes=decay_slopes(kind))


@pytest.mark.parametrize("n", LENGTHS, ids=lambda n: f"N{n}")
def test_prefix_sum_matches_its_definition(n: int) -> None:
    check(linear_cumsum, decay_linear, random_inputs(n))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=ids)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    slopes = decay_slopes("geometric") if name in DECAYED else None
    check(LINEAR[name], decay_linear, random_inputs(257, dtype=dtype), slopes=slopes)


@pytest.mark.parametrize("name", DECAYED)
def test_bf16_decay_stays_accurate_at_long_distance(name: str) -> None:
    # A slope of 1/256 over 1,000 tokens: positions rounded to bf16 would miss the tolerance.
    slopes = torch.full((H,), 1 / 256)
    check(DECAYED[name], decay_linear, random_inputs(1000, dtype=torch.bfloat16), slopes=slopes)


def transposed(x: Tensor) -> Tensor:
    """The same values with the strides of a [B, N, H, D] tensor."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def sliced(x: Tensor) -> Tensor:
    """The same values as the middle of a wider tensor, the way a fused projection holds q, k and v."""
    other = torch.full_like(x, torch.nan)
    return torch.cat([other, x, other], -1).chunk(3, -1)[1]


@pytest.mark.parametrize("strides", [transposed, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_takes_strided_inputs(name: str, strides: Callable[[Tensor], Tensor]) -> None:
    inputs = random_inputs(130).map(strides)
    assert not inputs.q.is_contiguous()
    check(LINEAR[name], decay_linear, inputs, slopes=decay_slopes("geometric") if name in DECAYED else None)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_takes_an_expanded_gradient(name: str) -> None:
    # What o.sum().backward() hands over: one element with strides of zero.
    inputs = random_inputs(130)
    ones = Inputs(q=inputs.q, k=inputs.k, v=inputs.v, do=torch.ones(()).expand_as(inputs.do))
    check(LINEAR[name], decay_linear, ones)


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0], ids=lambda s: f"scale{s}")
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_honours_the_scale(name: str, scale: float) -> None:
    check(LINEAR[name], decay_linear, random_inputs(65), scale=scale)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_refuses_what_it_is_not(name: str) -> None:
    i = random_inputs(2)
    with pytest.raises(ValueError, match="causal"):
        LINEAR[name](i.q, i.k, i.v, slopes=None, scale=1.0, causal=False)


def test_prefix_sum_refuses_slopes() -> None:
    i = random_inputs(2)
    with pytest.raises(ValueError, match="slopes"):
        linear_cumsum(i.q, i.k, i.v, slopes=torch.ones(H), scale=1.0, causal=True)


@pytest.mark.parametrize("name", ["lightning2", "lightning1"])
def test_lightning_saves_only_its_inputs(name: str) -> None:
    i = random_inputs(257)
    saved: list[int] = []

    def remember(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    slopes = torch.ones(H)
    leaves = [x.requires_grad_() for x in (i.q, i.k, i.v)]
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
        LINEAR[name](*leaves, slopes=slopes, scale=1.0, causal=True)
    assert set(saved) <= {x.data_ptr() for x in (*leaves, slopes)}


def a_case(mechanism: str = "lightning2", **changes: Any) -> Case:
    sizes = {"batch": 2, "heads": 4, "seq_len": 100, "head_dim": 32, "value_dim": 64, "dtype": "bf16"}
    return Case(mechanism=mechanism, **{"workload": Workload.FWD_BWD, **sizes, **changes})


def test_lightning_describes_itself() -> None:
    cpu = torch.device("cpu")
    assert lightning_torch.lightning2_state_bytes(a_case(), cpu) == 2 * 4 * 32 * 64 * 4
    assert lightning_torch.lightning2_config(a_case(), cpu) == {"chunk": 128}
    assert lightning_torch.lightning1_config(a_case(), cpu) == {"query_tile": 128, "key_tile": 128}


# ---------------------------------------------------------------- our kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def triton_adapter(function: str) -> Any:
    """Imported late: whether kernels are interpreted is decided when they are."""
    return getattr(importlib.import_module("attnbench.baselines.lightning_triton"), function)


@needs_triton
@pytest.mark.parametrize("kind", ["none", "geometric"])
@pytest.mark.parametrize("name", ["lightning2", "lightning2_paper", "lightning1"])
def test_triton_adapter_in_the_interpreter(name: str, kind: str) -> None:
    if importlib.import_module("attnbench.kernels._host").interpreting():
        check(triton_adapter(name), decay_linear, random_inputs(65), slopes=decay_slopes(kind))
    else:
        pytest.skip("needs TRITON_INTERPRET=1")


@needs_triton
@pytest.mark.parametrize("name", ["lightning2", "lightning2_paper", "lightning1"])
def test_triton_adapter_refuses_what_it_is_not(name: str) -> None:
    i = random_inputs(2)
    with pytest.raises(ValueError, match="causal"):
        triton_adapter(name)(i.q, i.k, i.v, slopes=None, scale=1.0, causal=False)


@needs_triton
def test_lightning1_config_tells_the_gradients_apart_when_the_dims_differ() -> None:
    config = triton_adapter("lightning1_config")
    cpu = torch.device("cpu")
    plain = config(a_case(workload=Workload.FWD, head_dim=128, value_dim=32), cpu)
    assert "dq_dk" not in plain
    assert plain["block_e"] == 32
    assert "dq_dk" not in config(a_case(head_dim=64, value_dim=64), cpu)
    both = config(a_case(head_dim=128, value_dim=32), cpu)
    assert {key: both[key] for key in plain} == plain
    assert both["dq_dk"]["block_e"] > 32


@needs_triton
def test_lightning2_config_has_an_entry_for_each_launch() -> None:
    config = triton_adapter("lightning2_config")
    cpu = torch.device("cpu")
    forward = config(a_case(workload=Workload.FWD, head_dim=128, value_dim=32), cpu)
    assert forward["block_e"] == 32
    assert set(config(a_case(workload=Workload.BWD, head_dim=64, value_dim=64), cpu)) == {"dq_dk_dv"}
    apart = config(a_case(workload=Workload.BWD, head_dim=128, value_dim=32), cpu)
    assert set(apart) == {"dv", "dq_dk"}
    assert apart["dv"] == forward
    assert apart["dq_dk"]["block_e"] > 32
    both = config(a_case(workload=Workload.FWD_BWD, head_dim=128, value_dim=32), cpu)
    assert both == {"o": forward, **apart}


def a_large_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter of our kernels, told that it runs on a device with 132 multiprocessors."""
    module = importlib.import_module("attnbench.baselines.lightning_triton")
    fields = ["multiprocessors", "shared_memory", "architecture"]
    large = dataclasses.make_dataclass("Limits", fields)(132, 232_448, "hopper")
    monkeypatch.setattr(module, "limits", lambda device: large)
    return module


@needs_triton
def test_triton_state_bytes_follow_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_large_device(monkeypatch)
    cpu = torch.device("cpu")
    long = a_case(workload=Workload.FWD, batch=1, seq_len=32_768, value_dim=32)
    segments = module.lightning2_config(long, cpu)["segments"]
    assert segments > 1  # 4 heads leave most of the device idle
    # The weakest head remembers more than two of so short segments.
    assert module.lightning2_state_bytes(long, cpu) == (segments - 1) * 4 * 32 * 32 * 4
    assert module.lightning2_state_bytes(a_case(seq_len=64), cpu) == 0
    forgets = a_case(workload=Workload.FWD, heads=16, seq_len=65_536, head_dim=128, dtype="bf16")
    assert module.lightning2_config(forgets, cpu)["segments"] > 1
    assert module.lightning2_state_bytes(forgets, cpu) == 0


# ---------------------------------------------------------------- softmax attention


@pytest.mark.parametrize("n", LENGTHS, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_matches_its_definition(name: str, causal: bool, n: int) -> None:
    check(SOFTMAX[name], softmax, random_inputs(n, value_dim=D), causal=causal)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=ids)
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_in_half_precision(name: str, dtype: torch.dtype) -> None:
    check(SOFTMAX[name], softmax, random_inputs(257, dtype=dtype, value_dim=D), scale=D**-0.5)


@pytest.mark.parametrize("name", ["sdpa", "sdpa-math"])
def test_softmax_takes_a_value_dim_of_its_own(name: str) -> None:
    check(SOFTMAX[name], softmax, random_inputs(65))


@pytest.mark.parametrize("name", ["sdpa", "sdpa-math"])
def test_softmax_takes_grouped_heads(name: str) -> None:
    check(SOFTMAX[name], softmax, random_inputs(65, kv_heads=1, value_dim=D))


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_takes_strided_inputs(name: str) -> None:
    check(SOFTMAX[name], softmax, random_inputs(130, value_dim=D).map(transposed))


@pytest.mark.parametrize("target", [sdpa.sdpa_cudnn, sdpa.sdpa_efficient], ids=lambda f: f.__name__)
def test_a_single_backend_never_falls_back(target: Target) -> None:
    i = random_inputs(64, dtype=torch.bfloat16, value_dim=D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns why the backend cannot run, then raises
        with pytest.raises(RuntimeError, match=r"backend|kernel"):
            target(i.q, i.k, i.v, slopes=None, scale=1.0, causal=True)


@pytest.mark.parametrize(
    "target",
    [sdpa.sdpa, sdpa.sdpa_flash, sdpa.sdpa_cudnn, sdpa.sdpa_efficient, sdpa.sdpa_math],
    ids=lambda f: f.__name__,
)
def test_softmax_refuses_slopes(target: Target) -> None:
    i = random_inputs(2, value_dim=D)
    with pytest.raises(ValueError, match="slopes"):
        target(i.q, i.k, i.v, slopes=torch.ones(H), scale=1.0, causal=True)


# ---------------------------------------------------------------- foreign libraries, without them


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A module of that name, in place of a library that is not installed here."""
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def adapter(monkeypatch: pytest.MonkeyPatch, name: str, *, library: str, **members: Any) -> Any:
    """The adapter's module, imported over a library of that dotted name that has nothing but `members`."""
    parts = library.split(".")
    for depth in range(1, len(parts)):
        stub(monkeypatch, ".".join(parts[:depth]))
    stub(monkeypatch, library, **members)
    full = f"attnbench.baselines.{name}"
    monkeypatch.delitem(sys.modules, full, raising=False)
    module = importlib.import_module(full)
    del sys.modules[full]  # not by monkeypatch, which would put it back for the tests that want the library
    return module


def test_flash2_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return v

    module = adapter(
        monkeypatch,
        "flash_attn",
        library="flash_attn.flash_attn_interface",
        flash_attn_func=flash_attn_func,
        flash_attn_with_kvcache=None,
    )
    x = torch.zeros(1, 2, 3, 4)
    assert module.flash2(x, x, x, slopes=None, scale=0.3, causal=True) is x
    assert calls == [{"softmax_scale": 0.3, "causal": True}]


class Recorder:
    """A library's function: keeps what it is called with, and returns what it is told to."""

    def __init__(self, result: object = None) -> None:
        self.result = result
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append((args, options))
        return self.result


def a_library(monkeypatch: pytest.MonkeyPatch, mechanism: str, result: object) -> tuple[Target, Recorder]:
    """The adapter of a linear mechanism over a library that only records its calls."""
    function = Recorder(result)
    if mechanism in ("lightning2-official", "official-no-decay"):
        stub(monkeypatch, "lightning_attn.ops.triton", lightning_attn2_no_decay=function)
        module = adapter(
            monkeypatch, "lightning_attn", library="lightning_attn.ops", lightning_attn_func=function
        )
        decays = mechanism == "lightning2-official"
        return module.lightning2_official if decays else module.lightning2_official_no_decay, function
    if mechanism == "fla-simple-gla":
        for name in ("gla", "linear_attn", "retention"):
            stub(monkeypatch, f"fla.ops.{name}", **{f"chunk_{name}": None})
        module = adapter(monkeypatch, "fla_ops", library="fla.ops.simple_gla", chunk_simple_gla=function)
        return module.simple_gla, function
    generator = Recorder(types.SimpleNamespace(apply=function))
    module = adapter(
        monkeypatch,
        "mlstm",
        library="mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging.fwbw",
        _mlstm_siging_chunkwise_fwbw_generator=generator,
    )
    assert generator.calls == [((), {"autocast_kernel_dtype": torch.float32, "normalize": False})]
    return module.tfla, function


FOREIGN_LINEAR = ("lightning2-official", "fla-simple-gla", "tfla")


def test_lightning2_official_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    i, slopes = random_inputs(3), decay_slopes("geometric")
    target, library = a_library(monkeypatch, "lightning2-official", i.v)
    assert target(i.q, i.k, i.v, slopes=slopes, scale=1.0, causal=True) is i.v
    (given, options) = library.calls[0]
    assert [x is y for x, y in zip(given, (i.q, i.k, i.v, slopes), strict=True)] == [True] * 4
    assert options == {}


def test_lightning2_official_refuses_what_the_package_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    i = random_inputs(3)
    target, library = a_library(monkeypatch, "lightning2-official", i.v)
    with pytest.raises(ValueError, match="slopes: this mechanism always decays"):
        target(i.q, i.k, i.v, slopes=None, scale=1.0, causal=True)
    with pytest.raises(ValueError, match=r"scale=0.3: this mechanism does not scale"):
        target(i.q, i.k, i.v, slopes=torch.ones(H), scale=0.3, causal=True)
    assert library.calls == []


def test_official_no_decay_takes_no_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    i = random_inputs(3)
    target, library = a_library(monkeypatch, "official-no-decay", i.v)
    assert target(i.q, i.k, i.v, slopes=None, scale=1.0, causal=True) is i.v
    (given, options) = library.calls[0]
    assert [x is y for x, y in zip(given, (i.q, i.k, i.v), strict=True)] == [True] * 3
    assert options == {}
    with pytest.raises(ValueError, match="slopes"):
        target(i.q, i.k, i.v, slopes=torch.ones(H), scale=1.0, causal=True)


@pytest.mark.parametrize("kind", ["none", "geometric"])
def test_fla_is_given_log_decays_and_our_scale(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    i, slopes = random_inputs(3), decay_slopes(kind)
    target, library = a_library(monkeypatch, "fla-simple-gla", (i.v, None))
    assert target(i.q, i.k, i.v, slopes=slopes, scale=0.3, causal=True) is i.v
    (given, options) = library.calls[0]
    assert [x is y for x, y in zip(given, (i.q, i.k, i.v), strict=True)] == [True] * 3
    log_decay = options.pop("g_gamma")
    assert (log_decay is None) if slopes is None else torch.equal(log_decay, -slopes)
    assert options == {"scale": 0.3}


@pytest.mark.parametrize("kind", SLOPES)
def test_tfla_is_given_gates_that_decay_as_the_slopes_say(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    i, slopes = random_inputs(128), decay_slopes(kind)
    target, library = a_library(monkeypatch, "tfla", (i.v, None, None))
    assert target(i.q, i.k, i.v, slopes=slopes, scale=0.3, causal=True) is i.v
    (given, options) = library.calls[0]
    q, k, v, open_, forget, *states, scale = given
    assert [x is y for x, y in zip((q, k, v), (i.q, i.k, i.v), strict=True)] == [True] * 3
    assert (states, scale, options) == ([None, None], 0.3, {})
    assert open_.shape == forget.shape == (B, H, 128)
    assert (open_.sigmoid() == 1).all()
    want = torch.zeros(H) if slopes is None else -slopes
    torch.testing.assert_close(torch.nn.functional.logsigmoid(forget[1, :, 5]), want, rtol=2e-5, atol=1e-12)


def test_tfla_refuses_lengths_that_the_package_asserts_against(monkeypatch: pytest.MonkeyPatch) -> None:
    for n, taken in ((1, False), (16, True), (48, False), (64, True), (129, False), (384, True)):
        i = random_inputs(n)
        target, library = a_library(monkeypatch, "tfla", (i.v, None, None))
        if taken:
            target(i.q, i.k, i.v, slopes=None, scale=1.0, causal=True)
        else:
            with pytest.raises(NotImplementedError, match=f"seq_len {n}: mlstm-kernels takes"):
                target(i.q, i.k, i.v, slopes=None, scale=1.0, causal=True)
        assert len(library.calls) == taken


@pytest.mark.parametrize("mechanism", FOREIGN_LINEAR)
def test_foreign_linear_attention_is_causal_only(monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    i = random_inputs(16)
    target, library = a_library(monkeypatch, mechanism, (i.v, None, None))
    with pytest.raises(ValueError, match="causal"):
        target(i.q, i.k, i.v, slopes=torch.ones(H), scale=1.0, causal=False)
    assert library.calls == []


@pytest.mark.parametrize("workload", WHOLE)
def test_xformers_operator_asks_the_dispatch(monkeypatch: pytest.MonkeyPatch, workload: Workload) -> None:
    asked: list[tuple[str, Any, Any]] = []

    def dispatch(which: str) -> Callable[..., Any]:
        def ask(inputs: Any, *args: Any, **options: Any) -> Any:
            asked.append((which, inputs, args or options))
            return types.SimpleNamespace(NAME=which)

        return ask

    class Mask:
        pass

    fmha = types.SimpleNamespace(
        Inputs=types.SimpleNamespace, _dispatch_fw=dispatch("forward"), _dispatch_bw=dispatch("backward")
    )
    members = {"LowerTriangularMask": Mask, "fmha": fmha, "memory_efficient_attention": None}
    module = adapter(monkeypatch, "xformers_ops", library="xformers.ops", **members)
    case = a_case("xformers", workload=workload, seq_len=100_000)

    names = module.xformers_operator(case, torch.device("cpu"))

    backward = workload is not Workload.FWD
    assert names == {"operator_fwd": "forward"} | ({"operator_bwd": "backward"} if backward else {})
    _, inputs, needs_gradient = asked[0]
    assert needs_gradient == (backward,)
    assert inputs.query.shape == inputs.key.shape == (1, 4096, 4, 32)
    assert inputs.value.shape == (1, 4096, 4, 64)
    assert inputs.query.dtype is torch.bfloat16
    assert isinstance(inputs.attn_bias, Mask)


def baseline_functions() -> list[str]:
    """Every "module:function" of this package that the registry names."""
    names = {
        name
        for mechanism in mechanisms().values()
        for provider in mechanism.providers
        for name in (
            provider.target,
            provider.state_bytes,
            provider.describe,
            None if provider.decode is None else provider.decode.target,
        )
        if name is not None and name.startswith("attnbench.baselines.")
    }
    return sorted(names)


@pytest.mark.parametrize("name", baseline_functions())
def test_what_the_registry_names_exists(name: str) -> None:
    # Read, not imported: the libraries behind most of these are absent here.
    module, _, function = name.partition(":")
    path = Path(attnbench.baselines.__path__[0]) / f"{module.rpartition('.')[2]}.py"
    defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert function in defined


# ---------------------------------------------------------------- foreign libraries, where they are


def linear_library(mechanism: str) -> Provider:
    """The first provider of a mechanism, or a skip where its library is missing."""
    provider = find(mechanism).provider_for("cuda")
    if isinstance(provider, str):
        pytest.skip(provider)
    return provider


@contextmanager
def as_it_is() -> Iterator[None]:
    """A library's own warnings are not ours, and what it compiles with torch runs uncompiled: minutes less."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        yield


@needs_triton
@pytest.mark.parametrize("kind", ["none", "geometric"])
@pytest.mark.parametrize("mechanism", FOREIGN_LINEAR)
def test_foreign_linear_attention_in_the_interpreter(mechanism: str, kind: str) -> None:
    if not importlib.import_module("attnbench.kernels._host").interpreting():
        pytest.skip("needs TRITON_INTERPRET=1")
    if mechanism == "fla-simple-gla":
        pytest.skip("fla-core 0.6.0 calls .to() on a loop counter (chunk_h.py), an int in the interpreter")
    provider, official = linear_library(mechanism), mechanism == "lightning2-official"
    if official and kind == "none":
        pytest.skip("always decays")
    with as_it_is():
        check(
            provider.load(),
            decay_linear,
            random_inputs(130 if official else 256, value_dim=D),  # more than one block of either
            slopes=decay_slopes(kind),
            scale=1.0 if official else 0.3,
            layout=provider.layout,
        )


def test_fla_means_what_we_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own naive form of the function in place of its kernels: the sign, the scale and the layout."""
    provider = linear_library("fla-simple-gla")
    with as_it_is():
        module = importlib.import_module("attnbench.baselines.fla_ops")
        naive = importlib.import_module("fla.ops.simple_gla.naive").naive_chunk_simple_gla

    def chunk_simple_gla(
        q: Tensor, k: Tensor, v: Tensor, *, g_gamma: Tensor, scale: float
    ) -> tuple[Tensor, None]:
        return naive(q, k, v, g_gamma.expand(q.shape[:3]), scale=scale)[0], None

    monkeypatch.setattr(module, "chunk_simple_gla", chunk_simple_gla)
    slopes = decay_slopes("geometric")
    check(module.simple_gla, decay_linear, random_inputs(130), slopes=slopes, layout=provider.layout)


# ---------------------------------------------------------------- on the card

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU_LENGTHS = (1, 129, 1000)


def gpu_inputs(n: int) -> Inputs:
    return random_inputs(n, dtype=torch.bfloat16, device="cuda", head_dim=64, value_dim=64)


def foreign(module: str, function: str, *, package: str) -> Any:
    """The adapter to a foreign library, or a skip where the library is missing."""
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        pytest.skip(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, on import
        return getattr(importlib.import_module(f"attnbench.baselines.{module}"), function)


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("n", GPU_LENGTHS, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("name", ["sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math"])
def test_sdpa_on_the_card(name: str, causal: bool, n: int) -> None:
    target: Target = getattr(sdpa, name)
    inputs = gpu_inputs(n)
    if name == "sdpa_cudnn" and n == 1:
        # torch does not give cuDNN a single key (sdp_utils.cpp): the call must raise, not go elsewhere.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="kernel"):
                target(inputs.q, inputs.k, inputs.v, slopes=None, scale=1.0, causal=causal)
        return
    check(target, softmax, inputs, scale=0.125, causal=causal)


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("n", GPU_LENGTHS, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(
    ("module", "function", "package"),
    [
        ("flash_attn", "flash2", "flash_attn.flash_attn_interface"),
        ("xformers_ops", "xformers_attention", "xformers.ops"),
    ],
    ids=["flash-attn", "xformers"],
)
def test_a_foreign_library_on_the_card(
    module: str, function: str, package: str, causal: bool, n: int
) -> None:
    target = foreign(module, function, package=package)
    check(target, softmax, gpu_inputs(n), scale=0.125, causal=causal, layout="BNHD")


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("n", [*GPU_LENGTHS, 64, 1024], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("kind", ["none", "geometric"])
@pytest.mark.parametrize("mechanism", FOREIGN_LINEAR)
def test_foreign_linear_attention_on_the_card(mechanism: str, kind: str, n: int) -> None:
    provider = linear_library(mechanism)
    if mechanism == "tfla" and n in GPU_LENGTHS:
        pytest.skip("takes 16, 32, 64 and multiples of 128 only")
    if mechanism == "lightning2-official" and kind == "none":
        pytest.skip("always decays")
    with as_it_is():
        check(
            provider.load(),
            decay_linear,
            gpu_inputs(n),
            slopes=decay_slopes(kind, device="cuda"),
            scale=1.0 if mechanism == "lightning2-official" else 0.3,
            layout=provider.layout,
        )


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("mechanism", FOREIGN_LINEAR)
def test_the_kernels_of_foreign_linear_attention_have_the_names_that_the_registry_expects(
    mechanism: str,
) -> None:
    provider = linear_library(mechanism)
    i, slopes = gpu_inputs(128), decay_slopes("geometric", device="cuda")
    arranged = i if provider.layout == "BHND" else i.map(lambda x: x.transpose(1, 2).contiguous())
    leaves = [x.requires_grad_() for x in (arranged.q, arranged.k, arranged.v)]
    with as_it_is():
        target = provider.load()

        def forward() -> Tensor:
            o: Tensor = target(*leaves, slopes=slopes, scale=1.0, causal=True)
            return o

        o = forward()
        clock = open_clock(device=o.device, cache=Cache.HOT)
        ran = {
            "fwd": trace(forward, clock=clock, device=o.device),
            "bwd": trace(
                lambda: torch.autograd.grad(o, leaves, arranged.do, retain_graph=True),
                clock=clock,
                device=o.device,
            ),
        }
    for workload, seen in ran.items():
        assert seen.kernels, workload
        assert missing_kernel(seen.kernels, pattern=provider.kernels) is None, workload


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("workload", WHOLE)
def test_xformers_names_its_operators_on_the_card(workload: Workload) -> None:
    describe = foreign("xformers_ops", "xformers_operator", package="xformers.ops")
    names = describe(a_case("xformers", workload=workload, value_dim=32), torch.device("cuda"))
    assert ("operator_bwd" in names) == workload.has_backward
    assert all(isinstance(name, str) and name for name in names.values())


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("n", GPU_LENGTHS, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("kind", ["none", "geometric"])
@pytest.mark.parametrize(
    "name", ["lightning2-triton", "lightning1-triton", "linear-quadratic", "linear-cumsum"]
)
def test_linear_attention_on_the_card(name: str, kind: str, n: int) -> None:
    if name == "linear-cumsum" and kind != "none":
        pytest.skip("has no decay")
    if name.endswith("-triton"):
        target = foreign("lightning_triton", name.removesuffix("-triton"), package="triton")
    else:
        target = LINEAR[name]
    check(target, decay_linear, gpu_inputs(n), slopes=decay_slopes(kind, device="cuda"))
