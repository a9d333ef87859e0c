"""The parts of the report that are words and tables: findings, comparison, machine."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.comparison import words as comparing
from attnbench.crossings import about, lengths_text
from attnbench.report.page import Cell, Section, facts, items, plain, table, text
from attnbench.summary import Flatness, Summary, closing, findings, heading, standing_words
from attnbench.words import (
    bytes_text,
    count_text,
    factor,
    rate_text,
    signed,
    three,
    time_text,
    without_folders,
    workload_title,
)

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.comparison.found import Compared, Comparison, Ratio
    from attnbench.crossings import Crossover
    from attnbench.shapes import Standings
    from attnbench.summary import Section as Found

_OPEN = 4  # up to so many curves' findings are not folded away
_SPAN = math.log(1.25)  # a ratio's picture reaches so far to either side
_READINGS = {
    "sm_clock_mhz": ("SM clock", "MHz"),
    "mem_clock_mhz": ("memory clock", "MHz"),
    "power_w": ("power", "W"),
    "temperature_c": ("temperature", "°C"),
}


def findings_section(summary: Summary) -> Section:
    """What the run found, curve by curve, what is missing, and what to doubt."""
    parts = [f'<p class="alarm">Incorrect: {text(each.sentence())}.</p>' for each in summary.incorrect]
    if summary.standings:
        parts += [_standings(each) for each in summary.standings]
    else:
        unfolded = len(summary.sections) <= _OPEN
        parts += [_curve(section, unfolded=unfolded) for section in summary.sections]
    if summary.missing:
        parts.append("<h3>Not measured</h3>" + items(f"{each.sentence()}." for each in summary.missing))
    if summary.warnings:
        parts.append("<h3>To be doubted</h3>" + items(f"{each}." for each in summary.warnings))
    parts.append(f'<p class="small">{text(closing(summary))}</p>')
    return Section(anchor="findings", title="Findings", html="".join(parts))


def comparison_section(found: Comparison) -> Section:
    """The verdicts, worst first, with ratios, memory and what to know before believing them."""
    more = any(each.memory is not None and each.memory.worse for each in found.cases)
    headings = ["verdict", "mechanism", "workload", "shape", "base", "new", "ratio", "0.8 to 1.25"]
    headings += ["memory"] * more + ["reason"]
    means = [tuple(plain(cell) for cell in comparing.mean_cells(mean)) for mean in found.means]
    html = "".join(
        [
            f"<p>{text(comparing.closing(found))} Ratios are new over base, with their 95 % interval.</p>",
            table(
                headings,
                [_compared(each, memory=more) for each in found.cases],
                numbers=("base", "new", "ratio"),
                filter_by="verdict",
            ),
            table(comparing.MEAN_HEADINGS, means) if means else "",
            items(comparing.remarks(found)),
        ]
    )
    return Section(anchor="comparison", title="Comparison", html=html)


def machine_section(frame: pd.DataFrame) -> Section:
    """Environment, protocol and effort of each run, and what the device said of itself."""
    parts = [_telemetry(frame)]
    records = frame.attrs.get("runs", {})
    for run in dict.fromkeys(str(name) for name in frame["run_id"]):
        record = records.get(run)
        words = _record(record) if record else "<p>Nothing is recorded of this run.</p>"
        parts.append(f"<details open><summary>{text(run)}</summary>{words}</details>")
    return Section(anchor="machine", title="Machine and protocol", html="".join(parts))


# ------------------------------------------------------------------------------------------------------------


def _curve(section: Found, *, unfolded: bool) -> str:
    opened = " open" if unfolded else ""
    rows = [_flatness(each) for each in section.flatness]
    numbers = ("max / min", "slope", "highest speed", "lowest speed")
    flat = table(("mechanism", *numbers), rows, numbers=numbers)
    crossings = [_crossing(each) for each in section.crossovers]
    ranges = ("from (tokens)", "about")
    crossed = table(("faster", "slower", *ranges, "note"), crossings, numbers=ranges) if crossings else ""
    said = items(
        f"{each[:1].upper()}{each[1:]}." if each.startswith("energy") else f"{each}."
        for each in findings(section)
    )
    return f"<details{opened}><summary>{text(heading(section))}</summary>{said}{flat}{crossed}</details>"


def _standings(found: Standings) -> str:
    """One workload over listed shapes; means are geometric."""
    title = f"{workload_title(found.workload)}, {count_text(found.shapes, 'shape')}"
    over = f"time over {found.reference}"
    rows = [
        (
            plain(each.mechanism),
            Cell(html=f"{each.shapes}"),
            Cell(html=f"{each.fastest}"),
            _share(each.share),
            _share(each.worst_share),
            plain(each.worst_at or ""),
            Cell(html="" if each.times is None else text(factor(each.times)), value=each.times or ""),
        )
        for each in found.standings
    ]
    numbers = ("shapes", "fastest at", "of its bound", "at the worst", over)
    headings = ("mechanism", *numbers[:4], "which is", over)
    said = f"<p>{text(standing_words(found))}</p>"
    return f"<details open><summary>{text(title)}</summary>{said}{table(headings, rows, numbers=numbers)}</details>"


def _share(value: float | None) -> Cell:
    return Cell(html="" if value is None else f"{value:.0%}", value="" if value is None else value)


def _flatness(each: Flatness) -> Sequence[Cell]:
    high = Cell(html=text(f"{rate_text(each.fastest)} at {each.fastest_at:,}"), value=each.fastest)
    if each.slope is None:
        return (
            plain(each.mechanism),
            Cell(html="", value=""),
            Cell(html="", value=""),
            high,
            Cell(html="", value=""),
        )
    low = Cell(html=text(f"{rate_text(each.slowest)} at {each.slowest_at:,}"), value=each.slowest)
    flat = Cell(html=text(factor(each.flatness)), value=each.flatness)
    return (plain(each.mechanism), flat, Cell(html=signed(each.slope), value=each.slope), high, low)


def _crossing(each: Crossover) -> Sequence[Cell]:
    """A pair that crosses, with the interval, or whose order is the same at every length that tells."""
    notes = [] if each.failure is None else [f"by failure: {each.failure.sentence()}"]
    if each.undecided:
        notes.append(f"not told apart {lengths_text(each.undecided)}")
    where = f"{each.high:,} or earlier" if each.low is None else f"{each.low:,} to {each.high:,}"
    middle = "" if each.estimate is None or each.low is None else about(each.estimate, each.low, each.high)
    return (
        plain(each.faster),
        plain(each.slower),
        Cell(html=text(where), value=each.low or 0),
        Cell(html=f"{middle:,}" if middle else "", value=middle),
        plain("; ".join(notes)),
    )


def _compared(each: Compared, *, memory: bool) -> Sequence[Cell]:
    mechanism, workload, shape, base, new, ratio, grown, verdict = comparing.cells(each)
    return (
        Cell(html=text(verdict), kind=f"verdict-{text(verdict)}"),
        plain(mechanism),
        plain(workload),
        plain(shape),
        Cell(html=text(base), value="" if each.base_ms is None else each.base_ms),
        Cell(html=text(new), value="" if each.new_ms is None else each.new_ms),
        Cell(html=text(ratio), value="" if each.ratio is None else each.ratio.value),
        Cell(html="" if each.ratio is None else _picture(each.ratio)),
        *([plain(grown)] if memory else []),
        plain(each.reason, kind="wide"),
    )


def _picture(ratio: Ratio) -> str:
    """A ratio on a line about 1, with its interval."""

    def at(value: float) -> float:
        return 60 + 58 * max(-1.0, min(1.0, math.log(value) / _SPAN))

    span = ""
    if ratio.low is not None and ratio.high is not None:
        span = f'<line class="span" x1="{at(ratio.low):.1f}" x2="{at(ratio.high):.1f}" y1="7" y2="7"/>'
    return (
        f'<svg class="ratio" viewBox="0 0 120 14" aria-hidden="true"><line class="one" x1="60" x2="60" y1="1" y2="13"/>'
        f'{span}<circle class="dot" cx="{at(ratio.value):.1f}" cy="7" r="3.2"/></svg>'
    )


def _telemetry(frame: pd.DataFrame) -> str:
    """Least, median and most of each reading, by device; nothing where no device says anything."""
    rows = []
    for device, part in frame.groupby("device", sort=True, dropna=True):
        for name, (words, unit) in _READINGS.items():
            known = part[name].dropna().astype(float)
            known = known[known.map(math.isfinite)]
            if len(known):
                cells = [f"{three(value)} {unit}" for value in (known.min(), known.median(), known.max())]
                rows.append([plain(device), plain(words), *map(plain, cells), plain(f"{len(known):,}")])
    reasons: Counter[str] = Counter()
    for given in frame["throttle"]:
        reasons.update([] if given is None or isinstance(given, float) else [str(each) for each in given])
    held = ", ".join(f"{name} in {count_text(count, 'case')}" for name, count in sorted(reasons.items()))
    said = f"<p>Held back by: {text(held)}.</p>" if held else ""
    if not rows:
        return f"<p>No device told its clocks, power or temperature.</p>{said}"
    return table(("device", "reading", "least", "median", "most", "cases"), rows) + said


def _record(record: Mapping[str, Any]) -> str:
    """One run's record as names and values."""
    environment, gpu = _part(record, "environment"), _part(_part(record, "environment"), "gpu")
    git, ceilings, effort = _part(environment, "git"), _part(record, "ceilings"), _part(record, "effort")
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    memory = {"GPU memory": gpu.get("memory_bytes"), "memory": environment.get("memory_bytes")}
    rates = ", ".join(
        f"{three(rate)} TFLOP/s in {dtype}" for dtype, rate in _part(ceilings, "matmul_tflops").items()
    )
    copy, empty_ms = ceilings.get("copy_gbps"), ceilings.get("empty_call_ms")
    versions = {name: version for name, version in _part(environment, "versions").items() if version}
    return facts(
        {
            "started": record.get("created_at"),
            "command": without_folders(" ".join(["attnbench", *map(str, record.get("command") or ())])),
            "device": environment.get("device"),
            "driver": gpu.get("driver"),
            "CUDA": environment.get("cuda"),
            "clocks locked": _yes(gpu.get("clocks_locked")),
            "highest SM clock": _with_unit(gpu.get("max_sm_clock_mhz"), "MHz"),
            **{name: bytes_text(value) for name, value in memory.items() if value},
            "ceilings": "; ".join(filter(None, [f"{three(copy)} GB/s copied" if copy else "", rates])),
            "a call that does nothing": time_text(empty_ms) if empty_ms else None,
            "processor": environment.get("processor"),
            "system": environment.get("system"),
            "python": environment.get("python"),
            "libraries": _pairs(versions),
            "variables": without_folders(_pairs(_part(environment, "variables"))),
            "attnbench": record.get("attnbench"),
            "commit": f"{git['commit']}{dirty}" if git.get("commit") else None,
            "protocol": _pairs(_part(record, "protocol")),
            "wall time": time_text(effort["wall_s"] * 1e3) if effort.get("wall_s") else None,
        }
    )


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def _pairs(values: Mapping[str, Any]) -> str:
    known: Iterable[tuple[str, Any]] = values.items()
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in known
    )


def _yes(value: Any) -> str | None:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else None


def _with_unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value:,.0f} {unit}"
