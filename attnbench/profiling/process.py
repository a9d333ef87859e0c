"""A child process with a time limit and a log, that is gone with all it started when the limit is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.executors.lock import Descriptors

_KILL_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended. code: None where the limit ended it."""

    code: int | None
    output: str

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""


def run(command: Sequence[str], *, log: Path, limit_s: float, inherit: Descriptors = ()) -> Ended:
    """Run a command to its end or to the limit; both its outputs go to `log`, and stay there.

    inherit: file descriptors that it keeps open, such as the device lock's. Raises OSError where it does not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the group
            pass_fds=inherit,
        )
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=limit_s)
        finally:
            _end(process)
    return Ended(code=code, output=log.read_text(encoding="utf-8", errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: what a process started may live on when it is gone itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_KILL_WAIT_S)
