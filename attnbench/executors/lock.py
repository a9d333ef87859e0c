"""One sweep times on a device at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnbench.errors import UserError
from attnbench.measure.clock import now_s
from attnbench.measure.pretending import VISIBLE, pretended
from attnbench.measure.telemetry import gpu_id

# Where the locks lie; all users of a machine must share it for the lock to mean anything.
LOCK_FOLDER_VARIABLE = "ATTNBENCH_LOCK_DIR"


# A worker whose parent was killed lets go of the lock when the last of its threads has ended, a moment after it is
# gone from the list of processes: who resumes at once should not be refused for that.
_PATIENCE_S = 1.0


def _locked(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _path(device_id: str) -> Path:
    folder = Path(os.environ.get(LOCK_FOLDER_VARIABLE) or tempfile.gettempdir())
    return folder / f"attnbench-{re.sub(r'[^A-Za-z0-9.-]+', '-', device_id)}.lock"


def is_held(device_id: str) -> bool:
    """Is somebody timing on the device? Asking takes the lock for an instant, which a sweep that starts waits out."""
    try:
        descriptor = os.open(_path(device_id), os.O_RDONLY)
    except OSError:
        return False  # it was never taken, or is not for us to see
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def gpu_lock(kind: str) -> Iterator[int]:
    """Hold one GPU of this machine, the first that this process may see, for one of an engine's tasks.

    Others may hold the machine's other GPUs meanwhile, but nobody may hold `device_lock(kind)`, which is for all of
    them. On a processor without GPUs that is the lock. Yields a descriptor for the worker, as `device_lock` does.

    Raises UserError when somebody else holds the GPU, or all.
    """
    node = pretended() if kind == "cpu" else None
    if kind == "cpu" and node is None:
        with device_lock(kind) as descriptor:
            yield descriptor
        return
    own = os.environ.get(VISIBLE, "0").split(",")[0] or "0"
    name = gpu_id(own) if node is None else f"{node.node}-{own}"
    with device_lock(kind, shared=True), device_lock(f"{kind}-{name}") as descriptor:
        yield descriptor


@contextmanager
def device_lock(device_id: str, *, shared: bool = False) -> Iterator[int]:
    """Hold the lock of a device; yields the lock's file descriptor.

    A worker inherits the descriptor, so that the lock outlives a killed parent for as long as its worker runs.
    shared: with others who hold it so.

    Raises UserError when another sweep holds it.
    """
    path = _path(device_id)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(PermissionError):  # another user's, and open to all already
            os.fchmod(descriptor, 0o666)  # whatever the umask: other users must be able to ask
    except OSError as error:
        raise UserError(f"cannot open the device lock {path}: {error.strerror}") from error
    try:
        deadline = now_s() + _PATIENCE_S
        while not _locked(descriptor, shared=shared):
            if now_s() >= deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise UserError(
                    f"another attnbench (process {holder}) is timing on {device_id}; two at a time would disturb "
                    "each other: wait for it to end"
                )
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
