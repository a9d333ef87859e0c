"""Rows condensed by mechanism and dtype: the worst errors, what went wrong, and what is left to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.case import Case, Status, Workload
from attnbench.executors.supervised import Row
from attnbench.semantics import TOLERANCES

_ERRORS = ("rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mechanism in one dtype: its worst errors over all shapes, and what went wrong."""

    mechanism: str
    dtype: str
    device: str | None
    provider: str | None
    tolerance: float
    shapes: int  # checked; one counts again as a decode, and with each other axis
    unsupported: int
    left: int  # cases that are not checked yet
    worst: dict[str, float | None]  # by output: "o", "dq", "dk", "dv"
    faults: tuple[
        str, ...
    ]  # "[decode ]<shape>: <status>: <reason>", for every case neither ok nor unsupported
    worst_status: Status | None  # of the faults: `incorrect` where one of them is
    why_unsupported: str | None  # the first reason, when nothing could be checked

    @property
    def status(self) -> Status | None:
        """None where nothing is checked yet; a mechanism that raises is no wrong one."""
        if self.worst_status is not None:
            return self.worst_status
        if self.shapes:
            return Status.OK
        return Status.UNSUPPORTED if self.unsupported else None


def findings(wanted: Sequence[Case], rows: Mapping[int, Row]) -> list[Finding]:
    """In the order in which mechanisms and dtypes are asked for. rows: by the places of their cases in `wanted`."""
    groups: dict[tuple[str, str], list[Row | None]] = {}
    for place, case in enumerate(wanted):
        groups.setdefault((case.mechanism, case.dtype), []).append(rows.get(place))
    return [_finding(mechanism, dtype, group) for (mechanism, dtype), group in groups.items()]


def _finding(mechanism: str, dtype: str, group: Sequence[Row | None]) -> Finding:
    rows = [row for row in group if row is not None]
    checked = [r for r in rows if r["status"] in (Status.OK, Status.INCORRECT)]
    unsupported = [r for r in rows if r["status"] == Status.UNSUPPORTED]
    bad = [r for r in rows if r["status"] not in (Status.OK, Status.UNSUPPORTED)]
    return Finding(
        mechanism=mechanism,
        dtype=dtype,
        device=_first(rows, "device"),
        provider=_first(rows, "provider"),
        tolerance=TOLERANCES[dtype],
        shapes=len(checked),
        unsupported=len(unsupported),
        left=len(group) - len(rows),
        worst={
            name.removeprefix("rel_err_"): max(
                (r[name] for r in checked if r[name] is not None), default=None
            )
            for name in _ERRORS
        },
        worst_status=_worst(bad),
        faults=tuple(f"{_shape(r)}: {r['status']}: {r['reason']}" for r in bad),
        why_unsupported=unsupported[0]["reason"] if unsupported and not checked else None,
    )


def _worst(bad: Sequence[Row]) -> Status | None:
    found = [Status(row["status"]) for row in bad]
    return Status.INCORRECT if Status.INCORRECT in found else next(iter(found), None)


def _first(rows: Sequence[Row], column: str) -> str | None:
    return next((row[column] for row in rows if row[column]), None)


def _shape(row: Row) -> str:
    shape = str(row["case_id"]).split(".")[2]
    return f"decode {shape}" if row["workload"] == Workload.DECODE else shape
