"""A sweep that takes seconds, and what the tests of every executor ask of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

import attnbench
from attnbench import store
from attnbench.case import Accuracy, Case, Measurement, Status
from attnbench.executors.engines import LOCAL, Engine
from attnbench.executors.worker_process import HERE, Interpreter, WorkerDiedError
from attnbench.measure.pretending import VISIBLE
from attnbench.store import GROUPS
from attnbench.sweeping import Outcome, Refine, run_sweep
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Sweep

# The run's own name is no identity of a case; where it was measured is a group of its own.
IDENTITY = [name for name in GROUPS["identity"] if name != "run_id"]

_TOML = """
description = "seconds"
mechanism = ["linear-quadratic", "linear-cumsum"]
workload = ["fwd"]
seq_len = [16, 24]
batch = 1
heads = 2
head_dim = 16
dtype = ["fp32"]
[protocol]
min_samples = 2
min_samples_floor = 2
max_samples = 2
min_device_s = 0.0
warmup_s = 0.0
"""


def tiny(folder: Path, *, case_s: float = 0.0) -> Sweep:
    """Two comparisons of two mechanisms; a case lasts for at least so many seconds."""
    file = folder / "tiny.toml"
    lasting = _TOML.replace("warmup_s = 0.0", f"warmup_s = {case_s}")
    file.write_text(lasting)
    return load(file, device="cpu")


@dataclass(kw_only=True)
class Machine:
    """One whose worker processes are played: `start` goes in the place of `WorkerProcess`.

    processes: how many there will be, one after the other; what a start beyond them raises is `error`.
    cases: that each measures before it is gone, `dying` of the next one or else between the two; None: all.
    """

    device: str
    node: str = "a"
    processes: int = 1
    cases: int | None = None
    dying: bool = False
    error: Exception = field(default_factory=lambda: WorkerDiedError("it ended with exit code 1: no device"))
    more: Mapping[str, Any] = field(default_factory=dict)  # of the environment
    begun: list[str] = field(default_factory=list)  # case_ids

    def start(self, *, interpreter: Interpreter = HERE, **_: object) -> _Played:
        if not self.processes:
            raise self.error
        self.processes -= 1
        return _Played(self, gpu_index=int(interpreter.variables.get(VISIBLE, 0)))


class _Played:
    def __init__(self, machine: Machine, *, gpu_index: int) -> None:
        self._machine, self._left = machine, machine.cases
        self._place: dict[str, Any] = {"device": machine.device, "node": machine.node, "gpu_index": gpu_index}
        self.environment = {**self._place, **machine.more}
        self.alive = True

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        if "ceilings" in message and "measure" not in message:
            return {"ceilings": {"copy_gbps": 1.0, "matmul_tflops": {}}}
        case = Case(**message["measure"])
        self._machine.begun.append(case.case_id)
        if self._left == 0:
            self.alive = False
            raise WorkerDiedError("it died of the case")
        self._left = None if self._left is None else self._left - 1
        self.alive = self._left != 0 or self._machine.dying
        done = Measurement(
            case=case, status=Status.OK, accuracy=Accuracy(rel_err_o=0.0), started_at="2030", **self._place
        )
        return {"row": store.row(done, run_id=message["run_id"]), "phases_s": {}, "lost_device": False}

    def end(self) -> None:
        self.alive = False

    kill = strike = end


def run(
    sweep: Sweep,
    path: Path,
    *,
    engine: Engine = LOCAL,
    resume: bool = False,
    console: Console | None = None,
    refine: Refine | None = None,
) -> Outcome:
    return run_sweep(
        sweep,
        sweep.cases(),
        path=path,
        resume=resume,
        command=["sweep", "tiny"],
        console=console or Console(quiet=True),
        engine=engine,
        refine=refine,
    )


def identities(path: Path) -> pd.DataFrame:
    """The identity columns of a run's merged file, in one order."""
    frame = attnbench.load_results(path / "results.parquet")
    return frame[IDENTITY].sort_values("case_id", ignore_index=True)


def record(path: Path) -> Mapping[str, Any]:
    (found,) = attnbench.load_results(path / "results.parquet").attrs["runs"].values()
    return dict(found)


def case_ids(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted(str(row["case_id"]) for row in rows)
