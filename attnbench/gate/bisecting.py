"""`attnbench bisect`: the first commit that is slower than a good one, by the same verdicts as a check's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.comparison.comparing import THRESHOLD, compare
from attnbench.comparison.found import Comparison
from attnbench.comparison.verdicts import Verdict
from attnbench.comparison.words import explanation
from attnbench.errors import UserError
from attnbench.gate import noise, trees
from attnbench.gate.measuring import FIRST_LOOK, Gate, Plan
from attnbench.gate.processes import FreshProcesses
from attnbench.gate.stage import Stage, Subject, staged
from attnbench.gate.telling import Teller
from attnbench.gate.trees import BrokenTreeError, Tree
from attnbench.words import count_text, joined

_MOST = 10  # processes a side of a step that stays unclear


class Step(StrEnum):
    """What became of a commit."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"  # it does not build, or cannot be told


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit with the first line of its message."""

    name: str
    subject: str

    @property
    def label(self) -> str:
        return f"{self.name[:12]} ({self.subject})"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A commit that was tried, and why it is what it is, in words without a full stop."""

    commit: Commit
    step: Step
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a bisection found. suspects: the first bad commit is among them; one where it is known, none where even
    the last commit is not shown to be bad."""

    suspects: tuple[Commit, ...]
    judged: tuple[Judged, ...]
    results: Path

    @property
    def first(self) -> Commit | None:
        return self.suspects[0] if len(self.suspects) == 1 else None


def bisect(
    subject: Subject,
    *,
    good: str,
    bad: str,
    threshold: float | None,
    processes: int | None,
    budget_s: float | None,
    install: bool,
    command: Sequence[str],
    teller: Teller,
) -> Found:
    """Find the first commit after `good`, up to `bad`, in which a case of the subject regresses against `good`.

    Each step measures `good` anew, in turns with the commit. budget_s: for all steps together, shared out evenly.

    Raises UserError for revisions that are not there or not one after the other, and a `good` that does not build.
    """
    commits = commits_between(good, bad)
    steps = math.ceil(math.log2(len(commits))) + 1
    plan = Plan(
        processes=processes or FIRST_LOOK,
        budget_s=math.inf if budget_s is None else budget_s / steps,
        most=max(_MOST, processes or 0),
    )
    teller.say(f"{count_text(len(commits), 'commit')} after {good}: about {count_text(steps, 'step')}")
    with (
        staged(
            subject,
            name="bisect",
            revisions={"base": good, "new": None},
            install=install,
            command=command,
            teller=teller,
        ) as stage,
    ):
        measured = stage.source
        assert isinstance(measured, FreshProcesses)
        trial = _Trial(
            stage=stage,
            source=measured,
            plan=plan,
            threshold=threshold or THRESHOLD,
            install=install,
            teller=teller,
        )
        judged: list[Judged] = []

        def judge(commit: Commit) -> Step:
            judged.append(trial.judge(commit))
            teller.say(f"{commit.label}: {judged[-1].step}: {judged[-1].reason}")
            return judged[-1].step

        suspects = first_bad(commits, judge)
    assert stage.folder is not None
    return Found(suspects=tuple(suspects), judged=tuple(judged), results=stage.folder)


def first_bad(commits: Sequence[Commit], judge: Callable[[Commit], Step]) -> list[Commit]:
    """Those of the commits, oldest first, among which the first bad one is; none where the last is not bad.

    What came before the first is good. A commit that is skipped stays a suspect between a good and a bad one, and its
    neighbours are tried in its place.
    """
    if judge(commits[-1]) is not Step.BAD:
        return []
    before, after, skipped = -1, len(commits) - 1, set[int]()
    while untried := [place for place in range(before + 1, after) if place not in skipped]:
        middle = (before + after) / 2
        place = min(untried, key=lambda each: (abs(each - middle), each))
        step = judge(commits[place])
        if step is Step.BAD:
            after = place
        elif step is Step.GOOD:
            before = place
        else:
            skipped.add(place)
    return list(commits[before + 1 : after + 1])


def commits_between(good: str, bad: str) -> list[Commit]:
    """The commits after `good` up to `bad`, oldest first; of a merge only the side that was merged into.

    Raises UserError for revisions that are not there, and when `good` is no ancestor of `bad`.
    """
    repository = trees.checkout()
    start, end = (trees.resolve(name, repository=repository) for name in (good, bad))
    listed = trees.git(
        repository, "log", "--first-parent", "--reverse", "--format=%H %s", f"{start}..{end}"
    ).splitlines()
    common = trees.git(repository, "merge-base", start, end, may_fail=True)
    if common != start or not listed:
        raise UserError(f"{good} is no earlier commit than {bad}, so there is nothing to search between them")
    return [Commit(name=line[:40], subject=line[41:]) for line in listed]


def closing(found: Found, *, good: str, bad: str) -> str:
    """What was found, as a sentence."""
    if found.first is not None:
        return f"{found.first.label} is the first slow commit."
    if found.suspects:
        return (
            f"The first slow commit is one of {len(found.suspects)}: {joined([c.label for c in found.suspects])}; what "
            "lies between could not be judged."
        )
    return f"{bad} is not shown to be slower than {good}: {found.judged[-1].reason}."


def as_json(found: Found, *, good: str, bad: str) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "first": None if found.first is None else found.first.name,
        "suspects": [each.name for each in found.suspects],
        "steps": [
            {"commit": j.commit.name, "subject": j.commit.subject, "step": str(j.step), "reason": j.reason}
            for j in found.judged
        ],
        "runs": str(found.results),
        "sentence": closing(found, good=good, bad=bad),
    }


# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Judges a commit against the good one."""

    stage: Stage
    source: FreshProcesses
    plan: Plan
    threshold: float
    install: bool
    teller: Teller

    def judge(self, commit: Commit) -> Judged:
        with ExitStack() as stack:
            try:
                tree = stack.enter_context(
                    trees.revision(commit.name, device=self.stage.sweep.device, install=self.install)
                )
            except BrokenTreeError as error:
                return Judged(commit=commit, step=Step.SKIPPED, reason=str(error))
            return self._judged(commit, self._compared(commit, tree))

    def _compared(self, commit: Commit, tree: Tree) -> Comparison:
        source = FreshProcesses(
            sweep=self.source.sweep,
            folder=self.source.folder / commit.name[:12],
            trees={**self.source.trees, "new": tree},
            command=self.source.command,
            lock=self.source.lock,
            teller=self.teller,
        )
        gate = Gate(
            cases=self.stage.cases,
            source=source,
            sides=("base", "new"),
            plan=self.plan,
            judge=self._look,
            tell=self.teller.say,
            enough=lambda found: bool(found.regressions),
        )
        return gate.run().comparison

    def _look(self, measured: Mapping[str, pd.DataFrame], significance: float) -> Comparison:
        known = noise.read(noise.file_of(self.stage.device))
        return compare(
            measured["base"],
            measured["new"],
            threshold=self.threshold,
            noise={} if known is None else known.by_case,
            significance=significance,
        )

    def _judged(self, commit: Commit, found: Comparison) -> Judged:
        if found.regressions:
            return Judged(commit=commit, step=Step.BAD, reason=explanation(found.regressions[0]))
        unknown = (Verdict.UNCLEAR, Verdict.MISSING, Verdict.UNTIMED)
        open_ = [each for each in found.cases if each.verdict in unknown]
        if open_:
            return Judged(commit=commit, step=Step.SKIPPED, reason=explanation(open_[0]))
        return Judged(commit=commit, step=Step.GOOD, reason=explanation(found.cases[0]))
