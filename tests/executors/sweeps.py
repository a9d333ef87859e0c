"""A sweep that takes seconds, and what the tests of every executor ask of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

import attnbench
from attnbench.executors.engines import LOCAL, Engine
from attnbench.store import GROUPS
from attnbench.sweeping import Outcome, run_sweep
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


def run(
    sweep: Sweep, path: Path, *, engine: Engine = LOCAL, resume: bool = False, console: Console | None = None
) -> Outcome:
    return run_sweep(
        sweep,
        sweep.cases(),
        path=path,
        resume=resume,
        command=["sweep", "tiny"],
        console=console or Console(quiet=True),
        engine=engine,
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
