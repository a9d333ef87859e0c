"""What was found, as cells of a table and as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench.case import Status
from attnbench.markdown import escaped, markdown_table
from attnbench.verification.findings import Finding
from attnbench.words import count_text

TITLE = "Largest relative error against the fp64 oracle"
HEADINGS = ("mechanism", "dtype", "shapes", "o", "dq", "dk", "dv", "allowed", "verdict")


def cells(finding: Finding) -> list[str]:
    """The row of a finding, under HEADINGS. Errors are norms of differences over norms of what is right."""
    f = finding
    errors = ["" if f.worst[n] is None else f"{f.worst[n]:.1e}" for n in ("o", "dq", "dk", "dv")]
    verdict = "right" if f.status == Status.OK else None if f.status is None else str(f.status)
    left = f"{f.left:,} left" if f.left else None
    allowed = f"{f.tolerance:.1e}" if f.shapes else ""
    said = ", ".join(filter(None, (verdict, left)))
    return [f.mechanism, f.dtype, str(f.shapes), *errors, allowed, said]


def remarks(found: Sequence[Finding]) -> Iterator[str]:
    """A line for each reason and each fault."""
    for f in found:
        if f.why_unsupported:
            yield f"{f.mechanism} {f.dtype}: {f.why_unsupported}"
        yield from (f"{f.mechanism} {f.dtype} {fault}" for fault in f.faults)


def page(found: Sequence[Finding]) -> str:
    """Markdown: how it stands in a sentence, the table with who computed each row, and the remarks."""
    rows = [
        [mechanism, dtype, f.provider or "", *rest] for f in found for mechanism, dtype, *rest in [cells(f)]
    ]
    table = markdown_table([*HEADINGS[:2], "provider", *HEADINGS[2:]], rows)
    said = [f"- {escaped(remark)}" for remark in remarks(found)]
    return "\n".join([f"# {TITLE}", "", standing(found), "", table, "", *said]).rstrip() + "\n"


def standing(found: Sequence[Finding]) -> str:
    """How it stands, in a sentence."""
    devices = ", ".join(sorted({f.device for f in found if f.device})) or "no device"
    wrong = [f"{f.mechanism} in {f.dtype}" for f in found if f.faults]
    by: Counter[Status | None] = Counter(f.status for f in found if not f.faults)
    left = sum(f.left for f in found)
    parts = [
        f"{count_text(sum(f.shapes for f in found), 'case')} checked on {devices}",
        f"{count_text(by[Status.OK], 'pair')} of mechanism and dtype right",
        f"wrong: {', '.join(wrong)}" if wrong else "none wrong",
        f"{by[Status.UNSUPPORTED]} unsupported" if by[Status.UNSUPPORTED] else "",
        f"{count_text(left, 'case')} left to check" if left else "",
    ]
    return "; ".join(filter(None, parts)) + "."
