"""Parquet as a contract: columns, nulls, order, what is refused, and that a file is whole or not there."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import attnbench
from attnbench import store
from attnbench.case import Accuracy, Case, Measurement, Memory, Status, Telemetry, Timing, Workload
from attnbench.errors import UserError
from attnbench.stats import median_interval

# Scripts depend on these names and on this order.
CONTRACT = [
    "case_id", "run_id", "mechanism", "semantics", "provider", "workload", "batch", "heads", "kv_heads", "seq_len",
    "head_dim", "value_dim", "dtype", "causal", "window", "device", "node", "gpu_index",
    "status", "reason", "started_at",
    "samples_ms", "median_ms", "p10_ms", "p90_ms", "ci_low_ms", "ci_high_ms", "first_call_ms",
    "tokens_per_s", "tflops", "gbps", "roofline",
    "input_bytes", "output_bytes", "saved_bytes", "state_bytes", "workspace_bytes", "peak_bytes", "reserved_bytes",
    "rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv",
    "kernels", "busy_ms", "config",
    "sm_clock_mhz", "mem_clock_mhz", "power_w", "temperature_c", "throttle", "energy_j",
]  # fmt: skip

SAMPLES = (3.0, 1.0, 2.0, 1.5)  # out of order on purpose


def _case(**changes: Any) -> Case:
    fields: dict[str, Any] = {
        "mechanism": "sdpa",
        "workload": Workload.FWD,
        "batch": 2,
        "heads": 8,
        "kv_heads": 4,
        "seq_len": 100,
        "head_dim": 64,
        "value_dim": 32,
        "dtype": "bf16",
        "window": 64,
    }
    return Case(**{**fields, **changes})


def _full(**changes: Any) -> Measurement:
    """A measurement that knows everything, each number a different one."""
    full = Measurement(
        case=_case(),
        status=Status.OK,
        semantics="softmax",
        provider="torch 2 sdpa",
        device="a device",
        node="a node",
        gpu_index=3,
        started_at="2030-01-01T00:00:00.000+00:00",
        first_call_ms=50.0,
        timing=Timing(
            samples_ms=SAMPLES, median_ms=2.0, p10_ms=1.1, p90_ms=2.9, ci_low_ms=1.2, ci_high_ms=2.8
        ),
        tflops=4.0,
        gbps=5.0,
        roofline=0.6,
        memory=Memory(
            input_bytes=2**40,
            output_bytes=11,
            saved_bytes=12,
            state_bytes=0,
            workspace_bytes=14,
            peak_bytes=15,
            reserved_bytes=16,
        ),
        accuracy=Accuracy(rel_err_o=0.01, rel_err_dq=0.02, rel_err_dk=0.03, rel_err_dv=0.04),
        telemetry=Telemetry(
            sm_clock_mhz=1980.0,
            mem_clock_mhz=2619.0,
            power_w=700.0,
            temperature_c=60.0,
            throttle=("power-cap", "low-sm-clock"),
            energy_j=1.4,
        ),
        kernels=("second_kernel", "first_kernel"),
        busy_ms=1.9,
        config='{"tile": 64}',
    )
    return dataclasses.replace(full, **changes)


def _bare(**changes: Any) -> Measurement:
    """A measurement that knows nothing but how it ended."""
    given = {"case": _case(mechanism="flash2"), "status": Status.OOM, "reason": "out of memory", **changes}
    return Measurement(**given)


def _table(
    *measurements: Measurement, run_id: str = "run-1", record: dict[str, Any] | None = None
) -> pa.Table:
    rows = [store.row(m, run_id=run_id) for m in measurements]
    return store.to_table(rows, records={run_id: record or {"device": "a device"}})


def _run_folder(folder: Path, *, run_id: str, mechanisms: tuple[str, ...]) -> Path:
    for name in mechanisms:
        case = _case(mechanism=name)
        store.write(_table(_full(case=case), run_id=run_id), folder / "shards" / f"{case.case_id}.parquet")
    (folder / "run.json").write_text("{}")
    return folder


# ---------------------------------------------------------------- schema


def test_columns_are_the_contract_in_order(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full()), file)
    assert pq.read_schema(file).names == CONTRACT
    assert list(store.load_results(file).columns) == CONTRACT


def test_version_and_records_are_in_the_file_metadata(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full(), record={"environment": {"torch": "2"}}), file)
    metadata = pq.read_schema(file).metadata
    assert metadata[b"attnbench.schema_version"] == b"5"
    assert store.records(store.read(file)) == {"run-1": {"environment": {"torch": "2"}}}


def test_load_results_is_public() -> None:
    assert attnbench.load_results is store.load_results


# ---------------------------------------------------------------- values


def test_every_value_survives_the_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full()), file)
    (row,) = store.read(file).to_pylist()
    assert row == {
        "case_id": "sdpa.fwd.B2-H8-KV4-N100-D64-E32-W64.bf16",
        "run_id": "run-1",
        "mechanism": "sdpa",
        "semantics": "softmax",
        "provider": "torch 2 sdpa",
        "workload": "fwd",
        "batch": 2,
        "heads": 8,
        "kv_heads": 4,
        "seq_len": 100,
        "head_dim": 64,
        "value_dim": 32,
        "dtype": "bf16",
        "causal": True,
        "window": 64,
        "device": "a device",
        "node": "a node",
        "gpu_index": 3,
        "status": "ok",
        "reason": None,
        "started_at": "2030-01-01T00:00:00.000+00:00",
        "samples_ms": [3.0, 1.0, 2.0, 1.5],
        "median_ms": 2.0,
        "p10_ms": 1.1,
        "p90_ms": 2.9,
        "ci_low_ms": 1.2,
        "ci_high_ms": 2.8,
        "first_call_ms": 50.0,
        "tokens_per_s": 100_000.0,  # 2 x 100 tokens in 2 ms
        "tflops": 4.0,
        "gbps": 5.0,
        "roofline": 0.6,
        "input_bytes": 2**40,
        "output_bytes": 11,
        "saved_bytes": 12,
        "state_bytes": 0,
        "workspace_bytes": 14,
        "peak_bytes": 15,
        "reserved_bytes": 16,
        "rel_err_o": 0.01,
        "rel_err_dq": 0.02,
        "rel_err_dk": 0.03,
        "rel_err_dv": 0.04,
        "kernels": ["second_kernel", "first_kernel"],
        "busy_ms": 1.9,
        "config": '{"tile": 64}',
        "sm_clock_mhz": 1980.0,
        "mem_clock_mhz": 2619.0,
        "power_w": 700.0,
        "temperature_c": 60.0,
        "throttle": ["power-cap", "low-sm-clock"],
        "energy_j": 1.4,
    }


def test_unknown_stays_null_beside_known_values(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full(), _bare()), file)
    frame = store.load_results(file)
    known, unknown = frame.iloc[0], frame.iloc[1]
    identity_and_outcome = set(CONTRACT[:20]) - {
        *("semantics", "provider", "device", "node", "gpu_index", "started_at")
    }
    for name in set(CONTRACT) - identity_and_outcome:
        value = unknown[name]
        assert value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)), name
    for name in ("input_bytes", "peak_bytes", "state_bytes", "batch"):
        assert frame[name].dtype == pd.Int64Dtype(), name  # a null must not turn counts into floats
    assert unknown["peak_bytes"] is pd.NA
    assert known["input_bytes"] == 2**40
    assert known["state_bytes"] == 0  # a known zero is no null
    assert store.read(file).column("median_ms").to_pylist() == [2.0, None]


def test_an_empty_list_is_not_null(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full(telemetry=Telemetry(throttle=()), kernels=())), file)
    (row,) = store.read(file).to_pylist()
    assert row["throttle"] == []
    assert row["kernels"] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("field", ["tflops", "first_call_ms", "accuracy", "samples_ms"])
def test_numbers_that_are_not_finite_are_refused(field: str, value: float) -> None:
    timing = _full().timing
    assert timing is not None
    changed: dict[str, dict[str, Any]] = {
        "tflops": {"tflops": value},
        "first_call_ms": {"first_call_ms": value},
        "accuracy": {"accuracy": Accuracy(rel_err_dk=value)},
        "samples_ms": {"timing": dataclasses.replace(timing, samples_ms=(1.0, value, 2.0))},
    }
    named = "rel_err_dk" if field == "accuracy" else field
    with pytest.raises(ValueError, match=f"{named} is .*must be None"):
        store.row(_full(**changed[field]), run_id="r")


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK], ids=str)
def test_a_status_needs_a_reason(status: Status) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        Measurement(case=_case(), status=status)


# ---------------------------------------------------------------- one and many runs


def test_shards_of_a_run_are_read_without_merging(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path / "run", run_id="a", mechanisms=("sdpa", "flash2"))
    assert sorted(store.load_results(folder)["mechanism"]) == ["flash2", "sdpa"]


def test_shards_win_over_an_older_merged_file(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path / "run", run_id="a", mechanisms=("sdpa", "flash2"))
    store.write(_table(_full(), run_id="a"), folder / "results.parquet")
    assert len(store.load_results(folder)) == 2


def test_a_merged_file_alone_is_a_run(tmp_path: Path) -> None:
    store.write(_table(_full(), run_id="a"), tmp_path / "results.parquet")
    assert store.load_results(tmp_path)["run_id"].tolist() == ["a"]
    assert store.load_results(str(tmp_path / "results.parquet"))["run_id"].tolist() == ["a"]


def test_a_folder_of_files_and_runs_yields_all_of_them(tmp_path: Path) -> None:
    _run_folder(tmp_path / "one", run_id="a", mechanisms=("sdpa",))
    _run_folder(tmp_path / "two", run_id="b", mechanisms=("sdpa", "flash2"))
    store.write(_table(_full(), run_id="c"), tmp_path / "recorded.parquet")
    (tmp_path / "notes").mkdir()
    frame = store.load_results(tmp_path)
    assert sorted(frame["run_id"]) == ["a", "b", "b", "c"]
    assert set(frame.attrs["runs"]) == {"a", "b", "c"}


def test_several_paths_keep_their_order_and_all_records(tmp_path: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    store.write(_table(_full(), run_id="z", record={"n": 1}), first)
    store.write(_table(_bare(), run_id="a", record={"n": 2}), second)
    frame = store.load_results([first, str(second)])
    assert frame["run_id"].tolist() == ["z", "a"]
    assert frame.attrs["runs"] == {"z": {"n": 1}, "a": {"n": 2}}


def test_merging_a_table_without_values_keeps_the_column_types() -> None:
    merged = store.merge([_table(_bare()), _table(_full(), run_id="run-2")])
    assert merged.schema.equals(store.SCHEMA)
    assert merged.column("samples_ms").to_pylist() == [None, list(SAMPLES)]
    assert set(store.records(merged)) == {"run-1", "run-2"}


def test_merging_nothing_is_an_empty_table_of_the_schema() -> None:
    merged = store.merge([])
    assert merged.num_rows == 0
    assert merged.column_names == CONTRACT


# ---------------------------------------------------------------- what is refused


def test_a_missing_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results file or folder at .*nowhere"):
        store.load_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no results file at"):
        store.read(tmp_path / "nowhere.parquet")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        store.load_results(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full()), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="no readable Parquet file"):
        store.load_results(file)


@pytest.mark.parametrize("content", [b"", b"case_id,median_ms\na,1\n"], ids=["empty", "csv"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "results.parquet"
    file.write_bytes(content)
    with pytest.raises(UserError, match="no readable Parquet file"):
        store.load_results(file)


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"case_id": ["a"]}), file)
    with pytest.raises(UserError, match="not one of attnbench"):
        store.load_results(file)


def test_a_newer_version_asks_for_an_update(tmp_path: Path) -> None:
    file = tmp_path / "newer.parquet"
    pq.write_table(_table(_full()).replace_schema_metadata({store.VERSION_KEY: b"6"}), file)
    with pytest.raises(UserError, match=r"schema version 6.*reads up to 5: update attnbench"):
        store.load_results(file)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    file = tmp_path / "thin.parquet"
    pq.write_table(_table(_full()).drop_columns(["tflops", "energy_j"]), file)
    with pytest.raises(UserError, match="lacks the columns tflops, energy_j"):
        store.load_results(file)


def test_extra_columns_are_left_out_and_order_restored(tmp_path: Path) -> None:
    file = tmp_path / "wide.parquet"
    table = _table(_full()).append_column("extra", pa.array([1]))
    pq.write_table(table.select(table.column_names[::-1]), file)
    assert store.read(file).column_names == CONTRACT


def test_an_older_file_goes_through_its_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "older.parquet"
    store.write(_table(_full(provider="old name")), file)

    def rename_provider(table: pa.Table) -> pa.Table:
        at = table.column_names.index("provider")
        return table.set_column(at, "provider", pa.array(["new name"] * table.num_rows))

    monkeypatch.setattr(store, "SCHEMA_VERSION", 6)
    monkeypatch.setattr(store, "MIGRATIONS", {5: rename_provider})
    frame = store.load_results(file)
    assert frame["provider"].tolist() == ["new name"]
    assert set(frame.attrs["runs"]) == {"run-1"}
    rewritten = tmp_path / "newer.parquet"
    store.write(store.load_table(file), rewritten)
    assert pq.read_schema(rewritten).metadata[store.VERSION_KEY] == b"6"


def test_a_file_of_the_first_version_has_nulls_for_what_came_later(tmp_path: Path) -> None:
    file = tmp_path / "version1.parquet"
    later = ["window", "node", "gpu_index", "busy_ms"]
    table = _table(_full(), _bare()).drop_columns(later)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, store.VERSION_KEY: b"1"}), file)
    frame = store.load_results(file)
    assert list(frame.columns) == CONTRACT
    assert frame[later].isna().all(axis=None)


# ---------------------------------------------------------------- whole or not there


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(table: pa.Table, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"PAR1 half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(UserError, match=r"cannot write .*results\.parquet: No space left on device"):
        store.write(_table(_full()), tmp_path / "results.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.parquet"
    store.write(_table(_full()), file)
    before = file.read_bytes()

    def fail(table: pa.Table, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(UserError):
        store.write(_table(_bare()), file)
    assert file.read_bytes() == before


def test_a_file_appears_by_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever sees a part of it: without the rename there is no file."""

    def fail(self: Path, target: Path) -> Path:
        assert self.parent == target.parent  # elsewhere it might be another file system
        assert self.suffix != ".parquet"  # or a reader would take it for a shard
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="Input/output error"):
        store.write(_table(_full()), tmp_path / "results.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        store.write(_table(_full()), tmp_path / "file" / "results.parquet")


def test_writing_makes_the_folder_and_leaves_one_file(tmp_path: Path) -> None:
    store.write(_table(_full()), tmp_path / "a" / "b" / "results.parquet")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["results.parquet"]


def test_intervals_of_the_fourth_version_are_drawn_anew_from_its_samples(tmp_path: Path) -> None:
    """They took samples as independent; those of a case that has none stay unknown."""
    file = tmp_path / "version4.parquet"
    table = _table(_full(), _bare())
    narrow = [None if low is None else 1e-9 for low in table["ci_low_ms"].to_pylist()]
    table = table.set_column(
        table.column_names.index("ci_low_ms"), "ci_low_ms", pa.array(narrow, pa.float64())
    )
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, store.VERSION_KEY: b"4"}), file)
    frame = store.load_results(file)
    expected = median_interval(frame["samples_ms"][0])
    assert (frame["ci_low_ms"][0], frame["ci_high_ms"][0]) == pytest.approx(expected)
    assert frame["ci_low_ms"][0] <= frame["median_ms"][0] <= frame["ci_high_ms"][0]
    assert frame[["ci_low_ms", "ci_high_ms"]].iloc[1].isna().all()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            "h200/paper/train-step.parquet",
            "holds train-step records, .* `attnbench paper FIGURE --run .*` draws those",
        ),
        ("h200x2/parallel.parquet", "holds parallel records, .* `attnbench parallel scaling .*` draws those"),
    ],
)
def test_records_of_another_kind_are_told_from_foreign_files(file: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        store.read(Path(__file__).parents[1] / "results" / file)
