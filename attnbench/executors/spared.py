"""Cases that are not attempted, because no more work than theirs was over the limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attnbench.case import Case, Status, Workload
from attnbench.executors.supervised import Row


@dataclass
class Overlong:
    """The rows of a run that were over the limit, and what follows from them on the same device."""

    rows: list[Row] = field(default_factory=list)

    @classmethod
    def among(cls, rows: Iterable[Row]) -> Overlong:
        """Those that were attempted and timed out."""
        return cls([r for r in rows if r["status"] == Status.TIMEOUT and "not attempted" not in r["reason"]])

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
            f"not attempted: batch {lighter['batch']}, heads {lighter['heads']}, seq_len {lighter['seq_len']} is no "
            f"more work and was over the limit ({lighter['reason']})"
        )


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
