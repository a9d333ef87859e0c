"""Who times on a GPU is alone on it, beside others on other GPUs; and a run has one sweep at work on it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from attnbench.errors import UserError
from attnbench.executors import lock
from attnbench.executors.lock import LOCK_FOLDER_VARIABLE, device_lock, run_is_held, run_lock
from attnbench.executors.run_folder import open_run
from attnbench.measure import gpus
from attnbench.measure.gpus import visible_gpus
from attnbench.measure.pretending import VARIABLE, VISIBLE
from attnbench.sweeping import new_record
from tests.executors.sweeps import run, tiny


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs, where nobody waits for a lock."""
    monkeypatch.setenv(VARIABLE, "a:H200,H200,H200")
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)


@contextlib.contextmanager
def _seeing(visible: str | None) -> Iterator[None]:
    """Hold what a process holds that is started with this `CUDA_VISIBLE_DEVICES`."""
    with pytest.MonkeyPatch.context() as patch:
        if visible is None:
            patch.delenv(VISIBLE, raising=False)
        else:
            patch.setenv(VISIBLE, visible)
        held = device_lock("cpu")
        descriptors = held.__enter__()
    try:
        assert len(descriptors) == (3 if visible is None else len(visible.split(",")))
        yield
    finally:
        held.__exit__(None, None, None)


def _refusal(visible: str | None) -> str | None:
    """What a process is told that is started with this `CUDA_VISIBLE_DEVICES`; None: it is let in."""
    try:
        with _seeing(visible):
            return None
    except UserError as error:
        return str(error)


def _free(kind: str = "cpu") -> bool:
    try:
        with device_lock(kind):
            return True
    except UserError:
        return False


SETS = [
    ",".join(order)
    for size in (1, 2, 3)
    for chosen in itertools.combinations("012", size)
    for order in sorted({chosen, chosen[::-1]})
]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("ours", [*SETS, None])
def test_a_process_holds_what_it_sees_and_nothing_else(ours: str | None) -> None:
    """Against every other set of three GPUs, in every order, and against all of them."""
    own = set(ours.split(",") if ours else "012")
    with _seeing(ours):
        for theirs in [*SETS, None]:
            common = own & set(theirs.split(",") if theirs else "012")
            said = _refusal(theirs)
            assert (said is not None) is bool(common), theirs
            for name in "012":
                assert (f"GPU {name}" in (said or "")) is (name in common)
    assert _refusal(None) is None


@pytest.mark.usefixtures("three")
def test_a_refusal_names_the_gpus_and_who_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with _seeing("0,2"):
        assert _refusal(None) == (
            f"another attnbench is timing on GPU 0 and GPU 2 (process {os.getpid()}); two at a time would disturb each "
            "other: wait for it to end, or choose other GPUs by CUDA_VISIBLE_DEVICES"
        )
        with _seeing("1"):
            (path,) = Path(os.environ[LOCK_FOLDER_VARIABLE]).glob("attnbench-a-1.lock")
            path.write_text("1\n")  # of another process
            assert f"GPU 0 and GPU 2 (process {os.getpid()}), GPU 1 (process 1);" in str(_refusal(None))
    monkeypatch.setenv(VARIABLE, "b:H200")
    with _seeing("0"):
        monkeypatch.setenv(VARIABLE, "a:H200,H200,H200")
        assert _refusal("0") is None  # of another node


@pytest.mark.usefixtures("three")
def test_a_rank_holds_its_own_gpu() -> None:
    with device_lock("cpu", index=1), device_lock("cpu", index=2):
        assert _refusal("0") is None
        assert "GPU 1 and GPU 2" in str(_refusal(None))


def test_without_gpus_the_processor_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    monkeypatch.setenv(VISIBLE, "0")  # says nothing of processors
    with device_lock("cpu"):
        with pytest.raises(UserError, match=r"disturb each other: wait for it to end$"), device_lock("cpu"):
            pytest.fail("two hold the lock")
        assert _free("cuda")


def test_who_waits_holds_nothing_and_everybody_gets_through(tmp_path: Path) -> None:
    """Eight threads take overlapping sets of four locks; on none of them are two at a time."""
    paths = [tmp_path / f"{number}.lock" for number in range(4)]
    inside = dict.fromkeys(paths, 0)
    faults: list[str] = []

    def take(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            wanted = rng.sample(paths, rng.randint(1, 4))
            try:
                with lock._held(dict.fromkeys(wanted, "it"), doing="at", advice=""):
                    for path in wanted:
                        inside[path] += 1
                    faults.extend(f"{inside[path]} at once" for path in wanted if inside[path] > 1)
                    threading.Event().wait(0.001)
                    for path in wanted:
                        inside[path] -= 1
            except UserError as error:
                faults.append(str(error))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_PATIENCE_S", 20.0)
        patch.setattr(lock, "_LOOK_S", 0.001)
        threads = [threading.Thread(target=take, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []


@pytest.mark.usefixtures("three")
def test_everybody_asks_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two that want the same two could each stop at what the other has, again and again."""
    asked: list[str] = []
    opened = lock._opened
    monkeypatch.setattr(lock, "_opened", lambda path: asked.append(path.name) or opened(path))  # type: ignore[func-returns-value]
    with _seeing("2,0,1"):
        assert asked == [f"attnbench-a-{number}.lock" for number in range(3)]


_HOLDING = """
import subprocess, sys
from attnbench.executors.lock import device_lock
with device_lock("cpu") as descriptors:
    worker = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=descriptors)
    print(worker.pid, flush=True)
    input()
"""


@pytest.mark.usefixtures("three")
def test_the_worker_of_a_killed_parent_keeps_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker has both, and nobody is told to wait for a process that is gone."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDING.replace("stdin=subprocess.PIPE, ", "")],
        env={**os.environ, VISIBLE: "2,1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        worker = int(parent.stdout.readline())
        assert f"(process {parent.pid})" in str(_refusal("1"))
        parent.kill()
        parent.wait()
        for name in "12":
            assert f"GPU {name} (a worker of process {parent.pid}, which is gone)" in str(_refusal(name))
        assert _refusal("0") is None
        monkeypatch.setattr(lock, "_PATIENCE_S", 10.0)  # until the kernel has closed its files
        os.kill(worker, 9)
        assert _refusal(None) is None


def test_the_lock_is_free_after_its_block_even_after_an_error() -> None:
    with contextlib.suppress(ZeroDivisionError), device_lock("cpu"):
        raise ZeroDivisionError
    assert _free()


def test_a_lock_folder_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"cannot open the lock .*: No such file"), device_lock("cpu"):
        pytest.fail("there is no lock to hold")


def test_other_users_may_ask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with device_lock("cpu"):
            (path,) = tmp_path.glob("*.lock")
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.umask(before)


# ---------------------------------------------------------------- runs


def test_a_run_is_held_by_one_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    assert not run_is_held("my sweep/1")
    with run_lock("my sweep/1"):
        assert [path.name for path in tmp_path.iterdir()] == ["attnbench-run-my-sweep-1.lock"]
        assert run_is_held("my sweep/1")
        assert run_is_held("my sweep/1")  # to ask leaves it as it was
        with run_lock("2"):
            assert _free()
        with pytest.raises(UserError, match=r"is measuring the run my sweep/1 \(process \d+\); wait for it"):
            run_lock("my sweep/1").__enter__()
    assert not run_is_held("my sweep/1")
    assert list(tmp_path.glob("attnbench-run*")) == []


def test_a_file_that_is_gone_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened it before it was removed, and then finds it free, has a lock that nobody else will see."""
    path = tmp_path / "x.lock"
    others, locked = [True, False], lock._locked

    def removed_before(descriptor: int) -> bool:
        """The holder before ends a run, and another one begins."""
        path.unlink()
        if others.pop():
            path.touch()
        return locked(descriptor)

    monkeypatch.setattr(lock, "_locked", removed_before)
    assert lock._taken([path]) is None
    assert lock._taken([path]) is None
    monkeypatch.setattr(lock, "_locked", locked)
    taken = lock._taken([path])
    assert taken is not None
    assert os.path.samestat(os.fstat(taken[0]), path.stat())
    os.close(taken[0])


def test_a_run_that_is_measured_is_not_resumed_on_other_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    sweep = tiny(tmp_path)
    folder = open_run(tmp_path / "run", record=new_record(sweep, command=[]), resume=False)
    with run_lock(folder.run_id), pytest.raises(UserError, match=rf"measuring the run {folder.run_id} \("):
        run(sweep, folder.path, resume=True)
    assert folder.done() == set()
    assert _free()


# ---------------------------------------------------------------- what a process sees

IDS = [uuid.UUID(int=number) for number in (1, 2, 3)]

_STUB = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 2; return 0; }
int cuDeviceGetUuid_v2(void *id, int device) { memset(id, 0, 16); ((char *)id)[15] = device; return 0; }
"""


def _driver(folder: Path, *, init: int) -> Path:
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler to make a driver with")
    (folder / "driver.c").write_text(_STUB)
    made = folder / f"driver{init}.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", made, folder / "driver.c"], check=True
    )
    return made


def test_the_driver_is_asked_for_uuids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVER", str(_driver(tmp_path, init=0)))
    assert gpus._uuids() == (str(IDS[1]), str(IDS[2]))
    monkeypatch.setattr(gpus, "_DRIVER", str(_driver(tmp_path, init=100)))  # CUDA_ERROR_NO_DEVICE
    assert gpus._uuids() == ()


@pytest.mark.parametrize(
    ("visible", "names", "seen"),
    [
        (None, ["0", "1", "2"], [0, 1, 2]),
        ("", ["0", "1", "2"], [0, 1, 2]),  # as where a launcher sets it and means nothing by it
        ("2", ["2"], [2]),
        ("1, 0", ["1", "0"], [1, 0]),
        ("GPU-0000,GPU-1111", ["GPU-0000", "GPU-1111"], [0, 2]),
        ("MIG-8a2f", ["MIG-8a2f"], [1]),
        ("1,-1,0", ["1"], [1]),  # what follows an unknown name does not count
    ],
    ids=str,
)
def test_gpus_are_known_by_what_the_driver_calls_them(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: Sequence[str], seen: Sequence[int]
) -> None:
    monkeypatch.setattr(gpus, "_uuids", lambda: tuple(str(IDS[number]) for number in seen))
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    found = visible_gpus("cuda")
    assert [gpu.name for gpu in found] == names
    assert [gpu.identity for gpu in found] == [f"GPU-{IDS[number]}" for number in seen]


def test_one_gpu_is_one_by_whatever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number, and by its UUID in a job that counts from 0."""
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(gpus, "_uuids", lambda: (str(IDS[1]),))
    monkeypatch.setenv(VISIBLE, "1")
    with device_lock("cuda"):
        monkeypatch.setenv(VISIBLE, f"GPU-{IDS[1]}")
        with pytest.raises(UserError, match=rf"timing on GPU-{IDS[1]} \("), device_lock("cuda"):
            pytest.fail("two on one GPU")
        monkeypatch.setattr(gpus, "_uuids", lambda: (str(IDS[0]),))
        assert _free("cuda")


@pytest.mark.parametrize("visible", ["3", "", "0,x"])
@pytest.mark.usefixtures("three")
def test_gpus_that_are_not_pretended_are_one_sentence(visible: str) -> None:
    assert "pretends 3 GPUs, from 0 on" in str(_refusal(visible))


@pytest.mark.gpu
def test_the_driver_and_torch_see_the_same_gpus() -> None:
    seen = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
    assert [gpu.identity for gpu in visible_gpus("cuda")] == [f"GPU-{known}" for known in seen]
