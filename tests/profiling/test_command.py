"""`attnbench profile` from the command line to its folder, on the CPU; and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys
from pathlib import Path

import pytest
import torch

from attnbench import cli
from attnbench.case import Status, Workload
from attnbench.executors.lock import device_lock
from attnbench.profiling import command, formats
from attnbench.profiling.diagnosis import diagnose
from attnbench.profiling.found import Bound, load, save
from attnbench.profiling.process import Ended
from tests.profiling.samples import CASE, NCU_RAW, counters, profile


def _attnbench(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["attnbench", *map(str, words)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_is_profiled_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "counters.csv").write_text(NCU_RAW)  # of an earlier profile, and not of this one
    asked = ("profile", "sdpa", "--seq-len", 64, "--heads", 2, "--head-dim", 16, "-w", "bwd")
    assert _attnbench(monkeypatch, *asked, "-o", out) == 0
    said = capsys.readouterr()
    assert "[1/1] sdpa.bwd.B1-H2-N64-D16.fp32" in said.err
    assert "Operators of a call" in said.out
    assert {file.name for file in out.iterdir()} == {"profile.json", "profile.md", "trace.json.gz"}
    taken = load(out)
    assert taken.operators is not None
    assert any("backward" in each.name for each in taken.operators.operators)  # and no forward is in a bwd
    assert not any(each.name == "aten::scaled_dot_product_attention" for each in taken.operators.operators)
    assert sum(each.share for each in taken.operators.operators) == pytest.approx(1)
    assert taken.memory is not None
    assert taken.memory.output_bytes == 3 * 64 * 2 * 16 * 4
    assert taken.work is not None
    assert (
        taken.work.moved_bytes == 8 * 64 * 2 * 16 * 4 - 64 * 2 * 16 * 4
    )  # q, k, v, do read; dq, dk, dv written
    assert taken.timing is not None
    assert len(taken.timing.samples_ms) >= 30
    assert taken.notes == ()
    assert str(tmp_path) not in (out / "profile.md").read_text()
    with gzip.open(out / "trace.json.gz", "rt") as file:
        trace = json.load(file)
    assert (
        sum(event.get("name") == "attnbench call" for event in trace["traceEvents"]) == taken.operators.calls
    )
    assert not {"traceName", "host_name"} & set(trace)
    # What is recorded goes through the same diagnosis and pages again, and beside itself.
    before = load(out)
    assert _attnbench(monkeypatch, "profile", "--replay", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["profiles"][0]["case"]["mechanism"] == "sdpa"
    assert load(out) == before
    assert _attnbench(monkeypatch, "profile", "--compare", out, out) == 0
    assert "takes 1.00× the time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a mechanism to profile"),
        (["lightnin2", "--seq-len", "1k"], "did you mean 'lightning2'?"),
        (["lightning2"], "give --seq-len"),
        (["lightning2", "--seq-len", "1k", "-w", "fdw"], "did you mean 'fwd'?"),
        (["lightning2", "--seq-len", "-3"], "--seq-len: expected a positive whole number"),
        (
            ["sdpa", "--seq-len", "64", "--heads", "3", "--kv-heads", "2"],
            "expected a divisor of --heads 3, got 2",
        ),
        (["--compare", "nosuch", "lightning2"], "unknown mechanism 'nosuch'"),
        (["--compare", "no/folder", "lightning2"], "no/folder: no profile there"),
        (["lightning2", "--compare", "a", "b"], "either mechanisms or --compare"),
        (["lightning2", "--replay", "x"], "give no mechanism and no --compare"),
        (["--replay", "nowhere"], "nowhere: no profile there"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _attnbench(monkeypatch, "profile", *words, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("runs"))


def test_a_busy_device_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A profile would disturb a sweep, and a sweep a profile."""
    with device_lock("cpu"):
        code = _attnbench(
            monkeypatch, "profile", "sdpa", "--seq-len", 64, "--device", "cpu", "-o", tmp_path / "out"
        )
    assert code == 2
    assert "is timing on cpu" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "what"), [("profile.json", "a profile"), ("run.json", "a run")])
@pytest.mark.parametrize("lengths", ["64", "64,128"], ids=["one", "several"])
def test_what_is_there_is_not_written_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    what: str,
    lengths: str,
) -> None:
    (tmp_path / name).write_text("mine")
    code = _attnbench(monkeypatch, "profile", "sdpa", "--seq-len", lengths, "--device", "cpu", "-o", tmp_path)
    assert code == 2
    said = f"error: the output folder {tmp_path} already holds {what}; choose another\n"
    assert capsys.readouterr().err == said
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_mechanism_without_a_provider_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process ends well and says why there is nothing; a process that does not is another story."""

    def unsupported(words: list[str], **_: object) -> Ended:
        taken = profile(time_us=1, status=Status.UNSUPPORTED, reason="no provider for cpu", timing=None)
        save(dataclasses.replace(taken, timeline=None, work=None), Path(words[-1]) / "profile.json")
        return Ended(code=0, output="")

    monkeypatch.setattr(command, "run", lambda words, *, log, **_: log.touch() or unsupported(words))
    code = _attnbench(monkeypatch, "profile", "flash2", "--seq-len", 64, "--device", "cpu", "-o", tmp_path)
    assert code == 3
    assert "Unsupported: no provider for cpu" in capsys.readouterr().out.replace("unsupported", "Unsupported")


@pytest.mark.parametrize(
    ("code", "output", "timed", "status", "said"),
    [
        (
            -11,
            "Fatal Python error: Segmentation fault\n",
            False,
            Status.CRASHED,
            "last output: Fatal Python error",
        ),
        (None, "", False, Status.TIMEOUT, "did not end within 5 s"),
        (-6, "aborted in the tracer", True, Status.OK, "aborted in the tracer"),
    ],
    ids=["crashed", "hung", "crashed when it had been timed"],
)
def test_a_process_that_dies_loses_only_what_it_had_not_written(
    tmp_path: Path, code: int | None, output: str, timed: bool, status: Status, said: str
) -> None:
    if timed:
        save(profile(time_us=100, timeline=None), tmp_path / "profile.json")
    found = command._gathered(CASE, Ended(code=code, output=output), folder=tmp_path, limit_s=5)
    assert found.status is status
    assert said in (found.notes[0] if timed else str(found.reason))
    assert (found.time_us == 100) is timed


def test_a_replay_reads_the_counters_again(tmp_path: Path) -> None:
    """What Nsight Compute wrote lies beside a profile, so that a better reading of it needs no GPU."""
    taken = profile(time_us=160, counters_note="could not be read then")
    save(taken, tmp_path / "profile.json")
    (tmp_path / "counters.csv").write_text(NCU_RAW)
    ((_, found),) = command.replay(tmp_path, tell=lambda line: None)
    assert (len(found.counters), found.counters_note) == (2, None)
    assert found.diagnosis is not None
    assert found.diagnosis.bound is Bound.MEMORY


def test_pages_of_several_profiles(tmp_path: Path) -> None:
    taken = profile(time_us=160, counters=(counters(time_us=160, dram=0.9, barrier=3.0, gmma=1.0),))
    other = dataclasses.replace(taken, case=dataclasses.replace(CASE, workload=Workload.BWD))
    cases = [taken.case, other.case]
    folders = command.folders_of(cases, out=tmp_path)
    assert [folder.name for folder in folders] == ["lightning2.fwd", "lightning2.bwd"]
    assert command.folders_of([cases[0], dataclasses.replace(CASE, seq_len=64)], out=tmp_path)[1].name == (
        "lightning2.fwd.B4-H16-N64-D128.bf16"
    )
    for folder in folders:
        folder.mkdir()
    done = [
        (folder, dataclasses.replace(each, diagnosis=diagnose(each)))
        for folder, each in zip(folders, (taken, other), strict=True)
    ]
    command.write(done, out=tmp_path)
    index = (tmp_path / "profiles.md").read_text()
    assert "| lightning2.fwd.B4-H16-N8192-D128.bf16 | 0.160 ms | +0.0% | memory |" in index
    assert "(lightning2.bwd/profile.md): Bound by memory: DRAM is at 90%" in index
    page = (folders[0] / "profile.md").read_text()
    assert page.splitlines()[4].startswith("**Bound by memory")
    assert "a barrier 75%, the tensor cores (wgmma) 25%" in page
    assert len(page) < 6000


def test_a_page_shows_names_as_they_are() -> None:
    """Kernel names have what Markdown and HTML take for their own."""
    name = "void at::native::some_kernel<4, at::native::Fill<int>>|x"
    taken = profile(time_us=10)
    assert taken.timeline is not None
    kernel = dataclasses.replace(taken.timeline.kernels[0], name=name)
    page = formats.markdown(
        dataclasses.replace(taken, timeline=dataclasses.replace(taken.timeline, kernels=(kernel,)))
    )
    row = next(line for line in page.splitlines() if "some" in line)
    assert "<" not in row
    assert row.replace("\\|", "").count("|") == 5


@pytest.mark.gpu
@pytest.mark.parametrize("workload", ["fwd", "bwd"])
def test_the_kernels_sum_to_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload: str
) -> None:
    words = ("lightning2", "--seq-len", "8k", "--batch", 4, "-w", workload, "-o", tmp_path)
    assert _attnbench(monkeypatch, "profile", *words) == 0
    taken = load(tmp_path)
    assert taken.deviation == pytest.approx(0, abs=0.03)
    assert taken.notes == ()
    assert taken.resources[0].spilled_bytes is not None
    assert taken.counters or taken.counters_note
