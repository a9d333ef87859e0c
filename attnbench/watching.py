"""A sweep's progress, read from its folder: what is measured, how it ended, and how long the rest will take."""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from attnbench import store
from attnbench.errors import UserError
from attnbench.executors.lock import run_is_held
from attnbench.executors.run_folder import read_run
from attnbench.progress import describe
from attnbench.sweeps.sweep import sweep_of_record
from attnbench.words import count_text, duration

Row = Mapping[str, Any]

_POLL_S = 1.0
_RECENT = 20  # so many cases tell the pace


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a sweep is. left_s: seconds for the rest at the pace of the last cases, None where that is unknown."""

    run_id: str
    total: int
    done: int
    statuses: Mapping[str, int]
    left_s: float | None
    measuring: bool  # a process of this machine is at work on it
    refining: bool = False  # what is left is for the results to say

    @property
    def finished(self) -> bool:
        return self.done >= self.total and not self.refining

    @property
    def stopped(self) -> bool:
        """Cases are missing and nobody is at work on them."""
        return not self.finished and not self.measuring

    def sentence(self) -> str:
        """`12 of 48 cases (11 ok, 1 oom), about 3.2 s left.`"""
        ended = ", ".join(f"{count:,} {status}" for status, count in sorted(self.statuses.items()))
        of = f"{count_text(self.total, 'case')}{', and what they call for,' if self.refining else ''}"
        said = f"{self.done:,} of {of}{f' ({ended})' if ended else ''}"
        if self.finished:
            return f"{said}: finished."
        if self.stopped:
            return f"{said}: stopped, as nothing measures it on this machine."
        return f"{said}{'' if self.left_s is None else f', about {duration(self.left_s)} left'}."


@dataclass
class Watcher:
    """Looks into the folder of a run; every shard is read once."""

    path: Path
    _rows: dict[str, Row] = field(default_factory=dict)

    def look(self) -> tuple[State, list[Row]]:
        """The state now, and the rows that were not there at the last look, in order of measurement.

        Raises UserError for a folder that holds no run, or one that is damaged.
        """
        folder = read_run(self.path)
        rows = [_shard(folder.shard(case_id)) for case_id in folder.done() - set(self._rows)]
        fresh = rows or [row for row in folder.merged_rows() if row["case_id"] not in self._rows]
        self._rows |= {str(row["case_id"]): row for row in fresh}
        cases = sweep_of_record(folder.record["sweep"]).cases()
        left = len({case.case_id for case in cases} - set(self._rows))
        state = State(
            run_id=folder.run_id,
            total=len(self._rows) + left,
            done=len(self._rows),
            statuses=Counter(str(row["status"]) for row in self._rows.values()),
            left_s=_left_s(list(self._rows.values()), left=left),
            measuring=run_is_held(folder.run_id),
            refining=bool(folder.record.get("refining")),
        )
        return state, sorted(fresh, key=_started)


def watch(path: Path, console: Console) -> State:
    """Show a sweep until it is finished or has stopped; the last state. Ctrl-C ends the watching alone.

    Raises UserError as `Watcher.look` does.
    """
    watcher = Watcher(path=path)
    with _bar(console) as bar:
        task = None if bar is None else bar.add_task(path.name, total=None, left="")
        for state, rows in _looks(watcher):
            if bar is not None and task is not None:
                left = f"about {duration(state.left_s)} left" if state.left_s else ""
                bar.update(task, total=state.total, completed=state.done, left=left)
            for place, row in enumerate(rows, start=state.done - len(rows) + 1):
                count = f"[{place}/{state.total}] " if bar is None else ""
                console.print(count + describe(row), markup=False, highlight=False, soft_wrap=True)
    return state


def as_json(state: State) -> str:
    """The state for scripts."""
    words = {"finished": state.finished, "stopped": state.stopped, "measuring": state.measuring}
    facts = {"run": state.run_id, "total": state.total, "done": state.done, "left_s": state.left_s}
    return json.dumps({**facts, **words, "statuses": dict(state.statuses)}, indent=1)


# ------------------------------------------------------------------------------------------------------------


def _looks(watcher: Watcher) -> Iterator[tuple[State, list[Row]]]:
    """One look after another. Two in a row must find nobody at work: a run is there before its lock is held."""
    idle = 0
    while True:
        state, rows = watcher.look()
        yield state, rows
        idle = idle + 1 if state.stopped and not rows else 0
        if state.finished or idle > 1:
            return
        time.sleep(_POLL_S)


def _bar(console: Console) -> Any:
    if not console.is_terminal:
        return nullcontext()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=console)


def _shard(path: Path) -> Row:
    rows = store.read(path).to_pylist()
    if len(rows) != 1:
        raise UserError(f"{path} is no shard of a run: it holds {count_text(len(rows), 'row')}, expected 1")
    row: Row = rows[0]
    return row


def _started(row: Row) -> str:
    return str(row["started_at"] or "")


def _left_s(rows: list[Row], *, left: int) -> float | None:
    """The rest at the mean pace of the last cases; a case that is under way counts as one of the rest."""
    starts = sorted(_started(row) for row in rows if row["started_at"])[-_RECENT:]
    if len(starts) < 2:
        return None
    first, last = (datetime.datetime.fromisoformat(start) for start in (starts[0], starts[-1]))
    return (last - first).total_seconds() / (len(starts) - 1) * left
