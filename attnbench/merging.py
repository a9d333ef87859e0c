"""Runs and shards of many machines as one file: what was measured twice in one environment is there once."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.case import Status
from attnbench.errors import UserError
from attnbench.places import by_place, environment_at, shared

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge: rows that are there and that were left out, runs, devices by their rows."""

    path: Path
    rows: int
    duplicates: int
    runs: int
    devices: Mapping[str, int]


def merge_runs(paths: Sequence[Path], *, out: Path, every_process: bool = False) -> Merged:
    """Join runs (folders, shards or Parquet files) into one Parquet file, with the records of all.

    Of the rows of one case in one environment (device, driver, libraries, commit, protocol) the first that is ok is
    kept, without one the first. every_process: such a row of each run is kept, as `compare` needs several.

    Raises UserError for what cannot be read, a schema of another version that cannot be migrated, two different runs
    of one name, or an `out` that exists already or cannot be written.
    """
    target = out if out.suffix == ".parquet" else out / "results.parquet"
    refuse_to_replace(target)
    tables = [store.load_table(path) for path in paths]
    records = _records(tables, paths)
    rows = [row for table in tables for row in table.to_pylist()]
    kept: dict[Hashable, Row] = {}
    for row in sorted(rows, key=_best_first):
        kept.setdefault(_key(row, records.get(row["run_id"]), every_process=every_process), row)
    ordered = sorted(kept.values(), key=lambda row: (row["run_id"], row["started_at"] or "", row["case_id"]))
    named = {row["run_id"] for row in ordered}
    store.write(
        store.to_table(ordered, records={run: record for run, record in records.items() if run in named}),
        target,
    )
    devices: dict[str, int] = {}
    for row in ordered:
        devices[row["device"] or "unknown device"] = devices.get(row["device"] or "unknown device", 0) + 1
    return Merged(
        path=target,
        rows=len(ordered),
        duplicates=len(rows) - len(ordered),
        runs=len(named),
        devices=dict(sorted(devices.items())),
    )


def refuse_to_replace(target: Path) -> None:
    """Raises UserError where a file or a run is: a merge replaces nothing that was measured."""
    if target.exists():
        raise UserError(f"{target} exists already; name another file, or move it away")
    if (target.parent / "run.json").exists():
        raise UserError(
            f"{target.parent} is the folder of a run, which has results of its own; name another folder"
        )


# ------------------------------------------------------------------------------------------------------------


def _records(tables: Iterable[Any], paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The records of all runs; of one that is spread over machines with all of its places."""
    found: dict[str, dict[str, Any]] = {}
    for table, path in zip(tables, paths, strict=True):
        for run, record in store.records(table).items():
            before = found.get(run)
            if before is None:
                found[run] = record
                continue
            for what in ("sweep", "protocol", "device"):
                if before.get(what) != record.get(what):
                    raise UserError(
                        f"{path} has a run {run} of another {what} than a run of that name before it: one of them is "
                        "renamed or damaged, so they cannot be joined"
                    )
            places = {**by_place(before), **by_place(record)}
            found[run] = {**record, **before} | ({"places": places} if len(places) > 1 else {})
    return found


def _best_first(row: Row) -> tuple[Any, ...]:
    return (row["status"] != Status.OK, row["started_at"] or "9", row["run_id"], row["case_id"])


def _key(row: Row, record: Mapping[str, Any] | None, *, every_process: bool) -> Hashable:
    """Two rows of one key are duplicates. Where nothing is known of the environment, a run is its own."""
    environment = None
    if record is not None:
        environment = environment_at(record, node=row["node"], gpu_index=row["gpu_index"])
    if not environment or every_process:
        return (row["case_id"], row["device"], row["run_id"], _text(shared(environment or {})))
    protocol = record.get("protocol") if record else None
    return (row["case_id"], row["device"], row["provider"], _text(shared(environment)), _text(protocol))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
