"""A comparison as text of one format: a table, JSON, Markdown, JUnit XML or GitHub workflow commands."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnbench.comparison import words
from attnbench.comparison.found import Compared, Comparison
from attnbench.comparison.verdicts import Verdict
from attnbench.markdown import NAMES, escaped, markdown_table

_STYLES = {
    Verdict.BROKEN: "bold red",
    Verdict.SLOWER: "bold red",
    Verdict.FASTER: "green",
    Verdict.FIXED: "green",
}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNANSWERED = (Verdict.UNCLEAR, Verdict.MISSING, Verdict.UNTIMED)
_GITHUB_LINES = 50  # of each kind; GitHub itself shows 10 a step and 50 a job


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How much to print: all cases instead of those that changed, reasons, doubt as a fault; and whose report it is."""

    everything: bool = False
    explain: bool = False
    strict: bool = False
    title: str = "attnbench compare"


def table(found: Comparison, wanted: Wanted, console: Console) -> None:
    """Print tables and sentences to a console."""
    rows = words.shown(found, everything=wanted.everything)
    if rows:
        console.print(
            _grid(words.HEADINGS, ((words.cells(each), _STYLES.get(each.verdict, "")) for each in rows))
        )
    if found.means:
        console.print(_grid(words.MEAN_HEADINGS, ((words.mean_cells(mean), "") for mean in found.means)))
    if wanted.explain:
        for text in words.explanations(rows):
            _say(console, text)
    for text in words.remarks(found):
        _say(console, f"Note: {text}", style="yellow")
    _say(console, words.closing(found), style="bold red" if found.failed else "bold")


def table_text(found: Comparison, wanted: Wanted) -> str:
    """The tables as plain text, for a file."""
    text = io.StringIO()
    table(found, wanted, Console(file=text, width=140))
    return text.getvalue()


def as_json(found: Comparison, wanted: Wanted) -> str:
    """Everything as JSON, all cases whatever is wanted; ratios are new over base, times milliseconds."""
    document = {
        "threshold": found.threshold,
        "noise": found.noise,
        "significance": found.significance,
        "runs": {"base": found.runs[0], "new": found.runs[1]},
        "counts": {str(verdict): count for verdict, count in found.counts.items()},
        "regressions": [each.name for each in found.regressions],
        "waived": [each.name for each in found.waived],
        "expired": found.expired,
        "cases": [_case_json(each) for each in found.cases],
        "means": [dataclasses.asdict(mean) for mean in found.means],
        "differences": [{**dataclasses.asdict(d), "sentence": d.sentence()} for d in found.differences],
        "sentences": words.sentences(found),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def markdown(found: Comparison, wanted: Wanted) -> str:
    """Markdown for a step summary or a pull request: the closing sentence first."""
    rows = words.shown(found, everything=wanted.everything)
    parts = [f"**{escaped(words.closing(found))}**"]
    if rows:
        parts.append(markdown_table(words.HEADINGS, map(words.cells, rows)))
    if found.means:
        parts.append(markdown_table(words.MEAN_HEADINGS, map(words.mean_cells, found.means)))
    reasons = words.explanations(rows) if wanted.explain else []
    said = [*reasons, *words.remarks(found)]
    if said:
        parts.append("\n".join(f"- {escaped(text)}" for text in said))
    return "\n\n".join(parts) + "\n"


def junit(found: Comparison, wanted: Wanted) -> str:
    """JUnit XML: a test case for each case; a regression is a failure, what has no answer or is waived is skipped.

    When doubt counts as a fault (`strict`), a doubtful case is a failure too. Each expired waiver is a failure.
    """
    doubtful = found.doubtful if wanted.strict else ()
    failed = {each.name for each in (*found.regressions, *doubtful)}
    skipped = {
        each.name
        for each in found.cases
        if each.name not in failed and (each.waived or each.verdict in _UNANSWERED)
    }
    counts = {
        "tests": len(found.cases) + len(found.expired),
        "failures": len(failed) + len(found.expired),
        "errors": 0,
        "skipped": len(skipped),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": wanted.title, **numbers})
    for each in found.cases:
        place = {"classname": f"{each.case.mechanism}.{each.case.workload}", "name": each.name}
        # Seconds of one call on the new side, as test reports draw their history from this.
        seconds = {} if each.new_ms is None else {"time": f"{each.new_ms / 1e3:.9f}"}
        test = ElementTree.SubElement(suite, "testcase", {**place, **seconds})
        message = _xml_text(words.explanation(each))
        if each.name in failed:
            failure = {"message": message, "type": _kind(each)}
            ElementTree.SubElement(test, "failure", failure).text = message
        elif each.name in skipped:
            ElementTree.SubElement(test, "skipped", {"message": message})
        else:
            ElementTree.SubElement(test, "system-out").text = message
    for number, text in enumerate(map(_xml_text, found.expired), start=1):
        test = ElementTree.SubElement(
            suite, "testcase", {"classname": "waivers", "name": f"expired {number}"}
        )
        ElementTree.SubElement(test, "failure", {"message": text, "type": "expired waiver"}).text = text
    end = ElementTree.SubElement(suite, "system-out")
    end.text = _xml_text("\n".join(words.sentences(found)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def github(found: Comparison, wanted: Wanted) -> str:
    """Workflow commands of GitHub Actions: an error for each regression, a warning for what is doubtful.

    What is doubtful is one warning, or with `strict` an error for each case.
    """
    lines = [_command("error", "expired waiver", text) for text in found.expired]
    lines += [_command("error", _title(each), words.explanation(each)) for each in found.regressions]
    if wanted.strict:
        lines += [_command("error", _title(each), words.explanation(each)) for each in found.doubtful]
    left = len(lines) - _GITHUB_LINES
    if left > 0:
        lines = [*lines[:_GITHUB_LINES], _command("error", "attnbench", f"and {left:,} more")]
    said = [text for text in words.remarks(found) if text.removesuffix(".") not in found.expired]
    remarks = [_command("warning", wanted.title, text) for text in said]
    lines += remarks[:_GITHUB_LINES]
    kind = "notice" if not found.doubtful or found.failed else "warning"
    return "\n".join([*lines, _command(kind, wanted.title, words.closing(found))]) + "\n"


# Formats that are one text. The table is apart: on a terminal it knows the width and has colours.
TEXTS: Mapping[str, Callable[[Comparison, Wanted], str]] = {
    "table": table_text,
    "json": as_json,
    "markdown": markdown,
    "junit": junit,
    "github": github,
}


# ------------------------------------------------------------------------------------------------------------


def _grid(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> Table:
    lines = list(rows)
    kept = [
        place for place, name in enumerate(headings) if name != "memory" or any(t[place] for t, _ in lines)
    ]
    grid = Table()
    for name in (headings[place] for place in kept):
        side: Literal["left", "right"] = "left" if name in NAMES else "right"
        grid.add_column(name, justify=side, overflow="fold", no_wrap=name not in NAMES)
    for texts, style in lines:
        # Text, never a string: rich would read the bracket of an interval as markup.
        grid.add_row(*(Text(texts[place]) for place in kept), style=style)
    return grid


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _case_json(each: Compared) -> dict[str, Any]:
    memory = None if each.memory is None else _change_json(each.memory)
    return {
        "case_id": each.name,
        **each.case.as_dict(),
        "verdict": str(each.verdict),
        "regressed": each.regressed,
        "reason": each.reason,
        "pick": each.pick,
        "waived": each.waived,
        "threshold": each.threshold,
        "base_ms": each.base_ms,
        "new_ms": each.new_ms,
        "processes": {"base": each.processes[0], "new": each.processes[1]},
        "ratio": None if each.ratio is None else dataclasses.asdict(each.ratio),
        "p": each.p,
        "q": each.q,
        "memory": memory,
        "errors": [_change_json(change) for change in each.errors],
    }


def _change_json(change: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(change), "ratio": change.ratio}


def _xml_text(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return _NO_XML.sub("?", text)


def _kind(each: Compared) -> str:
    """What is wrong with a case: its verdict, or its memory alone."""
    by_time = each.verdict in (Verdict.SLOWER, Verdict.BROKEN) or not each.regressed
    return str(each.verdict) if by_time else "more memory"


def _title(each: Compared) -> str:
    return f"{_kind(each)}: {each.name}"


def _command(kind: str, title: str, message: str) -> str:
    """`::error title=...::...`, with what would end a property or the line escaped as GitHub's toolkit does."""
    data = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{kind} title={name.replace(':', '%3A').replace(',', '%2C')}::{data}"
