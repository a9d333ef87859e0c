"""Lightning Attention-2 against its definition in fp64: every input, output and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.kernels import lightning2, lightning_attention_2, lightning_decode
from attnbench.kernels._plan import Plan
from attnbench.kernels._scan import Hints, Scan, run_scans

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Shape = tuple[int, int, int, int, int]
Tensors = tuple[torch.Tensor, ...]


def shape_id(shape: Shape) -> str:
    return "-".join(f"{name}{size}" for name, size in zip("BHNDE", shape, strict=True))


def run_both(
    tensors: Tensors,
    oracle: Callable[..., Any],
    slopes: torch.Tensor | None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    through: str = "both",
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (ours, oracle's) of o, the state and every gradient; those enter `through` o, state or both."""
    q, k, v = tensors
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state}
    ours = lightning_attention_2(q, k, v, slopes, return_state=True, **options)
    reference = oracle(q, k, v, slopes, **options)
    pairs = {name: (ours[i], reference[i]) for i, name in enumerate(("o", "state"))}
    torch.manual_seed(7)
    d_out = {"o": torch.randn_like(ours[0]), "state": torch.randn_like(ours[1])}
    names = list(d_out) if through == "both" else [through]
    leaves = {"q": q, "k": k, "v": v}
    if initial_state is not None:
        leaves["initial_state"] = initial_state

    def gradients(outputs: Any) -> Tensors:
        chosen = [outputs[("o", "state").index(name)] for name in names]
        into = [d_out[name].to(x.dtype) for name, x in zip(names, chosen, strict=True)]
        return torch.autograd.grad(chosen, list(leaves.values()), into, allow_unused=True)

    for name, a, b in zip(leaves, gradients(ours), gradients(reference), strict=True):
        if b is None or not bool(b.any()):
            assert a is None or not bool(a.any()), f"d{name} must vanish"
        else:
            assert a is not None, f"d{name} is missing"
            assert a.dtype == leaves[name].dtype
            pairs[f"d{name}"] = (a, b)
    return pairs


def assert_close(
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], error: Callable[..., float], tolerance: float
) -> None:
    errors = {name: error(a, b) for name, (a, b) in pairs.items()}
    assert all(value <= tolerance for value in errors.values()), errors


@pytest.mark.parametrize(
    ("seq_len", "law"),
    [
        *((seq_len, "geometric") for seq_len in (1, 2, 63, 64, 65, 127, 200, 257)),
        *((seq_len, "large") for seq_len in (64, 65, 257)),
        (65, "none"),
        (65, "zero"),
    ],
)
def test_lengths_and_slope_laws(
    seq_len: int, law: str, oracle: Any, error: Any, inputs: Any, make_slopes: Any
) -> None:
    tensors = inputs((1, 2, seq_len, 16, 16))
    pairs = run_both(tensors, oracle, make_slopes(law, 2), scale=0.5)
    assert_close(pairs, error, 1e-5)


SHAPES = (
    (2, 3, 129, 32, 48),
    (1, 1, 70, 96, 32),
    (1, 2, 65, 48, 80),
    (1, 1, 66, 64, 128),
    (1, 1, 40, 16, 256),
)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        *((shape, torch.bfloat16) for shape in SHAPES[1:3]),
        *((shape, torch.float16) for shape in SHAPES[3:]),
    ],
    ids=lambda x: shape_id(x) if isinstance(x, tuple) else str(x).removeprefix("torch."),
)
def test_shapes_with_states(
    shape: Shape, dtype: torch.dtype, oracle: Any, error: Any, inputs: Any, make_state: Any, make_slopes: Any
) -> None:
    tensors = inputs(shape, dtype=dtype)
    slopes = make_slopes("geometric", shape[1])
    pairs = run_both(tensors, oracle, slopes, scale=0.3, initial_state=make_state(shape))
    assert set(pairs) == {"o", "state", "dq", "dk", "dv", "dinitial_state"}
    assert_close(pairs, error, TOLERANCE[dtype])


@pytest.mark.parametrize("through", ["o", "state"])
@pytest.mark.parametrize("law", ["none", "geometric"])
def test_gradient_through_one_output(
    law: str, through: str, oracle: Any, error: Any, inputs: Any, make_state: Any, make_slopes: Any
) -> None:
    shape = (1, 2, 67, 32, 16)
    pairs = run_both(
        inputs(shape),
        oracle,
        make_slopes(law, 2),
        scale=2.0,
        initial_state=make_state(shape),
        through=through,
    )
    assert_close(pairs, error, 1e-5)


@pytest.mark.parametrize("needed", ["q", "k", "v", "initial_state"])
def test_only_needed_gradients_are_computed(
    needed: str, oracle: Any, error: Any, inputs: Any, make_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 1, 33, 16, 16)
    leaves = dict(zip("qkv", inputs(shape), strict=True)) | {"initial_state": make_state(shape)}
    leaves = {name: x.detach().requires_grad_(name == needed) for name, x in leaves.items()}
    out = lightning_attention_2(**leaves)
    reference, _ = oracle(leaves["q"], leaves["k"], leaves["v"], None, initial_state=leaves["initial_state"])
    computed: list[Scan] = []

    def counted(scans: list[Scan], **kwargs: Any) -> None:
        computed.extend(scans)
        run_scans(scans, **kwargs)

    monkeypatch.setattr("attnbench.kernels.lightning2.run_scans", counted)
    d_out = torch.randn_like(out)
    (ours,) = torch.autograd.grad(out, leaves[needed], d_out)
    (expected,) = torch.autograd.grad(reference, leaves[needed], d_out.double())
    assert error(ours, expected) <= 1e-5
    assert len(computed) == 1


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy of x [B, H, N, D] with other strides, its last one 1."""
    x = x.detach()
    if layout == "BNHD":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "NBHD":
        return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    if layout == "slice":
        wide = x.new_full((*x.shape[:3], x.shape[3] + 16), float("nan"))
        wide[..., 16:] = x
        return wide[..., 16:]
    raise AssertionError(layout)


@pytest.mark.parametrize("layout", ["BNHD", "NBHD", "slice"])
def test_strides(layout: str, oracle: Any, error: Any, inputs: Any, make_slopes: Any) -> None:
    q, k, v = (in_layout(x, layout).requires_grad_() for x in inputs((2, 2, 67, 16, 32)))
    assert not q.is_contiguous()
    pairs = run_both((q, k, v), oracle, make_slopes("geometric", 2))
    assert_close(pairs, error, 1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3)], ids=["BHND", "BNHD", "NBHD"])
def test_output_keeps_the_order_of_dimensions(order: tuple[int, ...], inputs: Any) -> None:
    _, _, v = inputs((2, 2, 3, 16, 16))
    inverse = tuple(order.index(dim) for dim in range(4))
    q = k = v = v.detach().permute(order).contiguous().permute(inverse)
    assert lightning_attention_2(q, k, v).stride() == v.stride()
    wide = torch.cat([v.permute(order)] * 2, dim=-1).permute(inverse)[..., :16]
    assert lightning_attention_2(q, k, wide).stride() == v.stride()


def test_rows_of_different_strides(oracle: Any, error: Any, inputs: Any, make_slopes: Any) -> None:
    q, k, v = inputs((1, 2, 67, 16, 16))
    tensors = (in_layout(q, "BNHD").requires_grad_(), k, in_layout(v, "slice").requires_grad_())
    assert tensors[0].stride(2) != k.stride(2) != tensors[2].stride(2)
    assert_close(run_both(tensors, oracle, make_slopes("geometric", 2)), error, 1e-5)


def test_broadcast_keys_and_expanded_gradient(oracle: Any, error: Any, inputs: Any) -> None:
    q, k, v = inputs((2, 2, 34, 16, 16))
    k = k.detach()[:, :1].expand(2, 2, 34, 16)
    out = lightning_attention_2(q, k, v)
    reference, _ = oracle(q, k, v, None)
    assert error(out, reference) <= 1e-5
    # The gradient of a sum is one number, expanded: all its strides are 0.
    for ours, expected in zip(
        torch.autograd.grad(out.sum(), (q, v)), torch.autograd.grad(reference.sum(), (q, v)), strict=True
    ):
        assert error(ours, expected) <= 1e-5


# Segments are 16 tokens in the test below, and fp32 forgets after 17.3 / slope tokens.
MEMORIES = {
    "far": (2.0**-4, 2.0**-8),  # every earlier segment's state is read
    "near": (0.3, 0.45),  # at most four and three of them
    "mixed": (0.05, 5.0),  # one head reads states, one walks
    "within two": (0.6, 5.0),  # both walk: no first pass where the host knows it
}


KNOWN = (*((memory, False) for memory in MEMORIES), ("mixed", True), ("within two", True))
FEW = (
    ("mixed", False),
    ("within two", True),
)  # states are read, and none is: enough where segments are few or empty


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("segments", "seq_len", "memory", "known"),
    [
        *((*shape, *law) for shape in ((3, 100), (5, 70)) for law in KNOWN),
        *((*shape, *law) for shape in ((1, 33), (2, 64), (8, 20)) for law in FEW),
    ],
)
def test_segments(
    segments: int,
    seq_len: int,
    reverse: bool,
    memory: str,
    known: bool,
    oracle: Any,
    error: Any,
    inputs: Any,
    make_state: Any,
) -> None:
    value_dim = 48 if segments == 3 else 32  # two tiles of columns, the second ragged, or one
    shape = (1, 2, seq_len, 16, value_dim)
    q, k, v = (x.detach() for x in inputs(shape))
    slopes = torch.tensor(MEMORIES[memory], device=q.device)
    initial = make_state(shape).detach()
    out, final = torch.empty_like(v), torch.empty_like(initial)
    plan = Plan(block_c=16, block_e=32, segments=segments, num_warps=4, num_stages=2)
    scan = Scan(
        q=q,
        k=k,
        v=v,
        out=out,
        scale_out=0.25,
        scale_state=2.0,
        reverse=reverse,
        initial=initial,
        final=final,
    )
    hints = Hints(values=MEMORIES[memory] if known else None)
    run_scans([scan], slopes=slopes, hints=hints, plan=plan)
    # scale_state multiplies what enters the state, as a scaled k does.
    if reverse:
        decay = torch.exp(slopes.double())[:, None, None]
        flipped = (x.flip(2) for x in (q, 2.0 * k, v))
        o_ref, s_ref = oracle(*flipped, slopes, scale=0.25, initial_state=initial.double() * decay)
        o_ref, s_ref = o_ref.flip(2), s_ref / decay
    else:
        o_ref, s_ref = oracle(q, 2.0 * k, v, slopes, scale=0.25, initial_state=initial)
    assert error(out, o_ref) <= 1e-5
    assert error(final, s_ref) <= 1e-5


def test_prefill_in_two_calls_equals_one(error: Any, inputs: Any, make_slopes: Any) -> None:
    q, k, v = inputs((1, 2, 101, 32, 16))
    slopes = make_slopes("geometric", 2)
    whole, last = lightning_attention_2(q, k, v, slopes, return_state=True)
    out, state = lightning_attention_2(q[:, :, :37], k[:, :, :37], v[:, :, :37], slopes, return_state=True)
    rest, state = lightning_attention_2(
        q[:, :, 37:], k[:, :, 37:], v[:, :, 37:], slopes, initial_state=state, return_state=True
    )
    assert error(torch.cat([out, rest], dim=2), whole) <= 2e-6
    assert error(state, last) <= 2e-6


def test_decode_continues_a_prefill(error: Any, inputs: Any, make_slopes: Any) -> None:
    q, k, v = (x.detach() for x in inputs((2, 2, 41, 16, 48)))
    slopes = make_slopes("geometric", 2)
    whole, last = lightning_attention_2(q, k, v, slopes, scale=0.5, return_state=True)
    _, state = lightning_attention_2(q[:, :, :37], k[:, :, :37], v[:, :, :37], slopes, return_state=True)
    for t in range(37, 41):
        out = lightning_decode(q[:, :, t], k[:, :, t], v[:, :, t], state, slopes, scale=0.5)
        assert error(out, whole[:, :, t]) <= 2e-6
    assert error(state, last) <= 2e-6


def test_second_derivatives_are_refused(inputs: Any) -> None:
    q, k, v = inputs((1, 1, 16, 16, 16))
    out = lightning_attention_2(q, k, v)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


dims = st.integers(1, 3).map(lambda n: 16 * n)


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    seq_len=st.integers(1, 100),
    key_dim=dims,
    value_dim=dims,
    slope=st.sampled_from([0.0, 1e-3, 0.3, 30.0]),
    scale=st.sampled_from([1.0, -0.5, 64.0]),
)
def test_any_shape(
    batch: int,
    heads: int,
    seq_len: int,
    key_dim: int,
    value_dim: int,
    slope: float,
    scale: float,
    oracle: Any,
    error: Any,
    inputs: Any,
    make_state: Any,
) -> None:
    shape = (batch, heads, seq_len, key_dim, value_dim)
    tensors = inputs(shape)
    slopes = torch.full((heads,), slope, device=tensors[0].device)
    pairs = run_both(tensors, oracle, slopes, scale=scale, initial_state=make_state(shape))
    assert_close(pairs, error, 1e-5)


# ---------------------------------------------------------------- as a custom operator


def operator_arguments(inputs: Any, make_state: Any, *, initial: bool) -> tuple[Any, ...]:
    shape = (1, 2, 37, 16, 32)
    state = make_state(shape) if initial else None
    slopes = torch.tensor([0.5, 0.01], device=inputs(shape)[0].device)
    return (*inputs(shape), slopes, state, 0.5, initial)


@pytest.mark.parametrize("initial", [False, True], ids=["no state", "state"])
def test_the_operator_keeps_torchs_rules(initial: bool, inputs: Any, make_state: Any) -> None:
    torch.library.opcheck(
        torch.ops.attnbench.lightning2.default, operator_arguments(inputs, make_state, initial=initial)
    )


@pytest.mark.parametrize("initial", [False, True], ids=["no state", "state"])
def test_the_operator_computes_what_the_function_does(initial: bool, inputs: Any, make_state: Any) -> None:
    q, k, v, slopes, state, scale, _ = operator_arguments(inputs, make_state, initial=initial)
    leaves = [x for x in (q, k, v, state) if x is not None]
    ours = torch.ops.attnbench.lightning2(q, k, v, slopes, state, scale, initial)
    expected = lightning_attention_2(q, k, v, slopes, scale=scale, initial_state=state, return_state=True)
    used = 2 if initial else 1
    for a, b in zip(ours[:used], expected[:used], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    into = [torch.ones_like(x) for x in expected[:used]]
    for a, b in zip(
        torch.autograd.grad(ours[:used], leaves, into),
        torch.autograd.grad(expected[:used], leaves, into),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_compiled_code_is_one_graph(oracle: Any, error: Any, inputs: Any) -> None:
    q, k, v = inputs((1, 2, 37, 16, 32))
    slopes = torch.tensor([0.5, 0.01], device=q.device)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = lightning_attention_2(q * 2, k, v, slopes, scale=0.5)
        assert isinstance(out, torch.Tensor)
        return out + 1

    out = block(q, k, v)
    reference, _ = oracle(q, k, v, slopes, scale=1.0)
    assert error(out, reference + 1) <= 1e-5
    into = torch.randn_like(out)
    for ours, expected in zip(
        torch.autograd.grad(out, (q, k, v), into),
        torch.autograd.grad(reference, (q, k, v), into.double()),
        strict=True,
    ):
        assert error(ours, expected) <= 1e-5


def test_the_operator_takes_the_segments_along(inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a dispatch mode looks on, as selective checkpointing's does, forward and backward are operators."""
    seen, segments = [], []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    def counted(scans: Any, *, slopes: Any, hints: Any) -> None:
        segments.append(hints.segments)
        run_scans(scans, slopes=slopes, hints=hints)

    monkeypatch.setattr(lightning2, "run_scans", counted)
    q, k, v = inputs((1, 1, 70, 16, 16))
    with Looking():  # type: ignore[no-untyped-call]
        out = lightning_attention_2(q, k, v, segments=3)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert segments == [3, 3]
    assert {"attnbench::lightning2", "attnbench::lightning2_backward"} <= set(seen)


def test_the_operator_refuses_what_the_function_refuses(inputs: Any) -> None:
    q, k, v = inputs((1, 2, 37, 16, 32))
    with pytest.raises(ValueError, match=r"k must have the shape of q"):
        torch.ops.attnbench.lightning2(q, k[:, :, :-1], v, None, None, 1.0, False)


@pytest.mark.parametrize("segments", [1, 3, None])
def test_segments_do_not_change_the_result(
    segments: int | None, oracle: Any, error: Any, inputs: Any
) -> None:
    q, k, v = inputs((1, 2, 300, 16, 16))
    slopes = torch.tensor([0.2, 0.01], device=q.device)
    out = lightning_attention_2(q, k, v, slopes, segments=segments)
    reference, _ = oracle(q, k, v, slopes)
    assert error(out, reference) <= 1e-5
    into = torch.randn_like(out)
    for ours, expected in zip(
        torch.autograd.grad(out, (q, k, v), into),
        torch.autograd.grad(reference, (q, k, v), into.double()),
        strict=True,
    ):
        assert error(ours, expected) <= 1e-5


@pytest.mark.parametrize("segments", [0, 257])
def test_impossible_segments_are_refused(segments: int, inputs: Any) -> None:
    with pytest.raises(ValueError, match=rf"^segments must be from 1 to 256, or None, got {segments}$"):
        lightning_attention_2(*inputs((1, 1, 16, 16, 16)), segments=segments)
