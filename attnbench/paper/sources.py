"""Where a figure's measured points come from: sweeps that are run now, within a budget, or runs that are there."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.errors import UserError
from attnbench.executors.run_folder import read_run
from attnbench.measure.clock import now_s
from attnbench.models.records import Inference, Loss, Record, TrainStep, read
from attnbench.paper.figures import Figure
from attnbench.paper.measured import Measured, of_records, of_runs
from attnbench.paper.sittings import Stopwatch
from attnbench.paper.whole_models import LEAST_S, Runner, record
from attnbench.store import load_results
from attnbench.words import count_text, duration, joined

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from attnbench.sweeps.sweep import Device

MODELS = "models"  # the folder of what is recorded of whole models

READERS: Mapping[str, Callable[[Path], Sequence[Record]]] = {
    "train-step": lambda path: read(path, kind=TrainStep),
    "inference": lambda path: read(path, kind=Inference),
    "losses": lambda path: read(path, kind=Loss),
}


@dataclass(frozen=True, kw_only=True)
class Left:
    """What of a run did not fit into the budget: its name, and cases (None: it was not begun)."""

    run: str
    cases: int | None

    def __str__(self) -> str:
        return self.run if self.cases is None else f"{count_text(self.cases, 'case')} of {self.run}"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was measured of a figure, from where, and what is still to be measured."""

    measured: Measured
    runs: tuple[Path, ...] = ()
    absent: tuple[str, ...] = ()  # names of runs that there are not
    left: tuple[Left, ...] = ()
    failures: tuple[str, ...] = ()  # of measuring, in words


@dataclass
class Budget:
    """Seconds of measuring for one command; None: as many as it takes."""

    seconds: float | None
    begun: float = field(default_factory=now_s)

    def spent(self) -> bool:
        """Is nothing left of it?"""
        remaining = self.remaining_s()
        return remaining is not None and remaining <= 0

    def used_s(self) -> float:
        """What is used of it."""
        return now_s() - self.begun

    def remaining_s(self) -> float | None:
        """What is left; None: without end."""
        return None if self.seconds is None else self.seconds - self.used_s()


def recorded(figure: Figure, paths: Sequence[Path]) -> Taken:
    """What recorded runs hold of a figure. paths: runs, or folders in which runs lie by their names.

    Of a case that several have on one device, the first one's counts.

    Raises UserError when a path does not exist, or is a run that holds nothing of the figure.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no results file or folder at {path}")
    given = [path for path in paths if _is_run(path)]
    folders = [path for path in paths if not _is_run(path)]
    if given:
        taken = _take(figure, given)
        if not any(len(line) or line.gaps for line in taken.lines):
            raise UserError(
                f"{joined([str(path) for path in given])} holds nothing of {figure.name}: {_needs(figure)}"
            )
    found = {name: _look(name, folders) for name in figure.sources}
    absent = tuple(name for name, there in found.items() if not there)
    runs = (*given, *(path for there in found.values() for path in there))
    measured = _take(figure, runs) if runs else Measured(lines=())
    return Taken(measured=measured, runs=runs, absent=() if given else absent)


def available(figure: Figure, folder: Path) -> Taken:
    """What the runs in a folder hold of a figure; nothing where there is no such folder."""
    nothing = Taken(measured=Measured(lines=()), absent=figure.sources)
    return recorded(figure, [folder]) if folder.exists() else nothing


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How sweeps are run: into `folder`/<preset>, on a device, within a budget. A run that is there is gone on with.

    claims_alone: of whole models, which take longest, only what the claims need; without it also the points between.
    figures: all that will be taken, in their order, for how far it has come.
    """

    folder: Path
    device: Device
    budget: Budget
    stopwatch: Stopwatch
    console: Console
    words: Sequence[str]  # the command line, for the runs' records
    claims_alone: bool = False
    figures: Sequence[Figure] = ()
    launch: str | None = None  # of calls in sweeps; None: as each preset says
    sweep: Callable[..., Any] | None = None  # runs one; default: `attnbench.sweeping.run_sweep`
    model: Runner | None = None  # runs `attnbench model`; default: in this process

    def take(self, figure: Figure) -> Taken:
        """Measure what a figure lacks, as far as the budget goes, and take what is there then.

        Raises what running a sweep raises.
        """
        left = []
        for preset in figure.sweeps:
            with self.stopwatch(preset):
                cases = self._measure(preset)
            if cases:
                left.append(Left(run=preset, cases=cases))
        failures = [] if self.device == "cuda" or not figure.records else [_by_hand(figure)]
        for command in self._commands(figure):
            folder, remaining_s = self.folder / MODELS, self.budget.remaining_s()
            if remaining_s is None or remaining_s >= LEAST_S:
                self._tell(command, f"attnbench {command}")
            with self.stopwatch(command):
                made = record(command, folder=folder, remaining_s=remaining_s, run=self.model)
            if made.left != 0:
                left.append(Left(run=command, cases=made.left))
            failures += [made.failure] if made.failure else []
        there = available(figure, self.folder)
        return dataclasses.replace(there, left=tuple(left), failures=tuple(failures))

    def _commands(self, figure: Figure) -> tuple[str, ...]:
        """What records whole models; nothing without a GPU, whose sizes they are."""
        if self.device != "cuda":
            return ()
        return figure.record_by if self.claims_alone else (*figure.record_by, *figure.record_more)

    def _measure(self, preset: str) -> int:
        """Cases of a preset that are left."""
        from attnbench.sweeping import run_sweep
        from attnbench.sweeps.layers import Overrides
        from attnbench.sweeps.loader import load

        protocol = {} if self.launch is None else {"launch": self.launch}
        grid = load(preset, device=self.device, overrides=Overrides(protocol=protocol))
        path = self.folder / preset
        cases = grid.cases()
        there = self._there(preset)
        missing = [case for case in cases if case.case_id not in there]
        if not missing:
            return 0
        if self.budget.spent():
            return len(missing)
        self._tell(preset, f"{preset}: {count_text(len(missing), 'case')} to measure")
        outcome = (self.sweep or run_sweep)(
            grid,
            cases,
            path=path,
            resume=path.exists(),
            command=self.words,
            console=self.console,
            enough=self.budget.spent,
        )
        for note in outcome.notes:
            print(f"{preset}: {note}", file=sys.stderr)
        left: int = outcome.left
        return left

    def _tell(self, name: str, what: str) -> None:
        """What is measured now, which of all runs it is, and how long it has been until here."""
        every = list(
            dict.fromkeys(
                each for figure in self.figures for each in (*figure.sweeps, *self._commands(figure))
            )
        )
        place = f"{every.index(name) + 1} of {len(every)}: " if name in every and len(every) > 1 else ""
        used_s = self.budget.used_s()
        since = f" ({duration(used_s)} so far)" if used_s >= 1 else ""
        print(f"{place}{what}{since}", file=sys.stderr, flush=True)

    def _there(self, preset: str) -> set[str]:
        """The cases that a run has a row of."""
        path = self.folder / preset
        if not (path / "run.json").is_file():
            return set()
        run = read_run(path)
        return run.done() or {row["case_id"] for row in run.merged_rows()}


# ------------------------------------------------------------------------------------------------------------


def _is_run(path: Path) -> bool:
    return path.is_file() or (path / "run.json").is_file()


def _look(name: str, folders: Sequence[Path]) -> list[Path]:
    """The runs of that name in some folders."""
    return [run for folder in folders if (run := _run_in(folder, name)) is not None]


def _run_in(folder: Path, name: str) -> Path | None:
    """The run of that name in a folder: a file there or below `paper` or `models`, or a run folder."""
    below = [folder / part / f"{name}.parquet" for part in ("paper", MODELS)]
    for place in (folder / f"{name}.parquet", folder / name, *below):
        if place.is_file() or any(place.glob("shards/*.parquet")) or (place / "results.parquet").is_file():
            return place
    return None


def _take(figure: Figure, runs: Sequence[Path]) -> Measured:
    if figure.records:
        return of_records(figure, _rows(figure, runs))
    frames: list[pd.DataFrame] = [load_results(path) for path in runs]
    return of_runs(figure, frames)


def _rows(figure: Figure, runs: Sequence[Path]) -> list[Record]:
    """The records in some files; a later file adds only the cases that the earlier ones do not have."""
    known: set[tuple[str, str | None]] = set()
    rows: list[Record] = []
    for path in runs:
        new = [row for row in READERS[figure.records](path) if (row.case_id, row.device) not in known]
        known |= {(row.case_id, row.device) for row in new}
        rows += new
    return rows


def _by_hand(figure: Figure) -> str:
    """What measures a figure of whole models without a GPU, whose sizes they are."""
    return (
        f"whole models are measured on a GPU alone; a tiny one here by `attnbench model {figure.records} --device cpu "
        f"-o runs/model`, drawn by `attnbench paper {figure.name} --run runs/model`"
    )


def _needs(figure: Figure) -> str:
    """What a run must have, in words."""
    if figure.records:
        sizes = sorted({str(v) for panel in figure.panel for k, v in panel.where.items() if k == "size"})
        of = f" of the size {' or '.join(sizes)}" if sizes else ""
        return f"it is drawn from {figure.records} records{of}"
    names = [series.mechanism[0] for series in figure.series if series.mechanism]
    workloads = dict.fromkeys(panel.workload for panel in figure.panel)
    return f"it needs {joined(list(workloads))} of {', '.join(names[:-1])} or {names[-1]}"
