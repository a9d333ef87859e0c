"""Cases that are not attempted, because no more work than theirs was over the limit, or because theirs must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from attnbench.case import Case, Status, Workload
from attnbench.executors.supervised import Row
from attnbench.providers import Cost
from attnbench.words import time_text

NOT_ATTEMPTED: Final = "not attempted"  # how the reason of such a case begins
_SPARED: Final = re.compile(rf"{NOT_ATTEMPTED}: .* was over the limit \((?P<cause>.*)\)")
_POWERS: Final[Mapping[Cost, int]] = {"N": 1, "N W": 1, "N^2": 2}
_TELLING_S: Final = 0.01  # of a shorter call most may have been launching, which does not grow
_CALLS: Final = 2  # the fewest that a case takes: one that compiles, and a sample


@dataclass(kw_only=True)
class Forecast:
    """Which requests must take too long, by what shorter ones that differ in nothing else took.

    series: of a request, all but its `seq_len`; cost: how its time grows with that.
    """

    series: Callable[[Any], tuple[object, ...]]
    cost: Callable[[Any], Cost]
    _took: dict[tuple[object, ...], tuple[int, float]] = field(
        default_factory=dict
    )  # length, seconds of a call

    def learn(self, request: Any, rows: Iterable[Any]) -> None:
        """Remember what a call of a request took, by the `median_ms` of its records."""
        key = self.series(request)
        for row in rows:
            if row.status == Status.OK and row.median_ms is not None:
                took = request.seq_len, row.median_ms / 1e3
                self._took[key] = max(took, self._took.get(key, took))

    def reason(self, request: Any, *, limit_s: float) -> str | None:
        """Why a request need not be attempted within a limit; None: it may fit, or too little is known."""
        seq_len, seconds = self._took.get(self.series(request), (request.seq_len, 0.0))
        cost = self.cost(request)
        foretold = seconds * (request.seq_len / seq_len) ** _POWERS[cost]
        if request.seq_len <= seq_len or seconds < _TELLING_S or _CALLS * foretold <= limit_s:
            return None
        return (
            f"{NOT_ATTEMPTED}: a call would take about {time_text(foretold * 1e3)}, by the {time_text(seconds * 1e3)} "
            f"measured at seq_len {seq_len} and a cost that grows as {cost}; {_CALLS} do not fit the limit of "
            f"{limit_s:g} s"
        )


@dataclass
class Overlong:
    """The rows of a run that were over the limit, and what follows from them on the same device."""

    rows: list[Row] = field(default_factory=list)

    @classmethod
    def among(cls, rows: Iterable[Row]) -> Overlong:
        """Those that were attempted and timed out."""
        return cls([r for r in rows if r["status"] == Status.TIMEOUT and NOT_ATTEMPTED not in r["reason"]])

    def add(self, row: Row) -> None:
        """Remember a row that was measured, if it timed out."""
        if row["status"] == Status.TIMEOUT:
            self.rows.append(row)

    def reason(self, case: Case, *, device: str | None) -> str | None:
        """Why a case need not be attempted on a device; None: it should be."""
        known = (r for r in self.rows if device in (None, r["device"]) or r["device"] is None)
        lighter = next((r for r in known if _is_no_lighter(case, than=r)), None)
        if lighter is None:
            return None
        return (
            f"{NOT_ATTEMPTED}: batch {lighter['batch']}, heads {lighter['heads']}, seq_len {lighter['seq_len']} is no "
            f"more work and was over the limit ({lighter['reason']})"
        )


def cause(reason: str) -> str | None:
    """What the attempted case said that such a reason speaks of; None for other reasons."""
    found = _SPARED.fullmatch(reason)
    return None if found is None else found["cause"]


def _is_no_lighter(case: Case, *, than: Row) -> bool:
    """Does a case do at least the work of a measured one?

    No shorter, no fewer tokens over all heads, as many heads to a key-value head, all else equal. The tokens of a
    decode are its sequences, so there it is: no shorter a context, no fewer sequences.
    """
    same = ("mechanism", "head_dim", "value_dim", "dtype", "causal", "window")
    tokens = Workload(than["workload"]).tokens(batch=than["batch"], seq_len=than["seq_len"])
    return (
        all(getattr(case, name) == than[name] for name in same)
        and str(case.workload) == than["workload"]
        and case.heads * than["kv_heads"] == than["heads"] * case.kv_heads
        and case.seq_len >= than["seq_len"]
        and case.tokens * case.heads >= tokens * than["heads"]
    )
