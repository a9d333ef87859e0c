"""A worker that is there again when it dies: whatever happens to it, a case yields a row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.case import Case, Measurement, Protocol, Status
from attnbench.errors import UserError
from attnbench.executors import idle
from attnbench.executors.lock import Descriptors
from attnbench.executors.worker_process import (
    HERE,
    Interpreter,
    WorkerDiedError,
    WorkerHungError,
    WorkerProcess,
)
from attnbench.measure.clock import timestamp
from attnbench.registry import find

Row = Mapping[str, Any]

_CEILINGS_LIMIT_S = 120.0
_GRACE_S = 30.0  # on top of the limits a worker keeps by itself, before it is taken to hang


class NoWorkerError(Exception):
    """No worker starts any more where one did before, and others can go on: the device is lost."""


@dataclass
class SupervisedWorker:
    """Measures cases one by one in a worker process. One that dies or hangs costs its case; a fresh one goes on."""

    device: str  # "cuda" or "cpu"
    protocol: Protocol
    log: Path
    run_id: str
    lock: Descriptors = ()  # of the device, for the workers to inherit
    interpreter: Interpreter = HERE
    options: tuple[str, ...] = ()  # of the worker's messages: what of a measurement is wanted
    replaceable: bool = False  # others can go on with its cases where it cannot
    environment: dict[str, Any] | None = None
    ceilings: dict[str, Any] | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    _worker: WorkerProcess | None = None
    _running: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[SupervisedWorker]:
        """No worker is left behind: an idle one is let go, a busy one killed. Such a block within another does nothing.

        Raises UserError when no worker starts here at all.
        """
        if self._running:
            yield self
            return
        self._running = True
        try:
            self._ready()
            yield self
        except BaseException:
            if self._worker is not None:
                self._worker.kill()
            raise
        else:
            if self._worker is not None:
                idle.end(self._worker)
        finally:
            self._worker, self._running = None, False

    def measure_ceilings(self) -> None:
        """Measure the device's ceilings, once, for the rates of all later rows.

        Raises UserError when that fails.
        """
        if self.ceilings is None:
            try:
                self.ceilings = self._ready().ask({"ceilings": True}, limit_s=_CEILINGS_LIMIT_S)["ceilings"]
            except (WorkerDiedError, WorkerHungError) as error:
                raise UserError(f"the ceilings of {self.device} could not be measured: {error}") from error

    def row(self, case: Case, *, verify_only: bool = False) -> Row:
        """Measure a case (or only check its output); a dead or hanging worker becomes the row's status.

        Raises NoWorkerError where it is `replaceable`, else UserError, when a fresh worker does not start: the case is
        not at fault then, and has no row.
        """
        limit = self.protocol.first_call_limit_s + self.protocol.limit_s + _GRACE_S
        message = {
            "measure": _known(case.as_dict(), self.interpreter.case_fields),
            "protocol": _known(self.protocol.as_dict(), self.interpreter.protocol_fields),
            "ceilings": self.ceilings,
            "run_id": self.run_id,
            "verify_only": verify_only,
            **dict.fromkeys(self.options, True),
        }
        worker = self._again()
        try:
            answer = worker.ask(message, limit_s=limit)
        except WorkerDiedError as error:
            self._worker = None
            return self.unmeasured(case, status=Status.CRASHED, reason=str(error))
        except WorkerHungError as error:
            self._worker = None
            return self.unmeasured(case, status=Status.TIMEOUT, reason=f"{error}: the worker was ended")
        if answer["lost_device"]:
            worker.end()
            self._worker = None
        for phase, seconds in answer["phases_s"].items():
            self.phases_s[phase] = self.phases_s.get(phase, 0.0) + seconds
        row: Row = answer["row"]
        return row

    def unmeasured(self, case: Case, *, status: Status, reason: str) -> Row:
        """The row of a case that yielded no measurement."""
        known = self.environment or {}
        measurement = Measurement(
            case=case,
            status=status,
            reason=reason,
            semantics=find(case.mechanism).semantics,
            device=known.get("device"),
            node=known.get("node"),
            gpu_index=known.get("gpu_index"),
            started_at=timestamp(),
        )
        return store.row(measurement, run_id=self.run_id)

    def stop(self) -> None:
        """End a busy worker from another thread; the one that waits for its answer finds it dead."""
        worker = self._worker
        if worker is not None:
            worker.strike()

    def _again(self) -> WorkerProcess:
        try:
            return self._ready()
        except (WorkerDiedError, WorkerHungError) as error:
            if self.replaceable:
                raise NoWorkerError(f"no worker process starts any more: {error}") from error
            raise UserError(
                f"no worker process starts on {self.device} any more: {error} (see {self.log}); what was measured is "
                "kept, and the rest is open"
            ) from error

    def _ready(self) -> WorkerProcess:
        """The worker at hand, or a new one; the first one also tells the environment."""
        if self._worker is None or not self._worker.alive:
            try:
                self._worker = idle.worker(
                    WorkerProcess,
                    device=self.device,
                    log=self.log,
                    inherit=self.lock,
                    interpreter=self.interpreter,
                )
            except (WorkerDiedError, WorkerHungError) as error:
                if self.environment is None:
                    raise UserError(
                        f"no worker process starts on {self.device}: {error} (see {self.log})"
                    ) from error
                raise
            if self.environment is None:
                self.environment = self._worker.environment
        return self._worker


def _known(values: Mapping[str, Any], fields: frozenset[str] | None) -> dict[str, Any]:
    """The fields that the worker's code has a name for."""
    return {name: value for name, value in values.items() if fields is None or name in fields}
