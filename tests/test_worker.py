"""The real worker process: a case end to end, and mechanisms that do to it what mechanisms do.

The mechanisms of `fakes.py` reach the worker as a third party's would: by entry points of an installed package.
A worker takes seconds to start, so each test lets one do as much as it can.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench import store
from attnbench.case import Case, Measurement, Protocol, Status, Workload
from attnbench.errors import UserError
from attnbench.executors import supervised
from attnbench.executors.local import LocalExecutor
from attnbench.executors.run_folder import RunFolder, open_run
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.executors.worker_process import WorkerDiedError, WorkerHungError, WorkerProcess
from attnbench.registry import Provider, find, mechanisms
from attnbench.semantics import TOLERANCES, minimal_bytes, useful_flops

QUICK = Protocol(
    min_samples=7,
    min_device_s=0.0,
    ci_half_width=1e9,
    warmup_s=0.0,
    cap_s=1.0,
    limit_s=1.0,
    first_call_limit_s=1.0,
)
PHASES = {"build", "first-call", "verify", "warm-up", "sample", "trace", "memory"}
HERE = Path(__file__).parent


def _install(site: Path) -> None:
    """What pip would leave behind: the module, its metadata and its entry points."""
    shutil.copy(HERE / "fakes.py", site / "attnbench_fakes.py")
    info = site / "attnbench_fakes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attnbench-fakes\nVersion: 1.0\n")
    names = ("exits", "segfaults", "sleeps", "dawdles", "raises", "refuses", "greedy", "chatty", "wrong")
    lines = [f"{name} = attnbench_fakes:{name}_mechanism" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[attnbench.mechanisms]", *lines, ""]))


@pytest.fixture(scope="module", autouse=True)
def _fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The misbehaving mechanisms, installed for this process and for the workers that it starts."""
    site = tmp_path_factory.mktemp("site")
    _install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")  # threads of parallel tests would wait for each other
        mechanisms.cache_clear()
        yield
    mechanisms.cache_clear()


def _case(mechanism: str, workload: str = "fwd", **changes: Any) -> Case:
    fields: dict[str, Any] = {"batch": 1, "heads": 2, "seq_len": 32, "head_dim": 16, "dtype": "fp32"}
    return Case(mechanism=mechanism, workload=Workload(workload), **{**fields, **changes})


HEALTHY = _case("linear-quadratic")


def _worker(folder: Path, *, protocol: Protocol = QUICK) -> SupervisedWorker:
    return SupervisedWorker(device="cpu", protocol=protocol, log=folder / "worker.log", run_id="run-1")


# ---------------------------------------------------------------- one worker, many cases


def test_a_case_measured_end_to_end(tmp_path: Path) -> None:
    supervisor = _worker(tmp_path, protocol=dataclasses.replace(QUICK, cap_s=600.0, limit_s=600.0))
    case = _case("lightning2", "fwd-bwd", batch=2, seq_len=200, head_dim=32, value_dim=48)
    with supervisor.running() as worker:
        worker.measure_ceilings()
        row = worker.row(case)
        checked = worker.row(case, verify_only=True)
        environment, ceilings = worker.environment, worker.ceilings
        assert worker._worker is not None
        process = worker._worker
    assert process._process.returncode is not None

    assert environment is not None
    assert environment["device_type"] == "cpu"
    assert environment["device"] == row["device"]
    assert {"torch", "triton", "flash-attn", "xformers"} <= set(environment["versions"])
    assert environment["versions"]["attnbench-fakes"] == "1.0"
    assert environment["cores"] >= 1
    assert environment["gpu"] is None
    assert ceilings is not None
    assert ceilings["copy_gbps"] > 0.1
    assert ceilings["matmul_tflops"]["fp32"] > 0
    assert 0 < ceilings["empty_call_ms"] < row["median_ms"]

    assert (row["status"], row["reason"]) == ("ok", None)
    assert row["case_id"] == case.case_id
    provider = find("lightning2").provider_for("cpu")
    assert isinstance(provider, Provider)
    assert row["provider"] == provider.label
    assert row["semantics"] == "decay-linear"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(row["started_at"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    assert len(row["samples_ms"]) >= QUICK.min_samples
    assert (
        min(row["samples_ms"]) <= row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] <= max(row["samples_ms"])
    )
    assert row["first_call_ms"] > 0
    seconds = row["median_ms"] * 1e-3
    flops, moved = useful_flops(case, cost="N"), minimal_bytes(case)
    assert row["tokens_per_s"] == pytest.approx(400 / seconds)
    assert row["tflops"] == pytest.approx(flops / seconds / 1e12)
    assert row["gbps"] == pytest.approx(moved / seconds / 1e9)
    bound_s = max(moved / (ceilings["copy_gbps"] * 1e9), flops / (ceilings["matmul_tflops"]["fp32"] * 1e12))
    assert row["roofline"] == pytest.approx(bound_s / seconds)
    assert row["state_bytes"] == 2 * 2 * 32 * 48 * 4
    assert row["saved_bytes"] == 2 * 2 * 200 * 48 * 4
    assert all(0 < row[f"rel_err_{name}"] <= TOLERANCES["fp32"] for name in ("o", "dq", "dk", "dv"))
    assert any(name.startswith("aten::") and "mm" in name for name in row["kernels"])
    assert row["config"] == '{"chunk": 128}'
    assert row["power_w"] is None  # a processor tells none of this
    assert row["throttle"] is None
    assert set(supervisor.phases_s) == PHASES
    assert list(row) == list(store.COLUMNS)

    assert checked["status"] == "ok"
    assert checked["samples_ms"] is None  # nothing was timed
    assert checked["rel_err_dv"] == row["rel_err_dv"]  # the same inputs, by seed and case


# what a mechanism does, and the status and words that the user gets; none of these ends the worker
SURVIVED = [
    ("raises", Status.ERROR, "ValueError: no tile fits"),
    ("refuses", Status.UNSUPPORTED, "NotImplementedError: not on this processor"),
    ("greedy", Status.OOM, "can't allocate memory"),
    ("dawdles", Status.TIMEOUT, "5 samples do not fit the case limit of 1 s"),
    ("wrong", Status.INCORRECT, "o is off by 1.00e+00"),
    ("sdpa-cudnn", Status.UNSUPPORTED, "no provider for cpu; it runs on cuda"),
    ("chatty", Status.OK, None),
]


def test_what_goes_wrong_inside_a_worker_is_a_row_with_a_reason(tmp_path: Path) -> None:
    with _worker(tmp_path).running() as worker:
        first = worker._worker
        for mechanism, status, reason in SURVIVED:
            row = worker.row(_case(mechanism))
            assert row["status"] == status, (mechanism, row["reason"])
            assert (reason is None) == (row["reason"] is None), (mechanism, row["reason"])
            assert (reason or "") in (row["reason"] or ""), mechanism
            assert (row["samples_ms"] is not None) == (status is Status.OK), mechanism
            assert row["mechanism"] == mechanism
            if row["status"] == "error":
                assert "second line" not in row["reason"]
        assert worker.row(HEALTHY, verify_only=True)["status"] == "ok"
        assert worker._worker is first
    log = (tmp_path / "worker.log").read_text()
    assert "not mine to send" in log  # what was printed is kept apart from the answers
    assert "raw bytes" in log


# ---------------------------------------------------------------- runs that lose their worker

Seen = list[str]


class Stop(BaseException):
    """As Ctrl-C: raised between two cases."""


def _open(path: Path, *, resume: bool = False) -> RunFolder:
    record = {"run_id": "run-1", "sweep": "s", "device": "cpu"}
    return open_run(path, record=record, resume=resume)


def _executor(folder: RunFolder) -> LocalExecutor:
    return LocalExecutor(folder=folder, workers=(_worker(folder.path),))


def test_a_run_survives_its_workers_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mechanism that exits, one that dies by a signal and one that hangs, each followed by a healthy one."""
    cases = [
        _case("exits"),
        _case("linear-quadratic", seq_len=16),
        _case("segfaults"),
        _case("linear-quadratic", seq_len=24),
        _case("sleeps", seq_len=32),
        _case("sleeps", seq_len=64),  # at least the work of one that hung
        _case(
            "sleeps", "bwd", seq_len=16, batch=1
        ),  # another workload: but not reached before the interruption
        _case("linear-quadratic", seq_len=32),
    ]
    folder = _open(tmp_path / "run")
    rows: dict[str, Row] = {}
    begun: Seen = []

    def started(case: Case) -> None:
        if case.workload is Workload.BWD:
            raise Stop
        begun.append(case.case_id)
        monkeypatch.setattr(supervised, "_GRACE_S", 1.0 if case.mechanism == "sleeps" else 120.0)

    def finished(row: Row) -> None:
        assert folder.shard(row["case_id"]).is_file()  # a case is safe before anybody hears of it
        assert folder.done() == set(begun)
        rows[row["case_id"]] = row

    executor = _executor(folder)
    with pytest.raises(Stop):
        executor.run(cases, started=started, finished=finished)

    by_case = [rows[case.case_id] for case in cases[:6]]
    assert [row["status"] for row in by_case] == ["crashed", "ok", "crashed", "ok", "timeout", "timeout"]
    exited, _, killed, _, hung, spared = by_case
    assert exited["reason"] == "the worker process ended with exit code 3; last output: about to leave"
    assert "signal SIGSEGV" in killed["reason"]
    assert hung["reason"] == "no answer within 3 s: the worker was ended"
    assert spared["reason"].startswith(
        "not attempted: batch 1, heads 2, seq_len 32 is no more work and was over the limit"
    )
    assert exited["device"] == by_case[1]["device"]
    assert exited["semantics"] == "decay-linear"
    assert exited["samples_ms"] is None

    effort = executor.folder.record["effort"]
    assert set(effort["phases_s"]) == PHASES | {"start"}
    assert 0 < sum(effort["phases_s"].values()) < effort["wall_s"]
    assert executor.folder.record["environment"]["device_type"] == "cpu"
    assert executor.folder.record["ceilings"]["copy_gbps"] > 0
    assert _open(tmp_path / "run", resume=True).record == executor.folder.record  # on disk too

    # resumed: nothing is repeated, and a hang of the first sitting still spares the heavier cases
    heavier = _case("sleeps", seq_len=128)
    remaining: Seen = []
    monkeypatch.setattr(supervised, "_GRACE_S", 120.0)
    resumed = _executor(_open(tmp_path / "run", resume=True))
    resumed.run(
        [*cases[:6], heavier, cases[7]],
        started=lambda case: remaining.append(case.case_id),
        finished=lambda row: rows.update({row["case_id"]: row}),
    )
    assert remaining == [heavier.case_id, cases[7].case_id]
    assert "not attempted: batch 1, heads 2, seq_len 32" in rows[heavier.case_id]["reason"]
    assert rows[cases[7].case_id]["status"] == "ok"
    assert resumed.folder.record["ceilings"] == executor.folder.record["ceilings"]  # measured once
    assert resumed.folder.record["effort"]["wall_s"] > effort["wall_s"]
    for phase, seconds in effort["phases_s"].items():
        assert resumed.folder.record["effort"]["phases_s"][phase] >= seconds

    # a third time there is nothing to do, and no worker starts for it
    monkeypatch.setattr(supervised, "WorkerProcess", _never)
    _executor(_open(tmp_path / "run", resume=True)).run(
        [cases[0], cases[7]], started=lambda case: pytest.fail("repeated"), finished=lambda row: None
    )

    table = store.read(resumed.folder.merge())
    assert sorted(table.column("case_id").to_pylist()) == sorted(rows)


def _never(**_: object) -> WorkerProcess:
    pytest.fail("a worker was started")


@pytest.mark.parametrize(
    ("batch", "seq_len", "changes", "spared"),
    [
        (2, 64, {}, True),
        (2, 128, {}, True),
        (4, 64, {}, True),
        (1, 128, {}, True),  # longer, and as many tokens
        (1, 64, {}, False),  # fewer tokens
        (4, 32, {}, False),  # shorter
        (2, 64, {"heads": 1}, False),  # fewer tokens over all heads
        (4, 64, {"heads": 1}, True),  # as many of them
        (1, 64, {"heads": 4}, True),
        (4, 32, {"heads": 4}, False),  # shorter
        (2, 64, {"heads": 4, "kv_heads": 1}, False),  # other heads to a key-value head
        (2, 64, {"workload": "bwd"}, False),
        (2, 64, {"dtype": "bf16"}, False),
        (2, 64, {"mechanism": "dawdles"}, False),
        # a decode works on the sequences and, with a cache, on their length, never on the product alone
        (2, 64, {"workload": "decode"}, True),
        (2, 128, {"workload": "decode"}, True),
        (4, 64, {"workload": "decode"}, True),
        (1, 128, {"workload": "decode"}, False),
        (4, 32, {"workload": "decode"}, False),
    ],
    ids=str,
)
def test_only_heavier_cases_of_a_timeout_are_spared(
    tmp_path: Path, batch: int, seq_len: int, changes: dict[str, Any], spared: bool
) -> None:
    folder = _open(tmp_path / "run")
    workload = "decode" if changes.get("workload") == "decode" else "fwd"
    slow = Measurement(
        case=_case("sleeps", workload, batch=2, seq_len=64), status=Status.TIMEOUT, reason="too slow"
    )
    measured: Seen = []

    class Fake(SupervisedWorker):
        def row(self, case: Case, *, verify_only: bool = False) -> Row:
            measured.append(case.case_id)
            if len(measured) == 1:
                return store.row(slow, run_id="run-1")
            return self.unmeasured(case, status=Status.ERROR, reason="a test's own")

    worker = Fake(device="cpu", protocol=QUICK, log=tmp_path / "log", run_id="run-1")
    executor = LocalExecutor(folder=folder, workers=(worker,))
    executor.book.keep(executor.row(worker, slow.case))
    case = _case(**{"mechanism": "sleeps", "batch": batch, "seq_len": seq_len, **changes})
    row = executor.row(worker, case)
    assert (len(measured) == 1) is spared
    assert (row["status"] == "timeout" and "not attempted" in row["reason"]) is spared


# ---------------------------------------------------------------- the parent's end, on processes of a few ms


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], WorkerProcess]:
    """A WorkerProcess whose process runs the given lines of Python in the worker's place."""
    import subprocess
    import sys

    real = subprocess.Popen

    def start(code: str) -> WorkerProcess:
        def popen(_: object, **options: Any) -> Any:
            hello = "import os, sys, time, json\nprint(json.dumps({'hello': {'device': 'd'}}), flush=True)\n"
            return real([sys.executable, "-S", "-c", hello + code], **options)

        monkeypatch.setattr(subprocess, "Popen", popen)
        return WorkerProcess(device="cpu", log=tmp_path / "worker.log")

    return start


Child = Callable[[str], WorkerProcess]


def test_an_answer_in_pieces_is_put_together(child: Child) -> None:
    worker = child(
        "sys.stdin.readline()\n"
        "for piece in ('{\"ro', 'w\": ', '1}\\n{\"row\": 2}\\n'):\n"
        "    print(piece, end='', flush=True)\n"
        "    time.sleep(0.05)\n"
        "sys.stdin.readline()\n"
    )
    assert worker.environment == {"device": "d"}
    assert worker.ask({}, limit_s=30) == {"row": 1}
    assert worker.ask({}, limit_s=30) == {"row": 2}
    worker.end()
    assert not worker.alive


def test_a_death_names_the_last_words_of_this_worker_only(child: Child, tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("words of an earlier worker\n")
    silent = child("sys.stdin.readline(); os._exit(7)")
    with pytest.raises(WorkerDiedError, match=r"^the worker process ended with exit code 7$"):
        silent.ask({}, limit_s=30)
    speaking = child(
        "sys.stdin.readline(); sys.stderr.write('first\\nlast\\n'); sys.stderr.flush(); os.kill(os.getpid(), 6)"
    )
    with pytest.raises(WorkerDiedError, match=r"ended with signal SIGABRT; last output: last$"):
        speaking.ask({}, limit_s=30)
    answering = child(
        "sys.stdin.readline(); sys.stderr.write('of the first\\n'); sys.stderr.flush(); print('{}', flush=True); "
        "sys.stdin.readline(); os._exit(3)"
    )
    assert answering.ask({}, limit_s=30) == {}
    with pytest.raises(WorkerDiedError, match=r"^the worker process ended with exit code 3$"):
        answering.ask({}, limit_s=30)


def test_asking_a_dead_worker_says_that_it_died(child: Child) -> None:
    worker = child("os._exit(5)")
    worker._process.wait()
    assert not worker.alive
    with pytest.raises(WorkerDiedError, match="exit code 5"):
        worker.ask({"measure": "x" * 100_000}, limit_s=30)


@pytest.mark.parametrize(
    ("then", "error"), [("time.sleep(60)", WorkerHungError), ("os._exit(1)", WorkerDiedError)]
)
def test_the_children_of_a_lost_worker_are_ended_with_it(
    child: Child, then: str, error: type[Exception]
) -> None:
    """A compiler's helpers, say: they would go on computing beside the next case."""
    worker = child(
        "import subprocess\n"
        "grandchild = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], stdout=2)\n"
        "sys.stdin.readline(); print(json.dumps({'pid': grandchild.pid}), flush=True)\n"
        f"sys.stdin.readline(); {then}\n"
    )
    pid = worker.ask({}, limit_s=30)["pid"]
    with pytest.raises(error):
        worker.ask({}, limit_s=0.5)
    assert not worker.alive
    assert _is_gone(pid)


def test_a_lost_worker_leaves_no_open_pipe(child: Child) -> None:
    worker = child("sys.stdin.readline(); os._exit(1)")
    pipes = (worker._process.stdin, worker._process.stdout)
    with pytest.raises(WorkerDiedError):
        worker.ask({}, limit_s=30)
    assert all(pipe is not None and pipe.closed for pipe in pipes)


def _is_gone(pid: int) -> bool:
    """Dead, if perhaps not yet collected by its new parent."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        threading.Event().wait(0.05)
    return False


def test_a_worker_that_does_not_let_go_is_killed(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.executors.worker_process._END_LIMIT_S", 0.2)
    worker = child("time.sleep(60)")
    worker.end()
    assert not worker.alive


def test_where_no_worker_starts_the_user_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(**_: object) -> WorkerProcess:
        raise WorkerDiedError("the worker process ended with exit code 1; last output: no torch")

    monkeypatch.setattr(supervised, "WorkerProcess", dead)
    with (
        pytest.raises(UserError, match=r"no worker process starts on cpu: .*no torch \(see .*worker\.log\)"),
        _worker(tmp_path).running(),
    ):
        pytest.fail("there is no worker")


def test_an_interrupted_block_leaves_no_worker_behind(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child("time.sleep(60)")
    monkeypatch.setattr(supervised, "WorkerProcess", lambda **_: process)
    with pytest.raises(Stop), _worker(tmp_path).running():
        raise Stop
    assert not process.alive
