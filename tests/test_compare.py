"""`attnbench compare` end to end: files in, verdicts, reports and exit codes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from attnbench import cli, store
from attnbench.case import Accuracy, Case, Measurement, Memory, Status, Workload
from attnbench.comparison import command
from attnbench.executors.run_folder import open_run
from attnbench.stats import summarize

RECORD: Mapping[str, Any] = {
    "protocol": {"cache": "cold", "launch": "eager", "seed": 0},
    "environment": {
        "device": "a device",
        "gpu": {"name": "a device", "driver": "1.2"},
        "versions": {"torch": "2.0", "triton": "3.0"},
        "variables": {},
    },
}
RUNNER = CliRunner()


def _case(number: int = 0, **changes: Any) -> Case:
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


def _measurement(
    times: Sequence[float] | None,
    *,
    of: Case | None = None,
    status: str = "ok",
    reason: str | None = None,
    device: str | None = "a device",
    peak_bytes: int | None = 1000,
    rel_err_o: float | None = 0.002,
) -> Measurement:
    return Measurement(
        case=of or _case(),
        status=Status(status),
        reason=reason,
        provider="a library 1.0",
        device=device,
        timing=None if times is None else summarize(times),
        memory=Memory(peak_bytes=peak_bytes),
        accuracy=Accuracy(rel_err_o=rel_err_o),
    )


def _write(
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


def _changed(**changes: Any) -> dict[str, Any]:
    """The record with parts of its environment or protocol changed: `_changed(protocol={"cache": "hot"})`."""
    record = json.loads(json.dumps(RECORD))
    for part, values in changes.items():
        record[part] |= values
    found: dict[str, Any] = record
    return found


SAME, SLOW, GONE, NEW, OOM = (_case(number) for number in range(5))


def _times(seed: int, factor: float = 1.0) -> Any:
    random = np.random.default_rng(seed)
    return factor * np.exp(random.normal(0, 0.002) + random.normal(0, 0.01, 50))


def _runs(
    side: str, rows: Callable[[int], Sequence[Measurement]], processes: int = 4
) -> dict[str, Sequence[Measurement]]:
    place = 0 if side == "base" else 100
    return {f"{side}{i}": rows(place + i) for i in range(processes)}


def _base(seed: int) -> list[Measurement]:
    return [
        _measurement(_times(seed), of=SAME),
        _measurement(_times(seed + 10), of=SLOW),
        _measurement(_times(seed + 20), of=GONE),
        _measurement(_times(seed + 30), of=OOM),
    ]


def _new(seed: int) -> list[Measurement]:
    return [
        _measurement(_times(seed), of=SAME),
        _measurement(_times(seed + 10, 1.1), of=SLOW, peak_bytes=2000, rel_err_o=0.012),
        _measurement(_times(seed + 20), of=NEW),
        _measurement(None, of=OOM, status="oom", reason="asked for <1 GiB> | too\nmuch, 100%"),
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Parquet files by name: 4 runs of `base`, of `again` (the same code), of `new`."""
    folder = tmp_path_factory.mktemp("sides")
    paths = {
        "base": _write(folder, _runs("base", _base), name="base.parquet"),
        "again": _write(folder, _runs("again", _base), name="again.parquet"),
        "new": _write(folder, _runs("new", _new), name="new.parquet"),
    }
    return {name: str(path) for name, path in paths.items()}


def _invoke(*arguments: str, code: int) -> str:
    done = RUNNER.invoke(cli.app, ["compare", *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one sentence with which a command is refused."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attnbench", "compare", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert (end.value.code, printed.out) == (2, "")
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


# ---------------------------------------------------------------- verdicts and exit codes


def test_the_same_code_again_is_no_regression(files: Mapping[str, str]) -> None:
    text = _invoke(files["base"], files["again"], "--strict", code=0)
    assert text.splitlines()[-1] == "4 of 4 cases are the same within 3 %. No regression."
    assert SAME.shape_id not in text  # only what changed has a line
    assert SAME.shape_id in _invoke(files["base"], files["again"], "--all", code=0)


def test_each_case_has_its_verdict_worst_first(files: Mapping[str, str]) -> None:
    found = json.loads(_invoke(files["base"], files["new"], "--format", "json", code=1))
    assert [(each["case_id"], each["verdict"]) for each in found["cases"]] == [
        (OOM.case_id, "broken"),
        (SLOW.case_id, "slower"),
        (GONE.case_id, "missing"),
        (NEW.case_id, "missing"),
        (SAME.case_id, "same"),
    ]
    slow = found["cases"][1]
    assert slow["ratio"]["low"] < slow["ratio"]["value"] < slow["ratio"]["high"]
    assert slow["ratio"]["value"] == pytest.approx(1.1, abs=0.01)
    assert slow["processes"] == {"base": 4, "new": 4}
    assert slow["memory"]["worse"]
    (error,) = slow["errors"]
    assert error["worse"]
    assert found["regressions"] == [OOM.case_id, SLOW.case_id]
    assert found["runs"]["base"] == ["base0", "base1", "base2", "base3"]
    assert {mean["mechanism"]: mean["cases"] for mean in found["means"]} == {"lightning2": 1, "sdpa": 1}
    assert found["sentences"][-1].startswith(
        f"1 of 5 cases is broken (first: {OOM.case_id}), 1 slower (worst:"
    )
    assert found["sentences"][-1].endswith(
        f"{SLOW.case_id} 1.10×), 2 on one side only, 1 the same within 3 %, 1 needs more memory. 2 regressions."
    )


def test_the_reverse_is_fixed_and_faster(files: Mapping[str, str]) -> None:
    found = json.loads(_invoke(files["new"], files["base"], "--format", "json", code=0))
    verdicts = {each["case_id"]: each["verdict"] for each in found["cases"]}
    assert (verdicts[OOM.case_id], verdicts[SLOW.case_id]) == ("fixed", "faster")
    assert list(verdicts)[-1] == OOM.case_id  # the best comes last


def test_the_table_and_its_reasons(files: Mapping[str, str]) -> None:
    text = _invoke(files["base"], files["new"], "--explain", code=1)
    (line,) = [line for line in text.splitlines() if SLOW.shape_id in line and "│" in line]
    assert "×2" in line
    assert "slower" in line
    assert "[1.0" in line
    assert f"{SLOW.case_id}: slower: +10" in text
    assert "peak memory 1000 B before, 1.95 KiB now" in text
    assert (
        f"{OOM.case_id}: broken: it was ok before and was oom now: asked for <1 GiB> | too much, 100%."
        in text
    )
    assert f"Note: {SLOW.case_id}: error of o 2.0e-03 before, 1.2e-02 now." in text


def test_memory_alone_is_a_regression(tmp_path: Path) -> None:
    base, new = (
        str(
            _write(
                tmp_path,
                _runs(name, lambda seed, size=size: [_measurement(_times(seed), peak_bytes=size)]),  # type: ignore[misc]
                name=f"{name}.parquet",
            )
        )
        for name, size in (("base", 1000), ("new", 1030))
    )
    text = _invoke(base, new, code=1)
    assert "1 the same" not in text
    assert "1 needs more memory. 1 regression." in text
    assert "+3.0 %" in text
    assert "::error title=more memory%3A " in _invoke(base, new, "--format", "github", code=1)
    _invoke(new, base, code=0)


def test_one_process_a_side_and_strict(files: Mapping[str, str], tmp_path: Path) -> None:
    base, new = (
        str(_write(tmp_path, {name: [_measurement(_times(1, factor))]}, name=f"{name}.parquet"))
        for name, factor in (("base", 1.0), ("new", 1.5))
    )
    text = _invoke(base, new, "--explain", code=0)
    assert "unclear: one process a side: " in text
    assert "1.500" in text
    assert text.splitlines()[-1] == "1 of 1 case is unclear. No regression was shown."
    _invoke(base, new, "--strict", code=3)
    assert "stated noise of process medians: 1 %" in _invoke(base, new, "--noise", "1%", code=1)
    assert "from 40 % on" in _invoke(base, new, "--noise", "20 %", code=0)
    _invoke(base, new, "--noise", "1%", "--threshold", "60%", code=0)


def test_a_case_that_is_no_longer_measured_is_doubtful(tmp_path: Path) -> None:
    base = _write(tmp_path, _runs("base", _base), name="base.parquet")
    fewer = _write(tmp_path, _runs("new", lambda seed: _base(seed)[:3]), name="new.parquet")
    _invoke(str(base), str(fewer), code=0)
    _invoke(str(base), str(fewer), "--strict", code=3)
    _invoke(str(fewer), str(base), "--strict", code=0)  # one more than before is none


def test_a_new_side_that_is_all_broken_is_a_regression(tmp_path: Path) -> None:
    base = _write(tmp_path, _runs("base", _base), name="base.parquet")
    dead = _write(
        tmp_path,
        _runs("new", lambda seed: [_measurement(None, of=SAME, status="error", reason="no")]),
        name="new.parquet",
    )
    assert "1 of 4 cases is broken" in _invoke(str(base), str(dead), code=1)


# ---------------------------------------------------------------- how sides are given


def test_sides_of_many_files_in_any_order(tmp_path: Path) -> None:
    singles = {
        side: [
            str(_write(tmp_path, {run: rows}, name=f"{run}.parquet")) for run, rows in _runs(side, of).items()
        ]
        for side, of in (("base", _base), ("new", _new))
    }
    base, new = singles["base"], singles["new"]
    commas = _invoke(",".join(base), ",".join(new), "--format", "json", code=1)
    options = [word for path in reversed(base) for word in ("--base", path)]
    options += [word for path in new[2:] + new[:2] for word in ("--new", path)]
    assert _invoke(*options, "--format", "json", code=1) == commas
    mixed = [base[0], new[0], "--base", ",".join(base[1:]), "--new", ",".join(new[1:])]
    assert _invoke(*mixed, "--format", "json", code=1) == commas


def test_a_run_folder_before_its_merge(tmp_path: Path, files: Mapping[str, str]) -> None:
    folder = open_run(tmp_path / "run", record={"run_id": "fresh", **RECORD}, resume=False)
    for each in _base(7):
        folder.keep(store.row(each, run_id="fresh"))
    found = json.loads(_invoke(files["base"], str(folder.path), "--noise", "1%", "--format", "json", code=0))
    assert found["runs"]["new"] == ["fresh"]
    assert found["counts"] == {"same": 4}
    assert found["differences"] == []


def test_a_run_given_twice_counts_once(files: Mapping[str, str]) -> None:
    once = json.loads(_invoke(files["base"], files["again"], "--format", "json", code=0))
    twice = json.loads(
        _invoke(files["base"], f"{files['again']},{files['again']}", "--format", "json", code=0)
    )
    assert twice["cases"] == once["cases"]
    assert "the run again0 is given twice on the new side, and counted once." in twice["sentences"]


def test_a_run_on_both_sides_is_said(files: Mapping[str, str]) -> None:
    text = _invoke(files["base"], files["base"], code=0)
    assert "the run base0 is on both sides" in text


def test_a_path_with_a_comma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").touch()
    assert command.request(
        sides_given=["a,b", "c,d"], base=[], new=[], threshold=None, noise=None, waivers=None, format_="table"
    ).base == [Path("a,b")]


# ---------------------------------------------------------------- environments


def _sided(tmp_path: Path, name: str, record: Mapping[str, Any] | None, *, device: str = "a device") -> str:
    rows = _runs(name, lambda seed: [_measurement(_times(seed), device=device)])
    return str(_write(tmp_path, rows, name=f"{name}.parquet", record=record))


OTHER_GPU = _changed(environment={"device": "another", "gpu": {"name": "another", "driver": "1.2"}})


@pytest.mark.parametrize(
    ("record", "device", "words"),
    [
        (OTHER_GPU, "another", "device: a device on the base side, another on the new side"),
        (
            _changed(protocol={"cache": "hot"}),
            "a device",
            "cache: cold on the base side, hot on the new side",
        ),
        (
            _changed(protocol={"launch": "graph"}),
            "a device",
            "launch: eager on the base side, graph on the new",
        ),
        (
            _changed(environment={"gpu": {"driver": "1.3"}}),
            "a device",
            "driver: 1.2 on the base side, 1.3 on the new side",
        ),
        (
            _changed(environment={"versions": {"torch": "2.1", "triton": "3.0"}}),
            "a device",
            "library torch: 2.0 on the base side, 2.1 on the new side",
        ),
        (
            _changed(environment={"versions": {"torch": "2.0", "triton": "3.0", "a": "2"}}),
            "a device",
            "library a: absent on the base side, 2 on the new side",  # the provider is `a library 1.0`
        ),
    ],
    ids=["device", "cache", "launch", "driver", "torch", "the library of a provider"],
)
def test_what_is_not_comparable_is_refused(
    tmp_path: Path, refused: Refused, record: Mapping[str, Any], device: str, words: str
) -> None:
    base, new = _sided(tmp_path, "base", RECORD), _sided(tmp_path, "new", record, device=device)
    assert words in refused(base, new)
    assert words in _invoke(base, new, "--allow-different", code=0)


def test_other_differences_are_said(tmp_path: Path) -> None:
    other = _changed(
        environment={
            "gpu": {"driver": "1.2", "uuid": "another"},
            "python": "3.12",
            "versions": {"torch": "2.0", "triton": "3.0", "xformers": "1"},
        }
    )
    base = _changed(environment={"python": "3.11"})
    text = _invoke(_sided(tmp_path, "base", base), _sided(tmp_path, "new", other), code=0)
    assert "python: 3.11 on the base side, 3.12 on the new side" in text
    assert "library xformers: absent on the base side, 1 on the new side" in text
    assert "cache" not in text


def test_differences_within_a_side_are_said(tmp_path: Path, refused: Refused) -> None:
    first = _sided(tmp_path, "base", RECORD)
    driver = _sided(tmp_path, "driver", _changed(environment={"gpu": {"driver": "1.3"}}))
    text = _invoke(f"{first},{driver}", _sided(tmp_path, "new", RECORD), "--allow-different", code=0)
    assert "driver: 1.2 and 1.3 on the base side, 1.2 on the new side" in text
    hot = _sided(tmp_path, "hot", _changed(protocol={"cache": "hot"}))
    mixed = [f"{_sided(tmp_path, name, RECORD)},{hot}" for name in ("one", "two")]
    assert "cache differs within both sides: cold and hot" in refused(*mixed)


def test_a_run_without_a_record_is_said(tmp_path: Path) -> None:
    text = _invoke(_sided(tmp_path, "base", RECORD), _sided(tmp_path, "new", None), code=0)
    assert "nothing is recorded of the environment and protocol of the run new0" in text


# ---------------------------------------------------------------- formats


def test_markdown(files: Mapping[str, str]) -> None:
    text = _invoke(files["base"], files["new"], "--format", "markdown", "--explain", code=1)
    assert text.startswith("**1 of 5 cases is broken")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows if "geometric" not in line} == {9, 5}
    assert r"asked for &lt;1 GiB> \| too much" in text


def test_junit(files: Mapping[str, str]) -> None:
    text = _invoke(files["base"], files["new"], "--format", "junit", code=1)
    suites = ElementTree.fromstring(text)
    (suite,) = suites
    assert suite.attrib | {"name": ""} == {
        "name": "",
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "2",
    }
    failed = [test for test in suite.iter("testcase") if test.find("failure") is not None]
    assert [test.get("name") for test in failed] == [OOM.case_id, SLOW.case_id]
    failure = failed[1].find("failure")
    assert failure is not None
    assert failure.get("type") == "slower"
    strict = ElementTree.fromstring(
        _invoke(files["base"], files["new"], "--format", "junit", "--strict", code=1)
    )
    assert strict.get("failures") == "3"  # the case that is gone too


def test_github_annotations(files: Mapping[str, str]) -> None:
    lines = _invoke(files["base"], files["new"], "--format", "github", code=1).splitlines()
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in lines)
    broken, slower = (line for line in lines if line.startswith("::error "))
    assert broken.startswith(f"::error title=broken%3A {OOM.case_id}::")
    assert broken.endswith("too much, 100%25")
    assert slower.startswith(f"::error title=slower%3A {SLOW.case_id}::")
    assert lines[-1].startswith("::notice title=attnbench compare::1 of 5")


@pytest.mark.parametrize("form", ["table", "json", "markdown", "junit", "github"])
def test_a_report_in_a_file_is_what_would_be_printed(
    files: Mapping[str, str], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "deep" / "report"
    said = _invoke(files["base"], files["new"], "--format", form, "-o", str(path), code=1)
    assert said.startswith("1 of 5 cases is broken")
    assert len(said.splitlines()) == 1
    if form != "table":
        assert path.read_text() == _invoke(files["base"], files["new"], "--format", form, code=1)
    assert "slower" in path.read_text()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the base side names no file"),
        (["{base}"], "expected two sides, BASE and NEW, not 1"),
        (["{base}", "{base}", "{base}"], "not 3; several files of a side are separated by commas"),
        (["--base", "{base}"], "the new side names no file"),
        (["{base}", ","], "the new side names no file"),
        (["{base}", "nowhere.parquet"], "there is no results file or folder at nowhere.parquet"),
        (["{base}", "{again}", "--threshold", "0.05"], "--threshold expects a percentage"),
        (["{base}", "{again}", "--threshold", "-3%"], "not '-3%'"),
        (["{base}", "{again}", "--threshold", "nan%"], "not 'nan%'"),
        (["{base}", "{again}", "--threshold", "0%"], "between 0% and 100%"),
        (["{base}", "{again}", "--noise", "many"], "--noise expects a percentage"),
        (["{base}", "{again}", "--format", "jsn"], "unknown format 'jsn'; did you mean 'json'?"),
    ],
    ids=str,
)
def test_a_bad_command_is_one_sentence(
    files: Mapping[str, str], refused: Refused, arguments: Sequence[str], words: str
) -> None:
    assert words in refused(*(word.format(**files) for word in arguments))


def test_bad_files_are_one_sentence(tmp_path: Path, files: Mapping[str, str], refused: Refused) -> None:
    empty, cut, other = (tmp_path / name for name in ("empty", "cut", "other.txt"))
    empty.touch()
    cut.write_bytes(Path(files["new"]).read_bytes()[:-100])
    other.write_text("times: 1, 2, 3")
    for path in (empty, cut, other):
        assert "is no readable Parquet file" in refused(files["base"], str(path))
    rowless = _write(tmp_path, {}, name="rowless.parquet")
    assert "the new side holds no case" in refused(files["base"], str(rowless))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds no results" in refused(str(folder), files["new"])
    assert "cannot write" in refused(files["base"], files["again"], "-o", str(folder))


def test_nothing_to_compare_is_one_sentence(
    tmp_path: Path, files: Mapping[str, str], refused: Refused
) -> None:
    failed = _write(
        tmp_path, {"x": [_measurement(None, of=SAME, status="oom", reason="much")]}, name="f.parquet"
    )
    assert "the base side has no case with status ok" in refused(str(failed), files["new"])
    other = _write(tmp_path, {"y": [_measurement(_times(0), of=_case(9))]}, name="o.parquet")
    sentence = refused(files["base"], str(other))
    assert sentence.startswith("base and new have no case in common: ")
    zero = _write(tmp_path, {"z": [_measurement([1.0, 1.0, 0.0], of=SAME)]}, name="z.parquet")
    assert f"{SAME.case_id} has a time that is none" in refused(files["base"], str(zero))
