"""How long measuring took: each sitting of `attnbench paper`, by what it measured, kept beside the runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from attnbench.errors import UserError
from attnbench.executors.run_folder import write_json
from attnbench.measure.clock import now_s, timestamp
from attnbench.paper.tables import Table
from attnbench.words import count_text, duration

FILE: Final = "sittings.json"
_NOTHING_S: Final = 1.0  # what was there already is looked through in less


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """One command that measured: when it began (UTC, ISO 8601), and the seconds of each run or recording command."""

    began: str
    seconds: Mapping[str, float]


@dataclass
class Stopwatch:
    """Takes the time of what is measured into a folder. What is done is kept, also when the next one is cut off."""

    folder: Path
    began: str = field(default_factory=timestamp)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Starts of processes and compiling are part of it."""
        begun = now_s()
        try:
            yield
        finally:
            taken = now_s() - begun
            if taken >= _NOTHING_S:
                self.seconds[what] = round(self.seconds.get(what, 0.0) + taken, 1)
                self._keep()

    def _keep(self) -> None:
        """Raises UserError when it cannot be written, as it cannot where no folder can be made."""
        every = [each for each in sittings(self.folder) if each.began != self.began]
        every.append(Sitting(began=self.began, seconds=self.seconds))
        content = {"sittings": [{"began": each.began, "seconds": dict(each.seconds)} for each in every]}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FILE, content)


def sittings(folder: Path) -> list[Sitting]:
    """Those that a folder of runs tells of, in order. Raises UserError for a file that is not what was written."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["sittings"]
        return [
            Sitting(began=str(each["began"]), seconds={k: float(v) for k, v in each["seconds"].items()})
            for each in found
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what attnbench paper wrote: {error}") from error


def words(every: Sequence[Sitting]) -> str:
    """How long all of it took, and when that was; empty where nothing is known."""
    if not every:
        return ""
    days = list(dict.fromkeys(each.began[:10] for each in every))
    when = (
        f"in {count_text(len(every), 'sitting')} ({', '.join(days)})" if len(every) > 1 else f"on {days[0]}"
    )
    return f"Measuring took {duration(sum(_total(every).values()))}, {when}."


def took_table(every: Sequence[Sitting]) -> Table:
    """What was measured by which command and how long that took over all sittings, the longest first."""
    longest = sorted(_total(every).items(), key=lambda item: -item[1])
    return Table(
        title="",
        headings=("attnbench", "took"),
        rows=tuple((_command(what), duration(seconds)) for what, seconds in longest),
    )


def _total(every: Sequence[Sitting]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in every:
        for what, seconds in each.seconds.items():
            total[what] = total.get(what, 0.0) + seconds
    return total


def _command(what: str) -> str:
    """A run is named by its preset, a recording of models by its command."""
    return what if " " in what else f"sweep {what}"
