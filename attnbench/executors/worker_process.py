"""The parent's end of a worker process: start it, ask it, notice when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from attnbench.executors.lock import Descriptors
from attnbench.measure.clock import now_s

_START_LIMIT_S = 180.0
_END_LIMIT_S = 2.0


class WorkerDiedError(Exception):
    """The worker ended without an answer; the text says how, with the last thing it printed."""


class WorkerHungError(Exception):
    """The worker gave no answer within the deadline and was killed."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """The Python that a worker runs in, and with it the code that it measures.

    command: the executable and its flags. variables: of the environment, over those of this process.
    case_fields, protocol_fields: those that its `Case` and `Protocol` know; None: as here.
    """

    command: tuple[str, ...] = (sys.executable,)
    variables: Mapping[str, str] = field(default_factory=dict)
    case_fields: frozenset[str] | None = None
    protocol_fields: frozenset[str] | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables of its processes."""
        return {**os.environ, **self.variables}


HERE = Interpreter()


class WorkerProcess:
    """One worker. It sits in a session of its own, so that Ctrl-C reaches the parent alone."""

    def __init__(
        self,
        *,
        device: str,
        log: Path,
        inherit: Descriptors = (),
        interpreter: Interpreter = HERE,
        module: str = "attnbench.measure.worker",  # what serves in it: a caller of `attnbench.measure.worker.serve`
    ) -> None:
        self._log = log
        self._pending = b""
        with log.open("ab") as stderr:
            self._log_start = stderr.tell()
            self._process = subprocess.Popen(
                [*interpreter.command, "-m", module, device],
                env=interpreter.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                pass_fds=inherit,
            )
        try:
            self.environment: dict[str, Any] = self._answer(limit_s=_START_LIMIT_S)["hello"]
        except BaseException:  # Ctrl-C while it starts: nobody else knows of it yet
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Send one message and wait for its answer.

        Raises WorkerDiedError or WorkerHungError; the worker is gone after either.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error
        answer = self._answer(limit_s=limit_s)
        self._log_start = self._log.stat().st_size  # what stands there belongs to requests that were answered
        return answer

    def end(self) -> None:
        """Let an idle worker go; kill it if it does not."""
        _close(self._process.stdin)
        try:
            self._process.wait(timeout=_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _close(self._process.stdout)

    def strike(self) -> None:
        """Send it, and whatever it started, the signal that ends it; `ask` then finds it dead."""
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, and whatever it started."""
        self.strike()
        self._process.wait()
        _close(self._process.stdin)
        _close(self._process.stdout)

    def _answer(self, *, limit_s: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = now_s() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = deadline - now_s()
                if left <= 0 or not selector.select(timeout=left):
                    self.kill()
                    raise WorkerHungError(f"no answer within {limit_s:.0f} s")
                piece = os.read(stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._death()
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> WorkerDiedError:
        code = self._process.wait()
        self.kill()  # what it started may live on
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = self._last_words()
        return WorkerDiedError(
            f"the worker process ended with {how}" + (f"; last output: {last}" if last else "")
        )

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""


def _close(pipe: IO[bytes] | None) -> None:
    """Close an end of a pipe, even with bytes in it that a worker will not take any more."""
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
