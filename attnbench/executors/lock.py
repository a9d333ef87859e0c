"""Nobody disturbs who times: a lock for each GPU of a machine, and one for each run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from attnbench.errors import UserError
from attnbench.measure.clock import now_s
from attnbench.measure.gpus import visible_gpus
from attnbench.words import joined

# Where the locks lie; all users of a machine must share it for the lock to mean anything.
LOCK_FOLDER_VARIABLE = "ATTNBENCH_LOCK_DIR"

# Of the locks' files, for workers to inherit: a lock is held for as long as one of those who have it open lives.
Descriptors = tuple[int, ...]

# A worker whose parent was killed lets go of the lock when the last of its threads has ended, a moment after it is
# gone from the list of processes: who resumes at once should not be refused for that.
_PATIENCE_S = 1.0
_LOOK_S = 0.02


@contextmanager
def device_lock(kind: str, *, index: int | None = None) -> Iterator[Descriptors]:
    """Hold the GPUs that this process may see, or the one at `index` among them; without GPUs all of `kind`.

    kind: "cuda" or "cpu". Two processes that see different GPUs hold them at the same time. Workers inherit the
    descriptors, so that the locks outlive a killed parent for as long as a worker runs.

    Raises UserError when another process holds one of them.
    """
    gpus = visible_gpus(kind)
    wanted = gpus if index is None else gpus[index : index + 1]
    choose = ", or choose other GPUs by CUDA_VISIBLE_DEVICES" if wanted else ""
    with _held(
        {_path(gpu.identity): gpu.label for gpu in wanted} or {_path(kind): kind},
        doing="timing on",
        advice=f"two at a time would disturb each other: wait for it to end{choose}",
    ) as descriptors:
        yield descriptors


@contextmanager
def run_lock(run_id: str) -> Iterator[None]:
    """Hold a run while its cases are measured, here or elsewhere: `run_is_held` tells others of it.

    Raises UserError when another process of this machine measures it.
    """
    path = _run_path(run_id)
    with _held({path: f"the run {run_id}"}, doing="measuring", advice="wait for it to end"):
        try:
            yield
        finally:  # runs are many; no worker inherits this lock, so that it is free once its file is gone
            path.unlink(missing_ok=True)


def run_is_held(run_id: str) -> bool:
    """Does a process of this machine measure the run?"""
    return _is_held(_run_path(run_id))


# ------------------------------------------------------------------------------------------------------------


@contextmanager
def _held(wanted: Mapping[Path, str], *, doing: str, advice: str) -> Iterator[Descriptors]:
    """Hold all of these locks, told of by their names, or none of them."""
    deadline = now_s() + _PATIENCE_S
    while (descriptors := _taken(sorted(wanted))) is None:
        holders = _holders(wanted) if now_s() >= deadline else ()
        if holders:
            raise UserError(f"another attnbench is {doing} {', '.join(holders)}; {advice}")
        time.sleep(_LOOK_S)
    try:
        for descriptor in descriptors:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _taken(paths: Sequence[Path]) -> Descriptors | None:
    """All of the locks; None, and none of them, where somebody holds one.

    Everybody asks in one order and lets go of all at the first that is not free, so that nobody waits with a lock in
    hand: of those who want overlapping sets the one that is furthest in the order is stopped by no other.
    """
    descriptors: list[int] = []
    with contextlib.ExitStack() as stack:
        for path in paths:
            descriptor = _opened(path)
            stack.callback(os.close, descriptor)
            if not _locked(descriptor) or not _is_at(descriptor, path):
                return None
            descriptors.append(descriptor)
        stack.pop_all()
    return tuple(descriptors)


def _opened(path: Path) -> int:
    """A descriptor of the file, which is made where it is missing.

    Not by O_CREAT at once: in a folder such as /tmp, Linux refuses that for a file of another user that is there.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):  # another user was quicker to make it, and open to all
            os.fchmod(descriptor, 0o666)  # whatever the umask: other users must be able to ask
    except OSError as error:
        raise UserError(f"cannot open the lock {path}: {error.strerror}") from error
    return descriptor


def _locked(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Is it still the file of that name? One that was removed meanwhile locks nobody else out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    """Asking takes the lock for an instant, which who wants it waits out."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # it was never taken, or is not for us to see
    try:
        return not _locked(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _holders(wanted: Mapping[Path, str]) -> list[str]:
    """`GPU 0 and GPU 1 (process 1234)` for each process that holds some of the locks."""
    found: dict[str, list[str]] = {}
    for path, name in wanted.items():
        if _is_held(path):
            found.setdefault(_holder(path), []).append(name)
    return [f"{joined(names)} ({holder})" for holder, names in found.items()]


def _holder(path: Path) -> str:
    """The process that took the lock, in words; its workers may still hold it when it is gone."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    if not text.isdigit():
        return "unknown process"
    return f"process {text}" if psutil.pid_exists(int(text)) else f"a worker of process {text}, which is gone"


def _path(name: str) -> Path:
    folder = Path(os.environ.get(LOCK_FOLDER_VARIABLE) or tempfile.gettempdir())
    return folder / f"attnbench-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.lock"


def _run_path(run_id: str) -> Path:
    return _path(f"run-{run_id}")
