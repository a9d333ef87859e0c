"""What `attnbench paper` does: one figure, or all of them, from measured runs to a folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.case import Launch
from attnbench.errors import UserError, unknown
from attnbench.executors import idle
from attnbench.paper import page, sittings
from attnbench.paper.deviations import deviations
from attnbench.paper.drawing import draw
from attnbench.paper.figures import Figure, figures, find
from attnbench.paper.lines import Line, Origin
from attnbench.paper.measured import devices
from attnbench.paper.page import Reproduced
from attnbench.paper.published import borrowed, corrected, published
from attnbench.paper.sheet import Sheet
from attnbench.paper.sittings import Sitting, Stopwatch
from attnbench.paper.sources import Budget, Measuring, Taken, available, recorded
from attnbench.words import duration, joined

if TYPE_CHECKING:
    from rich.console import Console

    from attnbench.sweeps.sweep import Device

FOLDER = Path("runs") / "paper"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: figures, and where their measured points come from."""

    figures: tuple[Figure, ...]
    all: bool
    runs: tuple[Path, ...]
    budget_min: float | None
    launch: str | None  # of calls in sweeps; None: as each preset says
    out: Path


def request(
    name: str,
    *,
    runs: Sequence[Path],
    budget_min: float | None,
    out: Path | None,
    launch: str | None = None,
) -> Request:
    """A request from what was typed.

    Raises UserError for an unknown figure, with the nearest name, and for what does not go together.
    """
    every = name.lower() == "all"
    asked = tuple(figures().values()) if every else (find(name),)
    if budget_min is not None and runs:
        raise UserError("--run takes recorded runs and measures nothing: leave --gpu-budget out")
    if launch is not None and runs:
        raise UserError("--run takes recorded runs and measures nothing: leave --launch out")
    if launch is not None and launch not in list(Launch):
        raise unknown("launch", launch, list(Launch))
    if budget_min is not None and not budget_min > 0:
        raise UserError(f"--gpu-budget: expected minutes above 0, got {budget_min:g}")
    for path in runs:
        if every and path.is_file():
            raise UserError(f"paper all takes folders of recorded runs with --run, got the file {path}")
    return Request(
        figures=asked, all=every, runs=tuple(runs), budget_min=budget_min, launch=launch, out=out or FOLDER
    )


def reproduce(
    wanted: Request,
    *,
    device: Device,
    can_measure: bool,
    console: Console,
    tell: Callable[[str], None],
) -> tuple[Reproduced, ...]:
    """Draw the figures into the folder, with their pages; of all of them also the summary.

    can_measure: whether sweeps may be run here (there is a GPU, or the CPU was asked for by name).

    Raises UserError as reading, sweeping and writing do.
    """
    # Whole models take longest: what a budget ends with is theirs.
    order = sorted(wanted.figures, key=lambda figure: bool(figure.records))
    measuring = Measuring(
        folder=wanted.out / "runs",
        device=device,
        budget=Budget(seconds=None if wanted.budget_min is None else wanted.budget_min * 60),
        stopwatch=Stopwatch(folder=wanted.out / "runs"),
        console=console,
        words=sys.argv[1:],
        claims_alone=wanted.all,
        figures=order,
        launch=wanted.launch,
    )
    with idle.between_runs():
        taken = {figure.name: _taken(wanted, figure, measuring if can_measure else None) for figure in order}
    if can_measure and not wanted.runs:
        tell(f"measured for {duration(measuring.budget.used_s())}; drawing")
    done = []
    for figure in wanted.figures:
        tell(f"drawing {figure.name}")
        there, why = taken[figure.name]
        done.append(_reproduce(figure, there, why=why, out=wanted.out))
    if wanted.all:
        command = shlex.join(["attnbench", "paper", "all", *_shown(wanted)])
        measured = _sittings(wanted)
        page.write(wanted.out / "README.md", page.summary_markdown(done, command=command, measured=measured))
        page.write(wanted.out / "index.html", page.summary_html(done, command=command, measured=measured))
    return tuple(done)


def listing() -> list[dict[str, Any]]:
    """All figures: what each is, what is published of it, and what measures it."""
    return [
        {
            "figure": figure.name,
            "also": list(figure.aliases),
            "title": figure.title,
            "paper": figure.paper,
            "level": figure.level,
            "hardware": figure.hardware,
            "published_values": sum(len(line) for line in published(figure)),
            "measured_by": list(figure.sources),
            "recorded_by": list(figure.record_by),
            "more_by": list(figure.record_more),
            "claims": sum(len(claim.panels) for claim in figure.claim),
        }
        for figure in figures().values()
    ]


def as_json(done: Reproduced) -> Mapping[str, Any]:
    """One figure for scripts."""
    return {
        "figure": done.figure.name,
        "paper": done.figure.paper,
        "device": done.device or None,
        "pictures": [str(path) for path in done.pictures],
        "claims": [each.as_dict() for each in done.deviations],
        "remarks": list(done.remarks),
        "left": list(done.left),
    }


# ------------------------------------------------------------------------------------------------------------


def _sittings(wanted: Request) -> list[Sitting]:
    """Those in which the runs were measured that are drawn."""
    folders = [place for path in wanted.runs for place in (path, path / "paper")] or [wanted.out / "runs"]
    return [each for folder in folders for each in sittings.sittings(folder)]


def _taken(wanted: Request, figure: Figure, measuring: Measuring | None) -> tuple[Taken, str]:
    """What was measured of a figure, and why nothing could be, if that is so."""
    if wanted.runs:
        return recorded(figure, wanted.runs), ""
    if measuring is None:
        return available(figure, wanted.out / "runs"), _nothing_here(figure)
    return measuring.take(figure), ""


def _nothing_here(figure: Figure) -> str:
    """Why nothing was measured where there is no GPU, and what would be."""
    why = "no GPU here, and no --run that holds it"
    return f"{why}; --device cpu measures it on the processor" if figure.sweeps else why


def _reproduce(figure: Figure, taken: Taken, *, why: str, out: Path) -> Reproduced:
    right = corrected(figure)
    given = (*published(figure), *borrowed(figure))
    measured = taken.measured.lines
    lines: tuple[Line, ...] = (*given, *right, *measured)
    device = devices(measured)
    remarks = tuple(_remarks(figure, taken, why=why))
    sheet = Sheet(figure=figure, lines=lines, remarks=remarks)
    drawable = any(len(line) for line in lines)
    done = Reproduced(
        figure=figure,
        pictures=tuple(draw(sheet, out)) if drawable else (),
        lines=lines,
        deviations=deviations(figure, published=_basis(given, right), measured=measured),
        device=device,
        remarks=remarks,
        details=taken.measured.details,
        left=tuple(map(str, taken.left)),
    )
    page.write(out / f"{figure.name}.md", page.figure_markdown(done))
    return done


def _basis(given: Sequence[Line], right: Sequence[Line]) -> list[Line]:
    """What claims are held to: corrected lines, and published ones where nothing is corrected."""
    panels = {line.panel for line in right}
    return [*right, *(line for line in given if line.panel not in panels and line.origin is Origin.PUBLISHED)]


def _remarks(figure: Figure, taken: Taken, *, why: str) -> list[str]:
    said = list(taken.measured.remarks)
    if not taken.measured.lines:
        missing = f"no run {' or '.join(figure.sources)} is there"
        nothing = (
            f"{joined([str(path) for path in taken.runs])} holds nothing of it" if taken.runs else missing
        )
        said.insert(0, why if why and not taken.runs else nothing)
    elif taken.absent:
        said.append(f"not measured yet: what the run {joined(list(taken.absent))} would add")
    said += taken.failures
    if taken.left:
        said.append(page.left_words([str(each) for each in taken.left]))
    if figure.form == "dots":
        said.append(
            "the numbers at the right are the measured values, in the order of the legend, or else the corrected or "
            "published one"
        )
    return said


def _shown(wanted: Request) -> list[str]:
    """The options of the command, for its summary."""
    runs = [part for path in wanted.runs for part in ("--run", _told(path))]
    runs += [] if wanted.launch is None else ["--launch", wanted.launch]
    return [*runs, "-o", _told(wanted.out)]


def _told(path: Path) -> str:
    """A path for a page that is handed on: of one from the root its last name, as folders tell who measured."""
    return f"…/{path.name}" if path.is_absolute() else str(path)
