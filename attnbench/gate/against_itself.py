"""`attnbench noise`: the same code against itself, and what that says of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnbench import store
from attnbench.comparison.comparing import compare
from attnbench.comparison.found import Comparison
from attnbench.comparison.verdicts import Verdict, percent_text
from attnbench.errors import UserError
from attnbench.gate import noise
from attnbench.gate.measuring import PROCESSES, Gate, Plan
from attnbench.gate.noise import CaseNoise, NoiseRecord
from attnbench.gate.processes import Source
from attnbench.gate.stage import Subject, staged
from attnbench.gate.telling import Teller
from attnbench.measure.clock import timestamp
from attnbench.words import count_text, time_text

_UNTOLD = 10.0  # share of the time
_ALARMS = (Verdict.SLOWER, Verdict.FASTER, Verdict.BROKEN, Verdict.FIXED)
QUIET = 0.01  # a machine is called quiet in cases whose noise is within it


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What A against A found: the comparison of both halves, the noise of each case, and the file that keeps it."""

    device: str
    comparison: Comparison
    cases: Mapping[str, CaseNoise]
    unknown: tuple[str, ...]  # cases that were not ok often enough
    gate_processes: int
    file: Path
    results: Path | None

    @property
    def alarms(self) -> tuple[str, ...]:
        """Cases that chance alone made a change of."""
        return tuple(each.name for each in self.comparison.cases if each.verdict in _ALARMS)


def measure_noise(
    subject: Subject,
    *,
    processes: int | None,
    file: Path | None,
    command: Sequence[str],
    teller: Teller,
) -> Noise:
    """Measure a sweep in twice as many processes as a gate takes a side, and keep each case's noise.

    The processes are dealt to two sides as a gate would measure them, so that its verdicts are put to the test as well.
    Recorded ones cost nothing: all are used.

    Raises UserError for whatever keeps it from that, and when no case is ok often enough to tell its noise.
    """
    count = processes or PROCESSES
    itself = {"base": None, "new": None}
    with staged(subject, name="noise", revisions=itself, command=command, teller=teller) as stage:
        gate = Gate(
            cases=stage.cases,
            source=stage.source,
            sides=tuple(itself),
            plan=Plan(processes=max(count, _recorded(stage.source, sides=tuple(itself)))),
            judge=_halves,
            tell=teller.say,
        )
        with stage.kept(gate):
            comparison = gate.run().comparison
    frame = store.to_frame(store.merge(gate.tables().values()))
    cases = noise.noise_of(frame, gate_processes=count)
    if not cases:
        given = frame["run_id"].nunique()
        if given < noise.FEWEST:
            raise UserError(f"expected at least {noise.FEWEST} processes to tell noise from, got {given}")
        raise UserError(f"no case is ok in {noise.FEWEST} of {given} processes, so there is no noise to tell")
    file = file or noise.file_of(stage.device)
    noise.write(
        NoiseRecord(
            version=1,
            measured_at=timestamp(),
            command=list(command),
            gate_processes=count,
            machine=noise.machine_of(stage.record),
            cases=cases,
        ),
        file,
    )
    return Noise(
        device=stage.device,
        comparison=comparison,
        cases=cases,
        unknown=tuple(case.case_id for case in stage.cases if case.case_id not in cases),
        gate_processes=count,
        file=file,
        results=stage.results,
    )


def found_from(share: float) -> str:
    """A slow-down that can be found; from so few processes that it would be many times the time, only that."""
    return percent_text(share) if share < _UNTOLD else f"over {_UNTOLD * 100:.0f} %"


def render(found: Noise, console: Console) -> None:
    """Print a line for each case, the noisiest first, and the sentences."""
    grid = Table(title=f"Noise of {found.device}", title_justify="left")
    for place, name in enumerate(("case", "time", "noise", "found from")):
        grid.add_column(name, justify="right" if place else "left", overflow="fold")
    for name, each in sorted(found.cases.items(), key=lambda item: -item[1].noise):
        grid.add_row(name, time_text(each.median_ms), percent_text(each.noise), found_from(each.detectable))
    console.print(grid)
    for text in sentences(found):
        console.print(Text(text), soft_wrap=True)
    console.print(Text(f"Kept in {found.file}"), soft_wrap=True)


def sentences(found: Noise) -> list[str]:
    """What A against A says of the machine, in full sentences."""
    quiet = sum(each.noise <= QUIET for each in found.cases.values())
    total = len(found.cases)
    said = [
        f"{quiet} of {count_text(total, 'case')} ({quiet / total:.0%}) within {percent_text(QUIET)}: processes of the "
        "same code differ by no more (standard deviation of their medians).",
        f"Slow-downs of the last column are found in {noise.POWER:.0%} of all gates with {found.gate_processes} "
        f"processes a side and {count_text(total, 'case')}, if no threshold is above them.",
    ]
    if found.unknown:
        said.append(
            f"The noise of {count_text(len(found.unknown), 'case')} is not known, as too few processes were ok: "
            f"{', '.join(found.unknown[:3])}{', ...' if len(found.unknown) > 3 else ''}."
        )
    if found.alarms:
        said.append(
            f"A gate between both halves alarms all the same ({', '.join(found.alarms[:3])}): this machine was not "
            "quiet while it was measured."
        )
    return said


def as_json(found: Noise) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "file": str(found.file),
        "results": None if found.results is None else str(found.results),
        "gate_processes": found.gate_processes,
        "cases": {name: each.model_dump() for name, each in found.cases.items()},
        "unknown": found.unknown,
        "alarms": found.alarms,
        "verdicts": {str(verdict): count for verdict, count in found.comparison.counts.items()},
        "sentences": sentences(found),
    }


def _recorded(source: Source, *, sides: Sequence[str]) -> int:
    """Processes that both sides have in recordings; 0 where they are measured."""
    return min(source.left(side, after=0) or 0 for side in sides)


def _halves(measured: Mapping[str, pd.DataFrame], significance: float) -> Comparison:
    return compare(measured["base"], measured["new"], significance=significance)
