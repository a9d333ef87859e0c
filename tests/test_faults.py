"""`attnbench verify` and sweeps against planted faults: each must be found, and named by what it spoils."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnbench import cli, mechanism_files
from attnbench.case import Case, Protocol, Status, Workload
from attnbench.measure.inputs import build, refill
from attnbench.measure.runner import measure
from attnbench.registry import mechanisms
from attnbench.semantics import SEMANTICS
from attnbench.sweeps.values import parse_mechanisms

FAULTS = Path(__file__).parent / "faults.py"
# What the sentence must say, at 17 tokens.
PLANTED = {
    "mask_off_by_one": "o is off by",
    "no_mask": "o is off by",
    "no_scale": "o is off by",
    "stale_by_shape": "right once, but a second call with other values is not: o is off by",
    "stale_by_address": "right once, but a second call with other values is not: o is off by",
    "dq_for_dk": "incorrect: dq is off by",
    "dk_for_dv": "incorrect: dk is off by",
    "last_row_unwritten": "o has unwritten or non-finite elements",
    "decay_backwards": "o is off by",
}


@pytest.fixture(autouse=True)
def _own_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that a test names are forgotten after it."""
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mechanisms.cache_clear()
    yield
    monkeypatch.undo()
    mechanisms.cache_clear()


def _spec(name: str) -> str:
    return f"{FAULTS}:{name}:{'decay-linear' if name == 'decay_backwards' else 'softmax'}"


def test_verify_finds_every_planted_fault_and_names_what_it_spoils(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in one command, as its worker takes seconds to start."""
    names = [item for name in ("right", *PLANTED) for item in ("-m", _spec(name))]
    options = ("--seq-len", "1,17", "--head-dim", "16", "--device", "cpu", "--json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attnbench", "verify", *names, *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.Exit.REGRESSION
    findings = {found["mechanism"]: found for found in json.loads(capsys.readouterr().out)}

    control = findings.pop("right")
    assert (control["status"], control["shapes"], control["faults"]) == ("ok", 2, [])
    assert control["provider"].startswith("faults.py ")
    assert set(findings) == set(PLANTED)
    for name, words in PLANTED.items():
        assert findings[name]["status"] == "incorrect", name
        (fault,) = (fault for fault in findings[name]["faults"] if "-N17-" in fault)
        assert words in fault, name
    for name, spoiled in (("dq_for_dk", {"dq", "dk"}), ("dk_for_dv", {"dk", "dv"})):
        worst, limit = findings[name]["worst"], findings[name]["tolerance"]
        assert {output for output, error in worst.items() if error > limit} == spoiled, name


@pytest.mark.parametrize("name", ["stale_by_shape", "stale_by_address"])
@pytest.mark.parametrize("workload", ["fwd", "bwd"])
def test_a_sweep_times_nothing_stale(name: str, workload: str) -> None:
    (mechanism,) = parse_mechanisms(_spec(name))
    case = Case(
        mechanism=mechanism, workload=Workload(workload), batch=1, heads=2,
        seq_len=30 if workload == "fwd" else 31, head_dim=16, dtype="fp32",
    )  # fmt: skip
    row = measure(case, protocol=Protocol(), device=torch.device("cpu"), ceilings=None)
    assert row.status is Status.INCORRECT
    assert row.reason is not None
    assert row.reason.startswith("right once")
    assert row.timing is None


# ---------------------------------------------------------------- other values in the same memory


@pytest.mark.parametrize("semantics", ["softmax", "gated-linear", "performer", "sink-window"])
@pytest.mark.parametrize("workload", ["fwd", "bwd"])
def test_refilled_inputs_are_those_that_the_seed_gives(workload: str, semantics: str) -> None:
    known, device = SEMANTICS[semantics], torch.device("cpu")
    case = Case(
        mechanism="m", workload=Workload(workload), batch=2, heads=4, kv_heads=2, seq_len=9,
        head_dim=8, value_dim=6, dtype="fp32", window=3,
    )  # fmt: skip
    inputs = build(case, semantics=known, layout="BNHD", device=device, seed=0)
    before = [(t.data_ptr(), t.clone()) for t in inputs.tensors]
    refill(inputs, case=case, semantics=known, seed=1)
    fresh = build(case, semantics=known, layout="BNHD", device=device, seed=1)
    assert len(fresh.tensors) == len(inputs.tensors) == len(before)
    for (address, old), tensor, wanted in zip(before, inputs.tensors, fresh.tensors, strict=True):
        assert tensor.data_ptr() == address
        assert torch.equal(tensor, wanted)
        assert not torch.equal(tensor, old)
    assert inputs.q.requires_grad == (workload == "bwd")


@pytest.mark.parametrize("semantics", ["decay-linear", "softmax"])
def test_a_refilled_step_finds_its_context_and_an_unwritten_row(semantics: str) -> None:
    known, device = SEMANTICS[semantics], torch.device("cpu")
    case = Case(
        mechanism="m", workload=Workload.DECODE, batch=2, heads=4, seq_len=9, head_dim=8, dtype="fp32"
    )
    inputs = build(case, semantics=known, layout="BHND", device=device, seed=0)
    refill(inputs, case=case, semantics=known, seed=1)
    fresh = build(case, semantics=known, layout="BHND", device=device, seed=1)
    for tensor, wanted in zip(inputs.tensors, fresh.tensors, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), wanted.nan_to_num(7.0))
    if semantics == "softmax":
        assert torch.isnan(inputs.kept[0][:, :, -1]).all()
