"""What a user sees while cases run: a line per finished case, a bar, and the time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from attnbench.case import Case
from attnbench.executors.supervised import Row
from attnbench.words import joined, rate_text, time_text


class Ticker:
    """Tells the console of cases as they start and finish."""

    def __init__(self, *, console: Console, progress: Progress | None, total: int) -> None:
        self._console = console
        self._progress = progress
        self._total = total
        self._count = 0
        self._task = (
            None if progress is None else progress.add_task("starting a worker", total=total, left="")
        )

    def expect(self, left: int) -> None:
        """So many cases are left, from now on."""
        self._total = self._count + left
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=self._total)

    def started(self, case: Case) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=case.case_id)

    def earlier(self, count: int) -> None:
        """So many of the cases were done before, and only the others will be told of."""
        done = f"{count:,} of {self._total:,}" if count else f"none of {self._total:,}"
        said = f"{done} cases were done before with this device, these libraries and sources"
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)
        self.expect(self._total - count)

    def finished(self, row: Row, *, left: str = "") -> None:
        """left: in words, where `ticking` was told that they would come."""
        self._count += 1
        if self._progress is not None and self._task is not None:
            line = describe(row)
            self._progress.update(self._task, advance=1, left=left)
            if left and self._count == 1:  # of several workers at once none is the one to name
                self._progress.update(self._task, description="checking")
        else:
            more = f" ({left})" if left and self._count < self._total else ""
            line = f"[{self._count}/{self._total}] {describe(row)}{more}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, names: Sequence[str]) -> None:
        """Nothing is left to begin; these are still under way."""
        said = f"waiting for {joined(names)}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=said)
        else:
            self._console.print(said, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def ticking(console: Console, *, total: int, told: bool = False) -> Iterator[Ticker]:
    """A bar with the time left on a terminal; plain numbered lines elsewhere.

    told: what is left is told with each finished case, as the cases before it say little of those to come.
    """
    if not console.is_terminal:
        yield Ticker(console=console, progress=None, total=total)
        return
    left = [TextColumn("{task.fields[left]}")] if told else [TextColumn("left"), TimeRemainingColumn()]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *left,
        console=console,
        transient=True,
    ) as progress:
        yield Ticker(console=console, progress=progress, total=total)


def describe(row: Row) -> str:
    """One finished case on one line."""
    name = str(row["case_id"])
    if row["median_ms"] is not None:
        return f"{name}: {time_text(row['median_ms'])}, {rate_text(row['tokens_per_s'])}"
    if row["status"] == "ok":
        errors = (row[f"rel_err_{n}"] for n in ("o", "dq", "dk", "dv"))
        return f"{name}: right, largest error {max(e for e in errors if e is not None):.1e}"
    return f"{name}: {row['status']}: {row['reason']}"
