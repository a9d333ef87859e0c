"""The compiled kernels at sizes of use, on the card. The oracle works in fp64 by chunks, so N may be long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench.kernels import _validate, lightning_attention_1, lightning_attention_2, lightning_decode
from attnbench.kernels._plan import Plan
from attnbench.kernels._scan import Scan, run_scans

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Shape = tuple[int, int, int, int, int]


def shape_id(shape: Shape) -> str:
    return "-".join(f"{name}{size}" for name, size in zip("BHNDE", shape, strict=True))


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def chunked_oracle(
    quadratic: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    chunk: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The quadratic oracle, chunk after chunk, with the state carried in fp64."""
    state = initial_state
    outs = []
    parts = (torch.split(x, chunk, dim=2) for x in (q, k, v))
    for q_part, k_part, v_part in zip(*parts, strict=True):
        out, state = quadratic(q_part, k_part, v_part, slopes, scale=scale, initial_state=state)
        outs.append(out)
    assert state is not None
    return torch.cat(outs, dim=2), state


def test_the_chunked_oracle_is_the_quadratic_one(
    oracle: Any, error: Any, inputs: Any, make_state: Any, make_slopes: Any
) -> None:
    shape = (1, 2, 50, 16, 32)
    options: dict[str, Any] = {"scale": 0.5, "initial_state": make_state(shape)}
    slopes = make_slopes("geometric", 2)
    q, k, v = inputs(shape)
    expected = oracle(q, k, v, slopes, **options)
    ours = chunked_oracle(oracle, q, k, v, slopes, chunk=16, **options)
    assert all(error(a, b) <= 1e-13 for a, b in zip(ours, expected, strict=True))


class TestCompiled:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
    @pytest.mark.parametrize(
        "shape",
        [
            *(
                (2, 3, seq_len, 64, 64)
                for seq_len in (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 4097)
            ),
            *((2, 4, 700, dim, dim) for dim in (16, 32, 48, 80, 96, 128, 192, 256)),
            (1, 2, 4097, 128, 128),
            (2, 2, 600, 128, 256),
            (2, 2, 600, 256, 64),
            (2, 2, 600, 32, 128),
            (1, 1, 300, 16, 256),
        ],
        ids=shape_id,
    )
    def test_lightning_2(
        self,
        shape: Shape,
        dtype: torch.dtype,
        oracle: Any,
        error: Any,
        inputs: Any,
        make_state: Any,
        make_slopes: Any,
    ) -> None:
        q, k, v = inputs(shape, dtype=dtype)
        slopes, state = make_slopes("geometric", shape[1]), make_state(shape)
        ours = lightning_attention_2(q, k, v, slopes, scale=0.1, initial_state=state, return_state=True)
        reference = chunked_oracle(oracle, q, k, v, slopes, scale=0.1, initial_state=state)
        into = [torch.randn_like(x) for x in ours]
        leaves = (q, k, v, state)
        gradients = torch.autograd.grad(ours, leaves, into)
        expected = torch.autograd.grad(reference, leaves, [x.double() for x in into])
        names = ("o", "state", "dq", "dk", "dv", "dinitial_state")
        errors = dict(zip(names, map(error, ours + gradients, reference + expected), strict=True))
        assert all(value <= TOLERANCE[dtype] for value in errors.values()), errors

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
    @pytest.mark.parametrize(
        "shape",
        [
            *((2, 3, seq_len, 64, 64) for seq_len in (1, 64, 127, 129, 1000)),
            *((1, 2, 500, dim, dim) for dim in (16, 32, 96, 128, 256)),
            (1, 2, 2049, 128, 128),
            (1, 2, 400, 128, 256),
            (1, 2, 400, 256, 64),
        ],
        ids=shape_id,
    )
    def test_lightning_1(
        self, shape: Shape, dtype: torch.dtype, oracle: Any, error: Any, inputs: Any, make_slopes: Any
    ) -> None:
        q, k, v = inputs(shape, dtype=dtype)
        slopes = make_slopes("geometric", shape[1])
        out = lightning_attention_1(q, k, v, slopes, scale=0.1)
        reference, _ = oracle(q, k, v, slopes, scale=0.1)
        d_out = torch.randn_like(out)
        ours = (out, *torch.autograd.grad(out, (q, k, v), d_out))
        expected = (reference, *torch.autograd.grad(reference, (q, k, v), d_out.double()))
        errors = dict(zip(("o", "dq", "dk", "dv"), map(error, ours, expected), strict=True))
        assert all(value <= TOLERANCE[dtype] for value in errors.values()), errors

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
    @pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
    @pytest.mark.parametrize("segments", [1, 2, 3, 8, 32])
    @pytest.mark.parametrize("dim", [64, 128])
    def test_segments(
        self,
        dim: int,
        segments: int,
        reverse: bool,
        dtype: torch.dtype,
        oracle: Any,
        error: Any,
        inputs: Any,
        make_slopes: Any,
    ) -> None:
        q, k, v = (x.detach() for x in inputs((1, 4, 5000, dim, dim), dtype=dtype))
        slopes = make_slopes("geometric", 4)
        block = 16 if dtype == torch.float32 else 64
        plan = Plan(block_c=block, block_e=max(32, block), segments=segments, num_warps=4, num_stages=2)
        out = torch.full_like(v, float("nan"))
        scan = Scan(q=q, k=k, v=v, out=out, scale_out=1.0, scale_state=1.0, reverse=reverse)
        run_scans([scan], slopes=slopes, plan=plan)
        if reverse:
            reference, _ = chunked_oracle(oracle, q.flip(2), k.flip(2), v.flip(2), slopes)
            reference = reference.flip(2)
        else:
            reference, _ = chunked_oracle(oracle, q, k, v, slopes)
        assert error(out, reference) <= TOLERANCE[dtype]

    @pytest.mark.parametrize("function", [lightning_attention_1, lightning_attention_2])
    @pytest.mark.parametrize("layout", ["BNHD", "fused"])
    def test_strides(
        self,
        layout: str,
        function: Callable[..., torch.Tensor],
        oracle: Any,
        error: Any,
        inputs: Any,
        make_slopes: Any,
    ) -> None:
        tensors = [x.detach() for x in inputs((2, 4, 1000, 128, 128), dtype=torch.bfloat16)]
        slopes = make_slopes("geometric", 4)
        if layout == "BNHD":
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
        else:
            q, k, v = torch.cat(tensors, dim=3).transpose(1, 2).contiguous().transpose(1, 2).chunk(3, dim=3)
        leaves = tuple(x.requires_grad_() for x in (q, k, v))
        out = function(q, k, v, slopes)
        reference, _ = chunked_oracle(oracle, q, k, v, slopes)
        d_out = torch.randn_like(out)
        ours = (out, *torch.autograd.grad(out, leaves, d_out))
        expected = (reference, *torch.autograd.grad(reference, leaves, d_out.double()))
        assert all(error(a, b) <= 1e-2 for a, b in zip(ours, expected, strict=True))

    @pytest.mark.parametrize("slope", [None, 0.0], ids=["none", "zero"])
    def test_a_long_sequence_without_decay(self, slope: float | None, oracle: Any, error: Any) -> None:
        q, k, v = (torch.randn(1, 2, 262_144, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        slopes = None if slope is None else torch.full((2,), slope, device="cuda")
        out, state = lightning_attention_2(q, k, v, slopes, return_state=True)
        reference, last = chunked_oracle(oracle, q, k, v, slopes, chunk=2048)
        assert error(out, reference) <= 1e-2
        assert error(state, last) <= 1e-4

    def test_addresses_beyond_32_bits(self, oracle: Any, error: Any) -> None:
        # Tokens outermost: the last rows lie past 2^31 elements.
        seq_len, heads = 40_000, 512
        q = torch.randn(seq_len, 1, heads, 128, device="cuda", dtype=torch.bfloat16).permute(1, 2, 0, 3)
        assert q.numel() > 2**31
        slopes = torch.full((heads,), 0.5, device="cuda")
        out = lightning_attention_2(q, q, q, slopes, scale=0.1)
        tail = q[:, -1:, -512:]
        reference, _ = oracle(tail, tail, tail, slopes[-1:], scale=0.1)
        assert error(out[:, -1:, -256:], reference[:, :, -256:]) <= 1e-2

    def test_a_launch_like_an_earlier_one_sees_its_own_tensors(
        self, oracle: Any, error: Any, make_slopes: Any
    ) -> None:
        """The second launch skips Triton's binding; one that is not aligned must not be taken for it."""
        slopes = make_slopes("geometric", 4)
        memory = torch.randn(4, 4 * 300 * 64 + 1, device="cuda", dtype=torch.bfloat16)
        for row, start in enumerate((0, 0, 1, 1)):
            q = memory[row, start : start + 4 * 300 * 64].view(1, 4, 300, 64).requires_grad_()
            out = lightning_attention_2(q, q, q, slopes, scale=0.1 * (row + 1))
            reference, _ = oracle(q, q, q, slopes, scale=0.1 * (row + 1))
            assert error(out, reference) <= 1e-2
            (ours,) = torch.autograd.grad(out.sum(), q)
            (expected,) = torch.autograd.grad(reference.sum(), q)
            assert error(ours, expected) <= 1e-2

    def test_compiled_by_inductor(self, oracle: Any, error: Any, inputs: Any, make_slopes: Any) -> None:
        slopes = make_slopes("geometric", 4)

        @torch.compile(fullgraph=True)
        def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = lightning_attention_2(q * 2, k, v, slopes, scale=0.05)
            assert isinstance(out, torch.Tensor)
            return out.sigmoid()

        for seq_len in (300, 555):
            q, k, v = inputs((2, 4, seq_len, 64, 64), dtype=torch.bfloat16)
            reference, _ = oracle(q, k, v, slopes, scale=0.1)
            out = block(q, k, v)
            assert error(out, reference.sigmoid()) <= 1e-2
            into = torch.randn_like(out)
            for ours, expected in zip(
                torch.autograd.grad(out, (q, k, v), into),
                torch.autograd.grad(reference.sigmoid(), (q, k, v), into.double()),
                strict=True,
            ):
                assert error(ours, expected) <= 2e-2

    @pytest.mark.parametrize("heads", [1, 64], ids=["segmented", "whole"])
    def test_graph_of_a_forward(self, heads: int, error: Any, make_slopes: Any) -> None:
        q, k, v = (torch.randn(4, heads, 4096, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        slopes = make_slopes("geometric", heads)
        expected = lightning_attention_2(q, k, v, slopes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lightning_attention_2(q, k, v, slopes)
        q.mul_(2.0)
        graph.replay()
        assert error(out, 2.0 * expected) <= 1e-3

    def test_graph_with_slopes_never_seen_before(self, make_slopes: Any) -> None:
        q = torch.randn(1, 4, 128, 64, device="cuda", dtype=torch.float16)
        lightning_attention_2(q, q, q, make_slopes("geometric", 4))
        fresh = make_slopes("geometric", 4)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lightning_attention_2(q, q, q, fresh)
        graph.replay()
        assert torch.equal(out, lightning_attention_2(q, q, q, fresh))

    def test_graph_of_decoding(self, error: Any, make_slopes: Any) -> None:
        q, k, v = (torch.randn(8, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        slopes = make_slopes("geometric", 16)
        state = torch.randn(8, 16, 128, 128, device="cuda")
        expected = state.clone()
        lightning_decode(q, k, v, state.clone(), slopes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lightning_decode(q, k, v, state, slopes)
        for _ in range(3):
            graph.replay()
            last = lightning_decode(q, k, v, expected, slopes)
        assert torch.equal(state, expected)
        assert torch.equal(out, last)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=dtype_id)
    @pytest.mark.parametrize(
        "dims", [(128, 128), (64, 256), (256, 96), (48, 80)], ids=lambda d: f"D{d[0]}-E{d[1]}"
    )
    def test_decode(
        self,
        dims: tuple[int, int],
        dtype: torch.dtype,
        error: Any,
        inputs: Any,
        make_state: Any,
        make_slopes: Any,
    ) -> None:
        shape = (5, 7, 1, *dims)
        q, k, v = (x.detach()[:, :, 0] for x in inputs(shape, dtype=dtype))
        state, slopes = make_state(shape).detach(), make_slopes("geometric", 7)
        reference = torch.exp(-slopes.double())[:, None, None] * state.double()
        reference = reference + k.double()[..., :, None] * v.double()[..., None, :]
        out = lightning_decode(q, k, v, state, slopes)
        assert error(state, reference) <= 1e-6
        assert error(out, (q.double()[..., None, :] @ reference)[..., 0, :]) <= TOLERANCE[dtype]

    def test_slopes_are_read_once_per_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = []
        check = _validate._slope_values

        def counted(x: torch.Tensor) -> None:
            reads.append(x.numel())
            check(x)

        monkeypatch.setattr(_validate, "_slope_values", counted)
        q = torch.randn(1, 2, 16, 16, device="cuda")
        slopes = torch.tensor([0.1, 0.2], device="cuda")
        for _ in range(3):
            lightning_attention_2(q, q, q, slopes)
        assert len(reads) == 1
        slopes[1] = -1.0
        with pytest.raises(ValueError, match=r"slopes\[1\] = -1\.0"):
            lightning_attention_2(q, q, q, slopes)
        assert len(reads) == 2
