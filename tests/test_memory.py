"""Bytes: the host meter counts exactly, and the memory pass splits them by purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch

from attnbench.case import Case, Memory, Status, Workload
from attnbench.measure import inputs
from attnbench.measure.memory import HostMeter, memory_pass, open_meter
from attnbench.measure.runner import failure
from attnbench.registry import Provider, find
from attnbench.semantics import SEMANTICS

CPU = torch.device("cpu")

B, H, N, D, E = 2, 3, 200, 32, 48
QK, V = B * H * N * D * 4, B * H * N * E * 4  # bytes of q (or k, dq, dk) and of v (or o, do, dv)
SLOPES = H * 4
SQUARE = B * H * N * N * 4  # one N x N matrix per head


def _memory(mechanism: str, workload: Workload, *, state_bytes: int | None = 0, **changes: Any) -> Memory:
    fields: dict[str, Any] = {
        "batch": B,
        "heads": H,
        "seq_len": N,
        "head_dim": D,
        "value_dim": E,
        "dtype": "fp32",
    }
    case = Case(mechanism=mechanism, workload=workload, **{**fields, **changes})
    provider = find(mechanism).provider_for("cpu")
    assert isinstance(provider, Provider)
    semantics = SEMANTICS[find(mechanism).semantics]
    prepare = partial(inputs.prepare, case, provider=provider, semantics=semantics, device=CPU, seed=0)
    return memory_pass(case, prepare=prepare, device=CPU, state_bytes=state_bytes)


# ---------------------------------------------------------------- the meter


def test_what_is_created_counts_until_it_is_freed() -> None:
    with HostMeter() as meter:
        a = torch.zeros(1000)
        assert (meter.alive(), meter.peak()) == (4000, 4000)
        b = a.double()
        assert (meter.alive(), meter.peak()) == (12_000, 12_000)
        del a
        assert (meter.alive(), meter.peak()) == (8000, 12_000)
        del b
        assert (meter.alive(), meter.peak()) == (0, 12_000)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_meter_begins_at_zero_whatever_was_alive_before(kind: str) -> None:
    device = torch.device(kind)
    torch.zeros(2**24, device=device)  # 64 MiB, which nobody keeps
    kept = torch.zeros(2**20, device=device)
    with open_meter(device) as meter:
        assert (meter.alive(), meter.peak()) == (0, 0)
        own = torch.zeros(2**18, device=device)
        assert (meter.alive(), meter.peak()) == (own.nbytes, own.nbytes)
        assert kept.nbytes > own.nbytes


def test_views_and_in_place_operations_cost_nothing() -> None:
    with HostMeter() as meter:
        a = torch.zeros(10, 100)
        view = a.t()[:5].view(5, 2, 5)
        a += 1
        a.mul_(2)
        assert (meter.alive(), meter.peak()) == (4000, 4000)
        del a
        assert meter.alive() == 4000  # the view keeps the storage
        del view
        assert meter.alive() == 0


def test_a_temporary_inside_an_expression_reaches_the_peak() -> None:
    with HostMeter() as meter:
        a = torch.ones(1000)
        total = ((a + 1) * 2).sum()
        assert meter.alive() == 4004
        assert meter.peak() == 12_000  # a, a + 1 and the product
        assert float(total) == 4000


def test_reset_starts_a_new_peak_from_what_is_alive() -> None:
    with HostMeter() as meter:
        kept = torch.zeros(100)
        del kept
        kept = torch.zeros(10)
        meter.reset()
        assert (meter.alive(), meter.peak()) == (40, 40)
        assert kept.shape == (10,)


def test_several_storages_of_one_operator_all_count() -> None:
    with HostMeter() as meter:
        values, indices = torch.zeros(100).sort()
        assert meter.alive() == 100 * 4 + 100 * 8
        del values
        assert meter.alive() == 800
        assert indices.dtype == torch.int64


def test_what_was_there_before_does_not_count_when_it_is_only_read() -> None:
    before = torch.zeros(1000)
    with HostMeter() as meter:
        after = before + 1
        assert meter.alive() == 4000
    assert after.shape == before.shape


def test_gradients_count() -> None:
    with HostMeter() as meter:
        x = torch.ones(1000, requires_grad=True)
        y = x.exp()
        meter.reset()
        (dx,) = torch.autograd.grad(y, x, torch.ones(1000))
        assert meter.alive() == 3 * 4000  # x, its exponential, its gradient; the ones are gone
        assert meter.peak() >= 4 * 4000
        assert dx.shape == (1000,)


def test_the_host_has_no_reserved_pool() -> None:
    assert HostMeter().reserved() is None


# ---------------------------------------------------------------- the pass


def test_forward_inputs_and_outputs_are_exact() -> None:
    memory = _memory("lightning2", Workload.FWD)
    assert memory.input_bytes == 2 * QK + V + SLOPES
    assert memory.output_bytes == V
    assert memory.saved_bytes == 0
    assert memory.reserved_bytes is None


@pytest.mark.parametrize("workload", [Workload.BWD, Workload.FWD_BWD], ids=str)
def test_lightning2_saves_nothing_but_its_output(workload: Workload) -> None:
    """Inputs are kept by reference, so o is all that a forward adds."""
    memory = _memory("lightning2", workload)
    assert memory.input_bytes == 2 * QK + 2 * V + SLOPES  # and do
    assert memory.output_bytes == 2 * QK + V
    assert memory.saved_bytes == V


def test_a_quadratic_forward_holds_the_square_matrix() -> None:
    memory = _memory("linear-quadratic", Workload.FWD)
    assert memory.peak_bytes is not None
    assert memory.workspace_bytes is not None
    # the scores and the masked scores, both B x H x N x N, live together
    assert 2 * SQUARE <= memory.workspace_bytes <= 4 * SQUARE
    assert memory.peak_bytes >= 2 * QK + V + 2 * SQUARE


def test_a_quadratic_backward_saves_the_square_matrix() -> None:
    memory = _memory("linear-quadratic", Workload.BWD)
    # masked scores per batch and head and the mask per head (the scores themselves only scale a constant), and o
    assert memory.saved_bytes == SQUARE + SQUARE // B + V


def test_lightning2_workspace_does_not_grow_with_length() -> None:
    short, long = (
        _memory("lightning2", Workload.FWD, seq_len=length).workspace_bytes for length in (256, 1024)
    )
    assert short is not None
    assert short > 0
    assert short == long


def test_the_parts_add_up_to_the_peak() -> None:
    for workload in (Workload.FWD, Workload.BWD, Workload.FWD_BWD):
        m = _memory("lightning2", workload, state_bytes=1000)
        parts = (m.input_bytes, m.output_bytes, m.saved_bytes, m.state_bytes, m.workspace_bytes)
        assert sum(part or 0 for part in parts) == m.peak_bytes, workload


def test_an_unknown_state_counts_as_workspace() -> None:
    known, unknown = (_memory("lightning2", Workload.FWD, state_bytes=s) for s in (1000, None))
    assert unknown.state_bytes is None
    assert known.workspace_bytes is not None
    assert unknown.workspace_bytes == known.workspace_bytes + 1000


def test_grouped_keys_and_values_take_less() -> None:
    memory = _memory("sdpa", Workload.FWD, heads=4, kv_heads=1, dtype="fp32")
    tokens = B * N * 4
    assert memory.input_bytes == tokens * (4 * D + D + E)  # no slopes
    assert memory.output_bytes == tokens * 4 * E


# ---------------------------------------------------------------- against the kernel's own account

_FRESH = """
import json, sys, torch
from functools import partial
from pathlib import Path
from attnbench.case import Case, Workload
from attnbench.measure import inputs
from attnbench.measure.memory import memory_pass
from attnbench.registry import find
from attnbench.semantics import SEMANTICS

def high_water():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

def run(seq_len):
    case = Case(mechanism="linear-quadratic", workload=Workload.FWD, batch=1, heads=2, seq_len=seq_len, head_dim=64,
                dtype="fp32")
    prepare = partial(inputs.prepare, case, provider=find("linear-quadratic").provider_for("cpu"),
                      semantics=SEMANTICS["decay-linear"], device=torch.device("cpu"), seed=0)
    return memory_pass(case, prepare=prepare, device=torch.device("cpu"), state_bytes=0)

run(64)  # libraries that load on first use are not this case's memory
before = high_water()
memory = run(2048)
print(json.dumps({"stated": memory.peak_bytes, "grown": high_water() - before,
                  "compiler": "torch._dynamo" in sys.modules}))
"""


def test_the_stated_peak_is_what_the_process_really_grew_by() -> None:
    done = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["stated"] > 2 * 2 * 2048**2 * 4
    assert answer["grown"] == pytest.approx(answer["stated"], rel=0.15)
    assert not answer["compiler"], "to observe operators no worker has to import torch's compiler"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Status.OOM),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), Status.OOM),
        (RuntimeError("CUDA driver error: out of memory"), Status.OOM),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            Status.OOM,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Status.OOM),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Status.ERROR),
    ],
    ids=["allocator", "runtime", "driver", "cublas", "host", "another"],
)
def test_memory_that_ends_is_told_from_other_errors(error: Exception, status: Status) -> None:
    assert failure(error)[0] is status
