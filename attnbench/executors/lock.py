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

# Where the locks lie; all users of a machine must share it for the lock to mean anything.
LOCK_FOLDER_VARIABLE = "ATTNBENCH_LOCK_DIR"


# A worker whose parent was killed lets go of the lock when the last of its threads has ended, a moment after it is
# gone from the list of processes: who resumes at once should not be refused for that.
_PATIENCE_S = 1.0


def _locked(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
def device_lock(device_id: str) -> Iterator[int]:
    """Hold the lock of a device; yields the lock's file descriptor.

    A worker inherits the descriptor, so that the lock outlives a killed parent for as long as its worker runs.

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
        while not _locked(descriptor):
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
