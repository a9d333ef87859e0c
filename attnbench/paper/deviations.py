"""The deviation table: each claim of a figure, what the published lines show, what is shown here, and the verdict."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from attnbench.paper.claims import Claim, by_series
from attnbench.paper.figures import Figure, find
from attnbench.paper.lines import Line, Origin
from attnbench.words import count_text, joined

_LENDER = "the authors' repository"  # whose points stand in for those of a figure that prints none


class Verdict(StrEnum):
    """Does a claim hold here?"""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told"
    UNMEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One claim in one panel on one device. `published`: what the published lines show, None where none are printed."""

    claim: str
    source: str
    panel: str
    published: str | None
    here: str | None
    device: str | None
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "verdict": str(self.verdict)}


def deviations(
    figure: Figure, *, published: Sequence[Line], measured: Sequence[Line]
) -> tuple[Deviation, ...]:
    """Every claim of a figure in each of its panels, for each device (or setting) that measured something of it.

    published: as printed or, where they are known to be wrong, corrected lines.
    """
    found: list[Deviation] = []
    for claim in figure.claim:
        for panel in claim.panels:
            there = _published(claim, figure, panel, published)
            editions: list[str | None] = [*_editions(claim, panel, measured)]
            judged = [
                _deviation(claim, figure, panel, there, edition, measured) for edition in editions or [None]
            ]
            # A setting that was measured at one place says nothing of a claim that another one answers.
            found += [each for each in judged if each.verdict is not Verdict.OPEN] or judged[:1]
    return tuple(found)


def verdict_words(found: Iterable[Deviation]) -> str:
    """`11 claims hold here, 2 do not hold, 3 are not measured`; a claim counts once for each panel."""
    counts = Counter(each.verdict for each in found)
    total = count_text(sum(counts.values()), "claim")
    words = {
        Verdict.HOLDS: ("holds here", "hold here"),
        Verdict.FAILS: ("does not hold", "do not hold"),
        Verdict.OPEN: ("cannot be told", "cannot be told"),
        Verdict.UNMEASURED: ("is not measured", "are not measured"),
    }
    said = [
        f"{number} {words[verdict][number != 1]}" for verdict in Verdict if (number := counts.get(verdict, 0))
    ]
    if len(said) > 1:
        return f"of {total} {joined(said)}"
    only = next((words[verdict][total != "1 claim"] for verdict in counts), "")
    return f"{'' if total == '1 claim' else 'all '}{total} {only}" if said else "no claim is checked"


def hardware_words(figure: Figure, device: str) -> str:
    """The difference of hardware, in a few sentences; empty where nothing was measured."""
    if not device:
        return ""
    other = " That is other hardware." if "A100" in figure.hardware and "A100" not in device else ""
    lent = dict.fromkeys(find(each.figure).hardware for each in figure.borrows)
    drawn = f"; the hollow points are of {_LENDER}, {joined(list(lent))}" if lent else ""
    return f"Published: {figure.hardware}{drawn}. Here: {device}.{other} {figure.difference}"


# ------------------------------------------------------------------------------------------------------------


def _published(claim: Claim, figure: Figure, panel: str, published: Sequence[Line]) -> str | None:
    where = claim.published_panel or panel
    there = [line for line in published if line.panel == where]
    if not there:
        return None
    first = [line for line in there if line.edition == there[0].edition]
    judged = claim.judge(by_series(first), quantity=figure.panel_of(where).quantity)
    note = " (corrected)" if first[0].origin is Origin.CORRECTED else ""
    note = note or (f" ({_LENDER})" if figure.borrows else "")
    return None if judged.holds is None else f"{judged.said}{note}"


def _editions(claim: Claim, panel: str, measured: Sequence[Line]) -> list[str]:
    """The editions that measured any series of a claim."""
    needed = claim.needed()
    return list(dict.fromkeys(ln.edition for ln in measured if ln.panel == panel and ln.series in needed))


def _deviation(
    claim: Claim,
    figure: Figure,
    panel: str,
    published: str | None,
    edition: str | None,
    measured: Sequence[Line],
) -> Deviation:
    here, verdict = None, Verdict.UNMEASURED
    if edition is not None:
        lines = by_series([ln for ln in measured if ln.panel == panel and ln.edition == edition])
        judged = claim.judge(lines, quantity=figure.panel_of(panel).quantity)
        here = judged.said
        verdicts = {True: Verdict.HOLDS, False: Verdict.FAILS, None: Verdict.OPEN}
        verdict = verdicts[judged.holds]
    return Deviation(
        claim=claim.text,
        source=claim.source,
        panel=figure.panel_of(panel).title,
        published=published,
        here=here,
        device=edition,
        verdict=verdict,
    )
