"""One sweep from its cases to its merged Parquet: the run's record, the locks, the executor, the merge."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from attnbench.case import Case
from attnbench.errors import UserError
from attnbench.executors.engines import LOCAL, Engine, ready
from attnbench.executors.lock import run_lock
from attnbench.executors.run_folder import RunFolder, open_run
from attnbench.progress import Ticker, ticking
from attnbench.store import SCHEMA_VERSION, load_results
from attnbench.sweeps.sweep import Sweep
from attnbench.version import __version__


class InterruptedSweepError(Exception):
    """Ctrl-C: what was measured is on disk."""

    def __init__(self, *, done: int, total: int | None, path: Path) -> None:
        self.path = path
        of = "" if total is None else f" of {total}"
        super().__init__(f"stopped: {done}{of} cases are measured and safe in {path}")

    def how_to_go_on(self, arguments: Sequence[str], *, named: bool) -> str:
        """What was kept, and the command that goes on with it. named: the arguments name the folder."""
        same = [each for each in arguments if each != "--resume"] + ([] if named else ["-o", str(self.path)])
        return f"{self}\nGo on with: attnbench {shlex.join(same)} --resume"


@dataclass(frozen=True, kw_only=True)
class Further:
    """Cases to measure next, in view of what was found; `left`: about how many there will be, with these."""

    cases: Sequence[Case]
    left: int


Refine = Callable[[pd.DataFrame], Further]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a finished sweep lies, and what it took."""

    folder: RunFolder
    results: Path
    effort: dict[str, Any] | None
    left: int = (
        0  # cases without a row: it was enough before them, or no GPU of their model was there any more
    )
    notes: tuple[str, ...] = ()  # what happened on the way, in sentences

    @property
    def measuring_share(self) -> float | None:
        """Share of the workers' wall time that went to warm-up and samples; None when nothing was measured."""
        if self.effort is None:
            return None
        wall_s = self.effort.get("worker_s", self.effort["wall_s"])  # of all workers together
        phases = self.effort["phases_s"]
        measuring = phases.get("warm-up", 0.0) + phases.get("sample", 0.0)
        return float(measuring / wall_s) if wall_s else None

    def sentences(self) -> list[str]:
        """Where the results are, and what they took."""
        said = [f"Results: {self.results}"]
        if self.effort is not None and self.measuring_share is not None:
            share = f"{self.measuring_share:.0%} of it warm-up and samples"
            said.append(f"Wall time: {self.effort['wall_s']:.0f} s, {share}.")
        return said


def run_sweep(
    sweep: Sweep,
    cases: Sequence[Case],
    *,
    path: Path,
    resume: bool,
    command: Sequence[str],
    console: Console,
    enough: Callable[[], bool] = lambda: False,
    refine: Refine | None = None,
    engine: Engine = LOCAL,
) -> Outcome:
    """Measure a sweep's cases into the run folder `path`.

    enough: asked before each case whether to stop there; of an engine other than the local one, once at the beginning.
    refine: asked for further cases with the results so far, until it has none; the worker stays the same. On one
    device, whose results decide what is measured next.

    Raises UserError for a folder that holds something else, a busy device, a machine where no worker starts, or an
    engine that is not there; InterruptedSweepError on Ctrl-C.
    """
    if not cases:
        raise UserError(f"the sweep {sweep.name} has no cases")
    with contextlib.ExitStack() as stack:
        # Before the folder: a command that is refused leaves none behind.
        used = replace(engine, gpus=1) if refine else engine
        make = stack.enter_context(ready(used, kind=sweep.device, protocol=sweep.protocol))
        record = {
            **new_record(sweep, command=command),
            **({} if engine == LOCAL else {"executor": engine.as_dict()}),
            **({"refining": True} if refine else {}),
        }
        folder = open_run(path, record=record, resume=resume)
        stack.enter_context(run_lock(folder.run_id))
        missing = len(cases) - len(folder.done() & {c.case_id for c in cases})
        executor = make(folder)
        try:
            with ticking(console, total=missing) as ticker:
                asked = _until(enough, _asked(cases, refine=refine, folder=folder, ticker=ticker))
                executor.run(asked, started=ticker.started, finished=ticker.finished)
        except KeyboardInterrupt:
            total = None if refine else len(cases)
            raise InterruptedSweepError(done=len(folder.done()), total=total, path=path) from None
    folder = executor.folder.with_record(refining=False) if refine else executor.folder
    left = len({c.case_id for c in cases} - folder.done())
    results = folder.merge() if folder.done() else folder.merged  # it may have been enough before the first
    return Outcome(
        folder=folder,
        results=results,
        effort=folder.record.get("effort"),
        left=left,
        notes=tuple(executor.notes),
    )


def _until(enough: Callable[[], bool], cases: Iterable[Case]) -> Iterator[Case]:
    """The cases one by one, as long as it is not enough."""
    for case in cases:
        if enough():
            return
        yield case


def _asked(
    cases: Sequence[Case], *, refine: Refine | None, folder: RunFolder, ticker: Ticker
) -> Iterator[Case]:
    yield from cases
    asked = {case.case_id for case in cases}
    while refine is not None:
        further = refine(load_results(folder.path))
        new = [case for case in further.cases if case.case_id not in asked]
        if not new:  # what has no row on the device of its comparison gets none by being asked for again
            return
        asked |= {case.case_id for case in new}
        ticker.expect(max(further.left, len(new)))
        yield from new


def folder_of(name: str, *, out: Path | None, resume: bool) -> Path:
    """Where a run goes: `out`, or `runs/<name>-<date>-<time>` below the current folder.

    Raises UserError for a run that is to be resumed and not named.
    """
    if resume and out is None:
        raise UserError("--resume needs --out: the folder of the run to go on with")
    return out or Path("runs") / f"{name}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"


def new_record(sweep: Sweep, *, command: Sequence[str]) -> dict[str, Any]:
    """The record of a run that begins now: its name, what was asked, and how it is measured."""
    now = datetime.datetime.now(datetime.UTC)
    asked = sweep.as_dict()
    return {
        "run_id": f"{sweep.name}-{now.strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(3)}",
        "schema_version": SCHEMA_VERSION,
        "attnbench": __version__,
        "created_at": now.isoformat(timespec="seconds"),
        "command": list(command),
        "device": sweep.device,
        "sweep": asked,
        "protocol": asked["protocol"],
        "environment": None,  # the first worker tells it
        "ceilings": None,
    }
