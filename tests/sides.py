"""Synthetic sides of a comparison: frames, and Parquet files, of processes whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench import store
from attnbench.case import Accuracy, Case, Measurement, Memory, Status, Workload
from attnbench.stats import summarize

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]  # relative times of `count` samples of one process

RECORD: Mapping[str, Any] = {
    "protocol": {"cache": "cold", "launch": "eager", "seed": 0},
    "environment": {
        "device": "a device",
        "gpu": {"name": "a device", "driver": "1.2"},
        "versions": {"torch": "2.0", "triton": "3.0"},
        "variables": {},
    },
}


def case(number: int = 0, **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "mechanism": ("lightning2", "sdpa")[number % 2],
        "workload": Workload.FWD,
        "batch": 1,
        "heads": 2,
        "seq_len": 64 * (number + 1),
        "head_dim": 64,
        "dtype": "bf16",
    }
    return Case(**{**fields, **changes})


def noisy(random: np.random.Generator, count: int) -> Floats:
    """A process that differs from others by 0.5 %, whose samples drift by 1 % and scatter by 2 %."""
    drift = np.linspace(0, random.normal(0, 0.01), count)
    return np.exp(random.normal(0, 0.005) + drift + random.normal(0, 0.02, count))


def frame(
    *,
    side: str,
    seed: int,
    cases: int = 1,
    processes: int = 5,
    samples: int = 40,
    draw: Draw = noisy,
    factor: float | Mapping[int, float] = 1.0,
) -> pd.DataFrame:
    """A results frame of `processes` runs; `factor` multiplies all times, or those of single cases."""
    rows = []
    for process in range(processes):
        random = np.random.default_rng([seed, sum(side.encode()), process])
        for number in range(cases):
            times = 2.0 * draw(random, samples)
            times *= factor if isinstance(factor, float) else factor.get(number, 1.0)
            each = case(number)
            fields = {name: getattr(each, name) for name in store.GROUPS["identity"] if hasattr(each, name)}
            rows.append(
                {
                    **dict.fromkeys(store.COLUMNS),
                    **fields,
                    "case_id": each.case_id,
                    "workload": str(each.workload),
                    "run_id": f"{side}-{seed}-{process}",
                    "status": "ok",
                    "samples_ms": times,
                    "median_ms": float(np.median(times)),
                }
            )
    found = pd.DataFrame(rows)
    found.attrs = {"runs": {str(run): RECORD for run in found["run_id"].unique()}}
    return found


def measurement(
    times: Sequence[float] | Floats | None,
    *,
    of: Case | None = None,
    status: str = "ok",
    reason: str | None = None,
    device: str | None = "a device",
    peak_bytes: int | None = 1000,
    rel_err_o: float | None = 0.002,
) -> Measurement:
    return Measurement(
        case=of or case(),
        status=Status(status),
        reason=reason,
        provider="a library 1.0",
        device=device,
        timing=None if times is None else summarize(times),
        memory=Memory(peak_bytes=peak_bytes),
        accuracy=Accuracy(rel_err_o=rel_err_o),
    )


def write(
    folder: Path,
    runs: Mapping[str, Sequence[Measurement]],
    *,
    name: str,
    record: Mapping[str, Any] | None = RECORD,
) -> Path:
    """A Parquet file with several runs, as merged files are."""
    rows = [store.row(m, run_id=run) for run, measurements in runs.items() for m in measurements]
    records = {} if record is None else {run: {"run_id": run, **record} for run in runs}
    path = folder / name
    store.write(store.to_table(rows, records=records), path)
    return path


def changed(**changes: Any) -> dict[str, Any]:
    """The record with parts of its environment or protocol changed: `changed(protocol={"cache": "hot"})`."""
    record = json.loads(json.dumps(RECORD))
    for part, values in changes.items():
        record[part] |= values
    found: dict[str, Any] = record
    return found
