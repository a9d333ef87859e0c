"""The command line from outside: real commands in real processes, what they print, leave behind and return.

A process that imports torch takes seconds to start, so that tests share a finished sweep, and what needs no
process of its own (bad input, help) calls `main` in this one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import attnbench
from attnbench import cli, mechanism_files, store
from attnbench.case import Case, Measurement, Status, Workload
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE
from attnbench.registry import mechanisms
from attnbench.sweeps.files import preset_names
from attnbench.version import __version__

HERE = Path(__file__).parent
COMMANDS = (
    "list",
    "sweep",
    "model",
    "crossover",
    "watch",
    "plot",
    "roofline",
    "report",
    "verify",
    "tune",
    "compare",
    "check",
    "noise",
    "bisect",
    "profile",
    "import",
    "env",
    "paper",
    "parallel",
    "merge",
)
ATTNBENCH = (sys.executable, "-m", "attnbench")
LIMIT_S = 120.0

AXES = ("--seq-len", "16,32", "--heads", "1", "--head-dim", "16", "--tokens", "32", "--workload", "fwd")
TINY = ("sweep", "quick", *AXES, "-m", "lightning2", "-m", "sdpa", "--device", "cpu", "--cap-s", "0.05")

# Cases of most of a second each, sampled to the cap: long enough to be interrupted in.
SLOW = """
mechanism = ["linear-quadratic"]
workload = ["fwd"]
dtype = ["fp32"]
seq_len = [16, 24, 32]
batch = [1]
heads = [1]
head_dim = [16]
[protocol]
cache = "hot"
cap_s = 0.7
ci_half_width = 0
max_samples = 1000000
warmup_s = 0
"""

# Five samples a case.
FAST = """
mechanism = ["linear-quadratic"]
workload = ["fwd"]
dtype = ["fp32"]
seq_len = [16]
batch = [1]
heads = [1]
head_dim = [16]
[protocol]
cache = "hot"
min_samples = 5
max_samples = 5
warmup_s = 0
"""


def _environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a command: device locks in `folder`, few threads, and none of what this test run set for itself."""
    own = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    return {**own, "OMP_NUM_THREADS": "1", LOCK_FOLDER_VARIABLE: str(folder), **more}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


def _run(*arguments: str | Path, cwd: Path, **variables: str) -> Done:
    done = subprocess.run(
        [*ATTNBENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=_environment(cwd, **variables),
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


Call = Callable[..., Done]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """`call("list", "--json")`: a command in this process, in the folder `tmp_path`."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["attnbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Done(code=code or 0, out=printed.out, err=printed.err)

    yield run
    signal.signal(signal.SIGTERM, before)


def _is_one_sentence(done: Done, *words: str) -> None:
    """Bad input: exit code 2 and one line that holds the words, in order."""
    assert done.code == 2, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(".*".join(map(re.escape, words)), line), line


def _frozen(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Shards by name: when they were written, and what they hold."""
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (folder / "shards").glob("*.parquet")}


# ---------------------------------------------------------------- a sweep, from the command to the figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """The sweep that many tests look at; nobody writes into it."""

    done: Done
    folder: Path
    cwd: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One sweep for the whole test run: the first process of pytest-xdist that needs it measures it."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent  # common to the processes
    cwd, result = base / "cli-finished", base / "cli-finished.json"
    with (base / "cli-finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            cwd.mkdir()
            result.write_text(json.dumps(dataclasses.asdict(_run(*TINY, cwd=cwd))))
    done = Done(**json.loads(result.read_text()))
    assert done.code == 0, done.err
    (folder,) = (cwd / "runs").iterdir()
    return Finished(done=done, folder=folder, cwd=cwd)


CASE_IDS = [
    f"{mechanism}.fwd.B{32 // n}-H1-N{n}-D16.fp32" for n in (16, 32) for mechanism in ("lightning2", "sdpa")
]


CROSSOVER = str(Path(__file__).parents[1] / "results/h200/crossover.parquet")


@pytest.mark.parametrize(
    "words", [["compare", CROSSOVER, CROSSOVER, "--all"], ["--help"]], ids=["compare", "help"]
)
def test_a_reader_that_has_read_enough_is_no_regression(words: list[str]) -> None:
    command = [sys.executable, "-m", "attnbench", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_a_sweep_leaves_a_run_behind(finished: Finished) -> None:
    assert re.fullmatch(r"quick-\d{8}-\d{6}", finished.folder.name)
    there = {str(f.relative_to(finished.folder)) for f in finished.folder.rglob("*") if f.is_file()}
    figures = {f"{kind}.fwd.{end}" for kind in ("tokens-per-s", "time", "memory") for end in ("png", "svg")}
    assert there == {
        "run.json",
        "results.parquet",
        "worker.log",
        *(f"shards/{case_id}.parquet" for case_id in CASE_IDS),
        *(f"figures/{name}" for name in figures),
    }
    for name in figures:
        data = (finished.folder / "figures" / name).read_bytes()
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml"), name
    assert {f.name for f in finished.cwd.iterdir()} == {"runs", "attnbench-cpu.lock"}


def test_a_sweep_says_what_it_found_on_stdout_and_how_it_goes_on_stderr(finished: Finished) -> None:
    out, run = finished.done.out, Path("runs") / finished.folder.name
    assert "Forward, 32 tokens a call, 1 head, head dim 16, fp32, causal" in out
    assert re.search(r"^4 cases on .*: 4 ok\.$", out, re.MULTILINE)
    assert f"Results: {run}/results.parquet\nFigures: {run}/figures (6 files)\n" in out
    assert re.search(r"^Wall time: \d+ s, \d+% of it warm-up and samples\.$", out, re.MULTILINE)
    lines = finished.done.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"[{i}/4] {case_id}" for i, case_id in enumerate(CASE_IDS, start=1)
    ]
    for line in lines:
        assert re.search(r": [\d.]+ (ms|µs), [\d.]+ [kM] tokens/s$", line)


def test_every_column_of_a_healthy_run(finished: Finished) -> None:
    frame = attnbench.load_results(finished.folder / "results.parquet")
    assert list(frame.columns) == list(store.COLUMNS)
    assert list(frame["case_id"]) == CASE_IDS
    assert set(frame["status"]) == {"ok"}
    assert frame["reason"].isna().all()
    known = [
        *store.GROUPS["identity"], *store.GROUPS["time"], *store.GROUPS["rates"], *store.GROUPS["memory"],
        "started_at", "kernels", "rel_err_o",
    ]  # fmt: skip
    known.remove("reserved_bytes")  # the host has no caching allocator
    known.remove("window")  # none of them has one
    assert frame[known].notna().all().all()
    unknown = ["reserved_bytes", "rel_err_dq", "rel_err_dk", "rel_err_dv", *store.GROUPS["telemetry"]]
    assert frame[unknown].isna().all().all()
    assert list(frame["config"].notna()) == [m == "lightning2" for m in frame["mechanism"]]
    assert frame["started_at"].is_monotonic_increasing
    assert (frame["rel_err_o"] < 2e-5).all()
    assert (frame["roofline"] > 0).all()
    assert (frame["peak_bytes"] >= frame["input_bytes"] + frame["output_bytes"]).all()
    assert all(len(samples) >= 5 for samples in frame["samples_ms"])
    assert all(any(name.startswith("aten::") for name in names) for names in frame["kernels"])
    assert set(frame["provider"]) == {
        f"torch {torch.__version__} {variant}" for variant in ("chunked", "sdpa")
    }


def test_the_merged_file_alone_says_how_and_on_what_it_was_measured(finished: Finished) -> None:
    on_disk = json.loads((finished.folder / "run.json").read_text())
    run_id = on_disk["run_id"]
    frame = attnbench.load_results(finished.folder / "results.parquet")
    assert frame.attrs["runs"] == {run_id: on_disk}
    assert set(frame["run_id"]) == {run_id}
    assert on_disk["command"] == list(TINY)
    assert on_disk["schema_version"] == store.SCHEMA_VERSION
    assert on_disk["attnbench"] == __version__
    assert on_disk["sweep"]["axes"]["seq_len"] == [16, 32]
    assert on_disk["protocol"]["cap_s"] == 0.05
    environment = on_disk["environment"]
    assert environment["device_type"] == "cpu"
    assert set(environment["variables"]).isdisjoint({"TRITON_INTERPRET"})
    assert environment["versions"]["torch"] == torch.__version__
    assert on_disk["ceilings"]["copy_gbps"] > 0
    effort = on_disk["effort"]
    phases = effort["phases_s"]
    assert set(phases) >= {"build", "first-call", "verify", "warm-up", "sample", "trace", "memory"}
    assert 0 < sum(phases.values()) < effort["wall_s"]


def test_a_run_reads_the_same_before_and_after_the_merge(finished: Finished) -> None:
    merged = attnbench.load_results(finished.folder / "results.parquet")
    shards = attnbench.load_results(finished.folder)
    assert shards.attrs == merged.attrs
    assert sorted(shards["median_ms"]) == sorted(merged["median_ms"])


def test_plot_draws_the_same_figures_again_and_says_what_they_show(finished: Finished, call: Call) -> None:
    done = call("plot", finished.folder, "-o", "again")
    assert done.code == 0, done.err
    assert re.search(r"^4 cases on .*: 4 ok\.$", done.out, re.MULTILINE)
    assert done.out.endswith("\nFigures: again (6 files)\n")
    first, again = finished.folder / "figures", Path("again")
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {
        f.name: f.read_bytes() for f in again.iterdir()
    }


def test_plot_json_of_a_file_draws_beside_it(finished: Finished, call: Call, tmp_path: Path) -> None:
    shutil.copy(finished.folder / "results.parquet", tmp_path / "mine.parquet")
    done = call("plot", "mine.parquet", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert len(report["figures"]) == 6
    assert all(Path(name).is_file() and Path(name).parent.name == "figures" for name in report["figures"])
    assert report["statuses"] == {"ok": 4}


# ---------------------------------------------------------------- what goes wrong is a row


def _install_fakes(site: Path) -> str:
    """The misbehaving mechanisms of `fakes.py`, as pip would install them; for PYTHONPATH."""
    info = site / "attnbench_fakes-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(HERE / "fakes.py", site / "attnbench_fakes.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attnbench-fakes\nVersion: 1.0\n")
    lines = [f"{name} = attnbench_fakes:{name}_mechanism" for name in ("exits", "raises", "wrong")]
    (info / "entry_points.txt").write_text("\n".join(["[attnbench.mechanisms]", *lines, ""]))
    return str(site)


def test_a_sweep_goes_on_after_a_crash_and_says_what_is_missing(tmp_path: Path, call: Call) -> None:
    (tmp_path / "mine.toml").write_text(FAST)
    site = _install_fakes(tmp_path / "site")
    names = "exits,raises,wrong,flash2,linear-quadratic"
    options = ("-m", names, "--device", "cpu", "-o", "run", "--no-plot", "--json")
    done = _run("sweep", "mine.toml", *options, cwd=tmp_path, PYTHONPATH=site)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err

    report = json.loads(done.out)  # one document and nothing else: progress is on stderr
    assert [line.split(".")[0] for line in done.err.splitlines()] == [
        f"[{i}/5] {name}" for i, name in enumerate(names.split(","), start=1)
    ]
    assert report["results"] == "run/results.parquet"
    assert report["figures"] == []
    assert 0 < report["measuring_share"] < 1
    statuses = {"crashed": 1, "error": 1, "incorrect": 1, "ok": 1, "unsupported": 1}
    assert report["statuses"] == statuses

    frame = attnbench.load_results(tmp_path / "run")
    assert set(frame["run_id"]) == {report["run"]}
    status = dict(zip(frame["mechanism"], frame["status"], strict=True))
    assert status == {
        "exits": "crashed",
        "raises": "error",
        "wrong": "incorrect",
        "flash2": "unsupported",
        "linear-quadratic": "ok",
    }
    reason = dict(zip(frame["mechanism"], frame["reason"], strict=True))
    assert reason["exits"] == "the worker process ended with exit code 3; last output: about to leave"

    shown = call("plot", "run").out
    for text in (*report["sentences"], shown):
        assert "Traceback" not in text
    said = "\n".join(report["sentences"])
    for words in (said, " ".join(shown.split())):
        assert re.search(
            r"exits \(fwd\): crashed at every length \(1 case\): the worker process ended", words
        )
        assert "raises (fwd): error at every length (1 case): ValueError: no tile fits" in words
        assert "flash2 (fwd): unsupported at every length (1 case): no provider for cpu" in words
        assert "INCORRECT: wrong (fwd): wrong output at every length (1 case): o is off by 1.00e+00" in words
        assert ": 1 ok, 1 crashed, 1 error, 1 incorrect, 1 unsupported. 1 case gave wrong output." in words


# ---------------------------------------------------------------- dry runs


def test_a_dry_run_prints_the_cases_and_leaves_nothing(call: Call, tmp_path: Path) -> None:
    done = call(*TINY, "--dry-run", "-o", "run")
    assert (done.code, done.out.splitlines()) == (0, CASE_IDS)
    assert done.err == "4 cases on cpu; nothing was measured\n"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(call: Call, tmp_path: Path) -> None:
    done = call(*TINY, "--dry-run", "--json")
    report = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert [each["case_id"] for each in report["cases"]] == CASE_IDS
    rebuilt = [Case(**{k: v for k, v in each.items() if k != "case_id"}) for each in report["cases"]]
    assert [case.case_id for case in rebuilt] == CASE_IDS
    assert report["sweep"]["name"] == "quick"
    assert report["sweep"]["protocol"]["cap_s"] == 0.05
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_cases_here(call: Call, preset: str) -> None:
    done = call("sweep", preset, "--dry-run", "--device", "cpu")
    assert done.code == 0
    cases = done.out.splitlines()
    assert len(cases) == len(set(cases)) > 0
    assert done.err == f"{len(cases)} cases on cpu; nothing was measured\n"


# ---------------------------------------------------------------- sweeps that are interrupted


class Running:
    """A sweep under way. Its stderr is read as it comes, from a pipe or from a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path, terminal: bool = False) -> None:
        self.cwd = cwd
        self._text = bytearray()
        self._keyboard: int | None = None
        if terminal:
            self._keyboard, stderr = pty.openpty()
            # A terminal turns Ctrl-C into a signal for the processes that it controls, which a job in the background of
            # a script, as these tests may be, has ignored.
            code = (
                "import fcntl, os, signal, sys, termios\n"
                "os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
                "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
                "os.execv(sys.executable, [sys.executable, '-m', 'attnbench', *sys.argv[1:]])"
            )
            command = [sys.executable, "-c", code, *arguments]
        else:
            source, stderr = os.pipe()
            command = [*ATTNBENCH, *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env=_environment(cwd, TERM="xterm"),
        )
        os.close(stderr)
        self._source = source if self._keyboard is None else self._keyboard
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.worker: psutil.Process | None = None

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._source, 1 << 16)
            except OSError:  # the other end of a terminal is gone
                return
            if not piece:
                return
            self._text += piece

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def err(self) -> str:
        """What came on stderr so far, without what steers a terminal."""
        text = self._text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def wait_for(self, pattern: str) -> None:
        """Wait until stderr matches; by then the worker is known."""
        _until(lambda: re.search(pattern, self.err) or self._process.poll() is not None, what=pattern)
        assert self._process.poll() is None, self.err
        children = psutil.Process(self.pid).children()
        (self.worker,) = (c for c in children if "attnbench.measure.worker" in c.cmdline())

    def press(self, key: bytes) -> None:
        assert self._keyboard is not None
        os.write(self._keyboard, key)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, *, within_s: float) -> Done:
        """The end of the command, which must come in time."""
        out, _ = self._process.communicate(timeout=within_s)
        self._reader.join(timeout=LIMIT_S)
        return Done(code=self._process.returncode, out=out.decode(), err=self.err)

    def worker_is_gone(self) -> bool:
        assert self.worker is not None
        try:
            return self.worker.status() == psutil.STATUS_ZOMBIE  # its parent is gone; nobody may reap it
        except psutil.NoSuchProcess:
            return True

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._reader.join(timeout=LIMIT_S)
        os.close(self._source)


def _until(condition: Callable[[], object], *, what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`start("sweep", ...)`: a command under way in `tmp_path`; none outlives the test."""
    started: list[Running] = []

    def begin(*arguments: str, terminal: bool = False) -> Running:
        started.append(Running(*arguments, cwd=tmp_path, terminal=terminal))
        return started[-1]

    yield begin
    for each in started:
        each.close()


def _case_ids(toml_lengths: Sequence[int] = (16, 24, 32)) -> list[str]:
    return [f"linear-quadratic.fwd.B1-H1-N{n}-D16.fp32" for n in toml_lengths]


def _stopped(done: Done) -> tuple[int, Path, str]:
    """What a stopped sweep says: the cases done, the folder, and the command to go on with."""
    assert done.code == 130, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    said = re.search(
        r"^stopped: (\d) of 3 cases are measured and safe in (.+)\nGo on with: (.+)\n\Z",
        done.err,
        re.MULTILINE,
    )
    assert said, done.err
    return int(said[1]), Path(said[2]), said[3]


def _went_on(done: Done, *, folder: Path, before: Mapping[str, tuple[int, bytes]]) -> None:
    """A resumed sweep is complete and repeated nothing."""
    assert done.code == 0, done.err
    missing = [case_id for case_id in _case_ids() if f"{case_id}.parquet" not in before]
    assert [line.partition(":")[0] for line in done.err.splitlines()] == [
        f"[{i}/{len(missing)}] {case_id}" for i, case_id in enumerate(missing, start=1)
    ]
    after = _frozen(folder)
    assert {name: after[name] for name in before} == before
    frame = attnbench.load_results(folder / "results.parquet")
    assert list(frame["case_id"]) == _case_ids()
    assert set(frame["status"]) == {"ok"}
    (record,) = frame.attrs["runs"].values()
    assert set(frame["run_id"]) == {record["run_id"]}
    assert record["environment"] is not None
    assert record["effort"]["wall_s"] > 0.7 * len(_case_ids())


def test_a_killed_sweep_is_resumed(start: Callable[..., Running], call: Call, tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    arguments = ("sweep", "slow.toml", "--device", "cpu", "--no-plot", "-o", "run")
    running = start(*arguments)
    running.wait_for(r"\[1/3\]")
    time.sleep(0.2)  # the worker is busy with the second case
    running.send(signal.SIGKILL)
    assert running.end(within_s=2.0).code == -signal.SIGKILL
    _until(running.worker_is_gone, what="the end of a worker without a parent", limit_s=20.0)

    before = _frozen(tmp_path / "run")
    assert 1 <= len(before) < 3
    resumed = call(*arguments, "--resume")
    _went_on(resumed, folder=tmp_path / "run", before=before)
    assert re.search(r"^3 cases on .*: 3 ok\.$", resumed.out, re.MULTILINE)


def test_ctrl_c_on_a_terminal_and_the_command_that_it_prints(
    start: Callable[..., Running], call: Call, tmp_path: Path
) -> None:
    """No output folder is given, and the sweep's own file has a name that a shell would take apart."""
    (tmp_path / "my sweep.toml").write_text(SLOW)
    running = start("sweep", "my sweep.toml", "--device", "cpu", "--no-plot", terminal=True)
    running.wait_for(r"\.fp32: [\d.]+ ms, ")
    time.sleep(0.2)
    running.press(b"\x03")
    count, folder, line = _stopped(running.end(within_s=5.0))  # a busy machine is slow to give a turn
    assert running.worker_is_gone()

    before = _frozen(tmp_path / folder)
    assert 1 <= count == len(before) < 3
    assert re.fullmatch(r"runs/my sweep-\d{8}-\d{6}", str(folder))
    sitting = json.loads((tmp_path / folder / "run.json").read_text())
    assert sitting["effort"]["wall_s"] > 0  # an interrupted sitting counts, too
    assert not (tmp_path / folder / "results.parquet").exists()
    program, *words = shlex.split(line)  # as a shell takes it apart
    assert program == "attnbench"
    _went_on(call(*words), folder=tmp_path / folder, before=before)
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_one_sweep_at_a_time_and_a_terminated_one_ends_cleanly(
    start: Callable[..., Running], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    running = start("sweep", "slow.toml", "--device", "cpu", "-o", "run", "--cap-s", "30", "--limit-s", "90")
    _until(lambda: (tmp_path / "run" / "worker.log").exists(), what="a worker")

    second = call("sweep", "slow.toml", "--device", "cpu", "-o", "second")
    _is_one_sentence(second, f"another attnbench is timing on cpu (process {running.pid})", "wait for it")
    assert not (tmp_path / "second").exists()  # the same command works as soon as the first has ended

    running.wait_for("")
    running.send(signal.SIGTERM)
    count, folder, line = _stopped(running.end(within_s=5.0))  # the worker may still be starting
    assert running.worker_is_gone()
    assert (count, folder) == (0, Path("run"))
    assert line == (
        "attnbench sweep slow.toml --device cpu -o run --cap-s 30 --limit-s 90 --resume"
    )  # runs as it stands: see above


# ---------------------------------------------------------------- bad input

NEEDS_NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

BAD_SWEEPS = {
    "unknown preset": (["quik"], "unknown preset 'quik'; did you mean 'quick'?"),
    "missing file": (["nowhere.toml"], "there is no sweep file 'nowhere.toml'"),
    "unknown mechanism": (
        ["quick", "-m", "lightning3"],
        "--mechanism: unknown mechanism 'lightning3'; did you mean 'lightning2'?",
    ),
    "unknown workload": (
        ["quick", "-w", "fwd,bdw"],
        "--workload: unknown workload 'bdw'; did you mean 'bwd'?",
    ),
    "unknown dtype": (["quick", "--dtype", "bf61"], "--dtype: unknown dtype 'bf61'; did you mean 'bf16'?"),
    "zero length": (["quick", "--seq-len", "1k,0"], "--seq-len: expected a positive whole number", "got '0'"),
    "negative heads": (["quick", "--heads", "-2"], "--heads: expected a positive whole number", "got '-2'"),
    "broken head dim": (["quick", "--head-dim", "12.3"], "--head-dim: expected a positive", "got '12.3'"),
    "no number": (["quick", "--batch", "four"], "--batch: expected a positive whole number", "got 'four'"),
    "several tokens": (["quick", "--tokens", "1k,2k"], "--tokens: expected a positive", "got '1k,2k'"),
    "empty axis": (["quick", "--seq-len", ""], "--seq-len: expected a positive whole number", "got ''"),
    "tokens that do not divide": (
        ["quick", "--seq-len", "100", "--tokens", "1k"],
        "tokens 1024 is not a multiple of seq_len 100",
    ),
    "batch and tokens": (["quick", "--batch", "1", "--tokens", "1k"], "--tokens: give tokens or batch, not both"),
    "unknown cache": (["quick", "--cache", "lukewarm"], "--cache should be 'cold' or 'hot', got 'lukewarm'"),
    "unknown launch": (["quick", "--launch", "lazy"], "--launch should be 'eager' or 'graph', got 'lazy'"),
    "negative limit": (["quick", "--limit-s", "-1"], "--limit-s should be greater than 0, got '-1.0'"),
    "endless cap": (["quick", "--cap-s", "inf"], "--cap-s should be a finite number, got 'inf'"),
    "negative seed": (["quick", "--seed", "-1"], "--seed should be greater than or equal to 0, got '-1'"),
    "unknown device": (["quick", "--device", "tpu"], "unknown device 'tpu'; choose from: auto, cuda, cpu"),
    "resume of nothing named": (["quick", "--resume"], "--resume needs --out"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SWEEPS)
def test_a_bad_sweep_is_one_sentence(call: Call, tmp_path: Path, name: str) -> None:
    arguments, *words = BAD_SWEEPS[name]
    assert isinstance(arguments, list)
    _is_one_sentence(call("sweep", *arguments), *(word for word in words if isinstance(word, str)))
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "malformed": ("heads = [1]", "heads = [1", "mine.toml, line 8: malformed TOML: "),
    "unknown key": ("heads = [1]", "headz = [1]", "mine.toml, line 7: headz: unknown key; did you mean 'heads'?"),
    "unknown protocol key": (
        "warmup_s = 0",
        "warmup = 0",
        "mine.toml, line 13: protocol.warmup: unknown key; did you mean 'warmup_s'?",
    ),
    "empty grid": ("seq_len = [16]", "seq_len = []", "mine.toml, line 5: seq_len: empty grid"),
    "fraction": ("batch = [1]", "batch = [1.5]", "mine.toml, line 6: batch: expected a positive", "got '1.5'"),
    "missing key": ("heads = [1]", "", "mine.toml: missing key 'heads'"),
    "unknown mechanism": (
        '["linear-quadratic"]',
        '["linear"]',
        "mine.toml, line 2: mechanism: unknown mechanism 'linear'; did you mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_sentence_with_its_line(call: Call, tmp_path: Path, name: str) -> None:
    old, new, *words = BAD_FILES[name]
    assert old in FAST
    (tmp_path / "mine.toml").write_text(FAST.replace(old, new))
    _is_one_sentence(call("sweep", "mine.toml"), *words)


def test_an_output_folder_that_cannot_be_it(call: Call, finished: Finished, tmp_path: Path) -> None:
    run, untouched = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished.folder, run)
    untouched.mkdir()
    (untouched / "thesis.tex").write_text("mine")
    before = _frozen(run)
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    _is_one_sentence(call(*TINY, "-o", run), f"already holds the run {run_id}; add --resume")
    _is_one_sentence(
        call(*TINY, "-o", run, "--resume", "--seed", "1"),
        "is of another sweep than this command's (seed 0, here 1), so it cannot be resumed",
    )
    _is_one_sentence(call("sweep", "grid", "-o", run, "--resume"), "is of another sweep than this command's")
    _is_one_sentence(call(*TINY, "-o", run / "run.json"), "the output folder", "run.json is a file")
    _is_one_sentence(
        call(*TINY, "-o", run / "run.json" / "below"), "cannot write the output folder", "below: "
    )
    _is_one_sentence(call(*TINY, "-o", untouched), "is not empty and holds no attnbench run; choose another")
    assert [f.name for f in untouched.iterdir()] == ["thesis.tex"]
    assert _frozen(run) == before


def test_resuming_a_finished_run_starts_no_worker(call: Call, finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "results.parquet").unlink()
    (tmp_path / "run" / "worker.log").unlink()
    before = _frozen(tmp_path / "run")
    done = call(*TINY, "-o", "run", "--resume", "--json", "--no-plot")
    assert done.code == 0, done.err
    assert done.err == ""
    assert json.loads(done.out)["statuses"] == {"ok": 4}
    assert _frozen(tmp_path / "run") == before
    assert not (tmp_path / "run" / "worker.log").exists()
    merged = attnbench.load_results(tmp_path / "run" / "results.parquet")
    assert list(merged["case_id"]) == CASE_IDS


def test_a_run_that_was_copied_without_its_shards_loses_nothing(
    call: Call, finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("shards", "worker.log"))
    before = attnbench.load_results(tmp_path / "run")
    done = call(*TINY, "-o", "run", "--resume", "--json", "--no-plot")
    assert (done.code, done.err) == (0, "")
    assert not (tmp_path / "run" / "worker.log").exists()  # nothing was measured again
    after = attnbench.load_results(tmp_path / "run" / "results.parquet")
    pd.testing.assert_frame_equal(after, before)
    assert after.attrs["runs"] == before.attrs["runs"]


def test_a_damaged_merged_file_is_not_written_over(call: Call, finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("shards"))
    cut = (finished.folder / "results.parquet").read_bytes()[:-9]
    (tmp_path / "run" / "results.parquet").write_bytes(cut)
    _is_one_sentence(call(*TINY, "-o", "run", "--resume"), "results.parquet")
    assert (tmp_path / "run" / "results.parquet").read_bytes() == cut


def test_results_that_cannot_be_plotted(call: Call, finished: Finished, tmp_path: Path) -> None:
    good = (finished.folder / "results.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(good[: len(good) // 2])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    table = store.read(finished.folder / "results.parquet")
    future = {**(table.schema.metadata or {}), store.VERSION_KEY: b"99"}
    pq.write_table(table.replace_schema_metadata(future), tmp_path / "future.parquet")
    case = Case(
        mechanism="sdpa", workload=Workload.FWD, batch=1, heads=1, seq_len=16, head_dim=16, dtype="fp32"
    )
    failed = Measurement(case=case, status=Status.OOM, reason="out of memory")
    rows = [store.row(failed, run_id="run-1")]
    store.write(store.to_table(rows, records={}), tmp_path / "failed.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()

    _is_one_sentence(call("plot", "nowhere"), "there is no results file or folder at nowhere")
    _is_one_sentence(call("plot", "empty"), "empty holds no results")
    _is_one_sentence(call("plot", "cut.parquet"), "cut.parquet is no readable Parquet file (truncated")
    _is_one_sentence(call("plot", finished.folder, "cut.parquet"), "cut.parquet is no readable Parquet file")
    _is_one_sentence(call("plot", "foreign.parquet"), "is a Parquet file, but not one of attnbench")
    _is_one_sentence(call("plot", "future.parquet"), "has schema version 99", "update attnbench")
    _is_one_sentence(call("plot", "failed.parquet"), "there is nothing to draw", "oom")
    _is_one_sentence(call("plot", finished.folder, "-o", "file"), "the output folder file is a file")
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "flesh2"], "unknown mechanism 'flesh2'; did you mean 'flash2'?"),
        (["-m", "flash2@tork"], "flash2 has no provider 'tork'; did you mean 'torch'?"),
        (["-m", "nowhere.py:mine"], "there is no file"),
        (["--dtype", "int8"], "unknown dtype 'int8'; choose from: bf16, fp16, fp32"),
        (["--seq-len", "0"], "--seq-len: expected a positive whole number"),
        (["--head-dim", "16,x"], "--head-dim: expected a positive whole number"),
        (["--value-dim", "16"], "--value-dim needs --head-dim"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_bad_verify_is_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    _is_one_sentence(call("verify", *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lightening2"], "unknown kernel 'lightening2'; did you mean 'lightning2'?"),
        (["--dtype", "bf17"], "unknown dtype 'bf17'; did you mean 'bf16'?"),
        (["--head-dim", "100"], "--head-dim: expected a multiple of 16 from 16 to 256, got 100"),
        (["--head-dim", "512"], "--head-dim: expected a multiple of 16 from 16 to 256, got 512"),
        (["--shape", "8x16"], "--shape: expected BATCHxHEADSxSEQ_LEN such as 8x16x8k, got '8x16'"),
        (["--shape", "8x16x0"], "--shape: expected a positive whole number"),
        (["--time-budget", "0"], "--time-budget: expected at least 5 seconds, got 0"),
        (["--time-budget", "nan"], "--time-budget: expected at least 5 seconds, got nan"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_bad_tune_is_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    _is_one_sentence(call("tune", *arguments), words)


@NEEDS_NO_CUDA
def test_tune_without_a_gpu_says_so_and_can_print_its_candidates(call: Call, tmp_path: Path) -> None:
    _is_one_sentence(call("tune"), "tune needs a CUDA device", "--dry-run prints the candidates")
    done = call("tune", "lightning2,lightning1", "--dtype", "fp32", "--head-dim", "64", "--dry-run")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, f"{len(lines)} candidates; nothing was measured\n")
    assert lines[0] == (
        "lightning2, 4 bytes, D up to 64: chunk 16, value tile 32, 4 warps, 2 stages (the table)"
    )
    assert len([line for line in lines if line.endswith("(the table)")]) == 2
    found = json.loads(call("tune", "--head-dim", "64", "--dtype", "fp32", "--dry-run", "--json").out)
    assert found[0]["current"]
    assert found[0]["row"]["kernel"] == "lightning2"
    assert (found[0]["config"]["block_c"], found[0]["config"]["num_warps"]) == (16, 4)
    assert list(tmp_path.iterdir()) == []


@NEEDS_NO_CUDA
@pytest.mark.parametrize("command", [["list"], ["sweep", "quick"], ["verify"], ["env"]], ids=" ".join)
def test_no_gpu_is_one_sentence(call: Call, command: list[str]) -> None:
    done = call(*command, "--device", "cuda")
    _is_one_sentence(done, "no CUDA device: torch sees no GPU here", "try --device cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plot"], "missing argument 'runs'"),
        (["bench"], "no such command 'bench'"),
        (["sweep", "quick", "--sequence", "1"], "unknown option '--sequence'; did you mean '--seq-len'?"),
        (["sweep", "quick", "-m"], "option '-m' requires an argument"),
    ],
)
def test_usage_errors_are_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    _is_one_sentence(call(*arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "quick", "-m", "sdpaa"], ["unknown mechanism 'sdpaa'; did you mean 'sdpa'?"]),
        (["plot", "no/such.parquet"], ["there is no results file or folder at no/such.parquet"]),
    ],
    ids=lambda given: given[0],
)
def test_bad_input_in_a_process_of_its_own(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    _is_one_sentence(_run(*arguments, cwd=tmp_path), *words)


# ---------------------------------------------------------------- verify


def test_verify_prints_a_table(call: Call) -> None:
    options = ("--seq-len", "1,33", "--head-dim", "16", "--value-dim", "8", "--device", "cpu")
    done = call("verify", "-m", "lightning2,flash2", *options)
    assert done.code == 0, done.err
    table = [[cell.strip() for cell in line.split("│")] for line in done.out.splitlines() if "│" in line]
    (right,) = (cells for cells in table if "lightning2" in cells)
    assert (right[2], right[3], right[-2]) == (
        "fp32",
        "4",
        "right",
    )  # each shape with gradients and as a decode
    assert all(float(error) < 2e-5 for error in right[4:8])
    (absent,) = (cells for cells in table if "flash2" in cells)
    assert (absent[3], absent[-2]) == ("0", "unsupported")
    assert "flash2 fp32: no provider for cpu; it runs on cuda" in done.out
    assert done.out.splitlines()[-1].endswith(
        " 1 pair of mechanism and dtype right; none wrong; 1 unsupported."
    )
    assert done.err.splitlines()[0].startswith(
        "[1/6] lightning2.fwd-bwd.B2-H3-N1-D16-E8.fp32: right, largest"
    )


def test_verify_with_nothing_to_judge(call: Call) -> None:
    done = call("verify", "-m", "flash2", "--seq-len", "2", "--head-dim", "16", "--device", "cpu", "--json")
    assert done.code == 3, done.err
    (finding,) = json.loads(done.out)
    assert (finding["status"], finding["shapes"], finding["unsupported"]) == ("unsupported", 0, 1)
    assert finding["why_unsupported"] == "no provider for cpu; it runs on cuda"


def test_verify_without_time_says_how_to_go_on(call: Call, tmp_path: Path) -> None:
    options = ("-m", "flash2", "--device", "cpu", "--minutes", "0")
    done = call("verify", *options, "-o", "v", "--json")
    go_on = "what is checked is safe in v; go on with: attnbench verify -m flash2 --device cpu --minutes 0 -o v --json"
    assert (done.code, done.err) == (3, f"the time was up: nothing new was checked; {go_on}\n")
    assert json.loads(done.out) == []
    assert "nothing is kept without --out: give a folder by -o" in call("verify", *options).err
    assert list(tmp_path.iterdir()) == []


PATIENT = """
import pathlib, time
def patient(q, k, v, *, scale, **given):
    while q.shape[2] > 1 and not pathlib.Path("go").exists():
        time.sleep(0.02)
    return (scale * q @ k.mT + q.new_full((q.shape[2],) * 2, -float("inf")).triu(1)).softmax(-1) @ v
"""


@pytest.mark.usefixtures("_no_mechanism_files")
def test_verify_goes_on_after_it_was_stopped(call: Call, tmp_path: Path) -> None:
    """One sentence says how, the same command does it, and its JSON says it all."""
    (tmp_path / "mine.py").write_text(PATIENT)
    axes = ("-m", "mine.py:patient:softmax", "--seq-len", "1,2,3", "--head-dim", "16")
    command = ("verify", *axes, "--device", "cpu", "-o", "v", "--json")
    stopping = threading.Thread(target=_terminate_when, args=(tmp_path / "v" / "verify.jsonl", '"row"'))
    stopping.start()
    stopped = call(*command)
    stopping.join()
    assert (stopped.code, stopped.out) == (130, "")
    first, last = stopped.err.splitlines()
    assert first.startswith("[1/3] patient.fwd-bwd.B2-H3-N1-D16.fp32: right")
    assert first.endswith(" (1 of 1 group left)")
    go_on = f"what is checked is safe in v; go on with: attnbench {shlex.join(command)}"
    assert last == f"stopped: 2 of 3 cases are left; {go_on}"

    (tmp_path / "go").touch()
    done = call(*command)
    assert done.code == 0, done.err
    known, *lines = done.err.splitlines()
    assert known == "1 of 3 cases were done before with this device, these libraries and sources"
    assert [line.split(":")[0] for line in lines] == [
        f"[{n}/2] patient.fwd-bwd.B2-H3-N{n + 1}-D16.fp32" for n in (1, 2)
    ]
    (found,) = json.loads(done.out)
    assert (found["shapes"], found["left"], found["status"]) == (3, 0, "ok")
    assert json.loads((tmp_path / "v" / "verify.json").read_text()) == [found]


def _terminate_when(file: Path, text: str) -> None:
    """As from outside, once the file has the text."""
    deadline = time.monotonic() + LIMIT_S
    while not (file.exists() and text in file.read_text()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def _no_mechanism_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that a test names are forgotten after it."""
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    mechanisms.cache_clear()
    yield
    monkeypatch.undo()
    mechanisms.cache_clear()


@pytest.fixture
def _fakes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The misbehaving mechanisms for commands in this process, and for their workers."""
    site = _install_fakes(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", site, prepend=os.pathsep)
    mechanisms.cache_clear()
    yield
    mechanisms.cache_clear()


@pytest.mark.usefixtures("_fakes_here")
def test_verify_finds_a_wrong_mechanism(call: Call) -> None:
    options = ("--seq-len", "2,17", "--head-dim", "16", "--device", "cpu", "--json")
    done = call("verify", "-m", "linear-quadratic,wrong", *options)
    assert done.code == 1, done.err
    right, wrong = json.loads(done.out)
    assert (right["mechanism"], right["status"], right["faults"]) == ("linear-quadratic", "ok", [])
    assert set(right["worst"]) == {"o", "dq", "dk", "dv"}
    assert all(0 < error < right["tolerance"] for error in right["worst"].values())
    assert (wrong["mechanism"], wrong["status"], wrong["shapes"]) == ("wrong", "incorrect", 2)
    assert wrong["provider"] == "attnbench-fakes 1.0"
    assert wrong["worst"]["o"] == pytest.approx(1.0, rel=1e-3)
    for fault, length in zip(wrong["faults"], (2, 17), strict=True):
        assert fault.startswith(f"B2-H3-N{length}-D16: incorrect: o is off by 1.00e+00")
    assert re.search(r"wrong.fwd-bwd.B2-H3-N17-D16.fp32: incorrect: o is off by", done.err)


# ---------------------------------------------------------------- what is there


def test_list_names_every_mechanism_with_its_provider_or_why_not(call: Call) -> None:
    report = json.loads(call("list", "--json", "--device", "cpu").out)
    assert report["device"] == "cpu"
    assert report["presets"] == list(preset_names())
    rows = {row["mechanism"]: row for row in report["mechanisms"]}
    assert list(rows) == list(mechanisms())
    for row in rows.values():
        assert (row["provider"] is None) == (row["why_not"] is not None) == (row["dtypes"] is None)
        assert row["formula"].startswith("o_t = ")
        assert row["workloads"]
    assert rows["sdpa"]["provider"] == f"torch {torch.__version__} sdpa"
    takes = ("grouped_heads", "non_causal", "window")
    assert [rows["sdpa"][name] for name in takes] == [True, True, False]
    assert [rows["lightning2"][name] for name in takes] == [False, False, False]
    assert [rows["streaming-llm"][name] for name in takes] == [True, False, True]
    assert [p["name"] for p in rows["flash2"]["providers"]] == ["flash2@flash-attn", "flash2@torch"]
    assert not any(p["available"] for p in rows["flash2"]["providers"])
    assert rows["flash2"]["why_not"] == "no provider for cpu; it runs on cuda"

    done = call("list", "--device", "cpu")
    assert done.code == 0
    for name in mechanisms():
        assert f"│ {name} " in done.out
    assert "not here: no provider for" in done.out  # the column is narrow, the sentence goes on below
    assert f"Presets: {', '.join(preset_names())}." in done.out


def test_env_is_what_a_run_records(call: Call, finished: Finished) -> None:
    record = json.loads(call("env", "--json", "--device", "cpu").out)
    recorded = json.loads((finished.folder / "run.json").read_text())["environment"]
    assert set(record) == set(recorded)
    for name in ("attnbench", "python", "processor", "memory_bytes", "device_type"):
        assert record[name] == recorded[name]
    lines = call("env", "--device", "cpu").out.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines)
    assert list(dict.fromkeys(name.split(".")[0] for name in told)) == [
        name for name in record if record[name] != {}
    ]
    assert told["cores"] == str(record["cores"])
    assert told["versions.torch"] == record["versions"]["torch"]
    assert told["versions.flash-attn"] == (record["versions"]["flash-attn"] or "-")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_a_command(call: Call, command: str) -> None:
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    (example,) = re.findall(r"Example: attnbench (\S+) ", done.out)
    assert example == command
    assert call(command, "-h").out == done.out


def test_help_of_all_names_every_command_and_where_to_start(call: Call) -> None:
    done = call("--help")
    assert done.code == 0
    listed = re.findall(r"^  ([a-z]+)  +\S", done.out.partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert "Start with: attnbench sweep quick" in done.out
    assert {entry.name or "" for entry in cli.app.registered_commands if entry.name} <= set(COMMANDS)


def test_help_and_version_come_without_torch(tmp_path: Path) -> None:
    """By `python -m attnbench`; the installed command is the same function."""
    for arguments, expected in ((["--help"], "Start with:"), (["--version"], f"attnbench {__version__}\n")):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "attnbench", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=_environment(tmp_path),
        )
        assert done.returncode == 0
        assert expected in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert imported.isdisjoint({"torch", "pandas", "pyarrow", "matplotlib", "numpy"})
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="attnbench")
    assert command.value == "attnbench.cli:main"


def test_no_command_at_all_is_the_help(call: Call) -> None:
    done = call()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_a_graph_launch_needs_a_gpu(call: Call, tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    answer = call("sweep", "slow.toml", "--device", "cpu", "--launch", "graph", "-o", "run")
    _is_one_sentence(answer, "slow.toml: launch 'graph' needs a CUDA device")
    assert not (tmp_path / "run").exists()
