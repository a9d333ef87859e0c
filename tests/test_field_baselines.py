"""Adapters of the wider field against the oracles, which `test_field_semantics` holds to their formulas."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.baselines import feature_attention, feature_torch, flex, lightning_torch, sink_window
from attnbench.case import Case, Workload
from attnbench.catalogue import BUILT_IN
from attnbench.measure.accuracy import expect_step, judge, judge_step
from attnbench.measure.inputs import Calls, DecodeCalls, build
from attnbench.registry import find
from attnbench.semantics import SEMANTICS

CPU = torch.device("cpu")
FEATURES = ("linear-elu", "cosformer", "performer", "rfa")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On matrices this small several threads mostly wait, the longer the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case_of(mechanism: str, *, n: int, **changes: Any) -> Case:
    sizes: dict[str, Any] = {"batch": 2, "heads": 2, "head_dim": 32, "value_dim": 48, "dtype": "fp32"}
    return Case(mechanism=mechanism, workload=Workload.FWD_BWD, seq_len=n, **{**sizes, **changes})


def fault_of(case: Case, target: Any, *, layout: Any = "BHND", directions: int | None = None) -> str | None:
    """What a sweep would say is wrong with a target at a case; with so many random directions, for speed."""
    semantics = SEMANTICS[find(case.mechanism).semantics]
    inputs = build(case, semantics=semantics, layout=layout, device=CPU, seed=0)
    if "projection" in inputs.parameters and directions is not None:
        projection = inputs.parameters["projection"]
        assert isinstance(projection, Tensor)
        inputs = dataclasses.replace(inputs, parameters={"projection": projection[:, : 2 * directions]})
    calls = Calls(inputs=inputs, target=target)
    return judge(case, got=calls.outputs(), calls=calls, semantics=semantics, device=CPU).fault


def call_of(case: Case) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """The arguments of one call, without gradients."""
    semantics = SEMANTICS[find(case.mechanism).semantics]
    i = build(case, semantics=semantics, layout="BHND", device=CPU, seed=0)
    given_ = {"slopes": i.slopes, "scale": i.scale, "causal": i.causal, **i.parameters}
    return (i.q.detach(), i.k.detach(), i.v.detach()), given_


def interpreting() -> bool:
    return bool(importlib.import_module("attnbench.kernels._host").interpreting())


def needs_interpreter() -> None:
    if importlib.util.find_spec("triton") is None or not interpreting():
        pytest.skip("needs Triton's interpreter: TRITON_INTERPRET=1")


# ---------------------------------------------------------------- feature maps


@pytest.mark.parametrize("n", [1, 2, 3, 17, 32, 33, 129, 200], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mechanism", FEATURES)
def test_feature_maps_over_the_torch_scan(mechanism: str, dtype: str, n: int) -> None:
    function = getattr(feature_torch, mechanism.replace("-", "_"))
    assert fault_of(case_of(mechanism, n=n, dtype=dtype), function) is None


@pytest.mark.parametrize("mechanism", FEATURES)
def test_feature_maps_over_our_kernel_in_the_interpreter(mechanism: str) -> None:
    needs_interpreter()
    module = importlib.import_module("attnbench.baselines.feature_triton")
    case = case_of(mechanism, n=65, batch=1, heads=1, head_dim=16, value_dim=16)
    assert fault_of(case, getattr(module, mechanism.replace("-", "_")), directions=8) is None


@pytest.mark.parametrize("strides", ["BNHD", "expanded-do"])
@pytest.mark.parametrize("mechanism", FEATURES)
def test_feature_maps_take_other_strides(mechanism: str, strides: str) -> None:
    """Inputs as views of [B, N, H, D], or the gradient that o.sum() hands over."""
    case = case_of(mechanism, n=70)
    (q, k, v), options = call_of(case)
    function = getattr(feature_torch, mechanism.replace("-", "_"))
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad(function(*plain, **options), plain, torch.ones_like(v))
    if strides == "BNHD":
        leaves = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
        got = torch.autograd.grad(function(*leaves, **options), leaves, torch.ones_like(v))
    else:
        got = torch.autograd.grad(function(*plain, **options).sum(), plain)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_large_keys_do_not_overflow_the_performer() -> None:
    (q, k, v), options = call_of(case_of("performer", n=50))
    o = feature_torch.performer(4 * q, 4 * k, v, **options)
    assert torch.isfinite(o).all()


def test_a_key_that_nobody_weighs_leaves_zero() -> None:
    """All of cosFormer's weights vanish in the first row: its denominator is the least there is."""
    (q, k, v), options = call_of(case_of("cosformer", n=40))
    q[:, :, 0], k[:, :, 0] = -1.0, 1.0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    o = feature_torch.cosformer(*leaves, **options)
    gradients = torch.autograd.grad(o.sum(), leaves)
    assert (o[:, :, 0] == 0).all()
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][:, :, 0] == 0).all()


@pytest.mark.parametrize("mechanism", FEATURES)
def test_feature_maps_refuse_what_they_are_not(mechanism: str) -> None:
    (q, k, v), options = call_of(case_of(mechanism, n=2))
    function = getattr(feature_torch, mechanism.replace("-", "_"))
    with pytest.raises(ValueError, match="causal"):
        function(q, k, v, **{**options, "causal": False})
    with pytest.raises(ValueError, match="slopes"):
        function(q, k, v, **{**options, "slopes": torch.ones(2)})
    if mechanism != "performer":
        with pytest.raises(ValueError, match="does not scale"):
            function(q, k, v, **{**options, "scale": 0.5})


def test_both_modules_of_feature_maps_have_the_same_calls() -> None:
    for mechanism in FEATURES:
        first, second = (p.target.partition(":") for p in find(mechanism).providers)
        assert (first[0], second[0]) == tuple(f"attnbench.baselines.feature_{x}" for x in ("triton", "torch"))
        assert first[2] == second[2]
        assert callable(getattr(feature_torch, second[2]))


def test_the_denominator_is_a_second_scan_that_is_16_wide() -> None:
    """What it costs: the widths that the scan is asked for, and no copy of v."""
    widths: list[int] = []

    def scan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        widths.append(v.shape[-1])
        return lightning_torch.lightning2(q, k, v, slopes=None, scale=1.0, causal=True)

    (q, k, v), options = call_of(case_of("linear-elu", n=40))
    feature_attention.elu_attention(q, k, v, **options, scan=scan)
    assert widths == [48, 16]


@pytest.mark.parametrize("mechanism", FEATURES)
def test_what_is_fused_is_one_graph_for_all_shapes_and_computes_the_same(mechanism: str) -> None:
    """Traced as for a GPU, and run as it is written."""
    name = {"linear-elu": "elu", "rfa": "random_feature"}.get(mechanism, mechanism)
    function = getattr(feature_attention, f"{name}_attention")
    graphs: list[str] = []

    def scan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lightning_torch.lightning2(q, k, v, slopes=None, scale=1.0, causal=True)

    @functools.cache
    def fuse(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def backend(graph: torch.fx.GraphModule, examples: object) -> Callable[..., Any]:
            graphs.append(part.__name__)
            return graph.forward

        fused: Callable[..., Tensor] = torch.compile(part, backend=backend, dynamic=True, fullgraph=True)
        return fused

    torch.compiler.reset()
    for n in (70, 90):
        (q, k, v), options = call_of(case_of(mechanism, n=n))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        outs = [
            function(*leaves, **options, scan=scan, fuse=each)
            for each in (fuse, feature_attention.as_written)
        ]
        grads = [torch.autograd.grad(o.square().sum(), leaves) for o in outs]
        for one, other in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()
    maps = 2 if mechanism == "performer" else 1
    assert len(graphs) == maps + 2, "with the division, also of a gradient, and the denominator's gradient"


# ---------------------------------------------------------------- retention


@pytest.mark.parametrize("n", [1, 65, 200], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_retnet_is_lightning_with_another_decay(dtype: str, n: int) -> None:
    case = case_of("retnet", n=n, dtype=dtype, value_dim=64)
    assert fault_of(case, lightning_torch.lightning2) is None


def test_retnet_by_our_kernel_in_the_interpreter() -> None:
    needs_interpreter()
    module = importlib.import_module("attnbench.baselines.lightning_triton")
    case = case_of("retnet", n=65, batch=1, heads=1, head_dim=16, value_dim=32)
    assert fault_of(case, module.lightning2) is None


def test_retnet_describes_its_own_decay() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    module = importlib.import_module("attnbench.baselines.lightning_triton")
    case = case_of("retnet", n=4096, heads=16, value_dim=64)
    assert module._remembered(case, law=module.retention_slopes) != module._remembered(
        case, law=module.geometric_slopes
    )
    assert set(module.retnet_config(case, CPU)) == {"o", "dv", "dq_dk"}
    assert module.retnet_state_bytes(case, CPU) >= 0


# ---------------------------------------------------------------- a window


@pytest.mark.parametrize(("window", "n"), [(1, 5), (7, 5), (16, 100), (100, 100)], ids=lambda x: str(x))
@pytest.mark.parametrize("kv_heads", [1, 2], ids=lambda h: f"KV{h}")
def test_a_masked_sdpa_is_the_window(window: int, n: int, kv_heads: int) -> None:
    case = case_of("streaming-llm", n=n, window=window, kv_heads=kv_heads)
    assert fault_of(case, sink_window.sink_window) is None


@settings(max_examples=60)
@given(
    length=st.integers(1, 700),
    window=st.none() | st.integers(1, 800),
    sinks=st.integers(0, 300),
)
def test_a_block_mask_says_of_every_pair_what_its_function_says(
    length: int, window: int | None, sinks: int
) -> None:
    """Blocks that are left out hold no visible pair, full ones no hidden pair, all lie inside the sequence."""
    mask = flex.block_mask.__wrapped__(length, window=window, sinks=sinks, device=CPU)
    token = torch.arange(length)
    distance = token[:, None] - token
    visible = distance >= 0
    if window is not None:
        visible &= (distance < window) | (token < sinks)
    blocks = -(-length // 128)
    pad = blocks * 128 - length
    tiles = torch.nn.functional.pad(visible, (0, pad, 0, pad)).reshape(blocks, 128, blocks, 128)
    some, every = tiles.any(3).any(1), tiles.all(3).all(1)
    listed = {"some": torch.zeros_like(some), "full": torch.zeros_like(some)}
    for name, count, columns in (
        ("some", mask.kv_num_blocks, mask.kv_indices),
        ("full", mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for row in range(blocks):
            assert count is not None
            assert columns is not None
            listed[name][row, columns[0, 0, row, : int(count[0, 0, row])].long()] = True
    assert torch.equal(listed["some"] | listed["full"], some)
    assert not (listed["some"] & listed["full"]).any()
    assert not (listed["full"] & ~every).any()
    zero = torch.tensor(0)
    assert torch.equal(mask.mask_mod(zero, zero, token[:, None], token), visible)
    if window is None:
        assert torch.equal(listed["full"], every)


@pytest.mark.parametrize(("kind", "n"), [("causal", 130), ("full", 1), ("window", 300)])
def test_flex_attention_uncompiled(kind: str, n: int) -> None:
    """The forward; it has no backward without a GPU."""
    window = {"window": 50} if kind == "window" else {}
    name = "streaming-llm" if kind == "window" else "flex"
    case = case_of(name, n=n, kv_heads=1, causal=kind != "full", **window)
    (q, k, v), options = call_of(case)
    target = flex.streaming_llm if kind == "window" else flex.flex
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs uncompiled
        o = target(q, k, v, **options)
    semantics = SEMANTICS[find(name).semantics]
    truth = semantics.oracle(
        *(x.repeat_interleave(2 // x.shape[1], dim=1).flatten(0, 1) for x in (q, k, v)), None, **options
    ).o
    torch.testing.assert_close(o.flatten(0, 1).double(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [flex.flex, flex.streaming_llm, sink_window.sink_window])
def test_windows_and_flex_refuse_what_they_are_not(target: Any) -> None:
    x = torch.zeros(1, 1, 2, 16)
    more = {"window": 1, "sinks": 1} if "window" in inspect.signature(target).parameters else {}
    with pytest.raises(ValueError, match="slopes"):
        target(x, x, x, slopes=torch.ones(1), scale=1.0, causal=True, **more)
    if more:
        with pytest.raises(ValueError, match="causal"):
            target(x, x, x, slopes=None, scale=1.0, causal=False, **more)


# ---------------------------------------------------------------- FlashAttention-3 and 4, without them


@pytest.mark.parametrize("pair", [False, True], ids=["o", "o-and-lse"])
@pytest.mark.parametrize(
    ("name", "library"), [("flash3", "flash_attn_interface"), ("flash4", "flash_attn.cute")]
)
def test_later_flash_attentions_hand_their_arguments_on(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, pair: bool
) -> None:
    calls: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        calls.append(options)
        return (v, q) if pair else v

    parts = library.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    vars(sys.modules[library])["flash_attn_func"] = flash_attn_func
    full = f"attnbench.baselines.{name}"
    module = importlib.import_module(full)
    del sys.modules[full]  # not by monkeypatch, which would put it back
    target, x = getattr(module, name), torch.zeros(1, 2, 3, 4)
    assert target(x, x, x.clone(), slopes=None, scale=0.3, causal=True) is not x
    assert calls == [{"softmax_scale": 0.3, "causal": True}]
    with pytest.raises(ValueError, match="slopes"):
        target(x, x, x, slopes=torch.ones(3), scale=0.3, causal=True)


# ---------------------------------------------------------------- flash-linear-attention in the interpreter


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapters of fla-core, whose chunked kernels are replaced by its recurrent ones.

    The chunked ones do not run in the interpreter: they call .to() on a loop counter, which is an int there. Nor does a
    search for the best configuration: each kernel takes its first.
    """
    needs_interpreter()
    if importlib.util.find_spec("fla") is None:
        pytest.skip("fla-core is not installed: pip install fla-core")
    from triton.runtime.autotuner import Autotuner

    def first(self: Any, *args: Any, **options: Any) -> Any:
        return self.fn.run(*args, **{**options, **self.configs[0].all_kwargs()})

    monkeypatch.setattr(Autotuner, "run", first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        module = importlib.import_module("attnbench.baselines.fla_ops")
        ops = {
            name: importlib.import_module(f"fla.ops.{name}") for name in ("linear_attn", "retention", "gla")
        }
    monkeypatch.setattr(module, "chunk_linear_attn", ops["linear_attn"].fused_recurrent_linear_attn)
    monkeypatch.setattr(module, "chunk_retention", ops["retention"].fused_recurrent_retention)
    monkeypatch.setattr(module, "chunk_gla", ops["gla"].fused_recurrent_gla)
    return module


@pytest.mark.parametrize(
    ("mechanism", "function"), [("fla-linear", "linear"), ("fla-retention", "retention"), ("gla", "gla")]
)
def test_a_foreign_linear_kernel_in_the_interpreter_computes_our_function(
    fla: Any, mechanism: str, function: str
) -> None:
    """Sign and place of the gates, the law of the decay, the scale and the layout, in o and all gradients."""
    case = case_of(mechanism, n=20, batch=1, value_dim=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fault_of(case, getattr(fla, function), layout="BNHD") is None


@pytest.mark.usefixtures("fla")
def test_the_foreign_decode_in_the_interpreter_is_right() -> None:
    """The very kernel that a decode of fla-simple-gla times."""
    semantics = SEMANTICS["decay-linear"]
    case = Case(
        mechanism="fla-simple-gla",
        workload=Workload.DECODE,
        batch=2,
        heads=2,
        seq_len=50,
        head_dim=32,
        dtype="fp32",
    )
    decode = importlib.import_module("attnbench.baselines.fla_decode").simple_gla_decode
    i = build(case, semantics=semantics, layout="BNHD", device=CPU, seed=0)
    step = decode(i.q, i.k, i.v, *i.kept, slopes=i.slopes, scale=i.scale)
    calls = DecodeCalls(inputs=i, step=step, names=("state",))
    expected = expect_step(case, calls=calls, semantics=semantics, device=CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = calls.outputs()
    assert judge_step(case, got=got, calls=calls, expected=expected).fault is None


def test_fla_adapters_refuse_what_they_are_not(fla: Any) -> None:
    x = torch.zeros(1, 2, 1, 16)
    for function, more in ((fla.linear, {}), (fla.gla, {"gates": x})):
        with pytest.raises(ValueError, match="slopes"):
            function(x, x, x, slopes=torch.ones(1), scale=1.0, causal=True, **more)
        with pytest.raises(ValueError, match="causal"):
            function(x, x, x, slopes=None, scale=1.0, causal=False, **more)
    with pytest.raises(ValueError, match="slopes: this mechanism always decays"):
        fla.retention(x, x, x, slopes=None, scale=1.0, causal=True)


# ---------------------------------------------------------------- on the card


def _new_on_the_card() -> list[str]:
    names = {
        "fla-linear",
        "retnet",
        "fla-retention",
        "gla",
        *FEATURES,
        "flash3",
        "flash4",
        "flex",
        "streaming-llm",
    }
    return [m.name for m in BUILT_IN if m.name in names]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mechanism", _new_on_the_card())
def test_the_wider_field_on_the_card(mechanism: str) -> None:
    """Each where it is installed, at an odd length, as `attnbench verify` asks it, and the kernels that ran."""
    from attnbench.case import Protocol, Status
    from attnbench.measure.runner import measure

    provider = find(mechanism).provider_for("cuda")
    if isinstance(provider, str):
        pytest.skip(provider)
    window = 100 if find(mechanism).windowed else None
    case = case_of(mechanism, n=1000, head_dim=64, value_dim=64, dtype="bf16", window=window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        protocol = Protocol(min_samples=5, min_device_s=0.0, warmup_s=0.0, cap_s=1.0)
        row = measure(case, protocol=protocol, device=torch.device("cuda"), ceilings=None)
    assert row.status is Status.OK, row.reason
