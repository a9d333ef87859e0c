"""What a run found, in sentences, and as JSON with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from attnbench.case import Status
from attnbench.crossings import Crossover
from attnbench.shapes import Standings
from attnbench.summary.found import Leader, Section, Summary
from attnbench.words import count_text, factor, joined, rate_text, three, within, workload_title


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain types for `json.dumps`, with its `sentences`."""
    return {**dataclasses.asdict(summary), "sentences": sentences(summary)}


def sentences(summary: Summary) -> list[str]:
    """The whole summary in words, the worst first."""
    said = [f"INCORRECT: {each.sentence()}." for each in summary.incorrect]
    for section in summary.sections:
        said += [f"{heading(section)}: {text}." for text in findings(section)]
    said += [f"{workload_title(each.workload)}: {standing_words(each)}" for each in summary.standings]
    said += [f"Not measured: {each.sentence()}." for each in summary.missing]
    said += [f"Warning: {text}." for text in summary.warnings]
    return [*said, closing(summary)]


def closing(summary: Summary) -> str:
    """The last sentence: how many cases, on what, and how they ended."""
    if not summary.rows:
        return "There is no case in these results."
    device = f" on {', '.join(summary.devices)}" if summary.devices else ""
    ended = ", ".join(f"{count:,} {status}" for status, count in _ok_first(summary.statuses))
    wrong = sum(each.cases for each in summary.incorrect)
    alarm = f" {count_text(wrong, 'case')} gave wrong output." if wrong else ""
    return f"{count_text(summary.rows, 'case')}{device}: {ended}.{alarm}"


def heading(section: Section) -> str:
    """`Forward, batch 4, 16 heads, ...`."""
    return f"{workload_title(section.workload)}, {section.group.label()}"


def findings(section: Section) -> list[str]:
    """All that is said of a section, without full stops."""
    return [
        fastest_words(section),
        *flattest_words(section),
        *crossing_words(section),
        *energy_words(section),
    ]


def fastest_words(section: Section) -> str:
    """Who leads over which lengths: `flash2 is fastest at 512 tokens, lightning2 from 1,024 to 8,192`.

    Where the intervals of the two in front overlap, neither is called the fastest.
    """
    beside = [leader for leader in section.leaders if not leader.alone] or section.leaders
    parts: list[str] = []
    unit, said = " tokens", False  # the unit once; "is fastest" again where another verb stands before
    for who, run in groupby(beside, key=_at_the_head):
        span = f"{_span([leader.seq_len for leader in run])}{unit}"
        verb = " is fastest" if len(who) == 1 and not said else "" if len(who) == 1 else " are not told apart"
        parts.append(f"{' and '.join(who)}{verb} {span}")
        unit, said = "", len(who) == 1
    if not any(leader.next for leader in section.leaders):
        return f"{', '.join(parts)} (nothing else was measured)"
    alone = [leader for leader in section.leaders if leader.alone]
    parts += [
        f"{mechanism} alone was measured {_span([leader.seq_len for leader in run])}"
        for mechanism, run in groupby(alone, key=lambda leader: leader.mechanism)
    ]
    return ", ".join(parts)


def _at_the_head(leader: Leader) -> tuple[str, ...]:
    """The fastest one, or the two that the intervals of their times do not tell apart, by name."""
    if leader.clear is False and leader.next is not None:
        return tuple(sorted((leader.mechanism, leader.next)))
    return (leader.mechanism,)


def _span(lengths: Sequence[int]) -> str:
    return f"at {lengths[0]:,}" if len(lengths) == 1 else f"from {lengths[0]:,} to {lengths[-1]:,}"


def flattest_words(section: Section) -> list[str]:
    """The mechanism of the most constant speed, as one sentence or none, without a full stop."""
    several = [each for each in section.flatness if each.slope is not None]
    if not several:
        return []
    flat = several[0]
    low = f"{rate_text(flat.slowest)} at {flat.slowest_at:,} tokens"
    high = f"{rate_text(flat.fastest)} at {flat.fastest_at:,}"
    return [
        f"{flat.mechanism} is the flattest: its tokens/s stay within a factor of "
        f"{within(flat.flatness)} ({low}, {high})"
    ]


def crossing_words(section: Section) -> list[str]:
    """Crossings of a mechanism that leads somewhere, and whom the leader at the longest length always led."""
    last = section.leaders[-1].mechanism
    said = [each.sentence() for each in leading_crossings(section)]
    ahead: dict[tuple[int, str], list[str]] = {}
    for each in section.crossovers:
        if each.low is None and each.faster == last:
            ahead.setdefault((each.high, each.unless()), []).append(each.slower)
    alone = len({leader.seq_len for leader in section.leaders}) == 1
    for (length, unless), others in sorted(ahead.items()):
        where = f"at {length:,} tokens" if alone else f"from {length:,} tokens or earlier"
        said.append(f"{last} is ahead of {joined(sorted(others))} {where}{unless}")
    return said


def alone_words(section: Section) -> list[str]:
    """How constant the speed of the only mechanism is, which no other one can be compared with."""
    if len(section.flatness) != 1:
        return []
    (only,) = section.flatness
    if only.slope is None:
        return [f"{only.mechanism} runs at {rate_text(only.fastest)} at {only.fastest_at:,} tokens"]
    return [
        f"{only.mechanism} runs at {rate_text(only.slowest)} ({only.slowest_at:,} tokens) to "
        f"{rate_text(only.fastest)} ({only.fastest_at:,}), {factor(only.flatness)} from end to end"
    ]


def leading_crossings(section: Section) -> list[Crossover]:
    """The crossings of a mechanism that leads somewhere."""
    leading = {leader.mechanism for leader in section.leaders}
    return [
        each for each in section.crossovers if each.low is not None and leading & {each.faster, each.slower}
    ]


def overtaking_words(section: Section) -> list[str]:
    """Where the lead changes hands: the crossings of a leader and the next one, without full stops."""
    changes = pairwise(leader.mechanism for leader in section.leaders)
    handed = {(before, after) for before, after in changes if before != after}
    return [
        each.sentence() for each in section.crossovers if (each.slower, each.faster) in handed and each.low
    ]


def energy_words(section: Section) -> list[str]:
    """What a million tokens take, as one sentence, or none where no energy is known."""
    if not section.energy:
        return []
    each = [
        f"{e.mechanism} {three(e.joules_per_million_tokens)} J at {e.seq_len:,} tokens"
        for e in section.energy
    ]
    return [f"energy per million tokens: {', '.join(each)}"]


def standing_words(found: Standings) -> str:
    """Who is fastest, and how near to its bound; means are geometric."""
    first = found.standings[0]
    bound = ""
    if first.share is not None:
        bound = (
            f"; it reaches {first.share:.0%} of its bound (geometric mean), {first.worst_share:.0%} at worst "
            f"({first.worst_at})"
        )
    return f"{first.mechanism} is fastest at {first.fastest} of {count_text(found.shapes, 'shape')}{bound}."


def _ok_first(statuses: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(statuses.items(), key=lambda each: (each[0] != Status.OK, each[0]))
