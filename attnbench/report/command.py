"""What `attnbench report` does: results in, one HTML file out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.comparison.comparing import THRESHOLD, compare
from attnbench.comparison.words import closing
from attnbench.errors import UserError
from attnbench.plots import plot_roofline, plot_run, plot_shapes
from attnbench.report.answer import Head, head
from attnbench.report.data import document
from attnbench.report.page import packed, page
from attnbench.report.sections import comparison_section, findings_section, machine_section
from attnbench.semantics import TOLERANCES
from attnbench.shapes import lists_shapes
from attnbench.store import load_results
from attnbench.summary import Summary, summarize_run

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.comparison.found import Comparison

FIGURE_BYTES = 300_000  # of all figures in a page together, compressed; the page stays below a million


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as text, its answer in two sentences, and which figures did not fit into it."""

    html: str
    answer: tuple[str, str]
    left_out: tuple[str, ...]


def report(
    run: Sequence[Path],
    base: Sequence[Path] = (),
    *,
    threshold: float = THRESHOLD,
    noise: float | None = None,
    allow_different: bool = False,
    figures: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """The report of a run, compared with `base` where that is given; both as paths of files or folders.

    threshold, noise, allow_different: as for `attnbench compare`. figures: with the figures to download, which takes
    a second or two each. tell: hears what is being done.

    Raises UserError as reading and comparing do, and when there is no row at all.
    """
    frame = _in_order(load_results(run))
    if frame.empty:
        raise UserError(f"{', '.join(map(str, run))} holds no row: there is nothing to report")
    found = None
    if base:
        tell("comparing")
        found = compare(
            load_results(base), frame, threshold=threshold, noise=noise, allow_different=allow_different
        )
    drawn: dict[str, str] = {}
    if figures and (frame["status"] == "ok").any():
        tell("drawing figures")
        drawn = _figures(frame)
    kept, left_out = _fitting(drawn)
    tell("writing the page")
    summary = summarize_run(frame)
    top = head(frame, summary, compared=None if found is None else closing(found))
    return Report(
        html=_page(frame, summary, found, top=top, figures=kept), answer=top.answer, left_out=left_out
    )


def save(html: str, path: Path) -> None:
    """Write the page. Raises UserError when that cannot be done, or would replace results."""
    if path.suffix == ".parquet":
        raise UserError(f"--out: expected a file for HTML, got {path}, which is a name for results")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def default_path(run: Path) -> Path:
    """Where a report goes if nothing is said: into a run's folder, or beside a file."""
    return run / "report.html" if run.is_dir() else run.with_suffix(".html")


# ------------------------------------------------------------------------------------------------------------


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of measurement: the shards of a run that is not merged come by name."""
    return frame.sort_values(["started_at", "case_id"], kind="stable", ignore_index=True)


def _page(
    frame: pd.DataFrame, summary: Summary, found: Comparison | None, *, top: Head, figures: dict[str, str]
) -> str:
    return page(
        top,
        data=document(frame, tolerances=TOLERANCES),
        figures=figures,
        before=[] if found is None else [comparison_section(found)],
        after=[findings_section(summary), machine_section(frame)],
    )


def _figures(frame: pd.DataFrame) -> dict[str, str]:
    """The SVG files that `attnbench plot` and `roofline` would write, by name; of listed shapes both kinds."""
    with tempfile.TemporaryDirectory() as folder:
        files = plot_run(frame, folder, formats=("svg",))
        if lists_shapes(frame) and frame["roofline"].notna().any():
            files += plot_shapes(frame, folder, formats=("svg",))
        with suppress(UserError):  # without ceilings or rates there is none
            files += plot_roofline(frame, folder, formats=("svg",))
        return {file.name: file.read_text(encoding="utf-8") for file in files}


def _fitting(figures: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """As many figures, first ones first, as the budget holds; and the names of the others."""
    kept: dict[str, str] = {}
    room = FIGURE_BYTES
    for name, svg in figures.items():
        room -= len(packed(svg))
        if room < 0:
            break
        kept[name] = svg
    return kept, tuple(name for name in figures if name not in kept)
