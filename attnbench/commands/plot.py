"""The commands `plot` and `roofline`: figures of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import UserError
from attnbench.options import DrawnRuns, FigureFolder, Json, make_console


def plot(
    runs: DrawnRuns,
    out: FigureFolder = None,
    json_: Json = False,
) -> None:
    """Draw tokens/s, time and peak memory against sequence length, as PNG and SVG, and say what they show.

    Of a sweep over a list of shapes: the share of its bound that each mechanism reaches at each shape.
    """
    from attnbench import summary
    from attnbench.store import load_results

    frame = load_results(runs)
    folder = _folder(out, runs)
    try:
        files = draw(frame, folder)
    except OSError as error:
        raise UserError(f"cannot write figures into {folder}: {error.strerror or error}") from error
    found = summary.summarize_run(frame)
    if json_:
        print(json.dumps({"figures": [str(f) for f in files], **summary.as_json(found)}, indent=1))
        return
    summary.render(found, make_console())
    print(f"\nFigures: {folder} ({len(files)} files)")


def roofline(
    runs: DrawnRuns,
    out: FigureFolder = None,
    json_: Json = False,
) -> None:
    """Draw FLOP rate against intensity under the ceilings measured in the same run, as PNG and SVG.

    A point for each mechanism and shape, by formula: how near it comes to what its algorithm allows, told in words too.
    """
    from attnbench.plots import plot_roofline
    from attnbench.shapes import share_sentences, shares
    from attnbench.store import load_results

    frame = load_results(runs)
    folder = _folder(out, runs)
    files = plot_roofline(frame, folder)
    found = shares(frame)
    if json_:
        known = [
            {"workload": each.workload, "shape": shape, "mechanism": mechanism, "share": share}
            for each in found
            for shape, reached in each.known.items()
            for mechanism, share in reached.items()
        ]
        print(json.dumps({"figures": [str(file) for file in files], "shares": known}, indent=1))
        return
    for said in share_sentences(found):
        print(said)
    print(f"\nFigures: {folder} ({len(files)} files)")


def draw(frame: Any, folder: Path) -> list[Path]:
    """Draw a results frame as `plot` does; the files."""
    from attnbench.plots import plot_run, plot_shapes
    from attnbench.shapes import lists_shapes

    # Listed shapes are points with no line through them, unless no bound is known to set them against.
    listed = lists_shapes(frame) and bool(frame["roofline"].notna().any())
    return plot_shapes(frame, folder) if listed else plot_run(frame, folder)


def _folder(out: Path | None, runs: Sequence[Path]) -> Path:
    """Where figures go. Raises UserError for a file."""
    first = runs[0] if runs[0].is_dir() else runs[0].parent
    folder = out or first / "figures"
    if folder.is_file():
        raise UserError(f"the output folder {folder} is a file")
    return folder
