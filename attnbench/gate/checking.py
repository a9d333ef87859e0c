"""`attnbench check`: a sweep measured now in fresh processes, held to a baseline or to a git revision."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from attnbench.comparison import sides, waivers
from attnbench.comparison.comparing import THRESHOLD, compare
from attnbench.comparison.found import Compared, Comparison
from attnbench.comparison.verdicts import Verdict
from attnbench.errors import UserError
from attnbench.gate import baselines, noise
from attnbench.gate.measuring import FIRST_LOOK, PROCESSES, Gate, Judge, Plan
from attnbench.gate.stage import Stage, Subject, staged
from attnbench.gate.telling import Teller
from attnbench.measure.clock import now_s

_FOR_A_BASELINE = 10  # processes: every later check is held to them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is checked, against what, and by which rules. None: the default, or nothing."""

    subject: Subject
    against: str | None = None
    install: bool = False
    baseline: Path | None = None
    update: bool = False
    threshold: float | None = None
    processes: int | None = None
    budget_s: float | None = None
    waivers: Path | None = None
    noise_file: Path | None = None
    allow_different: bool = False

    def checked(self) -> Request:
        """Itself. Raises UserError where options contradict each other."""
        if self.against is not None and (self.baseline is not None or self.update):
            other = "--update" if self.update else "--baseline"
            raise UserError(
                f"--against compares with a revision and {other} with stored results: give one of them"
            )
        if self.install and self.against is None:
            raise UserError("--install is about the environment of a revision: give --against REV with it")
        if self.update and self.subject.narrowed:
            raise UserError("--update stores a whole sweep: leave out --mechanism, --workload and --case")
        if self.update and self.budget_s is not None:
            raise UserError("--update measures every case alike, so it has no --time-budget")
        return self


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found. comparison: None where there was nothing to compare with, as before the first baseline."""

    comparison: Comparison | None
    results: Path | None  # all processes of both sides in one file; None for a replay
    baseline: Path | None  # that was written

    @property
    def new_cases(self) -> tuple[Compared, ...]:
        """Cases that base has not measured."""
        cases = () if self.comparison is None else self.comparison.cases
        return tuple(
            e for e in cases if e.verdict is Verdict.MISSING and e.base_ms is None and e.new_ms is not None
        )


def check(asked: Request, *, command: Sequence[str], teller: Teller) -> Checked:
    """Measure, compare, and with `update` store.

    Raises UserError for whatever keeps it from a verdict, before anything is measured where that is known then.
    """
    begun = now_s()
    asked = asked.checked()
    known_waivers = () if asked.waivers is None else waivers.load(asked.waivers)
    revisions = {"new": None} if asked.against is None else {"base": asked.against, "new": None}
    with staged(
        asked.subject,
        name="check",
        revisions=revisions,
        install=asked.install,
        command=command,
        teller=teller,
    ) as stage:
        path = baselines.file_of(stage.device, stage.sweep.name) if asked.baseline is None else asked.baseline
        stored = _stored(asked, stage, path=path, teller=teller)
        known = _known_noise(asked, stage)
        plan = _plan(asked)
        gate = Gate(
            cases=stage.cases,
            source=stage.source,
            sides=tuple(revisions),
            plan=plan,
            judge=_judge(asked, stored=stored, noises=known.by_case),
            tell=teller.say,
            spent_s=0.0 if asked.subject.replay else now_s() - begun,
        )
        found = None
        with stage.kept(gate):
            if asked.against is None and stored is None:
                gate.rounds(until=plan.processes, cases=stage.cases)
            else:
                found = gate.run().comparison
    if found is not None:
        notices = (*found.notices, *stage.notices, *known.notices)
        found = dataclasses.replace(found, notices=notices)
        found = waivers.applied(found, known_waivers, day=waivers.today())
    if asked.update:
        baselines.update(path, gate.tables()["new"], sweep=stage.sweep.name, command=command)
        teller.say(f"New baseline: {baselines.summary(path)}")
    return Checked(comparison=found, results=stage.results, baseline=path if asked.update else None)


# ------------------------------------------------------------------------------------------------------------


def _stored(asked: Request, stage: Stage, *, path: Path, teller: Teller) -> pd.DataFrame | None:
    """The baseline that the new side is held to; None where a revision stands there, or nothing yet.

    Raises UserError, before anything is measured, where it cannot be compared with.
    """
    if asked.against is not None:
        return None
    if asked.update:
        if not path.exists():
            teller.say(f"There is no baseline at {path} yet.")
            return None
        teller.say(f"Old baseline: {baselines.summary(path)}")
    frame = baselines.load(path)
    wanted = [case.case_id for case in stage.cases]
    common = frame["case_id"].isin(wanted)
    if not common.any():
        raise UserError(
            f"the sweep {stage.sweep.name} and the baseline {path} have no case in common: {wanted[0]} is one of "
            f"{len(wanted)} of the sweep, {frame['case_id'].min()} one of {frame['case_id'].nunique()} of the baseline"
        )
    sides.check_base(frame)
    _need_same_machine(asked, stage, frame, path=path)
    if not asked.subject.narrowed:
        return frame
    part = frame[common]
    part.attrs = frame.attrs
    return part


def _need_same_machine(asked: Request, stage: Stage, frame: pd.DataFrame, *, path: Path) -> None:
    """Refuse a baseline of another device, library or protocol before minutes are spent on measuring."""
    for record in frame.attrs["runs"].values() if not asked.allow_different else ():
        decisive = [d.sentence() for d in sides.between_records(record, stage.record) if d.decisive]
        if decisive:
            raise UserError(
                f"the baseline {path} is not comparable ({'; '.join(decisive)}); --allow-different compares them all "
                "the same"
            )


def _known_noise(asked: Request, stage: Stage) -> noise.Known:
    """Raises UserError for a threshold that is given and below the noise."""
    path = asked.noise_file or noise.file_of(stage.device)
    if asked.noise_file is not None and not path.exists():
        raise UserError(f"there is no record of noise at {path}: attnbench noise -o {path} writes it")
    found = noise.known(
        noise.read(path),
        machine=noise.machine_of(stage.record),
        cases=[case.case_id for case in stage.cases],
        path=path,
    )
    if asked.threshold is not None:
        noise.refuse_below(asked.threshold, noise=found.by_case, option="--threshold")
    wide = noise.widened(found.by_case, threshold=asked.threshold or THRESHOLD)
    return dataclasses.replace(found, notices=(*found.notices, *wide))


def _plan(asked: Request) -> Plan:
    usual = _FOR_A_BASELINE if asked.update else PROCESSES if asked.budget_s is None else FIRST_LOOK
    return Plan(processes=asked.processes or usual, budget_s=asked.budget_s)


def _judge(asked: Request, *, stored: pd.DataFrame | None, noises: Mapping[str, float]) -> Judge:
    def judge(measured: Mapping[str, pd.DataFrame], significance: float) -> Comparison:
        return compare(
            measured["base"] if stored is None else stored,
            measured["new"],
            threshold=asked.threshold or THRESHOLD,
            noise=noises,
            significance=significance,
            # A revision with libraries of its own is meant to differ.
            allow_different=asked.allow_different or asked.install,
        )

    return judge
