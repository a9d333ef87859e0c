"""What a gate measures with: the cases of a sweep, trees, the lock of the device and a folder; or recorded runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.case import Case
from attnbench.catalogue import BUILT_IN
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.gate import trees
from attnbench.gate.measuring import Gate
from attnbench.gate.processes import FreshProcesses, RecordedProcesses, Source, recorded
from attnbench.gate.telling import Teller
from attnbench.gate.trees import Tree
from attnbench.measure.gpus import device_kind
from attnbench.sweeping import folder_of
from attnbench.sweeps.layers import Overrides
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Device, Sweep
from attnbench.words import joined


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a sweep or a part of it, on a device, into a folder; or what was recorded of it."""

    sweep: str
    mechanism: Sequence[str] | None = None
    workload: Sequence[str] | None = None
    cases: Sequence[str] = ()  # patterns of case_ids
    device: str = "auto"
    replay: Sequence[Path] = ()
    runs: Path | None = None

    @property
    def narrowed(self) -> bool:
        """Is it a part of the sweep?"""
        return bool(self.mechanism or self.workload or self.cases)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a gate is set.

    record: as a run's record, its environment and protocol. notices: what is worth saying of the set-up. folder: of
    what is measured; None for a replay.
    """

    sweep: Sweep
    cases: Sequence[Case]
    source: Source
    record: Mapping[str, Any]
    notices: Sequence[str]
    folder: Path | None

    @property
    def device(self) -> str:
        return str((self.record.get("environment") or {}).get("device") or "unknown device")

    @property
    def results(self) -> Path | None:
        return None if self.folder is None else self.folder / "results.parquet"

    @contextlib.contextmanager
    def kept(self, gate: Gate) -> Iterator[None]:
        """However the measuring ends, what was measured is one file then."""
        try:
            yield
        except KeyboardInterrupt:
            gate.tell(
                "stopped" + ("" if self.folder is None else f"; what was measured lies in {self.folder}")
            )
            raise
        finally:
            if self.results is not None and gate.measured:
                store.write(store.merge(gate.tables().values()), self.results)


@contextlib.contextmanager
def staged(
    subject: Subject,
    *,
    name: str,
    revisions: Mapping[str, str | None],
    install: bool = False,
    command: Sequence[str],
    teller: Teller,
) -> Iterator[Stage]:
    """Set up what measures the sides until the end of the block.

    name: of the command, for the folder's name. revisions: of each side; None: the working tree. install: revisions get
    the libraries that they declare.

    Raises UserError for a sweep or pattern that yields no case, a folder that is there already, a busy device, a
    revision that is not there, does not build, or knows none of the cases, and recordings that do not fit.
    """
    if subject.replay:
        if subject.runs is not None:
            raise UserError("--replay measures nothing, so there are no --runs to keep")
        yield _replayed(subject, revisions=revisions)
        return
    kind = device_kind(subject.device)
    sweep = _load(subject, kind)
    cases = _selected(sweep, subject.cases)
    if any(revisions.values()):
        _need_own(cases)
    folder = folder_of(f"{name}-{sweep.name}", out=subject.runs, resume=False)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the folder {folder} is there already; choose another with --runs")
    with ExitStack() as stack:
        lock = stack.enter_context(device_lock(kind))
        here = trees.working_tree(device=kind)
        found: dict[str, Tree] = {}
        notices: list[str] = []
        for side, revision in revisions.items():
            if revision is None:
                found[side] = here
                continue
            teller.say(f"setting up the revision {revision}")
            notices += trees.oddities(revision)
            found[side] = stack.enter_context(trees.revision(revision, device=kind, install=install))
            if not any(found[side].knows(case) for case in cases):
                raise UserError(f"the revision {revision} knows none of the mechanisms of {sweep.name}")
        stack.enter_context(teller)
        yield Stage(
            sweep=sweep,
            cases=cases,
            source=FreshProcesses(
                sweep=sweep, folder=folder, trees=found, command=command, lock=lock, teller=teller
            ),
            record={"environment": here.environment, "protocol": sweep.as_dict()["protocol"]},
            notices=(*notices, *_clocks(here.environment)),
            folder=folder,
        )


# ------------------------------------------------------------------------------------------------------------


def _need_own(cases: Sequence[Case]) -> None:
    """A revision is one of attnbench: what is registered from elsewhere would be the same on both sides, and the gate
    always green."""
    own = {mechanism.name for mechanism in BUILT_IN}
    foreign = sorted({case.mechanism for case in cases if case.mechanism not in own})
    if foreign:
        raise UserError(
            f"a revision is one of attnbench, and {joined(foreign)} {'is' if len(foreign) == 1 else 'are'} registered "
            "from elsewhere: both sides would measure the same code. Store a baseline with `attnbench check SWEEP "
            "--update --baseline FILE` before the change, and check against it"
        )


def _replayed(subject: Subject, *, revisions: Mapping[str, str | None]) -> Stage:
    working_tree_alone = not any(revisions.values())
    source = recorded(subject.replay, sides=tuple(revisions), same_code=working_tree_alone)
    (record,) = store.records(source.runs["new"][0]).values()
    environment = record.get("environment") or {}
    kind: Device = "cuda" if environment.get("device_type", subject.device) == "cuda" else "cpu"
    sweep = _load(subject, kind)
    cases = _selected(sweep, subject.cases)
    _need_common(cases, source, sweep=sweep)
    return Stage(
        sweep=sweep,
        cases=cases,
        source=source,
        record=record,
        notices=("these processes were recorded before and are played again",),
        folder=None,
    )


def _load(subject: Subject, kind: Device) -> Sweep:
    overrides = Overrides(mechanism=subject.mechanism or None, workload=subject.workload or None)
    return load(subject.sweep, device=kind, overrides=overrides)


def _selected(sweep: Sweep, patterns: Sequence[str]) -> tuple[Case, ...]:
    cases = sweep.cases()
    for pattern in patterns:
        if not any(fnmatchcase(case.case_id, pattern) for case in cases):
            raise UserError(
                f"--case {pattern} names no case of {sweep.name}; one of its {len(cases)} is {cases[0].case_id}"
            )
    return tuple(c for c in cases if not patterns or any(fnmatchcase(c.case_id, p) for p in patterns))


def _need_common(cases: Sequence[Case], source: RecordedProcesses, *, sweep: Sweep) -> None:
    wanted = {case.case_id for case in cases}
    for side, runs in source.runs.items():
        there = {name for run in runs for name in run["case_id"].to_pylist()}
        if not wanted & there:
            raise UserError(
                f"the sweep {sweep.name} and the recorded runs of the {side} side have no case in common: "
                f"{min(wanted)} is one of {len(wanted)} of the sweep, {min(there)} one of {len(there)} recorded"
            )


def _clocks(environment: Mapping[str, Any]) -> Iterator[str]:
    if (environment.get("gpu") or {}).get("clocks_locked") is False:
        yield "the clocks of the GPU are not locked, so that processes differ by what it allows itself"
