"""The command `paper`: its options, and its exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.options import DeviceOption, Exit, Json, LaunchOption, make_console


def paper(
    figure: Annotated[
        str, typer.Argument(help="A figure or table (see: attnbench paper list), `all`, or `list`.")
    ],
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            help="Take recorded runs and measure nothing: a run, or a folder of runs by name; several separated by "
            "commas.",
        ),
    ] = None,
    gpu_budget: Annotated[
        float | None,
        typer.Option(
            "--gpu-budget", help="Minutes of measuring; the same command goes on with what is left."
        ),
    ] = None,
    launch: LaunchOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of figures and tables, and of what is measured; default: runs/paper."
        ),
    ] = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Draw a figure of the Lightning Attention papers: published points hollow, measured ones solid.

    Measures what the figure needs (or takes a run), and says which of the paper's claims hold here. `all` draws every
    figure and a summary; of whole models it measures what the claims need, and a figure by its name also the lengths
    between. Without a GPU and without --run the published points are drawn alone, unless
    --device cpu asks for small sweeps on the processor. With --launch graph calls of sweeps
    are replayed as CUDA graphs, which a busy host does not slow.

    Exit code 3 if the budget ended before everything was measured.
    """
    from attnbench.comparison.sides import paths_of
    from attnbench.paper import command
    from attnbench.paper.telling import print_figures, print_list

    if figure.lower() == "list":
        print_list(command.listing(), json_=json_)
        return
    from attnbench.measure.gpus import device_kind
    from attnbench.sweeping import InterruptedSweepError

    wanted = command.request(figure, runs=paths_of(run or ()), budget_min=gpu_budget, launch=launch, out=out)

    kind = device_kind(device)
    try:
        done = command.reproduce(
            wanted,
            device=kind,
            can_measure=kind == "cuda" or device == "cpu",
            console=make_console(stderr=True),
            tell=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
        )
    except InterruptedSweepError as stop:
        print(f"{stop}\nThe same command goes on with them.", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    print_figures(done, folder=wanted.out, json_=json_)
    if any(each.left for each in done):
        raise typer.Exit(Exit.INCONCLUSIVE)
