"""What an engine's task or job does on its GPU: it measures a batch of cases and tells of each what came out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.case import Case, Protocol, Status
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.executors.spared import Overlong
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.measure.clock import now_s
from attnbench.mechanism_files import VARIABLE as MECHANISMS
from attnbench.places import name_of, place_name
from attnbench.store import SCHEMA_VERSION
from attnbench.version import __version__

Event = Mapping[str, Any]

# Of the sweep's own process, what a task on another machine must know too. Paths in them must be paths there.
_PASSED_ON = (MECHANISMS, "ATTNBENCH_CONFIGS")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Cases for one GPU, and what is needed to measure them elsewhere. All but `variables` is as of the sweep.

    device: the GPU model that they are bound to, None: none yet. ceilings: those that are known, by place.
    """

    cases: tuple[Case, ...]
    kind: str  # "cuda" or "cpu"
    protocol: Protocol
    run_id: str
    device: str | None = None
    ceilings: Mapping[str, Any] = field(default_factory=dict)
    overlong: tuple[Row, ...] = ()
    variables: Mapping[str, str] = field(
        default_factory=lambda: {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    )
    versions: tuple[str, int] = (__version__, SCHEMA_VERSION)


def measure_batch(batch: Batch, *, log: Path | None = None) -> Iterator[Event]:
    """Measure the cases in a worker process on the first GPU that this process may see.

    Events: {"place": environment, "ceilings"}, {"begun": case_id}, {"row"}, and {"phases_s", "worker_s"} at the end;
    or, in place of the first row, {"misplaced": device} for a GPU of another model than asked, or, in place of whatever
    else was to come, {"refused": sentence} where nothing can be measured, or nothing any more.
    """
    os.environ.update(batch.variables)
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-"))
            log = Path(folder) / "worker.log"
        try:
            yield from _events(batch, log=log, stack=stack)
        except UserError as error:
            yield {"refused": str(error)}


def _events(batch: Batch, *, log: Path, stack: contextlib.ExitStack) -> Iterator[Event]:
    here = (__version__, SCHEMA_VERSION)
    if batch.versions != here:
        raise UserError(
            f"attnbench {here[0]} (schema {here[1]}) is installed there, and the sweep is of {batch.versions[0]} "
            f"(schema {batch.versions[1]}): install the same"
        )
    lock = stack.enter_context(device_lock(batch.kind))
    worker = SupervisedWorker(
        device=batch.kind, protocol=batch.protocol, log=log, run_id=batch.run_id, lock=lock
    )
    begun = now_s()
    with worker.running():
        environment = worker.environment
        assert environment is not None
        device = environment["device"]
        if batch.device not in (None, device):
            yield {"misplaced": device}
            return
        worker.ceilings = batch.ceilings.get(name_of(environment))
        worker.measure_ceilings()
        worker.phases_s["start"] = now_s() - begun
        yield {"place": environment, "ceilings": worker.ceilings}
        overlong = Overlong(list(batch.overlong))
        for case in batch.cases:
            yield {"begun": case.case_id}
            reason = overlong.reason(case, device=device)
            if reason is None:
                row = worker.row(case)
                overlong.add(row)
            else:
                row = worker.unmeasured(case, status=Status.TIMEOUT, reason=reason)
            yield {"row": row}
        yield {"phases_s": worker.phases_s, "worker_s": now_s() - begun}


def lost_row(case: Case, *, batch: Batch, environment: Mapping[str, Any] | None, reason: str) -> Row:
    """The row of a case that was lost twice, by what is known of where it was last."""
    known = dict(environment) if environment else None
    worker = SupervisedWorker(
        device=batch.kind,
        protocol=batch.protocol,
        log=Path(os.devnull),
        run_id=batch.run_id,
        environment=known,
    )
    where = "" if known is None else f" (last on {place_name(known.get('node'), known.get('gpu_index'))})"
    return worker.unmeasured(case, status=Status.CRASHED, reason=f"lost twice: {reason}{where}")
