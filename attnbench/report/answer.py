"""The head of the report: what was asked, and the answer in two sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from attnbench.case import Cache, Launch, Status
from attnbench.curves import length_label
from attnbench.plots.looks import in_order
from attnbench.summary import (
    Section,
    Summary,
    closing,
    fastest_words,
    flattest_words,
    overtaking_words,
    standing_words,
)
from attnbench.words import count_text, joined, workload_order, workload_title

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 6  # up to so many mechanisms are named


@dataclass(frozen=True, kw_only=True)
class Head:
    """Title, what was asked, and two sentences of answer; all plain text."""

    title: str
    asked: str
    answer: tuple[str, str]


def head(frame: pd.DataFrame, summary: Summary, *, compared: str | None = None) -> Head:
    """The head of a run's report. compared: what a comparison concluded, which is then the second sentence."""
    records = [r for run, r in frame.attrs.get("runs", {}).items() if run in set(frame["run_id"])]
    sweeps = [record.get("sweep") or {} for record in records]
    names = list(dict.fromkeys(str(sweep["name"]) for sweep in sweeps if sweep.get("name")))
    return Head(
        title=" and ".join(names) or "attention benchmark",
        asked=f"{_question(sweeps)}{', '.join([*_extent(frame, summary), *_manner(records)])}.",
        answer=_answer(summary) if compared is None else (_answer(summary)[0], compared),
    )


# ------------------------------------------------------------------------------------------------------------


def _question(sweeps: Iterable[Mapping[str, Any]]) -> str:
    said = list(dict.fromkeys(str(sweep["description"]) for sweep in sweeps if sweep.get("description")))
    return f"{said[0][0].upper()}{said[0][1:]}: " if len(said) == 1 else ""


def _manner(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """How calls were made, where that is not one launch after the other on a cold L2: it is another measurement."""
    protocols = [record.get("protocol") or {} for record in records]
    said = {
        "as CUDA graphs": {each.get("launch") for each in protocols} == {Launch.GRAPH},
        "with a warm L2": {each.get("cache") for each in protocols} == {Cache.HOT},
    }
    return [words for words, so in said.items() if so]


def _extent(frame: pd.DataFrame, summary: Summary) -> list[str]:
    """`lightning2 and flash2`, `forward and backward`, `1k to 64k tokens`, `bf16`, `on NVIDIA H200`."""
    mechanisms = in_order(str(name) for name in frame["mechanism"])
    named = joined(mechanisms) if len(mechanisms) <= _NAMED else count_text(len(mechanisms), "mechanism")
    workloads = sorted({str(name) for name in frame["workload"]}, key=workload_order)
    lengths = sorted({int(n) for n in frame["seq_len"].dropna()})
    dtypes = sorted({str(name) for name in frame["dtype"].dropna()})
    parts = [named, joined([workload_title(name).lower() for name in workloads])]
    if lengths:
        span = [length_label(n) for n in (lengths[0], lengths[-1])]
        parts.append(f"{span[0]} to {span[1]} tokens" if len(lengths) > 1 else f"{span[0]} tokens")
    if dtypes:
        parts.append(joined(dtypes))
    if summary.devices:
        parts.append(f"on {joined(summary.devices)}")
    return parts


def _answer(summary: Summary) -> tuple[str, str]:
    if not summary.statuses.get(Status.OK):
        return ("Nothing can be said of speed: no case came out ok.", closing(summary))
    if summary.standings:
        first = _said({each.workload: standing_words(each).rstrip(".") for each in summary.standings})
        return (first, closing(summary))
    by_workload = [(name, tuple(same)) for name, same in groupby(summary.sections, key=lambda s: s.workload)]
    return (_said({name: _lead(same) for name, same in by_workload}), _second(summary, by_workload))


def _said(words: Mapping[str, str]) -> str:
    """One sentence of what is true of each workload; what is true of several is said once."""
    alike: dict[str, list[str]] = {}
    for workload, text in words.items():
        alike.setdefault(text, []).append(workload_title(workload).lower())
    said = "; ".join(f"{joined(titles)}, {text}" for text, titles in alike.items())
    return f"{said[:1].upper()}{said[1:]}."


def _lead(sections: Sequence[Section]) -> str:
    """Who leads in a workload: over which lengths, or in how many points where there are several curves."""
    if len(sections) == 1:
        return fastest_words(sections[0])
    every = [leader for section in sections for leader in section.leaders]
    beside = [leader for leader in every if not leader.alone] or every
    counts = Counter(leader.mechanism for leader in beside if leader.clear is not False)
    even = len(beside) - counts.total()
    points = count_text(len(beside), "point")
    if not counts:
        return f"the two in front are not told apart at any of {points}"
    (first, most), *others = counts.most_common()
    rest = [f"{name} at {count:,}" for name, count in others]
    rest += [f"the two in front are not told apart at {even:,}"] if even else []
    return f"{first} is fastest at {most:,} of {points}{f', {joined(rest)}' if rest else ''}"


def _second(summary: Summary, by_workload: Sequence[tuple[str, Sequence[Section]]]) -> str:
    """Where the lead changes hands and how constant speed is, of workloads with one curve; else how the cases ended."""
    said = {
        name: ", and ".join([*overtaking_words(sections[0]), *flattest_words(sections[0])])
        for name, sections in by_workload
        if len(sections) == 1
    }
    said = {name: text for name, text in said.items() if text}
    return _said(said) if said else closing(summary)
