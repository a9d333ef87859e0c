"""The command `report`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.errors import UserError
from attnbench.options import AllowDifferent, Json, Threshold


def report(
    run: Annotated[
        str, typer.Argument(help="A run: a folder or a Parquet file; several separated by commas.")
    ],
    base: Annotated[
        str | None, typer.Argument(help="What to compare it with; several separated by commas.")
    ] = None,
    threshold: Threshold = None,
    noise: Annotated[
        str | None, typer.Option("--noise", help="As for compare: how far runs differ on this machine, 1%.")
    ] = None,
    allow_different: AllowDifferent = False,
    figures: Annotated[
        bool, typer.Option(help="Put the figures of plot and roofline in, to download.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default: report.html in the run's folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write one HTML file of a run that needs no network: charts, findings, every row, the machine.

    With BASE also the verdict of each case.
    """
    from attnbench.comparison.command import percentage
    from attnbench.comparison.comparing import THRESHOLD
    from attnbench.comparison.sides import paths_of
    from attnbench.report import command

    if base is None and (threshold is not None or noise is not None or allow_different):
        raise UserError(
            "--threshold, --noise and --allow-different compare: name a second run, or leave them out"
        )
    paths = paths_of([run])
    made = command.report(
        paths,
        paths_of([base]) if base else (),
        threshold=THRESHOLD if threshold is None else percentage(threshold, option="--threshold"),
        noise=None if noise is None else percentage(noise, option="--noise"),
        allow_different=allow_different,
        figures=figures,
        tell=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )
    path = out or command.default_path(paths[0])
    command.save(made.html, path)
    if json_:
        size = len(made.html.encode())
        about = {"report": str(path), "bytes": size, "answer": list(made.answer)}
        print(json.dumps({**about, "left_out": list(made.left_out)}, indent=1))
        return
    print("\n".join(made.answer))
    print(f"Report: {path}")
    if made.left_out:
        print(
            f"{len(made.left_out)} figures would make it too large; attnbench plot and roofline write them."
        )
