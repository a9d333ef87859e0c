"""The Parquet schema, its version and migrations; shards, runs, reading and merging.

A run is a folder: `run.json` (its record), `shards/` (one file per finished case, written by rename) and, once
merged, `results.parquet`, which alone holds everything: rows, and the record in the file's metadata.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from attnbench.case import Measurement
from attnbench.errors import UserError
from attnbench.stats import median_interval

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 5
VERSION_KEY = b"attnbench.schema_version"
RECORDS_KEY = b"attnbench.runs"  # JSON: run_id -> the run's record (environment, protocol, command line, ...)

KIND_KEY = b"attnbench.models.kind"  # of files that hold records of another kind, and no rows of a sweep

_S, _I, _F, _STRINGS = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.string())

GROUPS: Mapping[str, Mapping[str, pa.DataType]] = {
    "identity": {
        "case_id": _S, "run_id": _S, "mechanism": _S, "semantics": _S, "provider": _S, "workload": _S,
        "batch": _I, "heads": _I, "kv_heads": _I, "seq_len": _I, "head_dim": _I, "value_dim": _I,
        "dtype": _S, "causal": pa.bool_(), "window": _I, "device": _S,
    },
    "place": {"node": _S, "gpu_index": _I},
    "outcome": {"status": _S, "reason": _S, "started_at": _S},
    "time": {
        "samples_ms": pa.list_(pa.float32()), "median_ms": _F, "p10_ms": _F, "p90_ms": _F,
        "ci_low_ms": _F, "ci_high_ms": _F, "first_call_ms": _F,
    },
    "rates": {"tokens_per_s": _F, "tflops": _F, "gbps": _F, "roofline": _F},
    "memory": {
        "input_bytes": _I, "output_bytes": _I, "saved_bytes": _I, "state_bytes": _I, "workspace_bytes": _I,
        "peak_bytes": _I, "reserved_bytes": _I,
    },
    "accuracy": {"rel_err_o": _F, "rel_err_dq": _F, "rel_err_dk": _F, "rel_err_dv": _F},
    "proof": {"kernels": _STRINGS, "busy_ms": _F, "config": _S},
    "telemetry": {
        "sm_clock_mhz": _F, "mem_clock_mhz": _F, "power_w": _F, "temperature_c": _F,
        "throttle": _STRINGS, "energy_j": _F,
    },
}  # fmt: skip

COLUMNS: Mapping[str, pa.DataType] = {name: kind for group in GROUPS.values() for name, kind in group.items()}

_NOT_NULL = ("case_id", "run_id", "mechanism", "workload", "status")
SCHEMA = pa.schema([pa.field(name, kind, nullable=name not in _NOT_NULL) for name, kind in COLUMNS.items()])


def _without_windows(table: pa.Table) -> pa.Table:
    """Version 2 has the column `window`; before it no mechanism had one."""
    return table.append_column("window", pa.nulls(table.num_rows, _I))


def _without_places(table: pa.Table) -> pa.Table:
    """Version 3 has `node` and `gpu_index`; before it a run was measured on one device, which its record tells."""
    for name, kind in GROUPS["place"].items():
        table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def _without_busy_times(table: pa.Table) -> pa.Table:
    """Version 4 has `busy_ms`; before it the times of traced kernels were not kept."""
    return table.append_column("busy_ms", pa.nulls(table.num_rows, _F))


def _by_independent_samples(table: pa.Table) -> pa.Table:
    """Version 5 has intervals that count samples for what they tell; before it all of them counted as independent.

    Samples are kept as fp32: the interval is widened to hold the median where that rounding moved one of them.
    """
    medians, samples = table["median_ms"].to_pylist(), table["samples_ms"].to_pylist()
    found = [median_interval(each) if each else (None, None) for each in samples]
    ends = {
        "ci_low_ms": [
            low if low is None else min(low, m) for (low, _), m in zip(found, medians, strict=True)
        ],
        "ci_high_ms": [
            high if high is None else max(high, m) for (_, high), m in zip(found, medians, strict=True)
        ],
    }
    for name, values in ends.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, _F))
    return table


# version n -> the function that turns a table of version n into one of version n + 1
MIGRATIONS: Mapping[int, Callable[[pa.Table], pa.Table]] = {
    1: _without_windows,
    2: _without_places,
    3: _without_busy_times,
    4: _by_independent_samples,
}

# Rows by the schema of these versions are rows of the present one in which some columns are unknown, and intervals may
# be those of independent samples: what a worker of an older revision answers can be kept as it is.
KEEPABLE_VERSIONS = (2, 3, 4, 5)


def row(measurement: Measurement, *, run_id: str) -> dict[str, Any]:
    """One row by the schema; what a measurement does not know is None.

    Raises ValueError for a number that is not finite: an unknown is null, never NaN.
    """
    m, case, timing = measurement, measurement.case, measurement.timing
    values: dict[str, Any] = {
        **{name: getattr(case, name) for name in GROUPS["identity"] if hasattr(case, name)},
        "workload": str(case.workload),
        "run_id": run_id,
        "semantics": m.semantics,
        "provider": m.provider,
        "device": m.device,
        "node": m.node,
        "gpu_index": m.gpu_index,
        "status": str(m.status),
        "reason": m.reason,
        "started_at": m.started_at,
        "first_call_ms": m.first_call_ms,
        "tokens_per_s": m.tokens_per_s,
        "tflops": m.tflops,
        "gbps": m.gbps,
        "roofline": m.roofline,
        "kernels": None if m.kernels is None else list(m.kernels),
        "busy_ms": m.busy_ms,
        "config": m.config,
    }
    if timing is not None:
        values |= {name: getattr(timing, name) for name in GROUPS["time"] if hasattr(timing, name)}
        values["samples_ms"] = list(timing.samples_ms)
    for part, group in ((m.memory, "memory"), (m.accuracy, "accuracy"), (m.telemetry, "telemetry")):
        values |= {name: getattr(part, name) for name in GROUPS[group]}
    if values["throttle"] is not None:
        values["throttle"] = list(values["throttle"])
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{case.case_id}: {name} is {number}; an unknown value must be None")
    return {name: values.get(name) for name in COLUMNS}


def _metadata(runs: Mapping[str, Mapping[str, Any]]) -> dict[bytes, bytes]:
    return {VERSION_KEY: str(SCHEMA_VERSION).encode(), RECORDS_KEY: json.dumps(runs).encode()}


def to_table(rows: Sequence[Mapping[str, Any]], *, records: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Rows and the records of their runs as a table with the schema's version in its metadata."""
    return pa.Table.from_pylist([dict(r) for r in rows], schema=SCHEMA.with_metadata(_metadata(records)))


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file so that it is there whole or not at all.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial, compression="zstd")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> pa.Table:
    """Read one Parquet file of ours, migrated to the present schema version.

    Raises UserError for a file that is missing, truncated, foreign, or of a newer version.
    """
    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError as error:
        raise UserError(f"there is no results file at {path}") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no readable Parquet file (truncated or of another kind): {error}"
        ) from error
    stated = (table.schema.metadata or {}).get(VERSION_KEY)
    if stated is None:
        kind = (table.schema.metadata or {}).get(KIND_KEY, b"").decode()
        if kind:
            drawn_by = f"parallel scaling {path}" if kind == "parallel" else f"paper FIGURE --run {path}"
            raise UserError(
                f"{path} holds {kind} records, expected the rows of a sweep; `attnbench {drawn_by}` draws those"
            )
        raise UserError(f"{path} is a Parquet file, but not one of attnbench (it states no schema version)")
    if not stated.isdigit() or int(stated) < 1:
        raise UserError(f"{path} states the schema version {stated!r}, expected a whole number from 1 on")
    version = int(stated)
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this attnbench reads up to {SCHEMA_VERSION}: update attnbench"
        )
    for step in range(version, SCHEMA_VERSION):
        table = MIGRATIONS[step](table)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)} of schema version {version}")
    return table.select(list(COLUMNS))


def records(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The records of the runs in a table, by run_id."""
    found: dict[str, dict[str, Any]] = json.loads((table.schema.metadata or {}).get(RECORDS_KEY, b"{}"))
    return found


def with_records(table: pa.Table, runs: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The same rows with these records of their runs, by run_id, in place of what was there."""
    return table.replace_schema_metadata(_metadata(runs))


def merge(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of many, the records of all their runs kept. The tables are of the present schema version."""
    tables = list(tables)
    joined: dict[str, dict[str, Any]] = {}
    for table in tables:
        joined |= records(table)
    bare = [table.replace_schema_metadata(None).cast(SCHEMA) for table in tables]
    whole = pa.concat_tables(bare) if bare else SCHEMA.empty_table()
    return with_records(whole, joined)


def files_of(path: Path) -> list[Path]:
    """The Parquet files behind a path: a file, a run folder (merged or not), or a folder of files and runs.

    Raises UserError when there is nothing to read.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no results file or folder at {path}")
    shards = sorted((path / "shards").glob("*.parquet"))
    if shards:  # the shards are the truth; a merged file beside them may be of an earlier moment
        return shards
    found = sorted(path.glob("*.parquet"))
    for run in sorted(path.glob("*/run.json")):
        if any(run.parent.rglob("*.parquet")):  # one that has only begun is no reason to refuse the others
            found += files_of(run.parent)
    if not found:
        raise UserError(f"{path} holds no results (no Parquet file, no shards)")
    return found


def load_table(paths: Path | str | Iterable[Path | str]) -> pa.Table:
    """One or many runs as one table: files, run folders, or folders of them.

    Raises UserError as `read` and `files_of` do.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in given for file in files_of(Path(path))]
    table = merge(read(file) for file in files)
    of_shards = {file.parent.parent for file in files if file.parent.name == "shards"}
    return with_records(table, {**records(table), **_run_records(of_shards)})


def _run_records(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The records of runs that are not merged yet, from their run.json: shards themselves hold rows alone.

    A record that is missing or damaged costs what it would have told, not the rows.
    """
    found = {}
    for folder in sorted(folders):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            found[record["run_id"]] = record
    return found


def load_results(paths: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """One or many runs as a pandas frame with the schema's columns; unknown values are null.

    `frame.attrs["runs"]` holds the runs' records (environment, protocol, ceilings, ...) by run_id.

    Raises UserError when a path holds no results, or a file is truncated, foreign or of a newer schema.
    """
    return to_frame(load_table(paths))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table of runs as `load_results` returns it."""
    import pandas as pd

    whole_numbers = {pa.int64(): pd.Int64Dtype()}  # without this a null would turn counts into floats
    frame: pd.DataFrame = table.to_pandas(types_mapper=whole_numbers.get)
    frame.attrs = {"runs": records(table)}
    return frame
