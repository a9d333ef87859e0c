"""The figures of a run: tokens/s, time and peak memory against sequence length, one file per workload.

Drawn through matplotlib's object interface, with no global state: the same results give the same bytes.
Everything is laid out in inches, from the top of the page down: title, panels, legends, notes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as MarkerPath
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from attnbench.case import Status
from attnbench.curves import Curve, Floats, Group, curves, flatness, groups, length_label, line_names
from attnbench.errors import UserError
from attnbench.pages import (
    DPI,
    EDGE,
    ENTRY_GAP,
    FAINT,
    INK,
    LINE,
    SMALL,
    STRIP,
    TEXT,
    TITLE,
    Canvas,
    drawing,
    in_order,
    legend,
    legend_columns,
    log_ticks,
    marker_size,
    rank,
    save,
    short,
    style_of,
    text_width,
    wrap,
)
from attnbench.words import workload_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_PANELS = 12  # panels of one file


# An exclamation mark: as a mathtext marker it would be parsed, and parsing is off.
_EXCLAMATION = MarkerPath.make_compound_path(
    MarkerPath([(-0.13, -0.2), (0.13, -0.2), (0.2, 1), (-0.2, 1), (-0.13, -0.2)], closed=True),
    MarkerPath([(-0.17, -1), (0.17, -1), (0.17, -0.55), (-0.17, -0.55), (-0.17, -1)], closed=True),
)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The mark of a case without a value."""

    marker: str | MarkerPath
    words: str
    filled: bool = False
    size: float = 4.6  # points


SIGNS: Mapping[str, Sign] = {
    Status.INCORRECT: Sign(marker=_EXCLAMATION, words="incorrect output", filled=True, size=7.5),
    Status.OOM: Sign(marker="x", words="out of memory"),
    Status.TIMEOUT: Sign(marker=">", words="timeout"),
    Status.CRASHED: Sign(marker="*", words="crashed", filled=True, size=6.0),
    Status.ERROR: Sign(marker="s", words="error"),
    Status.UNSUPPORTED: Sign(marker="_", words="unsupported", size=5.5),
}
_UNKNOWN_SIGN = Sign(marker=".", words="other")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a kind of figure shows: file name, words, and a curve's values with the ends of their interval."""

    stem: str
    title: str
    axis: str
    base: int  # of the ticks of the vertical axis
    value: Callable[[Curve], Floats]
    ends: Callable[[Curve], tuple[Floats, Floats]] | None
    tick: Callable[[float], str]
    flatness: bool = False


def plot_run(
    frame: pd.DataFrame, out_dir: Path | str, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw a results frame: for each workload tokens/s, time (ms) and peak memory against sequence length.

    Files are named `tokens-per-s.fwd.png`, `time.bwd.svg`, `memory.fwd-bwd.png`; a figure of more than
    MAX_PANELS groups goes on in `tokens-per-s.fwd-2.png`. A figure without any value is left out.

    Returns the paths written, in order. Equal results give equal bytes, whatever the order of the rows.

    Raises UserError when no case came out ok, a format is unknown, or the folder cannot be written.
    """
    found = curves(frame)
    if not any(len(c) for c in found):
        raise UserError(f"there is nothing to draw: {_what_was_found(frame)}")
    folder = Path(out_dir)
    providers, protocol = _providers(frame), _protocol(frame)
    written = []
    with drawing(formats):
        for workload in dict.fromkeys(c.workload for c in found):
            same = [c for c in found if c.workload == workload]
            for quantity in QUANTITIES:
                pages = _draw(same, quantity=quantity, providers=providers, protocol=protocol)
                for number, figure in enumerate(pages, start=1):
                    page = f"-{number}" if number > 1 else ""
                    stem = f"{quantity.stem}.{re.sub(r'[^A-Za-z0-9_-]', '_', workload)}{page}"
                    written += [save(figure, folder / f"{stem}.{name}") for name in formats]
    return written


# --- what a curve shows -----------------------------------------------------------------------------------


def _rate_ends(c: Curve) -> tuple[Floats, Floats]:
    tokens_ms = c.tokens_per_s * c.median_ms
    return tokens_ms / c.ci_high_ms, tokens_ms / c.ci_low_ms


def _rate_tick(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.999:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _bytes_tick(value: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B"


QUANTITIES = (
    Quantity(
        stem="tokens-per-s",
        title="speed against sequence length",
        axis="tokens/s",
        base=10,
        value=lambda c: c.tokens_per_s,
        ends=_rate_ends,
        tick=_rate_tick,
        flatness=True,
    ),
    Quantity(
        stem="time",
        title="time of one call",
        axis="time (ms)",
        base=10,
        value=lambda c: c.median_ms,
        ends=lambda c: (c.ci_low_ms, c.ci_high_ms),
        tick=lambda value: f"{value:,g}" if value < 1e6 else f"{value:.0e}",
    ),
    Quantity(
        stem="memory",
        title="peak memory of one call",
        axis="peak memory",
        base=2,
        value=lambda c: c.peak_bytes,
        ends=None,
        tick=_bytes_tick,
    ),
)


# --- the page ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Page:
    """One file's worth of panels and all that is shared between them. Sizes in inches."""

    quantity: Quantity
    workload: str
    protocol: str
    providers: Mapping[str, str]
    curves: tuple[Curve, ...]
    groups: tuple[Group, ...]
    columns: int
    width: float  # of a panel
    height: float  # of a panel, without its strip
    x: tuple[float, float]
    y: tuple[float, float]

    @cached_property
    def varying(self) -> set[str]:
        """The parts of the groups that differ between panels."""
        parts = [group.parts() for group in self.groups]
        names = {name for part in parts for name in part}
        return {name for name in names if len({part.get(name) for part in parts}) > 1}

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """The mechanisms that have a line in some panel, in the order of the legend."""
        return in_order(c.mechanism for c in self.curves if _has_values(c, self.quantity))

    @cached_property
    def absent(self) -> dict[str, str]:
        """The mechanisms unsupported at every length of every panel, with the reason given most often."""
        statuses: dict[str, Counter[str]] = {}
        for c in self.curves:
            known = statuses.setdefault(c.mechanism, Counter())
            known.update(gap.reason if gap.status == Status.UNSUPPORTED else "" for gap in c.gaps)
            known[""] += len(c)
        return {
            name: min(reasons, key=lambda reason: (-reasons[reason], reason))
            for name in in_order(statuses)
            if (reasons := statuses[name]) and not reasons[""]
        }

    @cached_property
    def strip(self) -> tuple[str, ...]:
        """The mechanisms that have a row in the strip of cases without a value."""
        return in_order(c.mechanism for c in self.curves if c.gaps and c.mechanism not in self.absent)

    @cached_property
    def signs(self) -> tuple[str, ...]:
        """The statuses that occur in the strip, in the order of their legend."""
        present = {gap.status for c in self.curves if c.mechanism in self.strip for gap in c.gaps}
        return tuple(sorted(present, key=lambda status: ([*SIGNS, status].index(status), status)))


_ROW = 0.155  # inches of one row of the strip
_STRIP_GAP, _PANEL_GAP_X, _TICKS, _AXIS_LABEL = 0.06, 0.2, 0.2, 0.2


def _draw(
    found: Sequence[Curve], *, quantity: Quantity, providers: Mapping[str, str], protocol: str
) -> Iterable[Figure]:
    """The figures of one quantity of one workload; none when there is no value."""
    values = [quantity.value(c) for c in found if _has_values(c, quantity)]
    if not values:
        return
    known = np.concatenate(values)
    y = _y_range(known[known > 0], base=quantity.base)
    lengths = [int(n) for c in found for n in c.seq_len] + [gap.seq_len for c in found for gap in c.gaps]
    x = _padded(min(lengths), max(lengths), least=4.0, pad=0.045)
    all_groups = groups(found)
    pages = math.ceil(len(all_groups) / MAX_PANELS)
    size = math.ceil(len(all_groups) / pages)
    for first in range(0, len(all_groups), size):
        here = all_groups[first : first + size]
        columns = _columns(here)
        width, height = {1: (0.0, 2.55), 2: (2.75, 2.0), 3: (2.3, 1.7)}.get(columns, (2.15, 1.6))
        page = _Page(
            quantity=quantity,
            workload=found[0].workload,
            protocol=protocol if quantity.ends is not None else "",  # of what is timed
            providers=providers,
            curves=tuple(c for c in found if c.group in here),
            groups=here,
            columns=columns,
            width=width,
            height=height,
            x=x,
            y=y,
        )
        yield _render(page)


def _render(page: _Page) -> Figure:
    left = _left_margin(page)
    panel = page.width or 5.5 - left - EDGE
    width = left + page.columns * panel + (page.columns - 1) * _PANEL_GAP_X + EDGE
    figure = Figure(figsize=(width, 1.0), dpi=DPI, facecolor="white")
    title = workload_title(page.workload)
    head = wrap(f"{title}: {page.quantity.title}", width=width - 2 * EDGE, size=TITLE)
    fixed = [text for name, text in page.groups[0].parts().items() if name not in page.varying]
    sub = wrap(
        ", ".join([*fixed, *([page.protocol] if page.protocol else [])]),
        width=width - 2 * EDGE,
    )
    titles = [_panel_title(page, group, width=panel) for group in page.groups]
    entries = _legend_entries(page)
    notes = [line for note in _notes(page) for line in wrap(note, width=width - 2 * EDGE, size=SMALL)]

    # Distances from the top; the height of the figure is known only at the end.
    strip = len(page.strip) * _ROW + _STRIP_GAP if page.strip else 0.0
    top = EDGE + len(head) * 0.2 + len(sub) * LINE + 0.08
    tops = []
    rows = math.ceil(len(page.groups) / page.columns)
    for row in range(rows):
        lines = max(len(text) for text in titles[row * page.columns : (row + 1) * page.columns])
        top += lines * LINE + (0.04 if lines else 0.0)
        tops.append(top)
        # A row needs room for tick labels when nothing is below one of its panels.
        labelled = (row + 2) * page.columns > len(page.groups)
        top += page.height + strip + (_TICKS if labelled else 0.04) + (0.07 if row < rows - 1 else 0.0)
    axis_label = top + 0.02
    top = axis_label + _AXIS_LABEL + 0.06
    columns = legend_columns(entries, width=width - 2 * EDGE)
    legend_top = top
    top += math.ceil(len(entries) / columns) * LINE
    signs = top + 0.05
    sign_rows = _sign_rows(page, width=width - 2 * EDGE)
    top = signs + len(sign_rows) * LINE if sign_rows else top
    note_top = top + 0.05
    height = note_top + len(notes) * LINE + EDGE - (0.0 if notes else 0.05)
    figure.set_size_inches(width, height)

    canvas = Canvas(figure=figure, width=width, height=height)
    canvas.lines(head, x=EDGE, top=EDGE, size=TITLE, step=0.2, weight="bold")
    canvas.lines(sub, x=EDGE, top=EDGE + len(head) * 0.2, size=TEXT)
    for number, group in enumerate(page.groups):
        row, column = divmod(number, page.columns)
        x = left + column * (panel + _PANEL_GAP_X)
        canvas.lines(titles[number], x=x, top=tops[row] - 0.04 - len(titles[number]) * LINE, size=TEXT)
        last = number + page.columns >= len(page.groups)
        _panel(canvas, page=page, group=group, x=x, top=tops[row], width=panel, first=column == 0, last=last)
    middle = left + (width - left - EDGE) / 2
    canvas.text("sequence length (tokens)", x=middle, top=axis_label, size=TEXT, ha="center")
    legend(canvas, entries, columns=columns, top=legend_top)
    _sign_legend(canvas, sign_rows, top=signs)
    canvas.lines(notes, x=EDGE, top=note_top, size=SMALL, colour="#555555")
    return figure


# --- one panel --------------------------------------------------------------------------------------------


def _panel(
    canvas: Canvas, *, page: _Page, group: Group, x: float, top: float, width: float, first: bool, last: bool
) -> None:
    """One panel: the axes with the curves, and below it the strip of cases without a value.

    first: it is the leftmost of its row, and carries the labels of the vertical axis; last: none is below it,
    and it carries those of the horizontal axis.
    """
    axes = canvas.axes(x=x, top=top, width=width, height=page.height)
    here = [c for c in page.curves if c.group == group]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=page.quantity.base)
    for c in sorted(here, key=lambda c: rank(c.mechanism), reverse=True):
        _line(axes, c, quantity=page.quantity)
    axes.set_xlim(*page.x)
    axes.set_ylim(*page.y)
    axes.grid(True, which="major", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _y_ticks(axes, page=page, labels=first)
    bottom = axes
    if page.strip:
        below = top + page.height + _STRIP_GAP
        bottom = canvas.axes(x=x, top=below, width=width, height=len(page.strip) * _ROW)
        _strip(bottom, page=page, here=here)
        if first:
            for number, mechanism in enumerate(page.strip):
                name = short(mechanism, 24)
                canvas.text(name, x=x - 0.07, top=below + number * _ROW - 0.01, size=SMALL, ha="right")
    for each in {axes, bottom}:
        _x_ticks(each, page=page, width=width, labels=last and each is bottom, marks=each is bottom)
    if not any(_has_values(c, page.quantity) for c in here):
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", va="center", fontsize=TEXT)
    if first:
        canvas.text(
            page.quantity.axis,
            x=x - _tick_width(page) - 0.12,
            top=top + page.height / 2 - 0.125,
            size=TEXT,
            rotation=90,
            ha="right",
            va="center",
        )


def _line(axes: Axes, c: Curve, *, quantity: Quantity) -> None:
    values = quantity.value(c)
    good = values > 0  # False for NaN
    if not good.any():
        return
    style = style_of(c.mechanism)
    # Where curves coincide, the thick one shows beneath the thin ones, and a full line between dashes.
    order = 2.5 if style.width > 2 else 3.0 if style.dash == "-" else 3.5
    if quantity.ends is not None:
        low, high = quantity.ends(c)
        axes.fill_between(
            c.seq_len,
            low,
            high,
            where=good & (low > 0),
            color=style.colour,
            alpha=0.22,
            linewidth=0,
            zorder=2,
        )
    axes.plot(
        c.seq_len[good],
        values[good],
        color=style.colour,
        linestyle=style.dash,
        linewidth=style.width,
        marker=style.marker,
        markersize=marker_size(style),
        markeredgecolor="white",
        markeredgewidth=0.4,
        zorder=order,
    )


def _strip(axes: Axes, *, page: _Page, here: Sequence[Curve]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*page.x)
    axes.set_ylim(len(page.strip) - 0.5, -0.5)
    axes.set_facecolor(STRIP)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    for c in here:
        for gap in c.gaps if c.mechanism in page.strip else ():
            how = _sign_style(gap.status, colour=style_of(c.mechanism).colour)
            axes.plot([gap.seq_len], [page.strip.index(c.mechanism)], **how)


def _sign_style(status: str, *, colour: str) -> dict[str, Any]:
    sign = SIGNS.get(status, _UNKNOWN_SIGN)
    return {
        "marker": sign.marker,
        "linestyle": "none",
        "markersize": sign.size,
        "markeredgewidth": 1.2 if not sign.filled else 0.3,
        "markeredgecolor": colour,
        "markerfacecolor": colour if sign.filled else "none",
    }


def _x_ticks(axes: Axes, *, page: _Page, width: float, labels: bool, marks: bool) -> None:
    """Powers of two, as many as there is room to label, counted from the longest."""
    low, high = math.ceil(math.log2(page.x[0])), math.floor(math.log2(page.x[1]))
    powers = [2.0**n for n in range(low, high + 1)]
    step = max(1, math.ceil(len(powers) * 0.37 / width))
    major = powers[::-1][::step][::-1]
    axes.xaxis.set_major_locator(FixedLocator(major))
    axes.xaxis.set_minor_locator(FixedLocator([n for n in powers if n not in major]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FixedFormatter([length_label(round(n)) if labels else "" for n in major]))
    axes.tick_params(axis="x", which="both", length=0, labelsize=SMALL, labelcolor=INK)
    if marks:
        axes.tick_params(axis="x", which="major", length=3, width=0.7)
        axes.tick_params(axis="x", which="minor", length=2, width=0.5)


def _y_ticks(axes: Axes, *, page: _Page, labels: bool) -> None:
    ticks = _y_tick_places(page)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FixedFormatter([page.quantity.tick(t) if labels else "" for t in ticks]))
    axes.tick_params(axis="y", length=3 if labels else 0, width=0.7, labelsize=SMALL, labelcolor=INK, pad=2)


def _y_range(values: Floats, *, base: int) -> tuple[float, float]:
    return _padded(float(values.min()), float(values.max()), least=10.0 if base == 10 else 8.0, pad=0.06)


def _padded(low: float, high: float, *, least: float, pad: float) -> tuple[float, float]:
    """A range with room at both ends, of at least the factor `least`: noise must not look like a slope."""
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), math.sqrt(least))
    half *= (half * half) ** pad
    return middle / half, middle * half


# --- titles, legends, notes -------------------------------------------------------------------------------


def _panel_title(page: _Page, group: Group, *, width: float) -> list[str]:
    text = ", ".join(part for name, part in group.parts().items() if name in page.varying)
    return wrap(text, width=width) if text else []


def _left_margin(page: _Page) -> float:
    """Room for the axis label and the tick labels, or for the names of the rows of the strip."""
    of_ticks = 0.36 + _tick_width(page)
    of_strip = max((text_width(short(name, 24), size=SMALL) for name in page.strip), default=0.0) + 0.2
    return max(of_ticks, of_strip)


def _y_tick_places(page: _Page) -> list[float]:
    return log_ticks(*page.y, base=page.quantity.base, most=max(4, round(page.height / 0.3)))


def _tick_width(page: _Page) -> float:
    return max(text_width(page.quantity.tick(tick), size=SMALL) for tick in _y_tick_places(page))


def _legend_entries(page: _Page) -> list[tuple[str, str]]:
    """Mechanism and text of each entry; figures of speed give the largest flatness score of all panels."""
    entries = []
    for name in page.drawn:
        same = [c for c in page.curves if c.mechanism == name and len(c) > 1]
        scores = [flatness(c.tokens_per_s) for c in same] if page.quantity.flatness else []
        score = f" ({flatness_words(max(scores))})" if scores else ""
        entries.append((name, f"{short(name, 40)}{score}"))
    return entries


def flatness_words(score: float) -> str:
    """A flatness score in words: `flat within 1.05×`, or `varies 310×` for what nobody would call flat."""
    if score < 1.5:
        return f"flat within {math.ceil(score * 100 - 1e-9) / 100:.2f}×"
    return f"varies {score:.1f}×" if score < 9.95 else f"varies {score:,.0f}×"


def _sign_rows(page: _Page, *, width: float) -> list[list[tuple[float, str]]]:
    """The legend of statuses: rows of (distance from the left, status)."""
    rows: list[list[tuple[float, str]]] = []
    x = start = text_width("no value:", size=SMALL) + 0.12
    for status in page.signs:
        need = 0.2 + text_width(_sign_words(status), size=SMALL)
        if not rows or x + need > width:
            rows.append([])
            x = start
        rows[-1].append((x, status))
        x += need + ENTRY_GAP
    return rows


def _sign_legend(canvas: Canvas, rows: Sequence[Sequence[tuple[float, str]]], *, top: float) -> None:
    if rows:
        canvas.text("no value:", x=EDGE, top=top, size=SMALL)
    for number, row in enumerate(rows):
        for x, status in row:
            y = top + number * LINE
            canvas.line([EDGE + x + 0.06], top=y + 0.085, **_sign_style(status, colour=INK))
            canvas.text(_sign_words(status), x=EDGE + x + 0.18, top=y, size=SMALL)


def _sign_words(status: str) -> str:
    return SIGNS[status].words if status in SIGNS else status


def _notes(page: _Page) -> list[str]:
    notes = []
    providers = {name: page.providers[name] for name in page.drawn if name in page.providers}
    if providers and all(len(text) <= 30 for text in providers.values()):
        by_provider: dict[str, list[str]] = {}
        for name, provider in providers.items():
            by_provider.setdefault(provider, []).append(short(name, 40))
        ran = "; ".join(f"{', '.join(names)}: {provider}" for provider, names in by_provider.items())
        notes.append(f"what ran: {ran}")
    if page.absent:
        here = "; ".join(f"{name} ({short(why, 60)})" if why else name for name, why in page.absent.items())
        notes.append(f"not here: {here}")
    if page.quantity.flatness and len(page.groups) > 1:
        notes.append(
            "flat within, varies: largest over smallest tokens/s of a curve; the largest of all panels"
        )
    return notes


def _providers(frame: pd.DataFrame) -> dict[str, str]:
    """Who computed each mechanism, without local version labels (+cu130); several are joined by a slash."""
    found: dict[str, set[str]] = {}
    for mechanism, provider in zip(line_names(frame), frame["provider"], strict=True):
        if isinstance(provider, str):
            found.setdefault(str(mechanism), set()).add(re.sub(r"\+\S+", "", provider))
    return {name: " / ".join(sorted(each)) for name, each in found.items()}


def _protocol(frame: pd.DataFrame) -> str:
    """How it was measured, as far as the records of all the runs agree: `cold L2`, `CUDA graphs`."""
    records = frame.attrs.get("runs", {})
    protocols = [
        record.get("protocol") or {} for run, record in records.items() if run in set(frame["run_id"])
    ]
    words = []
    for key, form in (("cache", "{} L2"), ("launch", "launch: {}")):
        values = {protocol.get(key) for protocol in protocols}
        value = values.pop() if len(values) == 1 else None
        if value is not None and value != "eager":
            words.append(form.format(value))
    return ", ".join(words)


def _what_was_found(frame: pd.DataFrame) -> str:
    if not len(frame):
        return "the results hold no row"
    counts = Counter(str(status) for status in frame["status"])
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    rows = "1 row" if len(frame) == 1 else f"{len(frame):,} rows"
    return f"no case has status ok and a time ({rows}: {by_status})"


# --- small things -----------------------------------------------------------------------------------------


def _columns(here: Sequence[Group]) -> int:
    """Panels in a row: one row for each value of what changes slowest, where that makes a full grid."""
    count = len(here)
    if count > 4:
        first, second = here[0].parts(), here[1].parts()
        fastest = next((name for name in first if first[name] != second.get(name)), "")
        different = len({group.parts().get(fastest) for group in here})
        if 2 <= different <= 4 and count % different == 0:
            return different
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(count, 3 if count <= 9 else 4)


def _has_values(c: Curve, quantity: Quantity) -> bool:
    return bool((quantity.value(c) > 0).any())
