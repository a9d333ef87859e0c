"""Stored results that later runs are held to: one file per GPU model and sweep, written by `check --update` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from attnbench import store
from attnbench.case import Status
from attnbench.comparison import sides
from attnbench.errors import UserError
from attnbench.gate.noise import slug
from attnbench.measure.clock import timestamp
from attnbench.words import count_text, joined

FOLDER = Path("results") / "baselines"  # below the current folder
MARK = "baseline"  # of the record of each run in such a file: who wrote it, when, and in place of what

# A baseline that holds one of these would make a fault the standard.
_FAULTS = (Status.INCORRECT, Status.ERROR, Status.CRASHED)


def file_of(device: str, sweep: str) -> Path:
    """Where the baseline of a sweep on a device lies: `results/baselines/nvidia-h200/ci.parquet`."""
    return FOLDER / slug(device) / f"{sweep}.parquet"


def load(path: Path) -> pd.DataFrame:
    """The rows of a baseline.

    Raises UserError, naming the way out, where there is none; and as `store.load_results` does.
    """
    if not path.exists():
        raise UserError(
            f"there is no baseline at {path}: attnbench check SWEEP --update writes one, --against REV needs none"
        )
    return sides.load_side([path], name="baseline")


def summary(path: Path) -> str:
    """What a baseline is, in words without a full stop.

    Raises UserError as `load` does.
    """
    frame = load(path)
    records: Mapping[str, Mapping[str, Any]] = frame.attrs["runs"]
    written = sorted({str(record[MARK]["updated_at"]) for record in records.values() if MARK in record})
    facts: dict[str, set[str]] = {}
    for record in records.values():
        for name, value in sides.stated(record).items():
            facts.setdefault(name, set()).add(value)
    told = [
        f"{name} {' and '.join(sorted(facts[name]))}"
        for name in ("driver", "commit", "library torch", "library triton")
        if name in facts
    ]
    statuses = frame.groupby("status")["case_id"].nunique().sort_values(ascending=False)
    ended = joined([f"{count} {status}" for status, count in statuses.items()])
    parts = [
        f"{count_text(frame['case_id'].nunique(), 'case')} ({ended}) in "
        f"{frame['run_id'].nunique():,} processes",
        " and ".join(sorted(facts.get("device", {"an unknown device"}))),
        *told,
    ]
    when = f" of {written[0]}" if written else ", which check --update did not write"
    return f"{path}{when}: {', '.join(parts)}"


def update(path: Path, table: pa.Table, *, sweep: str, command: Sequence[str]) -> None:
    """Make a table of runs the baseline.

    Raises UserError when a case in it is at fault, or none is ok, or the file cannot be written.
    """
    rows = table.select(["case_id", "status", "reason"]).to_pylist()
    for row in rows:
        if row["status"] in _FAULTS:
            raise UserError(
                f"the baseline was not written: {row['case_id']} is {row['status']} ({row['reason']}), and that is "
                "nothing to hold later runs to"
            )
    if not any(row["status"] == Status.OK for row in rows):
        raise UserError("the baseline was not written: no case is ok")
    mark = {
        "sweep": sweep,
        "updated_at": timestamp(),
        "command": list(command),
        "replaced": summary(path) if path.exists() else None,
    }
    records = {run: {**record, MARK: mark} for run, record in store.records(table).items()}
    store.write(store.with_records(table, records), path)
