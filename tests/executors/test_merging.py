"""`attnbench merge`: everything once, nothing of what differs lost, and no run mistaken for another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import attnbench
from attnbench import cli, store, summary
from attnbench.case import Accuracy, Case, Measurement, Status, Workload
from attnbench.executors.run_folder import open_run
from attnbench.places import by_place, with_place

PROTOCOL = {"cache": "cold"}


def _environment(**changes: Any) -> dict[str, Any]:
    known = {
        "device": "H200",
        "node": "a",
        "gpu_index": 0,
        "gpu": {"driver": "580", "uuid": "1"},
        "cuda": "13",
    }
    return {**known, **changes}


def _row(run_id: str, mechanism: str = "sdpa", **changes: Any) -> dict[str, Any]:
    case = Case(
        mechanism=mechanism, workload=Workload.FWD, batch=1, heads=1, seq_len=8, head_dim=16, dtype="fp32"
    )
    given: dict[str, Any] = {
        "status": Status.OK, "device": "H200", "node": "a", "gpu_index": 0, "started_at": "2030-01-01",
        "accuracy": Accuracy(rel_err_o=0.0), **changes,
    }  # fmt: skip
    return store.row(Measurement(case=case, **given), run_id=run_id)


def _run(path: Path, *rows: dict[str, Any], environment: dict[str, Any] | None = None, **record: Any) -> Path:
    """A run folder with a shard for each row; all rows are of one run."""
    whole = {
        "run_id": rows[0]["run_id"], "sweep": {"name": "s"}, "device": "cuda", "protocol": PROTOCOL,
        "environment": _environment() if environment is None else environment, "ceilings": None, **record,
    }  # fmt: skip
    folder = open_run(path, record=whole, resume=False)
    for row in rows:
        folder.keep(row)
    return path


def _merge(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["attnbench", "merge", *map(str, arguments)])
    cli.main()


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Merge these runs anew; what --json says, and the rows."""

    def call(*runs: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        (tmp_path / "all" / "results.parquet").unlink(missing_ok=True)
        monkeypatch.setattr(
            sys, "argv", ["attnbench", "merge", *map(str, runs), "-o", str(tmp_path / "all"), "--json"]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None)
        said = json.loads(capsys.readouterr().out)
        return said, store.read(tmp_path / "all" / "results.parquet").to_pylist()

    return call


def test_a_run_spread_over_machines_is_one_again(tmp_path: Path, merge: Any) -> None:
    second = _environment(node="b", gpu={"driver": "580", "uuid": "2"})
    a = _run(tmp_path / "a", _row("r"))
    b = _run(tmp_path / "b", _row("r", "flash2", node="b"), environment=second)
    said, rows = merge(a, b)
    assert [(row["mechanism"], row["node"]) for row in rows] == [("flash2", "b"), ("sdpa", "a")]
    assert (said["rows"], said["duplicates"], said["runs"]) == (2, 0, 1)
    (record,) = store.records(store.read(tmp_path / "all" / "results.parquet")).values()
    assert set(by_place(record)) == {"a/0", "b/0"}


def test_what_was_measured_twice_in_one_environment_is_there_once(tmp_path: Path, merge: Any) -> None:
    crashed = _row("r1", status=Status.CRASHED, reason="lost", started_at="2029-01-01")
    later = _row("r3", started_at="2031-01-01")
    runs = [_run(tmp_path / name, row) for name, row in (("1", crashed), ("2", _row("r2")), ("3", later))]
    said, rows = merge(*runs, runs[0])
    assert [row["run_id"] for row in rows] == ["r2"]  # the first that is ok
    assert said["duplicates"] == 3
    _, rows = merge(*runs, runs[0], "--every-process")
    assert [row["run_id"] for row in rows] == ["r1", "r2", "r3"]


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": _environment(gpu={"driver": "590"})},
        {"environment": _environment(cuda="12")},
        {"protocol": {"cache": "hot"}},
    ],
    ids=["driver", "cuda", "protocol"],
)
def test_another_environment_is_no_duplicate(tmp_path: Path, merge: Any, changes: dict[str, Any]) -> None:
    runs = _run(tmp_path / "1", _row("r1")), _run(tmp_path / "2", _row("r2"), **changes)
    assert len(merge(*runs)[1]) == 2


def test_another_version_of_a_mechanism_is_no_duplicate(tmp_path: Path, merge: Any) -> None:
    runs = [_run(tmp_path / name, _row(name, provider=f"k.py {name}")) for name in ("30fa4982", "ddc2fc27")]
    assert [row["provider"] for row in merge(*runs)[1]] == ["k.py 30fa4982", "k.py ddc2fc27"]


def test_another_unit_of_the_same_model_is_a_duplicate_and_another_model_is_not(
    tmp_path: Path, merge: Any
) -> None:
    unit = _environment(node="b", gpu_index=5, gpu={"driver": "580", "uuid": "9"})
    first = _run(tmp_path / "1", _row("r1"))
    second = _run(tmp_path / "2", _row("r2", node="b", gpu_index=5), environment=unit)
    third = _run(tmp_path / "3", _row("r3", device="A100"), environment=_environment(device="A100"))
    said, rows = merge(first, second, third)
    assert [row["run_id"] for row in rows] == ["r1", "r3"]
    assert said["devices"] == {"A100": 1, "H200": 1}
    found = summary.summarize_run(attnbench.load_results(tmp_path / "all"))
    assert any("nothing of one is compared with another" in text for text in found.warnings)


def test_where_nothing_is_known_of_the_environment_a_run_is_its_own(tmp_path: Path, merge: Any) -> None:
    runs = [_run(tmp_path / name, _row(name), environment={}) for name in ("r1", "r2")]
    assert len(merge(*runs, runs[1])[1]) == 2


REFUSED = {
    "a newer schema": "schema version 99, and this attnbench reads up to",
    "another sweep": "another sweep than a run of that name before it",
    "nothing there": "there is no results file or folder at",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_joined_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    first = _run(tmp_path / "1", _row("r"))
    second = tmp_path / "2"
    if what == "another sweep":
        _run(second, _row("r"), sweep={"name": "t"})
    elif what == "a newer schema":
        second = tmp_path / "newer.parquet"
        table = store.load_table(first)
        pq.write_table(table.replace_schema_metadata({store.VERSION_KEY: b"99"}), second)
    with pytest.raises(SystemExit) as end:
        _merge(first, second, "-o", tmp_path / "all.parquet", monkeypatch=monkeypatch)
    assert end.value.code == cli.Exit.USAGE
    error = capsys.readouterr().err
    assert REFUSED[what] in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "all.parquet").exists()


# ---------------------------------------------------------------- places in a record


def test_the_first_place_of_a_run_is_its_environment_and_others_stand_beside_it() -> None:
    first, second = _environment(), _environment(node="b")
    record: dict[str, Any] = {"environment": None}
    record |= with_place(record, environment=first, ceilings={"copy_gbps": 1.0})
    assert by_place(record) == {"a/0": {"environment": first, "ceilings": {"copy_gbps": 1.0}}}
    assert "places" not in record
    record |= with_place(record, environment=second, ceilings={"copy_gbps": 2.0})
    assert record["environment"] == first
    record |= with_place(record, environment=_environment(node="b", cuda="14"), ceilings={"copy_gbps": 3.0})
    assert by_place(record)["b/0"]["environment"] == second  # which its rows were measured in
    assert {name: each["ceilings"]["copy_gbps"] for name, each in by_place(record).items()} == {
        "a/0": 1.0,
        "b/0": 2.0,
    }


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("b/results.parquet", "results.parquet exists already"),
        ("c", "c is the folder of a run, which has results"),
    ],
    ids=["a file", "a run"],
)
def test_a_merge_replaces_nothing(
    out: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = _run(tmp_path / "a", _row("r"))
    _run(tmp_path / "c", _row("r"))
    with pytest.raises(SystemExit):
        _merge(first, "-o", tmp_path / "b", monkeypatch=monkeypatch)
    before = (tmp_path / "b/results.parquet").read_bytes()
    with pytest.raises(SystemExit) as end:
        _merge(first, "-o", tmp_path / out, monkeypatch=monkeypatch)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert (tmp_path / "b/results.parquet").read_bytes() == before
    assert not (tmp_path / "c/results.parquet").exists()
