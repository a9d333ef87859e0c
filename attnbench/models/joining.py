"""Records of several folders and files as one file of each kind, what was measured twice on one device once."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.case import Status
from attnbench.errors import UserError
from attnbench.merging import refuse_to_replace
from attnbench.models import records
from attnbench.models.records import Row
from attnbench.places import shared

OTHERS = "others"  # in the environment of a joined file: those of its rows that were measured in another one


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What came of one kind: cases that are there and that were left out, devices by their cases."""

    path: Path
    kind: str
    cases: int
    duplicates: int
    devices: Mapping[str, int]


def files_of(path: Path) -> list[Path]:
    """A file of records itself, those in a folder, one of each kind, and none for anything else."""
    if path.is_dir():
        return [file for file in sorted(path.glob("*.parquet")) if records.kind_of(file) is not None]
    if path.suffix != ".parquet" or not path.exists() or records.kind_of(path) is None:
        return []
    return [path]


def join_records(paths: Sequence[Path], *, out: Path, kinds: Sequence[type[Row]]) -> tuple[Joined, ...]:
    """Join files and folders of records into a file of each kind in the folder `out`, or into the file `out`.

    Of one case on one device the first that is ok is kept, without one the first. The file's environment is that of
    the last path with records of its kind; others that differ from it are kept in it, under "others".

    Raises UserError for what cannot be read, a path without records, one file for several kinds, or an `out` that
    exists already or cannot be written.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        files = files_of(path)
        if not files:
            what = "holds no records of models, as the others do" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}: records of models are joined with each other alone")
        for file in files:
            found.setdefault(str(records.kind_of(file)), []).append(file)
    known = {kind.KIND: kind for kind in kinds}
    if out.suffix == ".parquet" and len(found) > 1:
        raise UserError(f"{out} is one file, and there are records of {', '.join(found)}: name a folder")
    targets = {name: out if out.suffix == ".parquet" else out / f"{name}.parquet" for name in found}
    for target in targets.values():
        refuse_to_replace(target)
    return tuple(_join(files, target=targets[name], kind=known[name]) for name, files in found.items())


def _join(files: Sequence[Path], *, target: Path, kind: type[Row]) -> Joined:
    cases = [case for file in files for case in _cases(records.read(file, kind=kind))]
    kept: dict[tuple[str, str], list[Any]] = {}
    for case in sorted(cases, key=_failed):  # which leaves the order of the paths
        kept.setdefault(_case_of(case[0]), case)
    rows = [row for _, case in sorted(kept.items()) for row in case]
    records.write(rows, target, kind=kind, environment=_environment(files, kind=kind))
    return Joined(
        path=target,
        kind=kind.KIND,
        cases=len(kept),
        duplicates=len(cases) - len(kept),
        devices=dict(sorted(Counter(device for _, device in kept).items())),
    )


def _cases(rows: Iterable[Any]) -> list[list[Any]]:
    """The rows of each case on each device together, in their order: a training run has one for each step."""
    ordered = sorted(rows, key=_case_of)
    return [list(case) for _, case in itertools.groupby(ordered, key=_case_of)]


def _case_of(row: Any) -> tuple[str, str]:
    return row.case_id, row.device or "unknown device"


def _failed(case: Sequence[Any]) -> bool:
    return bool(getattr(case[0], "status", Status.OK) != Status.OK)


def _environment(files: Sequence[Path], *, kind: type[Row]) -> dict[str, Any]:
    every: list[dict[str, Any]] = []
    for file in files:
        found = records.read_environment(file, kind=kind)
        every += [*found.pop(OTHERS, []), found]
    last = every[-1]
    told = {_text(shared(last))}
    others = []
    for each in every[:-1]:
        if (text := _text(shared(each))) not in told:
            told.add(text)
            others.append(each)
    return {**last, OTHERS: others} if others else last


def _text(environment: Mapping[str, Any]) -> str:
    return json.dumps(environment, sort_keys=True)
