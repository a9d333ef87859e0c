"""The closing words of a run: who is fastest where, how flat, where curves cross, and what is missing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from attnbench.case import Status
from attnbench.crossings import Crossover, crossovers
from attnbench.curves import Curve, Group, curves, flatness, groups, line_names, slope
from attnbench.places import by_place
from attnbench.shapes import Standings, lists_shapes, standings
from attnbench.words import (
    bytes_text,
    count_text,
    factor,
    joined,
    one_line,
    rate_text,
    status_words,
    three,
    time_text,
    workload_order,
    workload_title,
)

if TYPE_CHECKING:
    from rich.console import Console

_DETAILED = 4  # up to so many sections, each gets its tables

# Shares of the fastest SM clock seen on a device: below the first a case is flagged, below the second the
# clocks count as unsteady.
_CLOCK_FLAG, _CLOCK_STEADY = 0.75, 0.95
_WIDE = 0.05  # an interval that reaches farther than this from the median is worth a word
_NO_THROTTLE = ("", "none", "gpu_idle", "idle")


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The fastest mechanism at one length. `ahead` is the time of the next one over its own."""

    seq_len: int
    mechanism: str
    tokens_per_s: float
    median_ms: float
    peak_bytes: int | None
    next: str | None
    ahead: float | None
    clear: bool | None  # do the intervals of the two leave a space? None without a next one


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """How constant the speed of a mechanism is: largest over smallest tokens/s, and where they were."""

    mechanism: str
    flatness: float
    slope: float | None  # of log tokens/s on log N
    fastest: float
    fastest_at: int
    slowest: float
    slowest_at: int


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules that a mechanism takes for a million tokens, at its longest length where that is known."""

    mechanism: str
    seq_len: int
    joules_per_million_tokens: float


@dataclass(frozen=True, kw_only=True)
class Section:
    """One workload with everything else but the length fixed."""

    workload: str
    group: Group
    leaders: tuple[Leader, ...]  # by length
    flatness: tuple[Flatness, ...]  # flattest first
    crossovers: tuple[Crossover, ...]  # of every pair
    energy: tuple[Energy, ...]  # least first


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Cases of one mechanism that ended alike, without a value, and at which lengths."""

    mechanism: str
    workloads: tuple[str, ...]
    status: str
    reason: str  # of the first; numbers in it may differ from case to case
    cases: int
    shortest: int | None
    longest: int | None
    every_length: bool  # all cases of the mechanism in these workloads ended so
    onwards: bool  # and those of `shortest` or longer

    def sentence(self) -> str:
        """In words, e.g. `linear-cumsum: out of memory from 8,192 tokens on (4 cases)`."""
        who = f"{self.mechanism} ({', '.join(self.workloads)})"
        reason = f": {one_line(self.reason)}" if self.reason and self.status != Status.OOM else ""
        cases = count_text(self.cases, "case")
        return f"{who}: {status_words(self.status)} {self._lengths()} ({cases}){reason}"

    def _lengths(self) -> str:
        if self.shortest is None or self.longest is None:
            return "at an unknown length"
        if self.every_length:
            return "at every length"
        if self.onwards:
            return f"from {self.shortest:,} tokens on"
        if self.shortest == self.longest:
            return f"at {self.shortest:,} tokens"
        return f"between {self.shortest:,} and {self.longest:,} tokens"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run found, in numbers; `sentences` says it in words."""

    rows: int
    devices: tuple[str, ...]
    statuses: dict[str, int]
    sections: tuple[Section, ...]
    standings: tuple[Standings, ...]  # of a sweep whose shapes are listed one by one
    missing: tuple[Missing, ...]  # without the incorrect ones
    incorrect: tuple[Missing, ...]
    warnings: tuple[str, ...]


def summarize_run(frame: pd.DataFrame) -> Summary:
    """Derive the summary of a results frame as `store.load_results` returns it.

    Values are those of `curves.curves`: several runs of one case are merged there. `energy_j` is read as the
    energy of one call.
    """
    found = curves(frame)
    missing = _missing(frame)
    return Summary(
        rows=len(frame),
        devices=tuple(sorted({str(device) for device in frame["device"].dropna()})),
        statuses=dict(sorted(Counter(str(status) for status in frame["status"]).items())),
        sections=tuple(_sections(found)),
        standings=standings(frame) if lists_shapes(frame) else (),
        missing=tuple(each for each in missing if each.status != Status.INCORRECT),
        incorrect=tuple(each for each in missing if each.status == Status.INCORRECT),
        warnings=(*_mixed(frame), *_unlocked(frame), *_throttled(frame), *_clocks(frame), *_wide(found)),
    )


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


def render(summary: Summary, console: Console, *, detail: bool | None = None) -> None:
    """Print the summary: tables, then sentences.

    detail: the tables of every section, one line for each length; otherwise one line for each section. By
    default the former for up to four sections, and neither for a sweep whose shapes are listed one by one.
    """
    for each in summary.standings:
        _render_standings(each, console)
    detailed = len(summary.sections) <= _DETAILED if detail is None else detail
    if summary.standings and detail is None:
        return _render_rest(summary, console)
    for section in summary.sections if detailed else ():
        _render_section(section, console)
    if not detailed:
        for workload, same in groupby(summary.sections, key=lambda section: section.workload):
            console.print(_overview(workload, tuple(same)))
            _say(console)
    return _render_rest(summary, console)


def _render_rest(summary: Summary, console: Console) -> None:
    for each in summary.incorrect:
        _say(console, f"INCORRECT: {each.sentence()}.", style="bold red")
    if summary.missing:
        _say(console, "Not measured:", style="bold")
    for each in summary.missing:
        _say(console, f"  {each.sentence()}")
    for text in summary.warnings:
        _say(console, f"Warning: {text}.", style="yellow")
    _say(console, closing(summary), style="bold red" if summary.incorrect else "bold")


# --- what was found -----------------------------------------------------------------------------------------


def _sections(found: Sequence[Curve]) -> Iterable[Section]:
    for workload in dict.fromkeys(c.workload for c in found):
        for group in groups(c for c in found if c.workload == workload):
            same = [c for c in found if (c.workload, c.group) == (workload, group) and len(c)]
            if same:
                yield _section(same, workload=workload, group=group)


def _section(same: Sequence[Curve], *, workload: str, group: Group) -> Section:
    lengths = sorted({int(n) for c in same for n in c.seq_len})
    flat = [_flatness(c) for c in same]
    energy = [each for c in same if (each := _energy(c)) is not None]
    return Section(
        workload=workload,
        group=group,
        leaders=tuple(_leader(same, n) for n in lengths),
        flatness=tuple(sorted(flat, key=_flat_order)),
        crossovers=tuple(crossing for a, b in combinations(same, 2) for crossing in crossovers(a, b)),
        energy=tuple(sorted(energy, key=lambda each: (each.joules_per_million_tokens, each.mechanism))),
    )


def _leader(same: Sequence[Curve], seq_len: int) -> Leader:
    here = [(c, int(i)) for c in same for i in (c.seq_len == seq_len).nonzero()[0]]
    here.sort(key=lambda at: (at[0].median_ms[at[1]], at[0].mechanism))
    (c, i), after = here[0], here[1] if len(here) > 1 else None
    peak = float(c.peak_bytes[i])
    return Leader(
        seq_len=seq_len,
        mechanism=c.mechanism,
        tokens_per_s=float(c.tokens_per_s[i]),
        median_ms=float(c.median_ms[i]),
        peak_bytes=None if math.isnan(peak) else round(peak),
        next=after[0].mechanism if after else None,
        ahead=float(after[0].median_ms[after[1]] / c.median_ms[i]) if after else None,
        clear=_clear(c, i, *after) if after else None,
    )


def _clear(a: Curve, i: int, b: Curve, j: int) -> bool:
    """Does the faster one's interval end before the slower one's begins? Unknown ends are the median."""
    high = a.median_ms[i] if math.isnan(a.ci_high_ms[i]) else a.ci_high_ms[i]
    low = b.median_ms[j] if math.isnan(b.ci_low_ms[j]) else b.ci_low_ms[j]
    return bool(high < low)


def _flatness(c: Curve) -> Flatness:
    high, low = int(c.tokens_per_s.argmax()), int(c.tokens_per_s.argmin())
    return Flatness(
        mechanism=c.mechanism,
        flatness=flatness(c.tokens_per_s),
        slope=slope(c.seq_len, c.tokens_per_s),
        fastest=float(c.tokens_per_s[high]),
        fastest_at=int(c.seq_len[high]),
        slowest=float(c.tokens_per_s[low]),
        slowest_at=int(c.seq_len[low]),
    )


def _flat_order(each: Flatness) -> tuple[bool, float, str]:
    return (each.slope is None, each.flatness, each.mechanism)  # a single point is not flat


def _energy(c: Curve) -> Energy | None:
    known = [i for i in range(len(c)) if c.energy_j[i] > 0]  # False for NaN
    if not known:
        return None
    tokens = c.tokens_per_s[known[-1]] * c.median_ms[known[-1]] * 1e-3
    joules = float(c.energy_j[known[-1]] / tokens * 1e6)
    return Energy(mechanism=c.mechanism, seq_len=int(c.seq_len[known[-1]]), joules_per_million_tokens=joules)


# --- what was not -------------------------------------------------------------------------------------------


def _missing(frame: pd.DataFrame) -> list[Missing]:
    """The rows that are not ok, by mechanism, workload, status and reason, whatever the numbers in it."""
    shapes: dict[tuple[str, str, str, str], list[tuple[int | None, str]]] = {}
    ends: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    names = ("mechanism", "workload", "status", "reason", "seq_len")
    named = frame.assign(mechanism=line_names(frame))
    for mechanism, workload, status, given, length in zip(*(named[name] for name in names), strict=True):
        reason = given if isinstance(given, str) else ""
        seq_len = None if pd.isna(length) else int(length)
        kind = "" if status == Status.OOM else re.sub(r"\d[\d.,]*", "#", reason)
        ends.setdefault((mechanism, workload), []).append((status, kind, seq_len or 0))
        if status != Status.OK:
            shapes.setdefault((mechanism, workload, status, kind), []).append((seq_len, reason))
    found: dict[tuple[Any, ...], Missing] = {}
    for (mechanism, workload, status, kind), cases in shapes.items():
        lengths = [seq_len for seq_len, _ in cases if seq_len is not None]
        others = [n for *end, n in ends[mechanism, workload] if end != [status, kind]]
        each = Missing(
            mechanism=mechanism,
            workloads=(workload,),
            status=status,
            reason=min((reason for _, reason in cases), default=""),
            cases=len(cases),
            shortest=min(lengths, default=None),
            longest=max(lengths, default=None),
            every_length=not others,
            onwards=bool(lengths) and max(others, default=0) < min(lengths),
        )
        place = None if each.every_length else (each.shortest, each.longest, each.onwards)
        key = (mechanism, status, kind, place)
        found[key] = _joined(found[key], each) if key in found else each
    return sorted(found.values(), key=lambda each: (each.status, each.mechanism, each.workloads))


def _joined(a: Missing, b: Missing) -> Missing:
    lengths = [n for n in (a.shortest, b.shortest, a.longest, b.longest) if n is not None]
    return dataclasses.replace(
        a,
        workloads=tuple(sorted({*a.workloads, *b.workloads}, key=workload_order)),
        reason=min(a.reason, b.reason),
        cases=a.cases + b.cases,
        shortest=min(lengths, default=None),
        longest=max(lengths, default=None),
    )


# --- what to doubt ------------------------------------------------------------------------------------------


def _mixed(frame: pd.DataFrame) -> list[str]:
    """Several devices: values of one are set against nothing of another."""
    counts = frame["device"].dropna().value_counts()
    if len(counts) < 2:
        return []
    parts = [f"{count_text(int(counts[name]), 'case')} on {name}" for name in sorted(counts.index)]
    return [
        f"these results are of {len(counts)} devices ({', '.join(parts)}): nothing of one is compared with another"
    ]


def _unlocked(frame: pd.DataFrame) -> list[str]:
    """Devices that say of themselves that their clocks are free to move."""
    runs = frame.attrs.get("runs", {}).values()
    places = [place["environment"] for run in runs for place in by_place(run).values()]
    gpus = [gpu for environment in places if (gpu := environment.get("gpu"))]
    names = sorted({str(gpu["name"]) for gpu in gpus if gpu.get("clocks_locked") is False})
    return [f"the clocks of {name} are not locked: times follow its power and temperature" for name in names]


def _throttled(frame: pd.DataFrame) -> list[str]:
    timed = frame[frame["status"] == Status.OK]
    reasons: Counter[str] = Counter()
    cases = 0
    for given in timed["throttle"]:
        real = set() if given is None or isinstance(given, float) else {str(each) for each in given}
        real = {each for each in real if each.lower() not in _NO_THROTTLE}
        reasons.update(real)
        cases += bool(real)
    if not cases:
        return []
    why = ", ".join(reason for reason, _ in sorted(reasons.items(), key=lambda each: (-each[1], each[0])))
    return [f"the device held its clock back in {cases:,} of {count_text(len(timed), 'timed case')} ({why})"]


def _clocks(frame: pd.DataFrame) -> list[str]:
    said = []
    timed = frame[(frame["status"] == Status.OK) & frame["sm_clock_mhz"].notna()]
    for device, rows in timed.groupby(timed["device"].fillna("unknown device"), sort=True):
        clocks = rows["sm_clock_mhz"].astype("float64")
        low, high = float(clocks.min()), float(clocks.max())
        if low < _CLOCK_STEADY * high:
            slow = int((clocks < _CLOCK_FLAG * high).sum())
            flag = f"; {count_text(slow, 'case')} ran below {_CLOCK_FLAG:.0%} of the fastest" if slow else ""
            said.append(f"the SM clock of {device} ranged from {low:,.0f} to {high:,.0f} MHz{flag}")
    return said


def _wide(found: Sequence[Curve]) -> list[str]:
    far = [
        max(c.ci_high_ms[i] - c.median_ms[i], c.median_ms[i] - c.ci_low_ms[i]) / c.median_ms[i]
        for c in found
        for i in range(len(c))
    ]
    wide = [each for each in far if each > _WIDE]
    if not wide:
        return []
    verb = "has" if len(wide) == 1 else "have"
    return [
        f"{count_text(len(wide), 'case')} {verb} a 95 % interval of the median that reaches farther than "
        f"{_WIDE:.0%} from it (up to {max(wide):.0%})"
    ]


# --- words --------------------------------------------------------------------------------------------------


def heading(section: Section) -> str:
    """`Forward, batch 4, 16 heads, ...`."""
    return f"{workload_title(section.workload)}, {section.group.label()}"


def findings(section: Section) -> list[str]:
    """All that is said of a section, without full stops."""
    return [
        fastest_words(section),
        *flattest_words(section),
        *_crossing_words(section),
        *_energy_words(section),
    ]


def fastest_words(section: Section) -> str:
    """Who leads over which lengths: `flash2 is fastest at 512 tokens, lightning2 from 1,024 to 8,192`."""
    parts: list[str] = []
    for mechanism, run in groupby(section.leaders, key=lambda leader: leader.mechanism):
        lengths = [leader.seq_len for leader in run]
        span = f"at {lengths[0]:,}" if len(lengths) == 1 else f"from {lengths[0]:,} to {lengths[-1]:,}"
        parts.append(f"{mechanism} is fastest {span} tokens" if not parts else f"{mechanism} {span}")
    alone = "" if any(leader.next for leader in section.leaders) else " (nothing else was measured)"
    return f"{', '.join(parts)}{alone}"


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
        f"{factor(flat.flatness)[:-1]} ({low}, {high})"
    ]


def _crossing_words(section: Section) -> list[str]:
    """Crossings of a mechanism that leads somewhere, and whom the leader at the longest length always led."""
    last = section.leaders[-1].mechanism
    said = [each.sentence() for each in _leading(section)]
    ahead: dict[int, list[str]] = {}
    for each in section.crossovers:
        if each.low is None and each.faster == last:
            ahead.setdefault(each.high, []).append(each.slower)
    for length, others in sorted(ahead.items()):
        said.append(f"{last} is ahead of {joined(sorted(others))} from {length:,} tokens or earlier")
    return said


def _leading(section: Section) -> list[Crossover]:
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


def _energy_words(section: Section) -> list[str]:
    if not section.energy:
        return []
    each = [
        f"{e.mechanism} {three(e.joules_per_million_tokens)} J at {e.seq_len:,} tokens"
        for e in section.energy
    ]
    return [f"energy per million tokens: {', '.join(each)}"]


# --- tables -------------------------------------------------------------------------------------------------


def _render_section(section: Section, console: Console) -> None:
    # Text, never a string: rich would read a bracket in a name as markup.
    table = Table(title=Text(heading(section)), title_justify="left", title_style="bold")
    for name in ("tokens", "fastest", "speed", "time", "peak memory", "the next"):
        table.add_column(name, justify="left" if name in ("fastest", "the next") else "right")
    for leader in section.leaders:
        peak = "" if leader.peak_bytes is None else bytes_text(leader.peak_bytes)
        cells = (f"{leader.seq_len:,}", leader.mechanism, rate_text(leader.tokens_per_s))
        table.add_row(*map(Text, (*cells, time_text(leader.median_ms), peak, _ahead(leader))))
    console.print(table)
    console.print(_flatness_table(section))
    for text in (*_crossing_words(section), *_energy_words(section)):
        _say(console, f"{text[0].upper()}{text[1:]}." if text.startswith("energy") else f"{text}.")
    _say(console)


def _render_standings(found: Standings, console: Console) -> None:
    title = f"{workload_title(found.workload)}, {count_text(found.shapes, 'shape')}"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in (
        "mechanism",
        "shapes",
        "of its bound",
        "at the worst",
        "which is",
        f"over {found.reference}",
    ):
        table.add_column(name, justify="left" if name in ("mechanism", "which is") else "right")
    for each in found.standings:
        share = "" if each.share is None else f"{each.share:.0%}"
        worst = "" if each.worst_share is None else f"{each.worst_share:.0%}"
        times = ""
        if each.times is not None and each is not found.standings[0]:
            assert each.least_times is not None
            assert each.most_times is not None
            times = f"{factor(each.times)} ({factor(each.least_times)} to {factor(each.most_times)})"
        cells = (each.mechanism, str(each.shapes), share, worst, each.worst_at or "", times)
        table.add_row(*map(Text, cells))
    console.print(table)
    _say(console, standing_words(found))
    _say(console)


def standing_words(found: Standings) -> str:
    """Who is fastest, and how near to its bound; means are geometric."""
    first = found.standings[0]
    bound = ""
    if first.share is not None:
        bound = f"; it reaches {first.share:.0%} of its bound, {first.worst_share:.0%} at worst ({first.worst_at})"
    return f"{first.mechanism} is fastest at {first.fastest} of {count_text(found.shapes, 'shape')}{bound}."


def _flatness_table(section: Section) -> Table:
    table = Table()
    for name in ("mechanism", "max / min", "slope", "highest speed", "lowest speed"):
        table.add_column(name, justify="left" if name == "mechanism" else "right")
    for each in section.flatness:
        if each.slope is None:
            cells = ("", "", f"{rate_text(each.fastest)} at {each.fastest_at:,}", "")
        else:
            high = f"{rate_text(each.fastest)} at {each.fastest_at:,}"
            low = f"{rate_text(each.slowest)} at {each.slowest_at:,}"
            cells = (factor(each.flatness), f"{round(each.slope, 2) + 0.0:+.2f}", high, low)
        table.add_row(Text(each.mechanism), *map(Text, cells))
    return table


def _overview(workload: str, sections: Sequence[Section]) -> Table:
    parts = [section.group.parts() for section in sections]
    names = dict.fromkeys(name for part in parts for name in part)
    common = [name for name in names if len({part.get(name) for part in parts}) == 1]
    title = ", ".join([workload_title(workload), *(parts[0][name] for name in common)])
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in ("curve", "fastest", "max / min speed", "crossings"):
        table.add_column(name)
    for section in sections:
        flat = (
            f"{each.mechanism} {factor(each.flatness)}" for each in section.flatness if each.slope is not None
        )
        crossings = (each.short() for each in _leading(section))
        cells = (fastest_words(section), "\n".join(flat), "\n".join(crossings))
        table.add_row(Text(section.group.label(without=common)), *map(Text, cells))
    return table


def _ahead(leader: Leader) -> str:
    if leader.next is None or leader.ahead is None:
        return ""
    by = f"{leader.next} takes {factor(leader.ahead)} the time"
    return by if leader.clear else f"{by} (intervals overlap)"


# --- small things -------------------------------------------------------------------------------------------


def _say(console: Console, text: str = "", *, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _ok_first(statuses: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(statuses.items(), key=lambda each: (each[0] != Status.OK, each[0]))
