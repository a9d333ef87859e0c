"""Scaling figures: speed and memory against ranks and length, measured, and predicted up to 1,024 ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from attnbench.case import Status
from attnbench.curves import length_label
from attnbench.parallel.findings import Key, same_line
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.scaling import PREDICTED_RANKS, Link, Scaling
from attnbench.plots.axes import log_ticks
from attnbench.plots.canvas import DPI, EDGE, FAINT, INK, LINE, Canvas, drawing, save
from attnbench.plots.legend import legend, legend_columns
from attnbench.plots.looks import Style, in_order, marker_size, style_of
from attnbench.plots.text import SMALL, TEXT, TITLE, text_width, wrap
from attnbench.words import three, workload_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH: Final = 9.6  # inches
_PANEL: Final = (3.75, 2.5)
_LEFT, _BETWEEN, _BELOW = 0.75, 0.95, 0.62
_RANKS: Final = tuple(2**power for power in range(11))
_ASIDE: Final = 1.05  # how far marks of one number of ranks lie from each other, as a factor
_NOTE: Final = 0.05  # the height of a note in that of its panel
_NOTE_ASIDE: Final = 6.5  # points from the end of a line to its note
_LINK_DASHES: Final = ("-", ":")  # NVLink, InfiniBand; dashes are a mechanism's own

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One pair of axes: what stands on them, and the points and lines in it, by mechanism."""

    title: str
    x_label: str
    y_label: str
    measured: Sequence[tuple[str, int | None, Points]]  # mechanism, ranks where a line has one number, points
    predicted: Sequence[tuple[str, int, Points]]  # mechanism, number of the link, points
    lengths: bool  # the x axis has lengths, else ranks


def plot_scaling(
    rows: Sequence[ParallelCase], scaling: Scaling, folder: Path, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw a page for each workload and shape: strong and weak scaling, speed and memory against length.

    Files are named `scaling.fwd-bwd.B1-H16-D128.bf16.png`. Returns the paths written, in order.

    Raises UserError for an unknown format, or a folder that cannot be written.
    """
    pages: dict[tuple[object, ...], list[ParallelCase]] = {}
    for row in rows:
        pages.setdefault((row.workload, row.batch, row.heads, row.head_dim, row.dtype), []).append(row)
    written = []
    with drawing(formats):
        for (workload, batch, heads, head_dim, dtype), page in pages.items():
            known = [row for row in page if row.status == Status.OK]
            if not known:
                continue
            figure = _draw(known, scaling, missing=[row for row in page if row.status != Status.OK])
            stem = f"scaling.{workload}.B{batch}-H{heads}-D{head_dim}.{dtype}"
            written += [save(figure, folder / f"{stem}.{name}") for name in formats]
    return written


def line_name(key: Key) -> str:
    """The mechanism, and whether it is without its decay: one of its lines has the mechanism's colour."""
    return key[0] if key[6] is not False else f"{key[0]}@no decay"


def _draw(rows: Sequence[ParallelCase], scaling: Scaling, *, missing: Sequence[ParallelCase]) -> Figure:
    longest = _most_compared(rows, lambda row: row.seq_len)
    per_rank = _most_compared(rows, lambda row: row.seq_len // row.ranks)
    panels = [
        _over_ranks(rows, scaling, seq_len=lambda ranks: longest, each=False, what=f"{longest:,} tokens"),
        _over_ranks(
            rows, scaling, seq_len=lambda n: n * per_rank, each=True, what=f"{per_rank:,} tokens a rank"
        ),
        _over_lengths(rows, "Speed against length", "tokens/s a rank", _speed_per_rank),
        _over_lengths(rows, "Memory against length", "GiB a rank", _memory),
    ]
    first = rows[0]
    width = _WIDTH - 2 * EDGE
    title = (
        f"{workload_title(first.workload)}, one sequence over many ranks: {first.batch} x {first.heads} heads of "
        f"{first.head_dim}, {first.dtype}"
    )
    device = " ".join(
        sorted({f"{row.device}, {row.backend}" for row in rows if row.backend}) or {str(first.device)}
    )
    links = " ".join(
        f"{'Solid' if number == 0 else 'Dotted'} lines: predicted over {link.name}."
        for number, link in enumerate(scaling.links)
    )
    sub = wrap(f"Measured on {device} (marks). {links}", width=width, size=SMALL)
    sentences = [*_gaps(rows, scaling, missing), *scaling.assumptions_of({same_line(row) for row in rows})]
    notes = [part for sentence in sentences for part in wrap(sentence, width=width, size=SMALL)]
    names = in_order(line_name(same_line(row)) for row in rows)
    entries = [(name, name.replace("@", ", ")) for name in names]
    columns = legend_columns(entries, width=width)
    top = EDGE + 0.22 + len(sub) * LINE + 0.3
    below = top + 2 * (_PANEL[1] + _BELOW) - 0.1
    legend_height = math.ceil(len(entries) / columns) * LINE + 0.1
    height = below + legend_height + len(notes) * LINE + EDGE
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    canvas = Canvas(figure=figure, width=_WIDTH, height=height)
    canvas.text(title, x=EDGE, top=EDGE, size=TITLE, weight="bold")
    canvas.lines(sub, x=EDGE, top=EDGE + 0.22, size=SMALL, colour="#555555")
    for number, panel in enumerate(panels):
        x = _LEFT + (number % 2) * (_PANEL[0] + _BETWEEN)
        _fill(canvas, panel, x=x, top=top + (number // 2) * (_PANEL[1] + _BELOW))
    legend(canvas, entries, columns=columns, top=below)
    canvas.lines(notes, x=EDGE, top=below + legend_height, size=SMALL, colour="#555555")
    return figure


def _most_compared(rows: Sequence[ParallelCase], length: Callable[[ParallelCase], int]) -> int:
    """The length that was measured on most numbers of ranks; the longest one of these."""
    counts: dict[int, set[int]] = {}
    for row in rows:
        counts.setdefault(length(row), set()).add(row.ranks)
    return max(counts, key=lambda each: (len(counts[each]), each))


def _gaps(rows: Sequence[ParallelCase], scaling: Scaling, missing: Sequence[ParallelCase]) -> list[str]:
    """Sentences on what a reader would look for and not find."""
    found: dict[tuple[str, int, str], list[int]] = {}
    for row in sorted(missing, key=lambda row: row.seq_len):
        name = line_name(same_line(row)).replace("@", ", ")
        found.setdefault((name, row.ranks, row.status), []).append(row.seq_len)
    gaps = [
        f"{name} on {ranks} {'rank' if ranks == 1 else 'ranks'} at {', '.join(map(length_label, lengths))} ({status})"
        for (name, ranks, status), lengths in found.items()
    ]
    short = in_order(line_name(same_line(row)) for row in rows if same_line(row) not in scaling.lines)
    return [
        *([f"Not measured: {'; '.join(gaps)}."] if gaps else []),
        *([] if any(row.ranks > 1 for row in rows) else ["Nothing here was measured on several ranks."]),
        *(f"{name.replace('@', ', ')} has no line: it takes two lengths to fit one." for name in short),
    ]


def _over_ranks(
    rows: Sequence[ParallelCase],
    scaling: Scaling,
    *,
    seq_len: Callable[[int], int],
    each: bool,
    what: str,
) -> _Panel:
    """Speed against ranks, of one length (strong) or of one length a rank (weak; speed of each rank then)."""

    def shown(tokens_per_s: float, ranks: int) -> float:
        return tokens_per_s / ranks if each else tokens_per_s

    keys = list(dict.fromkeys(same_line(row) for row in rows))
    measured = [
        (
            line_name(key),
            None,
            sorted(
                (float(row.ranks), shown(row.tokens_per_s, row.ranks))
                for row in rows
                if same_line(row) == key and row.tokens_per_s and row.seq_len == seq_len(row.ranks)
            ),
        )
        for key in keys
    ]
    predicted = [
        (
            line_name(key),
            number,
            [
                (float(ranks), shown(_predicted(scaling, key, ranks, seq_len(ranks), link), ranks))
                for ranks in _RANKS
                if ranks > 1 and seq_len(ranks) >= 2 * ranks
            ],
        )
        for key in keys
        if key in scaling.lines
        for number, link in enumerate(scaling.links)
    ]
    return _Panel(
        title=f"{'Weak' if each else 'Strong'} scaling, {what}",
        x_label="ranks",
        y_label="tokens/s a rank" if each else "tokens/s",
        measured=measured,
        predicted=predicted,
        lengths=False,
    )


def _predicted(scaling: Scaling, key: Key, ranks: int, seq_len: int, link: Link) -> float:
    return scaling.lines[key].tokens_per_s(ranks=ranks, seq_len=seq_len, link=link)


def _over_lengths(
    rows: Sequence[ParallelCase], title: str, y_label: str, value: Callable[[ParallelCase], float | None]
) -> _Panel:
    """A measured value against the length, a line for each mechanism and number of ranks, which is noted at its end."""
    found: dict[tuple[Key, int], list[tuple[float, float]]] = {}
    for row in rows:
        y = value(row)
        if y:
            found.setdefault((same_line(row), row.ranks), []).append((float(row.seq_len), y))
    lines = [(line_name(key), ranks, sorted(points)) for (key, ranks), points in found.items()]
    return _Panel(
        title=f"{title} (number: ranks, hollow: one)",
        x_label="tokens of the sequence",
        y_label=y_label,
        measured=lines,
        predicted=(),
        lengths=True,
    )


def _speed_per_rank(row: ParallelCase) -> float | None:
    return None if row.tokens_per_s is None else row.tokens_per_s / row.ranks


def _memory(row: ParallelCase) -> float | None:
    return None if row.peak_bytes is None else row.peak_bytes / 2**30


def _fill(canvas: Canvas, panel: _Panel, *, x: float, top: float) -> None:
    width, height = _PANEL
    axes = canvas.axes(x=x, top=top, width=width, height=height)
    canvas.text(panel.title, x=x, top=top - 0.2, size=TEXT, weight="bold")
    canvas.text(panel.x_label, x=x + width / 2, top=top + height + 0.2, size=SMALL, ha="center")
    axes.set_ylabel(panel.y_label, fontsize=SMALL, color=INK)
    _scales(axes, panel)
    for name, number, points in panel.predicted:
        style = style_of(name)
        axes.plot(
            *zip(*points, strict=True),
            color=style.colour,
            linestyle=_LINK_DASHES[number],
            linewidth=1.1,
            zorder=2,
        )
    drawn = list(dict.fromkeys(name for name, _, points in panel.measured if points))
    for name, ranks, points in panel.measured:
        if not points:
            continue
        style = style_of(name)
        xs, ys = zip(*points, strict=True)
        # At one number of ranks marks lie beside each other; a broken line lies over a whole one.
        aside = 1.0 if panel.lengths else _ASIDE ** (2 * drawn.index(name) - len(drawn) + 1)
        axes.plot(
            [x * aside for x in xs],
            ys,
            color=style.colour,
            linestyle=style.dash if panel.lengths else "none",
            linewidth=1.2,
            marker=style.marker,
            **_mark(style, hollow=ranks == 1),
            zorder=3 if style.dash == "-" else 4,
        )
    _note_ends(axes, panel)


def _mark(style: Style, *, hollow: bool) -> dict[str, Any]:
    """Size and filling of a mark. One rank's is hollow and larger, so that it stands around another at its place."""
    if not hollow:
        return {"markersize": marker_size(style), "markeredgecolor": "white", "markeredgewidth": 0.4}
    return {
        "markersize": marker_size(style) + 2.6,
        "markeredgecolor": style.colour,
        "markeredgewidth": 0.9,
        "markerfacecolor": "none",
    }


def _note_ends(axes: Axes, panel: _Panel) -> None:
    """The ranks at the ends of lines; lines that end together share a note, which names all of theirs."""
    to_axes = axes.transScale + axes.transLimits
    ends = [
        (*to_axes.transform(points[-1]), ranks) for _, ranks, points in panel.measured if ranks and points
    ]
    groups: list[list[tuple[float, float, int]]] = []
    for x, y, ranks in sorted(ends):
        near = next((g for g in groups if abs(g[-1][0] - x) < _NOTE and y - g[-1][1] < _NOTE), None)
        if near is None:
            groups.append([(x, y, ranks)])
        else:
            near.append((x, y, ranks))
    for group in groups:
        axes.annotate(
            _note({ranks for *_, ranks in group}),
            (max(x for x, *_ in group), statistics.fmean((group[0][1], group[-1][1]))),
            xycoords="axes fraction",
            xytext=(_NOTE_ASIDE, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=SMALL,
            path_effects=[withStroke(linewidth=2, foreground="white")],  # over a line that goes on
        )


def _note(ranks: Iterable[int]) -> str:
    return ", ".join(f"{each:,}" for each in sorted(ranks))


def _scales(axes: Axes, panel: _Panel) -> None:
    """Logarithmic axes with round numbers."""
    points = [point for *_, each in (*panel.measured, *panel.predicted) for point in each]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    xs = sorted({x for x, _ in points}) or [1.0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    pad = max(1.3, (high / low) ** 0.06)  # a mark is nowhere cut
    low, high = low / pad, high * pad
    y_ticks = log_ticks(low, high, base=10, most=7)
    x_ticks = (
        log_ticks(xs[0], xs[-1], base=2, most=8)
        if panel.lengths
        else [1.0, *PREDICTED_RANKS, 2.0, 4.0, 16.0, 256.0]
    )
    first, last = (xs[0] / 1.2, xs[-1]) if panel.lengths else (0.85, _RANKS[-1] * 1.2)
    axes.set_xlim(first, last * (last / first) ** _room(panel))
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(x_ticks))
    axes.xaxis.set_major_formatter(
        FixedFormatter([length_label(int(t)) if panel.lengths else f"{t:,.0f}" for t in x_ticks])
    )
    axes.yaxis.set_major_locator(FixedLocator(y_ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([_amount(tick) for tick in y_ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=SMALL, width=0.7, colors=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _room(panel: _Panel) -> float:
    """How far beyond its last point an axis goes, for the longest note there may be: in what the points take."""
    ranks = {ranks for _, ranks, points in panel.measured if ranks and points}
    if not ranks:
        return 0.0
    room = text_width(_note(ranks), size=SMALL) + _NOTE_ASIDE / 72 + 0.05
    return room / (_PANEL[0] - room)


def _amount(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}" if value >= 0.01 else three(value)
