"""The scan whose warps specialise: the same function of its inputs as the portable one, on the card that it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from attnbench.kernels import _host, _scan, lightning_attention_2
from attnbench.kernels._plan import Plan

on_hopper = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
        reason="needs a GPU of compute capability 9.x",
    ),
]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 1000, 4097)

Shape = tuple[int, int, int, int, int]


def shape_id(shape: Shape) -> str:
    return "-".join(f"{name}{size}" for name, size in zip("BHNDE", shape, strict=True))


@pytest.fixture
def specialised(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes every launch one of the specialised kernel, in so many segments."""

    def choose(*, segments: int) -> None:
        def planned(scans: Any, *, remembered: Any) -> Plan:
            wide = scans[0].v.shape[-1] > 64
            long = scans[0].q.shape[-1] > 128
            return Plan(
                block_c=64,
                block_e=128 if wide else 64,
                segments=segments,
                num_warps=4,
                num_stages=2 if long else 4 if wide else 3,
                specialised=True,
            )

        monkeypatch.setattr(_scan, "_plan_for", planned)
        _scan._prepare.cache_clear()

    yield choose
    _scan._prepare.cache_clear()


def errors_of(
    leaves: dict[str, torch.Tensor],
    slopes: torch.Tensor | None,
    *,
    oracle: Any,
    error: Any,
    scale: float = 1.0,
) -> dict[str, float]:
    """Relative errors of o, the final state and all gradients, with outputs poisoned by what memory held before."""
    options: dict[str, Any] = {"scale": scale, "initial_state": leaves.get("initial_state")}
    q, k, v = leaves["q"], leaves["k"], leaves["v"]
    ours = lightning_attention_2(q, k, v, slopes, return_state=True, **options)
    reference = oracle(q, k, v, slopes, **options)
    torch.manual_seed(7)
    into = [torch.randn_like(x) for x in ours]
    gradients = torch.autograd.grad(ours, list(leaves.values()), into)
    expected = torch.autograd.grad(reference, list(leaves.values()), [x.double() for x in into])
    names = ("o", "state", *(f"d{name}" for name in leaves))
    return dict(zip(names, map(error, (*ours, *gradients), (*reference, *expected)), strict=True))


class TestSpecialised:
    pytestmark = on_hopper

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize("segments", [1, 2, 5])
    @pytest.mark.parametrize(
        "shape",
        [
            *((2, 3, seq_len, 128, 128) for seq_len in LENGTHS),
            *((1, 2, seq_len, 64, 64) for seq_len in (1, 65, 1000)),
            *((2, 4, 700, dim, dim) for dim in (16, 48, 80, 96)),
            (2, 2, 600, 128, 64),
            (2, 2, 600, 32, 128),
            (1, 1, 300, 16, 112),
            *((1, 3, seq_len, 256, 256) for seq_len in (1, 63, 65, 200, 1000)),
            (1, 2, 600, 256, 64),
            (1, 2, 600, 64, 256),
            (1, 2, 300, 144, 208),
        ],
        ids=shape_id,
    )
    def test_with_states(
        self,
        shape: Shape,
        segments: int,
        dtype: torch.dtype,
        specialised: Any,
        oracle: Any,
        error: Any,
        inputs: Any,
        make_state: Any,
        make_slopes: Any,
    ) -> None:
        specialised(segments=segments)
        leaves = dict(zip("qkv", inputs(shape, dtype=dtype), strict=True))
        leaves["initial_state"] = make_state(shape)
        slopes = make_slopes("geometric", shape[1])
        errors = errors_of(leaves, slopes, oracle=oracle, error=error, scale=0.1)
        assert all(value <= TOLERANCE[dtype] for value in errors.values()), errors

    @pytest.mark.parametrize("segments", [1, 3, 16])
    @pytest.mark.parametrize("law", ["none", "zero", "geometric", "large"])
    def test_slope_laws(
        self,
        law: str,
        segments: int,
        specialised: Any,
        oracle: Any,
        error: Any,
        inputs: Any,
        make_slopes: Any,
    ) -> None:
        specialised(segments=segments)
        leaves = dict(zip("qkv", inputs((1, 4, 3000, 128, 128), dtype=torch.bfloat16), strict=True))
        errors = errors_of(leaves, make_slopes(law, 4), oracle=oracle, error=error)
        assert all(value <= 1e-2 for value in errors.values()), errors

    @pytest.mark.parametrize("segments", [1, 4])
    @pytest.mark.parametrize("layout", ["BNHD", "fused"])
    def test_strides(
        self,
        layout: str,
        segments: int,
        specialised: Any,
        oracle: Any,
        error: Any,
        inputs: Any,
        make_slopes: Any,
    ) -> None:
        specialised(segments=segments)
        tensors = [x.detach() for x in inputs((2, 4, 1000, 128, 128), dtype=torch.bfloat16)]
        if layout == "BNHD":
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
        else:
            q, k, v = torch.cat(tensors, dim=3).transpose(1, 2).contiguous().transpose(1, 2).chunk(3, dim=3)
        leaves = {name: x.requires_grad_() for name, x in zip("qkv", (q, k, v), strict=True)}
        errors = errors_of(leaves, make_slopes("geometric", 4), oracle=oracle, error=error)
        assert all(value <= 1e-2 for value in errors.values()), errors

    def test_a_repeated_call_gives_the_same_bits(
        self, specialised: Any, inputs: Any, make_slopes: Any
    ) -> None:
        specialised(segments=2)
        q, k, v = (x.detach() for x in inputs((2, 16, 4096, 128, 128), dtype=torch.bfloat16))
        slopes = make_slopes("geometric", 16)
        first = lightning_attention_2(q, k, v, slopes)
        assert all(torch.equal(first, lightning_attention_2(q, k, v, slopes)) for _ in range(20))

    def test_a_cuda_graph_replays_with_the_addresses_that_it_recorded(
        self, specialised: Any, inputs: Any, make_slopes: Any
    ) -> None:
        specialised(segments=2)
        q, k, v = (x.detach() for x in inputs((1, 4, 2000, 128, 128), dtype=torch.bfloat16))
        slopes = make_slopes("geometric", 4)
        lightning_attention_2(q, k, v, slopes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lightning_attention_2(q, k, v, slopes)
        v.mul_(2.0)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, lightning_attention_2(q, k, v, slopes))


# Gluon is young and its names move: a machine without a GPU notices, too. ptxas tells what registers spill.
COMPILATION = """
import re, subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=0: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

driver.set_active(Hopper())
from attnbench.kernels import _host, _scan
from attnbench.kernels._plan import Plan

compiled = []

class Compile:
    def __init__(self, kernel, grid, constants):
        self.kernel, self.grid, self.constants = kernel, grid, constants

    def __call__(self, *leading):
        compiled.append(self.kernel.warmup(*leading, grid=self.grid, **self.constants))

_host.Launch = Compile
q, k, v, out = (torch.empty(1, 2, 256, 128, dtype=torch.bfloat16) for _ in range(4))
plan = Plan(block_c=64, block_e=128, segments=1, num_warps=4, num_stages=4, max_registers=168, specialised=True)
scan = _scan.Scan(q=q, k=k, v=v, out=out, scale_out=1.0, scale_state=1.0)
_scan.run_scans([scan], slopes=torch.ones(2), plan=plan)
ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
    file.write(compiled[0].asm["ptx"])
    file.flush()
    told = subprocess.run([ptxas, "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"], capture_output=True, text=True)
print(re.findall(r"(\\d+) bytes spill stores", told.stderr)[0], compiled[0].metadata.shared, "C7515" in told.stderr)
"""


def test_it_compiles_without_a_gpu_and_keeps_its_states_in_registers() -> None:
    pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILATION], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    spilled, shared, serialised = done.stdout.split()
    assert int(spilled) <= 32  # bytes: addresses of a program's start, no part of a state
    assert int(shared) <= 232_448
    assert serialised == "False"  # ptxas would say so if it made the wgmma instructions wait for each other


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: torch.empty(2, 3, 50, 96, dtype=torch.bfloat16), True, id="dense"),
        pytest.param(
            lambda: torch.empty(2, 50, 3, 96, dtype=torch.bfloat16).transpose(1, 2), True, id="BNHD"
        ),
        pytest.param(lambda: torch.empty(2, 3, 50, 100, dtype=torch.bfloat16)[..., :96], False, id="rows"),
        pytest.param(
            lambda: torch.empty(2, 3, 1, 96, dtype=torch.bfloat16).expand(2, 3, 50, 96), False, id="expanded"
        ),
        pytest.param(
            lambda: torch.empty(1, 1, 50, 96, dtype=torch.bfloat16).as_strided((1, 1, 50, 96), (3, 5, 96, 1)),
            True,
            id="the stride of a dimension of one does not matter",
        ),
        pytest.param(
            lambda: torch.empty(1, 1, 51, 96, dtype=torch.bfloat16).flatten()[8:-88].view(1, 1, 50, 96),
            True,
            id="16 bytes on",
        ),
        pytest.param(
            lambda: torch.empty(1, 1, 51, 96, dtype=torch.bfloat16).flatten()[4:-92].view(1, 1, 50, 96),
            False,
            id="8 bytes on",
        ),
    ],
)
def test_what_the_copy_engine_can_reach(make: Callable[[], torch.Tensor], expected: bool) -> None:
    hopper = pytest.importorskip("attnbench.kernels._hopper")
    assert hopper.describable(_host.traits(make())) is expected
