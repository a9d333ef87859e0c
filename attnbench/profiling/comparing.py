"""Two profiles side by side: of two mechanisms, or of the same one from two commits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.case import Case
from attnbench.errors import UserError
from attnbench.profiling import words
from attnbench.profiling.diagnosis import mean, traffic
from attnbench.profiling.found import Profile
from attnbench.profiling.words import Grid
from attnbench.words import bytes_text, factor, three

_Figure = tuple[str, Callable[[Profile], float | None], Callable[[float], str]]


def _share(value: float) -> str:
    return f"{value:.0%}"


def _of_work(name: str) -> Callable[[Profile], float | None]:
    return lambda profile: None if profile.work is None else getattr(profile.work, name)


def _of_line(name: str) -> Callable[[Profile], float | None]:
    return lambda profile: None if profile.timeline is None else getattr(profile.timeline, name)


def _counted(name: str) -> Callable[[Profile], float | None]:
    return lambda profile: mean(profile.counters, name)


def _of_longest(name: str) -> Callable[[Profile], float | None]:
    """Of the kernel that takes most of a call: what its launches take of a multiprocessor."""

    def read(profile: Profile) -> float | None:
        line = profile.timeline
        longest = line.kernels[0].name if line is not None and line.kernels else None
        found = next((each for each in profile.resources if each.name == longest), None)
        return None if found is None else getattr(found, name)

    return read


_FIGURES: tuple[_Figure, ...] = (
    ("time of a call", lambda p: p.time_us, words.us),
    ("kernels, added up", _of_line("kernels_us"), words.us),
    ("launches", _of_line("launches"), lambda value: f"{value:.0f}"),
    ("gaps", _of_line("gap_us"), words.us),
    ("host's time", lambda p: p.host_us, words.us),
    ("first call", lambda p: None if p.first_call_ms is None else p.first_call_ms * 1e3, words.us),
    ("bytes by formula", _of_work("moved_bytes"), bytes_text),
    ("bytes counted", lambda p: traffic(p.counters), bytes_text),
    ("FLOP by formula", _of_work("flops"), lambda value: f"{value:.3g}"),
    ("GB/s by formula", _of_work("gbps"), three),
    ("TFLOP/s by formula", _of_work("tflops"), three),
    ("of the bandwidth", _of_work("memory_share"), _share),
    ("of the matrix rate", _of_work("matrix_share"), _share),
    ("DRAM", _counted("dram"), _share),
    ("L2", _counted("l2"), _share),
    ("shared memory's pipe", _counted("shared_pipe"), _share),
    ("tensor pipes", _counted("tensor"), _share),
    ("issue slots", _counted("issue"), _share),
    ("achieved occupancy", _counted("occupancy"), _share),
    ("longest kernel, registers", _of_longest("registers"), lambda value: f"{value:.0f}"),
    ("spilled", _of_longest("spilled_bytes"), bytes_text),
    ("shared memory", _of_longest("shared_bytes"), bytes_text),
    ("occupancy", _of_longest("occupancy"), _share),
    ("peak memory", lambda p: None if p.memory is None else p.memory.peak_bytes, bytes_text),
)
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Two profiles and what each is called."""

    names: tuple[str, str]
    profiles: tuple[Profile, Profile]

    @property
    def ratio(self) -> float | None:
        """The second one's time over the first one's."""
        first, second = (profile.time_us for profile in self.profiles)
        return None if not first or second is None else second / first

    def title(self) -> str:
        return f"{self.names[0]} and {self.names[1]}"

    def grids(self) -> list[Grid]:
        """Figures that at least one of them has, and the kernels of both."""
        rows = []
        for name, read, text in _FIGURES:
            first, second = (read(profile) for profile in self.profiles)
            if first is None and second is None:
                continue
            over = factor(second / first) if first and second is not None else ""
            rows.append((name, *("" if v is None else text(v) for v in (first, second)), over))
        figures = Grid(
            title="Side by side",
            headings=("figure", *self.names, "second over first"),
            rows=tuple(rows),
        )
        return [figures, self._kernels()]

    def sentences(self) -> list[str]:
        """How their times compare, what bounds each, and what makes them hard to compare."""
        said = []
        if self.ratio is not None:
            said.append(f"{self.names[1]} takes {factor(self.ratio)} the time of {self.names[0]}.")
        for name, profile in zip(self.names, self.profiles, strict=True):
            why = profile.reason if profile.diagnosis is None else profile.diagnosis.sentence
            said.append(f"{name}: {why}.")
        configs = [profile.config for profile in self.profiles]
        if configs[0] != configs[1] and None not in configs:
            said.append(f"They ran in different configurations: {configs[0]} and {configs[1]}.")
        commits = [_commit(profile) for profile in self.profiles]
        if commits[0] != commits[1] and None not in commits:
            said.append(f"They are of different commits: {commits[0]} and {commits[1]}.")
        devices = {profile.device for profile in self.profiles}
        if len(devices) > 1:
            said.append(f"They ran on different devices: {' and '.join(sorted(map(str, devices)))}.")
        return said

    def as_dict(self) -> dict[str, Any]:
        """The figures of both and the sentences, in types that JSON has."""
        figures = {name: [read(profile) for profile in self.profiles] for name, read, _ in _FIGURES}
        return {
            "names": list(self.names),
            "cases": [profile.label for profile in self.profiles],
            "ratio": self.ratio,
            "figures": figures,
            "sentences": self.sentences(),
        }

    def _kernels(self) -> Grid:
        tables = [_by_name(profile) for profile in self.profiles]
        longest = sorted({*tables[0], *tables[1]}, key=lambda name: -max(t.get(name, 0.0) for t in tables))
        rows = []
        for name in longest[:_ROWS]:
            first, second = (table.get(name) for table in tables)
            over = factor(second / first) if first and second is not None else ""
            rows.append(
                (words.short(name), *("" if v is None else words.us(v) for v in (first, second)), over)
            )
        more = len(longest) - _ROWS
        return Grid(
            title="Kernels, time in a call" if self.profiles[0].timeline else "Operators, own time in a call",
            headings=("kernel", *self.names, "second over first"),
            rows=tuple(rows),
            closing=f"{more} more." if more > 0 else None,
        )


def pair(first: Sequence[Profile], second: Sequence[Profile], *, names: tuple[str, str]) -> list[Beside]:
    """Profiles of both sides that belong together: of one case, or else of one workload and shape.

    Raises UserError where none do.
    """
    found = []
    for one in first:
        same = [other for other in second if other.case == one.case] or [
            other for other in second if _place(other.case) == _place(one.case)
        ]
        found += [Beside(names=_named(names, (one, other)), profiles=(one, other)) for other in same]
    if not found:
        sides = (", ".join(profile.label for profile in side) or "nothing" for side in (first, second))
        raise UserError(
            "nothing to lay side by side: expected profiles of one workload, shape and dtype, got "
            + " and ".join(sides)
        )
    return found


def _place(case: Case) -> Case:
    """All of a case but the mechanism, and what mechanisms choose themselves."""
    return dataclasses.replace(case, mechanism="", value_dim=0, window=None)


def _named(names: tuple[str, str], profiles: tuple[Profile, Profile]) -> tuple[str, str]:
    """Mechanisms by their own names; the same one from two places by these."""
    own = tuple(profile.case.mechanism for profile in profiles)
    if own[0] != own[1]:
        workload = profiles[0].case.workload
        return f"{own[0]} {workload}", f"{own[1]} {workload}"
    return f"{own[0]} ({names[0]})", f"{own[1]} ({names[1]})"


def _commit(profile: Profile) -> str | None:
    """The commit whose code ran, shortened."""
    git = (profile.environment or {}).get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return None
    return f"{git['commit'][:10]}{', changed since' if git.get('dirty') else ''}"


def _by_name(profile: Profile) -> dict[str, float]:
    if profile.timeline is not None:
        return {kernel.name: kernel.time_us for kernel in profile.timeline.kernels}
    if profile.operators is not None:
        return {operator.name: operator.time_us for operator in profile.operators.operators}
    return {}
