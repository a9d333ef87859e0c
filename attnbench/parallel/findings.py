"""What the records of sequence parallelism say: a line, a table, and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.case import Status
from attnbench.parallel.records import ParallelCase
from attnbench.words import bytes_text, factor, rate_text, time_text, workload_order, workload_title

Key = tuple[str, str, int, int, int, str, bool | None]


def line(row: ParallelCase) -> str:
    """One finished case on one line."""
    if row.status != Status.OK or row.median_ms is None or row.tokens_per_s is None:
        return f"{row.case_id}: {row.status}: {row.reason}"
    exposed = "" if row.exposed_ms is None else f", {time_text(row.exposed_ms)} of communication exposed"
    return f"{row.case_id}: {time_text(row.median_ms)}, {rate_text(row.tokens_per_s)}{exposed}"


def table(rows: Sequence[ParallelCase]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row of each case that was measured; memory is of one rank, what is sent of all."""
    heads = ("mechanism", "seq_len", "tokens/s", "effic.", "compute", "comm.", "exposed", "sent", "memory")
    found = efficiencies(rows)
    return heads, [
        (
            f"{row.mechanism} {row.workload} on {row.ranks}"
            + ("" if row.decay is not False else ", no decay"),
            f"{row.seq_len:,}",
            rate_text(row.tokens_per_s).removesuffix(" tokens/s"),
            "" if row.case_id not in found else f"{found[row.case_id]:.1%}",
            *(
                "" if ms is None else time_text(ms)
                for ms in (row.compute_ms, row.communication_ms, row.exposed_ms)
            ),
            "" if row.sent_bytes is None else bytes_text(row.sent_bytes),
            "" if row.peak_bytes is None else bytes_text(row.peak_bytes),
        )
        for row in rows
        if row.status == Status.OK and row.tokens_per_s is not None
    ]


def efficiencies(rows: Sequence[ParallelCase]) -> dict[str, float]:
    """Of each case on several ranks whose like on one rank is known: its speed over ranks times that one's."""
    alone = {same_case(row): row.tokens_per_s for row in rows if row.ranks == 1 and row.tokens_per_s}
    return {
        row.case_id: row.tokens_per_s / (row.ranks * alone[same_case(row)])
        for row in rows
        if row.ranks > 1 and row.tokens_per_s and same_case(row) in alone
    }


def same_case(row: ParallelCase) -> tuple[Key, int]:
    """What cases share that differ in ranks alone."""
    return same_line(row), row.seq_len


def same_line(row: ParallelCase) -> Key:
    """What cases share that differ in ranks and length alone."""
    return row.mechanism, row.workload, row.batch, row.heads, row.head_dim, row.dtype, row.decay


def sentences(rows: Sequence[ParallelCase]) -> list[str]:
    """Efficiency at the longest common length, who is faster there, and what could not be measured."""
    found = []
    shares = efficiencies(rows)
    best: dict[tuple[Key, int], ParallelCase] = {}
    for row in rows:
        if row.case_id in shares:
            key = (same_line(row), row.ranks)
            best[key] = max(best.get(key, row), row, key=lambda each: each.seq_len)
    for row in best.values():
        found.append(
            f"{workload_title(row.workload)}: {row.mechanism} on {row.ranks} ranks reaches "
            f"{shares[row.case_id]:.1%} of {row.ranks} times one rank's speed at {row.seq_len:,} tokens."
        )
    found += _against_ring(rows)
    found += [
        f"{row.case_id} sent {bytes_text(row.sent_bytes)}, by formula it is {bytes_text(row.sent_bytes_formula)}."
        for row in rows
        if row.sent_bytes is not None and row.sent_bytes_formula is not None
        if row.sent_bytes != row.sent_bytes_formula
    ]
    return found + [
        f"Not measured: {r.case_id}: {r.status}: {r.reason}" for r in rows if r.status != Status.OK
    ]


def _against_ring(rows: Sequence[ParallelCase]) -> list[str]:
    """Of each workload the fastest linear mechanism beside ring attention, at the longest length on most ranks."""
    workloads = sorted({row.workload for row in rows}, key=workload_order)
    return [text for name in workloads for text in _beside_ring([r for r in rows if r.workload == name])]


def _beside_ring(rows: Sequence[ParallelCase]) -> list[str]:
    known = [row for row in rows if row.tokens_per_s and row.ranks > 1]
    pairs = [
        (a, b)
        for a in known
        for b in known
        if a.decay is not None and b.decay is None
        if (a.ranks, a.seq_len) == (b.ranks, b.seq_len)
    ]
    if not pairs:
        return []
    a, b = max(pairs, key=lambda pair: (pair[0].seq_len, pair[0].ranks, pair[0].tokens_per_s or 0.0))
    assert a.tokens_per_s
    assert b.tokens_per_s
    ratio = factor(a.tokens_per_s / b.tokens_per_s)
    return [
        f"{workload_title(a.workload)}, at {a.seq_len:,} tokens on {a.ranks} ranks {a.mechanism} runs at {ratio} the "
        f"speed of {b.mechanism}."
    ]
