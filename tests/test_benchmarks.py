"""The suite under benchmarks/ as pytest-benchmark runs it, and the way of its JSON into Parquet."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from attnbench import importing, store
from attnbench.case import Case, Launch, Protocol, Workload
from attnbench.cli import app
from attnbench.comparison.sides import between_records
from attnbench.errors import UserError
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE

ROOT = Path(__file__).parent.parent
Document = dict[str, Any]

SWEEP = """\
mechanism = ["lightning2", "flash2"]
workload = ["bwd"]
dtype = ["fp32"]
shapes = [[1, 2, 16, 16]]
[protocol]
warmup_s = 0.01
min_device_s = 0.01
cap_s = 0.1
"""


def suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pytest benchmarks/` on the CPU, in a process of its own."""
    (folder / "mine.toml").write_text(SWEEP)
    command = [sys.executable, "-m", "pytest", str(ROOT / "benchmarks"), "-p", "no:cacheprovider", "-q"]
    asked = ["--sweep", str(folder / "mine.toml"), "--device", "cpu", "--rootdir", str(ROOT)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [*command, *asked, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**variables, "PYTHONPATH": str(ROOT), LOCK_FOLDER_VARIABLE: str(folder)},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a whole session, with one case that was timed and one that has no provider here."""
    folder = tmp_path_factory.mktemp("saved")
    done = suite(folder, f"--benchmark-json={folder / 'bench.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    return folder / "bench.json"


@pytest.fixture
def document(saved: Path) -> Document:
    read: Document = json.loads(saved.read_text())
    return read


def test_the_samples_of_our_clock_are_what_pytest_benchmark_reports(document: Document) -> None:
    """Statistics of pytest-benchmark and of the imported row are of the same samples, on our timer."""
    [timed] = document["benchmarks"]
    rows = importing.to_table(document, label="it").to_pylist()
    [row] = [row for row in rows if row["status"] == "ok"]
    assert timed["options"]["timer"] == "device_time"
    assert timed["stats"]["rounds"] == len(row["samples_ms"]) >= 5
    np.testing.assert_allclose(np.array(timed["stats"]["data"]) * 1e3, row["samples_ms"], rtol=1e-6)
    assert timed["stats"]["median"] * 1e3 == pytest.approx(row["median_ms"])
    assert row["ci_low_ms"] <= row["median_ms"] <= row["ci_high_ms"]


def test_an_imported_run_is_a_run(document: Document) -> None:
    """Outcome, accuracy and memory of the cases, the record, and the machine as `attnbench env` has it."""
    table = importing.to_table(document, label="it")
    rows = {row["mechanism"]: row for row in table.to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "lightning2": "ok",
        "flash2": "unsupported",
    }
    assert rows["flash2"]["reason"].startswith("no provider for cpu")
    assert rows["lightning2"]["rel_err_dq"] < 1e-5
    assert rows["lightning2"]["peak_bytes"] > 0
    [record] = store.records(table).values()
    assert record["sweep"]["name"] == "mine"
    assert record["environment"]["device"] == rows["lightning2"]["device"]
    assert {"git", "processor", "versions"} <= set(record["environment"])
    assert document["machine_info"] == {k: v for k, v in record["environment"].items() if k != "git"}
    assert set(record["ceilings"]) == {"copy_gbps", "matmul_tflops", "empty_call_ms"}


def test_import_from_the_command_line(saved: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", str(saved), "-o", str(tmp_path / "side"), "--json"])
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.output)
    assert found["statuses"] == {"ok": 1, "unsupported": 1}
    frame = store.load_results(found["results"])
    assert set(frame["run_id"]) == {found["run_id"]} == set(frame.attrs["runs"])
    again = CliRunner().invoke(app, ["import", str(saved), "-o", str(tmp_path / "side")])
    assert again.exit_code == 0
    assert "2 cases on" in again.output


def test_another_machine_is_refused(saved: Path, document: Document, tmp_path: Path) -> None:
    document["machine_info"]["versions"]["torch"] = "0.1"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    done = suite(tmp_path, f"--benchmark-compare={other}")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "library torch: 0.1 then, " in done.stderr
    assert "--allow-different-machine" in done.stderr


def test_a_machine_is_the_same_when_only_the_commit_is_another() -> None:
    def record(commit: str, driver: str | None, **versions: str) -> Document:
        git = {"commit": commit, "dirty": False}
        environment = {"attnbench": commit, "git": git, "gpu": {"driver": driver}, "versions": versions}
        return {"protocol": {"cache": "cold"}, "environment": environment}

    base = record("1", "580", torch="2")
    assert between_records(base, record("2", "580", torch="2")) == []
    assert between_records(base, record("2", None, torch="2")) == []
    [driver] = between_records(base, record("2", "590", torch="2"))
    assert (driver.name, driver.base, driver.new, driver.decisive) == ("driver", ("580",), ("590",), True)
    [library] = between_records(base, record("1", "580", torch="2", triton="3"))
    assert (library.name, library.base, library.new) == ("library triton", ("absent",), ("3",))
    for protocol in ({"cache": "hot"}, {"cache": "cold", "launch": "graph"}):
        eager = {**base, "protocol": {"cache": "cold", "launch": "eager"}}
        assert [each.decisive for each in between_records(eager, {**base, "protocol": protocol})] == [True]


# Documents that are no such thing


def _no_part(document: Document) -> None:
    del document["attnbench"]


def _newer(document: Document) -> None:
    document["attnbench"]["record"]["schema_version"] = 99


def _no_samples(document: Document) -> None:
    del document["benchmarks"][0]["stats"]["data"]


def _nan(document: Document) -> None:
    document["benchmarks"][0]["stats"]["data"][0] = float("nan")


def _foreign(document: Document) -> None:
    document["benchmarks"][0]["extra_info"] = {}


def _renamed(document: Document) -> None:
    document["benchmarks"][0]["extra_info"]["attnbench"]["seq_len"] = 17


def _column(document: Document) -> None:
    document["benchmarks"][0]["extra_info"]["attnbench"]["speed"] = 17


def _type(document: Document) -> None:
    document["benchmarks"][0]["extra_info"]["attnbench"]["peak_bytes"] = "much"


def _nothing(document: Document) -> None:
    document["benchmarks"], document["attnbench"]["untimed"] = [], []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_part, r"it was not written by attnbench's own suite \(pytest benchmarks/"),
        (
            _newer,
            rf"it has rows of schema version 99, expected {store.SCHEMA_VERSION}: import it with the attnbench that",
        ),
        (_no_samples, r"it was saved without its samples: use --benchmark-json=FILE"),
        (_nan, r"has a sample that is no duration in seconds"),
        (_foreign, r"carries no row of attnbench"),
        (_renamed, r"a row says it is lightning2\.bwd\.B1-H2-N16-D16\.fp32, but its sizes are of .*N17"),
        (_column, r"a row has the column speed, which the schema does not know"),
        (_type, r"it holds a value that its column cannot"),
        (_nothing, r"it holds no case"),
    ],
    ids=lambda given: given.__name__.strip("_") if callable(given) else "",
)
def test_a_spoilt_document(document: Document, spoil: Callable[[Document], None], sentence: str) -> None:
    spoilt = copy.deepcopy(document)
    spoil(spoilt)
    with pytest.raises(UserError, match=sentence):
        importing.to_table(spoilt, label="it")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no file "),
        ('{"benchmarks": [', "is no JSON"),
        ("[1, 2]", "is JSON, but not of pytest-benchmark"),
        ("{}", "is JSON, but not of pytest-benchmark"),
    ],
    ids=["missing", "truncated", "list", "foreign"],
)
def test_a_file_that_is_none(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    done = CliRunner().invoke(app, ["import", str(path)])
    assert isinstance(done.exception, UserError)
    assert sentence in str(done.exception)
    assert not list(tmp_path.glob("*.parquet"))


def test_no_file_is_overwritten_by_another_run(saved: Path, document: Document, tmp_path: Path) -> None:
    importing.import_file(saved, folder=tmp_path)
    document["attnbench"]["record"]["run_id"] = "another"
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"bench\.parquet is there already and holds another run"):
        importing.import_file(tmp_path / "bench.json", folder=None)
    with pytest.raises(UserError, match=r"would both become bench\.parquet in one folder"):
        importing.import_files([saved, tmp_path / "bench.json"], folder=tmp_path / "new")


def test_the_preset_of_the_gate_replays_graphs_and_covers_every_workload_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the gate and the benchmarks both measure, and how: fwd, bwd and decode of our own kernels."""
    from attnbench.sweeps.loader import load
    from benchmarks import conftest

    sweep = load("ci", device="cuda")
    cases: Sequence[Case] = sweep.cases()
    assert {case.mechanism for case in cases} == {"lightning1", "lightning2"}
    assert {case.workload for case in cases} == {Workload.FWD, Workload.BWD, Workload.DECODE}
    assert sweep.protocol.launch is Launch.GRAPH
    assert len(cases) <= 24
    asked: list[Protocol] = []
    monkeypatch.setattr(conftest, "measure", lambda *given, protocol, **named: asked.append(protocol))
    suite = conftest.Suite(sweep=sweep, device=torch.device("cpu"), environment={}, record={"ceilings": None})
    suite.measure(cases[0].case_id, verify_only=False)
    assert asked == [sweep.protocol]
