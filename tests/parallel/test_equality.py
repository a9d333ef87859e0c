"""On 1 to 4 gloo ranks forward and gradients are those of the whole sequence, and what is sent is what formulas say."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from attnbench.case import Workload
from attnbench.parallel.mechanisms import MECHANISMS, Problem

SCRIPT = Path(__file__).with_name("equal.py")
_SPEC = importlib.util.spec_from_file_location("equal", SCRIPT)
assert _SPEC is not None
assert _SPEC.loader is not None
equal = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(equal)

LIMITS = {"fp64": 1e-13, "fp32": 3e-6}
Found = dict[int, dict[str, list[dict[str, Any]]]]


def test_on_any_number_of_ranks_outputs_gradients_and_bytes_are_right(tmp_path: Path) -> None:
    """One test, so that the ranks are started once: starting them is what costs."""
    found = _found(tmp_path)
    worst = {
        (ranks, name): max(max(each["errors"]) for each in cases)
        for ranks, by_name in found.items()
        for name, cases in by_name.items()
    }
    assert len(worst) == len(equal.RANKS) * len(list(equal.names()))
    assert {key: error for key, error in worst.items() if not error < LIMITS[key[1].rsplit("-", 1)[1]]} == {}
    for ranks, (mechanism, slopes, length, dtype) in itertools.product(equal.RANKS, equal.names()):
        cases = found[ranks]["-".join((mechanism, slopes, length, dtype))]
        sent = tuple(sum(case["sent"][direction] for case in cases) for direction in (0, 1))
        if dtype == "fp32":  # formulas are of fp32 states
            assert sent == _formula(mechanism, ranks=ranks, seq_len=equal.LENGTHS[length])
    waits = [json.loads((tmp_path / f"waits-{rank}.json").read_text()) for rank in range(equal.WAITING)]
    assert (
        waits == [True] * equal.WAITING
    )  # a transfer alone lasts until it is received, where it is sent too


def _found(folder: Path) -> Found:
    """By number of ranks and case: what each rank found."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=variables, check=True, timeout=120)
    results: Found = {}
    for ranks in equal.RANKS:
        for rank in range(ranks):
            for case in json.loads((folder / f"{ranks}-{rank}.json").read_text()):
                results.setdefault(ranks, {}).setdefault(case["name"], []).append(case)
    return results


def _formula(mechanism: str, *, ranks: int, seq_len: int) -> tuple[int, int]:
    """Bytes of a forward and of a backward."""
    problem = Problem(
        ranks=ranks, seq_len=seq_len, batch=2, heads=equal.HEADS, head_dim=equal.DIM, element_bytes=4
    )
    row = MECHANISMS[mechanism]
    return row.sent_bytes(problem, Workload.FWD), row.sent_bytes(problem, Workload.BWD)
