"""The gate end to end on recorded processes: verdicts, reports, exit codes, baselines, waivers, noise."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from attnbench import load_results
from attnbench.case import Case, Workload
from attnbench.errors import UserError
from attnbench.gate import stage

if TYPE_CHECKING:
    from tests.gate.conftest import Done, Player

ROOT = Path(__file__).parent.parent.parent
OTHER = {
    "device": "another",
    "device_type": "cpu",
    "gpu": {"name": "another"},
    "versions": {},
    "variables": {},
}


def _against(player: Player, file: str, *arguments: str) -> Done:
    return player.run("check", "tiny.toml", "--against", "main", "--replay", file, *arguments)


def _report(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out)
    return found


def _verdicts(done: Done) -> dict[str, str]:
    return {each["case_id"]: each["verdict"] for each in _report(done)["cases"]}


def _refused(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# ---------------------------------------------------------------- verdicts and exit codes


def test_the_same_code_is_no_regression(player: Player) -> None:
    done = _against(player, player.record("same"), "--strict")
    assert done.code == 0, done
    assert done.out.splitlines()[-1] == "4 of 4 cases are the same within 3 %. No regression."
    assert "recorded before and are played again" in done.out


def test_a_slow_down_is_named_and_nothing_else(player: Player) -> None:
    done = _against(player, player.record("slow", factors={2: 1.08}), "--format", "json")
    assert done.code == 1
    slow = player.cases[2].case_id
    assert _report(done)["regressions"] == [slow]
    assert {name for name, verdict in _verdicts(done).items() if verdict != "same"} == {slow}


@pytest.mark.parametrize("status", ["incorrect", "oom", "unsupported", "crashed", "timeout"])
def test_a_case_that_is_no_longer_ok_is_a_regression(player: Player, status: str) -> None:
    done = _against(player, player.record("broken", ended={1: status}), "--format", "json")
    assert done.code == 1
    assert _verdicts(done)[player.cases[1].case_id] == "broken"


def test_memory_that_grows_by_more_than_two_percent_is_a_regression(player: Player) -> None:
    assert _against(player, player.record("more", peaks={0: 1021}), "--format", "json").code == 1
    assert _against(player, player.record("little", peaks={0: 1019})).code == 0


def test_doubt_is_a_fault_when_it_is_asked_for(player: Player) -> None:
    noisy = player.record("noisy", scatter=0.002, factors={0: 1.025})
    assert _verdicts(_against(player, noisy, "--format", "json"))[player.cases[0].case_id] == "unclear"
    assert _against(player, noisy).code == 0
    assert _against(player, noisy, "--strict").code == 3
    gone = player.record("gone", without=[3])
    assert _against(player, gone).code == 0
    assert _against(player, gone, "--strict").code == 3


def test_nothing_judged_is_not_fine(player: Player) -> None:
    done = _against(player, player.record("wild", scatter=0.3, processes=2))
    assert done.code == 3
    assert "4 of 4 cases are unclear" in done.out


def test_a_case_that_base_does_not_have_is_a_fault_only_when_it_is_asked_for(player: Player) -> None:
    player.run("check", "tiny.toml", "--replay", player.record("first", sides=["new"], without=[3]), "--update",
               "--baseline", "base.parquet")  # fmt: skip
    new = player.record("new", sides=["new"], seed=1)
    done = player.run("check", "tiny.toml", "--baseline", "base.parquet", "--replay", new)
    assert done.code == 0, done
    assert "1 of 4 cases is on one side only, 3 the same" in done.out
    again = player.run(
        "check", "tiny.toml", "--baseline", "base.parquet", "--replay", new, "--require-baseline"
    )
    assert again.code == 3


def test_a_part_of_the_sweep(player: Player) -> None:
    slow = player.record("slow", factors={2: 1.08})
    others = ("--case", "*.B1-H1-N16-*", "--format", "json")
    assert set(_verdicts(_against(player, slow, *others))) == {c.case_id for c in player.cases[:2]}
    assert _against(player, slow, *others).code == 0
    assert _against(player, slow, "-m", player.cases[2].mechanism).code == 1


# ---------------------------------------------------------------- formats


def test_junit(player: Player) -> None:
    done = _against(player, player.record("slow", factors={2: 1.08}), "--format", "junit")
    suites = ElementTree.fromstring(done.out)
    assert (suites.get("tests"), suites.get("failures"), suites[0].get("name")) == (
        "4",
        "1",
        "attnbench check",
    )
    failures = {
        t.get("name"): f.get("type") for t in suites.iter("testcase") if (f := t.find("failure")) is not None
    }
    assert failures == {player.cases[2].case_id: "slower"}


def test_github_annotations_and_the_step_summary(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = player.folder / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    slow = player.record("slow", factors={2: 1.08})
    done = _against(player, slow, "--format", "github")
    assert done.code == 1
    errors = [line for line in done.out.splitlines() if line.startswith("::error ")]
    assert [line.split("::")[1] for line in errors] == [f"error title=slower%3A {player.cases[2].case_id}"]
    text = summary.read_text()
    assert text.startswith("before\n## attnbench check\n\n**1 of 4 cases is slower")
    _against(player, slow, "--format", "json")
    assert summary.read_text() == text  # other formats are no step of a workflow


@pytest.mark.parametrize("form", ["table", "json", "markdown", "junit", "github"])
def test_a_report_goes_into_a_file(player: Player, form: str) -> None:
    slow = player.record("slow", factors={2: 1.08})
    done = _against(player, slow, "--format", form, "-o", "deep/report")
    assert done.code == 1
    assert done.out.startswith("1 of 4 cases is slower")
    assert player.cases[2].mechanism in Path("deep/report").read_text()


# ---------------------------------------------------------------- looks and the time budget


def test_processes_beyond_those_asked_for_are_not_used(player: Player) -> None:
    file = player.record("many", processes=8)
    assert _report(_against(player, file, "--format", "json"))["cases"][0]["processes"] == {
        "base": 5,
        "new": 5,
    }
    asked = _against(player, file, "--format", "json", "--processes", "7")
    assert _report(asked)["cases"][0]["processes"] == {"base": 7, "new": 7}


def test_a_time_budget_goes_where_the_verdict_is_unclear(player: Player) -> None:
    file = player.record("many", processes=20, factors={1: 1.028, 2: 1.15})
    done = _against(player, file, "--format", "json", "--time-budget", "10m")
    cases = {each["case_id"]: each for each in _report(done)["cases"]}
    counts = [cases[case.case_id]["processes"]["new"] for case in player.cases]
    assert counts[2] == 3, "clear at the first look"
    assert counts[1] > 5, "close to the threshold"
    assert _report(done)["significance"] < 0.05 / 2
    short = _against(player, file, "--format", "json", "--time-budget", "65s")
    assert {e["processes"]["new"] for e in _report(short)["cases"]} == {3}
    shorter = _against(player, file, "--time-budget", "50s")
    assert "the time budget ends the measuring after 2 processes a side" in shorter.err


def test_sides_take_turns(player: Player) -> None:
    done = _against(player, player.record("same", processes=4), "--processes", "4")
    order = re.findall(r"^(base|new), process", done.err, re.MULTILINE)
    assert order == ["base", "new", "new", "base", "base", "new", "new", "base"]


def test_what_failed_twice_is_not_measured_again(player: Player) -> None:
    done = _against(player, player.record("broken", ended={1: "timeout"}))
    counts = re.findall(r"(base|new), process (\d) of 5: (\d) cases", done.err)
    assert {int(cases) for _, number, cases in counts if int(number) <= 2} == {4}
    assert {int(cases) for _, number, cases in counts if int(number) > 2} == {3}


# ---------------------------------------------------------------- baselines


def test_a_baseline_is_written_by_update_alone_and_the_old_one_is_logged(player: Player) -> None:
    first = player.record("first", sides=["new"])
    sentence = _refused(player.run("check", "tiny.toml", "--replay", first))
    assert "there is no baseline at results/baselines/a-device/tiny.parquet" in sentence
    begun = player.run("check", "tiny.toml", "--replay", first, "--update")
    assert begun.code == 0, begun
    assert "There is no baseline at results/baselines/a-device/tiny.parquet yet." in begun.err
    assert "New baseline: results/baselines/a-device/tiny.parquet of 2" in begun.err
    slow = player.record("slow", sides=["new"], factors={0: 1.2}, seed=1)
    stored = Path("results/baselines/a-device/tiny.parquet")
    before = stored.read_bytes()
    assert player.run("check", "tiny.toml", "--replay", slow).code == 1
    assert stored.read_bytes() == before
    taken = player.run("check", "tiny.toml", "--replay", slow, "--update")
    assert taken.code == 0, "who stores a baseline accepts what changed"
    assert "1 of 4 cases is slower" in taken.out
    assert re.search(r"Old baseline: .*4 cases \(4 ok\) in 5 processes, a device, driver 1\.2", taken.err)
    marks = {record["baseline"]["replaced"] for record in load_results(stored).attrs["runs"].values()}
    assert {mark.startswith(str(stored)) for mark in marks} == {True}
    assert player.run("check", "tiny.toml", "--replay", slow).code == 0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "baselines").rglob("*.parquet")), ids=lambda p: p.stem
)
def test_stored_baselines_were_written_by_update(path: Path) -> None:
    records = load_results(path).attrs["runs"]
    assert records
    assert all(record["baseline"]["sweep"] == path.stem for record in records.values())


@pytest.mark.parametrize("status", ["incorrect", "crashed", "error"])
def test_no_fault_becomes_a_baseline(player: Player, status: str) -> None:
    bad = player.record("bad", sides=["new"], ended={1: status})
    sentence = player.run("check", "tiny.toml", "--replay", bad, "--update").err.splitlines()[-1]
    assert f"the baseline was not written: {player.cases[1].case_id} is {status} (planted)" in sentence
    assert not Path("results").exists()


def test_bad_baselines_are_one_sentence(player: Player) -> None:
    new = player.record("new", sides=["new"])
    empty, cut, text = (player.folder / name for name in ("empty", "cut.parquet", "text.txt"))
    empty.touch()
    cut.write_bytes(Path(new).read_bytes()[:-50])
    text.write_text("times: 1, 2")
    for path in (empty, cut, text):
        assert "is no readable Parquet file" in _refused(_held(player, new, path))
    assert "there is no baseline at nowhere.parquet" in _refused(_held(player, new, "nowhere.parquet"))
    failed = player.record("failed", sides=["new"], ended=dict.fromkeys(range(4), "oom"))
    assert "the base side has no case with status ok" in _refused(_held(player, new, failed))
    other = player.record("other", sides=["new"], environment=OTHER)
    sentence = _refused(_held(player, new, other))
    assert "is not comparable (device: another on the base side, a device on the new side" in sentence
    assert _held(player, new, other, "--allow-different").code == 0
    Path("more.toml").write_text(Path("tiny.toml").read_text().replace("[16, 32]", "[64]"))
    done = player.run("check", "more.toml", "--baseline", new, "--replay", new)
    assert "the sweep more and the recorded runs of the new side have no case in common" in _refused(done)


def _held(player: Player, new: str, baseline: str | Path, *arguments: str) -> Done:
    return player.run("check", "tiny.toml", "--replay", new, "--baseline", str(baseline), *arguments)


# ---------------------------------------------------------------- waivers


def _waiver(case: str, expires: str, reason: str = "the new layout") -> str:
    Path("waivers.toml").write_text(
        f'[[waiver]]\ncase = "{case}"\nreason = "{reason}"\nexpires = {expires}\n'
    )
    return "waivers.toml"


def test_a_waiver_holds_through_its_day(player: Player) -> None:
    slow = player.record("slow", factors={2: 1.08})
    name = player.cases[2].case_id
    done = _against(player, slow, "--waivers", _waiver(name, "2026-11-22"), "--format", "json")
    assert done.code == 0
    assert (_report(done)["waived"], _report(done)["regressions"]) == ([name], [])
    text = _against(player, slow, "--waivers", _waiver("*.fwd.*", "2026-11-22")).out
    assert f"Note: {name}: waived until 2026-11-22: the new layout." in text
    assert text.endswith("1 waived. No regression.\n")
    suites = ElementTree.fromstring(
        _against(player, slow, "--waivers", "waivers.toml", "--format", "junit").out
    )
    assert (suites.get("failures"), suites.get("skipped")) == ("0", "1")


@pytest.mark.parametrize(("factor", "words"), [(1.08, "its case still regresses"), (1.0, "remove it")])
def test_an_expired_waiver_fails_with_its_own_sentence(player: Player, factor: float, words: str) -> None:
    file = player.record("slow", factors={2: factor})
    name = player.cases[2].case_id
    given = ("--waivers", _waiver(name, "2026-11-21"))
    done = _against(player, file, *given)
    assert done.code == 1
    assert f"Note: the waiver of {name} (the new layout) expired on 2026-11-21; " in done.out
    assert words in done.out
    assert "1 expired waiver." in done.out.splitlines()[-1]
    lines = _against(player, file, *given, "--format", "github").out.splitlines()
    assert [line for line in lines if line.startswith("::error title=expired waiver::")]
    assert sum("expired on" in line for line in lines) == 1
    suites = ElementTree.fromstring(_against(player, file, *given, "--format", "junit").out)
    assert suites.get("tests") == "5"
    assert suites.get("failures") == ("1" if factor == 1 else "2")


def test_a_waiver_of_another_case_changes_nothing(player: Player) -> None:
    slow = player.record("slow", factors={2: 1.08})
    done = _against(player, slow, "--waivers", _waiver("flash9.*", "2020-01-01"))
    assert done.code == 1
    assert "the waiver of flash9.* names no case of this comparison" in done.out
    assert "expired waiver" not in done.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[waiver]]\ncase = 'x'\nreason = 'y'", "missing key 'expires'"),
        ("[[waiver]]\ncase = 'x'\nexpires = 2026-01-01", "missing key 'reason'"),
        ("[[waiver]]\ncase = 'x'\nreason = ' '\nexpires = 2026-01-01", "reason should be a text"),
        ("[[waiver]]\ncase = 'x'\nreason = 'y'\nexpires = '2026-01-01'", "expires should be a date"),
        ("[[waiver]]\ncase = 'x'\nreason = 'y'\nexpire = 2026-01-01", "did you mean 'expires'?"),
        ("[waiver]\ncase = 'x'", "with two brackets a side"),
        ("[[waivers]]\n", "unknown key 'waivers'"),
        ("[[waiver]\n", "is no TOML file of waivers"),
        (None, "there is no file of waivers at w.toml"),
    ],
)
def test_bad_waivers_are_one_sentence(player: Player, text: str | None, words: str) -> None:
    if text is not None:
        Path("w.toml").write_text(text)
    assert words in _refused(_against(player, player.record("same"), "--waivers", "w.toml"))


# ---------------------------------------------------------------- noise


def _noise(player: Player, *arguments: str, scatter: float = 0.002, **given: Any) -> Done:
    file = player.record("noise", processes=6, scatter=scatter, seed=7, **given)
    return player.run("noise", "tiny.toml", "--replay", file, "--processes", "6", *arguments)


def test_noise_is_measured_kept_and_used(player: Player) -> None:
    done = _noise(player, "--json")
    assert done.code == 0
    report = _report(done)
    assert Path(report["file"]) == player.folder / "state" / "noise" / "a-device.json"
    assert all(0.0005 < each["noise"] < 0.005 for each in report["cases"].values())
    assert all(each["noise"] < each["detectable"] < 0.02 for each in report["cases"].values())
    assert report["alarms"] == []
    same = player.record("same")
    assert "noise" not in _against(player, same).out
    sentence = _refused(_against(player, same, "--threshold", "0.05%"))
    assert sentence.startswith("--threshold 0.05 % is below this machine's noise in 4 cases (worst: ")


def test_a_noisy_case_has_a_threshold_of_its_own(player: Player) -> None:
    assert "4 of 4 cases (100%) within 1 %" in _noise(player).out
    noisy = _noise(player, scatter=0.05).out  # the same cases anew
    assert "0 of 4 cases (0%) within 1 %" in noisy
    done = _against(player, player.record("slow", factors={2: 1.08}), "--format", "json")
    assert done.code == 0, "8 % is less than twice the noise"
    assert all(e["threshold"] > 0.05 for e in _report(done)["cases"])
    assert any("4 cases are too noisy for 3 %" in text for text in _report(done)["sentences"])


def test_missing_and_stale_noise_is_said(player: Player) -> None:
    same = player.record("same")
    assert "the noise of this machine is not known" in _against(player, same).out
    gpu = {**player.environment["gpu"], "driver": "1.1"}
    older = {**player.environment, "gpu": gpu}
    _noise(player, environment=older)
    text = _against(player, same).out
    assert "is stale (driver 1.1 then, 1.2 now): attnbench noise measures it anew" in text
    _noise(player, "--case", player.cases[0].case_id)
    assert "the noise of 3 cases of 4 is not known" in _against(player, same).out
    _noise(player, "--case", player.cases[1].case_id)
    assert "the noise of 2 cases of 4 is not known" in _against(player, same).out, "what was known is kept"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "version: Field required"),
        ("no json", "Invalid JSON"),
        ('{"version": 2}', "version: Input should be 1"),
    ],
)
def test_a_bad_record_of_noise_is_one_sentence(player: Player, text: str, words: str) -> None:
    Path("noise.json").write_text(text)
    sentence = _refused(_against(player, player.record("same"), "--noise-file", "noise.json"))
    assert sentence.startswith("noise.json is no record of noise as attnbench noise writes it")
    assert words in sentence


def test_a_loud_machine_is_told_so(player: Player) -> None:
    """A machine that changed speed between the sides while it was measured against itself."""
    done = _noise(player, factors=dict.fromkeys(range(4), 1.2))
    assert done.code == 3
    assert "this machine was not quiet while it was measured" in " ".join(done.out.split())


# ---------------------------------------------------------------- bad commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "main", "--baseline", "x"], "--against compares with a revision and --baseline"),
        (["--against", "main", "--update"], "--against compares with a revision and --update"),
        (["--install"], "give --against REV with it"),
        (["--update", "-m", "sdpa"], "--update stores a whole sweep"),
        (["--update", "--time-budget", "5m"], "so it has no --time-budget"),
        (["--time-budget", "soon"], "--time-budget expects a span of time such as 90s or 5m, not 'soon'"),
        (["--time-budget", "0s"], "not '0s'"),
        (["--threshold", "3"], "--threshold expects a percentage"),
        (["--format", "xml"], "unknown format 'xml'"),
        (["--case", "nothing.*"], "--case nothing.* names no case of tiny; one of its 4 is "),
        (["--runs", "somewhere"], "there are no --runs to keep"),
        (
            ["--noise-file", "nowhere.json", "--baseline", "{new}"],
            "there is no record of noise at nowhere.json",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_check_is_one_sentence(player: Player, arguments: Sequence[str], words: str) -> None:
    new = player.record("new")
    given = [word.format(new=new) for word in arguments]
    assert words in _refused(player.run("check", "tiny.toml", "--replay", new, *given))


def test_another_launch_is_another_protocol(player: Player) -> None:
    """Before anything is measured where a baseline is stored, and between the sides of a replay."""
    eager, graph = (
        player.record(f"{launch}-{side}", sides=[side], launch=launch)
        for launch, side in (("eager", "base"), ("graph", "new"))
    )
    stored = player.record("stored", sides=["new"], launch="eager")
    words = "(launch: eager on the base side, graph on the new side)"
    assert words in _refused(_held(player, graph, stored))
    assert words in _refused(_against(player, eager, "--replay", graph))
    assert _against(player, eager, "--replay", graph, "--allow-different").code == 0


def test_a_pool_of_one_code_is_dealt_to_both_sides(player: Player) -> None:
    """As gate.evidence leaves it: one side, of another name. A shell's pattern gives several words."""
    pool = player.record("pool", sides=["unchanged"], processes=8)
    more = player.record("more", sides=["unchanged"], processes=4, seed=1)
    report = _report(player.run("noise", "tiny.toml", "--json", "--replay", pool, more))
    assert {each["processes"] for each in report["cases"].values()} == {12}, "what is recorded costs nothing"
    assert (report["gate_processes"], report["verdicts"]) == (5, {"same": 4})
    done = player.run("check", "tiny.toml", "--update", "--processes", "12", "--replay", pool, more)
    assert done.code == 0, done
    assert "4 cases (4 ok) in 12 processes" in done.err
    sentence = _refused(_against(player, pool))
    assert sentence.endswith("expected recorded runs of the base side, and there are 8 of unchanged")
    other = player.record("other", sides=["planted-0.05"])
    assert "8 of unchanged and 5 of planted-0.05" in _refused(
        player.run("noise", "tiny.toml", "--replay", pool, other)
    )
    assert "behind it comes 'ci': recorded runs follow --replay" in _refused(
        player.run("noise", "tiny.toml", "ci")
    )


def test_recordings_that_do_not_fit(player: Player) -> None:
    new = player.record("new", sides=["new"])
    sentence = _refused(_against(player, new))
    assert sentence.endswith("expected recorded runs of the base side, and there are 5 of new")
    assert "there is no results file or folder at nowhere" in _refused(_against(player, "nowhere"))


def test_a_mechanism_from_elsewhere_has_no_revision(tmp_path: Path) -> None:
    """It would be the same on both sides, and the gate always green."""
    own = Case(mechanism="sdpa", workload=Workload.FWD, batch=1, heads=1, seq_len=8, head_dim=8, dtype="fp32")
    stage._need_own([own])
    with pytest.raises(
        UserError, match="and mine is registered from elsewhere: both sides would measure the same"
    ):
        stage._need_own([own, dataclasses.replace(own, mechanism="mine")])
