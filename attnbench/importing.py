"""pytest-benchmark's JSON, as `pytest benchmarks/` writes it: what our suite adds to it, and the way back to rows.

The document keeps pytest-benchmark's own shape, so that its tools read it. Beside it stand

    machine_info                  the environment record of a run, without git
    attnbench.record              the run's record (sweep, protocol, ceilings, ...); attnbench.git
    attnbench.untimed             rows of the cases that were not timed, with status and reason
    benchmarks[].stats.data       the samples in seconds, in time order
    benchmarks[].extra_info       under "attnbench": the case's row without its samples and what follows from them
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from attnbench import store
from attnbench.case import Case
from attnbench.errors import UserError
from attnbench.stats import summarize

KEY = "attnbench"
_FROM_SAMPLES = ("samples_ms", "median_ms", "p10_ms", "p90_ms", "ci_low_ms", "ci_high_ms")
_CASE_FIELDS = tuple(field.name for field in dataclasses.fields(Case))


@dataclass(frozen=True, kw_only=True)
class Imported:
    """One JSON file that became Parquet."""

    source: Path
    results: Path
    run_id: str
    device: str
    statuses: Mapping[str, int]  # how many rows ended how


def extra_info(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a benchmark carries of its row: all but the samples, which are in its statistics."""
    return {KEY: {name: value for name, value in row.items() if name not in _FROM_SAMPLES}}


def document_part(
    record: Mapping[str, Any], *, git: Mapping[str, Any] | None, untimed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the whole document carries of its run."""
    return {KEY: {"record": dict(record), "git": git, "untimed": [dict(row) for row in untimed]}}


def record_of(document: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """The record of the run behind a document, with its environment, as a run folder would hold it.

    Raises UserError when the document was not written by `pytest benchmarks/`, or by one of another schema.
    """
    part = document.get(KEY)
    if not isinstance(part, Mapping) or not isinstance(part.get("record"), Mapping):
        raise UserError(
            f"{label} was not written by attnbench's own suite (pytest benchmarks/ --benchmark-json=FILE): "
            f"it has no '{KEY}' part, and so no cases, protocol or environment"
        )
    record = part["record"]
    version = record.get("schema_version")
    if version != store.SCHEMA_VERSION:
        raise UserError(
            f"{label} has rows of schema version {version}, expected {store.SCHEMA_VERSION}: import it with the "
            "attnbench that measured it"
        )
    machine = document.get("machine_info")
    environment = {**machine, "git": part.get("git")} if isinstance(machine, Mapping) else None
    return {**record, "environment": environment}


def read_document(path: Path) -> dict[str, Any]:
    """The JSON at a path. Raises UserError when there is none, or it is no document of pytest-benchmark."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON (truncated or of another kind): {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise UserError(f"{path} is JSON, but not of pytest-benchmark: it has no list of benchmarks")
    return document


def to_table(document: Mapping[str, Any], *, label: str) -> pa.Table:
    """The rows of a document in the schema's columns, in the order of measurement.

    Raises UserError for a document of another suite, one saved without its samples, and rows that are no cases.
    """
    record = record_of(document, label=label)
    run_id = str(record.get("run_id"))
    rows = [_row(benchmark, label=label) for benchmark in document["benchmarks"]]
    rows += [_checked(row, label=label) for row in document[KEY].get("untimed", ())]
    if not rows:
        raise UserError(f"{label} holds no case")
    rows.sort(key=lambda row: (row["started_at"] or "", row["case_id"]))
    try:
        return store.to_table([{**row, "run_id": run_id} for row in rows], records={run_id: record})
    except pa.ArrowException as error:
        raise UserError(f"{label} holds a value that its column cannot: {error}") from None


def import_file(source: Path, *, folder: Path | None) -> Imported:
    """Turn one JSON file into a Parquet file of the same name, beside it or in `folder`.

    Raises UserError as `read_document` and `to_table` do, and when another run's file is there already.
    """
    table = to_table(read_document(source), label=str(source))
    [(run_id, record)] = store.records(table).items()
    results = (folder or source.parent) / f"{source.stem}.parquet"
    if results.exists() and set(store.records(store.read(results))) != {run_id}:
        raise UserError(f"{results} is there already and holds another run; give --out another folder")
    store.write(table, results)
    statuses = table.column("status").to_pylist()
    return Imported(
        source=source,
        results=results,
        run_id=run_id,
        device=str((record.get("environment") or {}).get("device")),
        statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)},
    )


def import_files(sources: Sequence[Path], *, folder: Path | None) -> list[Imported]:
    """Turn JSON files into Parquet files, one each. Raises UserError before writing if two would be one file."""
    names = [(folder or source.parent) / source.stem for source in sources]
    twice = next((source for place, source in enumerate(sources) if names[place] in names[:place]), None)
    if twice is not None:
        raise UserError(f"{twice} and a file before it would both become {twice.stem}.parquet in one folder")
    return [import_file(source, folder=folder) for source in sources]


# ------------------------------------------------------------------------------------------------------------


def _row(benchmark: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """The row of a timed case: what it carries, and the samples with what follows from them."""
    name = benchmark.get("name")
    carried = (benchmark.get("extra_info") or {}).get(KEY)
    if not isinstance(carried, Mapping):
        raise UserError(f"{label}: the benchmark {name} carries no row of attnbench")
    seconds = (benchmark.get("stats") or {}).get("data")
    if not seconds:
        raise UserError(
            f"{label} was saved without its samples: use --benchmark-json=FILE, or --benchmark-save-data beside "
            "--benchmark-save"
        )
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in seconds):
        raise UserError(f"{label}: {name} has a sample that is no duration in seconds")
    timing = summarize([value * 1e3 for value in seconds])
    times = {name: getattr(timing, name) for name in _FROM_SAMPLES}
    return _checked({**carried, **times, "samples_ms": list(timing.samples_ms)}, label=label)


def _checked(row: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """The row with all columns, its identity held to its case_id."""
    foreign = sorted(set(row) - set(store.COLUMNS))
    if foreign:
        raise UserError(f"{label}: a row has the column {foreign[0]}, which the schema does not know")
    try:
        case = Case(**{name: row[name] for name in _CASE_FIELDS})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{label}: a row names no case: {error}") from None
    if case.case_id != row.get("case_id"):
        raise UserError(
            f"{label}: a row says it is {row.get('case_id')}, but its sizes are of {case.case_id}"
        )
    return {name: row.get(name) for name in store.COLUMNS}
