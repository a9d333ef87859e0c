"""What the two sides of a comparison are: their rows, and in what their machines, libraries and protocols differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.case import Status
from attnbench.errors import UserError
from attnbench.places import by_place
from attnbench.store import load_results

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("base", "new")

# A difference in these compares two questions, or two machines, and not two answers. Of libraries it is those that
# computed something, and the two that everything here rests on.
_DECISIVE = ("device", "driver", "cuda", "cache", "launch", "library torch", "library triton")
_OPTIONAL = ("library ", "variable ")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact of the environment that is not the same on both sides, or not within one.

    base, new: the values that are known on each side, sorted. decisive: times are not comparable across it.
    """

    name: str
    base: tuple[str, ...]
    new: tuple[str, ...]
    decisive: bool

    def sentence(self) -> str:
        """In words, without a full stop: `driver: 580.1 on the base side, 590.2 on the new side`."""
        if self.base == self.new:
            return f"{self.name} differs within both sides: {' and '.join(self.base)}"
        parts = zip(NAMES, (self.base, self.new), strict=True)
        return f"{self.name}: " + ", ".join(
            f"{' and '.join(values) or 'unknown'} on the {side} side" for side, values in parts
        )


def paths_of(given: Iterable[str]) -> list[Path]:
    """Paths from words of a command line: each a path, or several separated by commas.

    A path that exists is one path, commas or not.
    """
    found: list[Path] = []
    for word in given:
        whole = Path(word)
        parts = [whole] if whole.exists() else [Path(part) for part in word.split(",") if part]
        found += parts
    return found


def load_side(paths: Sequence[Path], *, name: str) -> pd.DataFrame:
    """The rows of one side, as `store.load_results` gives them.

    Raises UserError as that does, and when the files hold no row.
    """
    frame = load_results(paths)
    if frame.empty:
        raise UserError(
            f"the {name} side holds no case: {', '.join(str(path) for path in paths)} has columns but no rows"
        )
    return frame


def check_base(base: pd.DataFrame) -> None:
    """Refuse a base that nothing can be held to.

    Raises UserError when it has no case that is ok.
    """
    if not (base["status"] == Status.OK).any():
        ended = base["status"].value_counts()
        how = ", ".join(f"{count:,} {status}" for status, count in sorted(ended.items()))
        raise UserError(f"the base side has no case with status ok, so nothing can be held to it ({how})")


def check_sides(base: pd.DataFrame, new: pd.DataFrame) -> None:
    """Refuse what cannot be compared at all.

    Raises UserError when the base side has no case that is ok, or the sides share no case.
    """
    check_base(base)
    ours, theirs = set(base["case_id"]), set(new["case_id"])
    if not ours & theirs:
        raise UserError(
            f"base and new have no case in common: {min(ours)} is one of {len(ours):,} of base, "
            f"{min(theirs)} one of {len(theirs):,} of new"
        )


def differences(base: pd.DataFrame, new: pd.DataFrame) -> list[Difference]:
    """In what the runs' environments and protocols differ, between the sides or within one; decisive ones first.

    What no run of a side states is unknown and no difference.
    """
    by_runs = [_stated_by_runs(frame) for frame in (base, new)]
    # A library or variable that one run names and another does not is absent there: that is a difference too.
    optional = {name for side in by_runs for run in side for name in run if name.startswith(_OPTIONAL)}
    sides = [
        _facts(frame, [{**dict.fromkeys(optional, "absent"), **run} for run in side])
        for frame, side in zip((base, new), by_runs, strict=True)
    ]
    # A provider's label begins with its distribution: `flash-attn 2.8.3`.
    labels = {str(label) for frame in (base, new) for label in frame["provider"].dropna().unique()}
    decisive = {*_DECISIVE, *(f"library {label.split(' ')[0]}" for label in labels)}
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [tuple(sorted(side.get(name, ()))) for side in sides]
        if all(values) and (values[0] != values[1] or len(values[0]) > 1):
            decides = name in decisive and (name != "device" or _case_by_case(base, new))
            found.append(Difference(name=name, base=values[0], new=values[1], decisive=decides))
    return sorted(found, key=lambda each: not each.decisive)


def between_records(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """In what two runs' environments and protocols differ, by their records alone; decisive ones first.

    What one of them does not state is no difference, but for a library or variable, which is absent there. The
    commit and the version of attnbench are what a comparison of two records is about, and no difference either.
    """
    told = [stated(record) for record in (base, new)]
    found = []
    for name in dict.fromkeys([*told[0], *told[1]]):
        values = [side.get(name, "absent" if name.startswith(_OPTIONAL) else None) for side in told]
        if name not in ("commit", "attnbench") and None not in values and values[0] != values[1]:
            sides = [(str(value),) for value in values]
            found.append(Difference(name=name, base=sides[0], new=sides[1], decisive=name in _DECISIVE))
    return sorted(found, key=lambda each: not each.decisive)


def notices(base: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """What else is odd about the runs, in words without a full stop."""
    runs = [set(frame["run_id"]) for frame in (base, new)]
    said = [
        f"the run {run} is on both sides: that compares it with itself and says nothing of noise"
        for run in sorted(runs[0] & runs[1])
    ]
    for name, frame in zip(NAMES, (base, new), strict=True):
        twice = frame[frame.duplicated(["run_id", "case_id"])]["run_id"].unique()
        said += [
            f"the run {run} is given twice on the {name} side, and counted once" for run in sorted(twice)
        ]
    known = {**base.attrs.get("runs", {}), **new.attrs.get("runs", {})}
    said += [
        f"nothing is recorded of the environment and protocol of the run {run}: differences cannot be seen"
        for run in sorted((runs[0] | runs[1]) - set(known))
    ]
    return said


def stated(record: Mapping[str, Any]) -> dict[str, str]:
    """One run's record as facts by name, those that bear on a time."""
    environment = _part(record, "environment")
    gpu, git = _part(environment, "gpu"), _part(environment, "git")
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts: dict[str, Any] = {
        "device": environment.get("device"),
        **_part(record, "protocol"),
        "driver": gpu.get("driver"),
        "GPU unit": gpu.get("uuid"),
        "clocks locked": gpu.get("clocks_locked"),
        "highest SM clock": gpu.get("max_sm_clock_mhz"),
        **{name: environment.get(name) for name in ("cuda", "cudnn", "attnbench", "python", "processor")},
        "commit": f"{str(git['commit'])[:12]}{dirty}" if git.get("commit") else None,
    }
    facts |= {f"library {name}": value for name, value in _part(environment, "versions").items()}
    facts |= {f"variable {name}": value for name, value in _part(environment, "variables").items()}
    return {name: str(value) for name, value in facts.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------


def _case_by_case(base: pd.DataFrame, new: pd.DataFrame) -> bool:
    """Is there a case with rows of more than one device? Runs over several GPU models need not have one."""
    devices: dict[str, set[str]] = {}
    shared = set(base["case_id"]) & set(new["case_id"])
    for frame in (base, new):
        known = frame[frame["device"].notna() & frame["case_id"].isin(shared)]
        for case_id, device in zip(known["case_id"], known["device"], strict=True):
            devices.setdefault(case_id, set()).add(device)
    return not devices or any(len(found) > 1 for found in devices.values())


def _stated_by_runs(frame: pd.DataFrame) -> list[dict[str, str]]:
    """What is stated of every place of every run."""
    records: Mapping[str, Mapping[str, Any]] = frame.attrs.get("runs", {})
    return [
        stated({**records[run], "environment": place["environment"]} if place else records[run])
        for run in sorted(set(frame["run_id"]) & set(records))
        for place in by_place(records[run]).values() or (None,)
    ]


def _facts(frame: pd.DataFrame, stated: Iterable[Mapping[str, str]]) -> dict[str, set[str]]:
    """The known values of each fact over the runs of a side."""
    facts: dict[str, set[str]] = {name: set() for name in _DECISIVE}
    for run in stated:
        for name, value in run.items():
            facts.setdefault(name, set()).add(value)
    # What the worker said of its device counts before what the sweep's own process said.
    facts["device"] = {str(device) for device in frame["device"].dropna()} or facts["device"]
    timed = frame[frame["provider"].notna()]
    for mechanism, provider in set(zip(timed["mechanism"], timed["provider"], strict=True)):
        facts.setdefault(f"provider of {mechanism}", set()).add(str(provider))
    return facts


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}
