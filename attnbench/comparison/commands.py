"""The command `compare`: its options, and its exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.options import (
    AllowDifferent,
    Exit,
    Explain,
    Format,
    ReportFile,
    ShowAll,
    Strict,
    Threshold,
    Waivers,
    make_console,
)


def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASE NEW",
            help="Two sides: run folders or Parquet files; several of a side separated by commas.",
        ),
    ] = None,
    base: Annotated[list[str] | None, typer.Option("--base", help="One more of the base side.")] = None,
    new: Annotated[list[str] | None, typer.Option("--new", help="One more of the new side.")] = None,
    threshold: Threshold = None,
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            help="Standard deviation of process medians on this machine, for a side with one process: 1%.",
        ),
    ] = None,
    waivers: Waivers = None,
    all_: ShowAll = False,
    explain: Explain = False,
    strict: Strict = False,
    allow_different: AllowDifferent = False,
    format_: Format = "table",
    out: ReportFile = None,
) -> None:
    """Compare two sets of runs, case by case: what became slower, faster, broken, or needs more memory?

    A run is one process. Give each side several (3 to 5): samples of one process do not tell by how much the
    next one differs, so with a single one, and without --noise, no time is judged.

    \b
    Exit codes:
      0  no regression
      1  a regression: slower, broken (ok before and not now), or more peak memory; or an expired waiver
      2  bad input, or another device, driver, library or protocol without --allow-different
      3  no regression, but with --strict a case is unclear or no longer measured
    """
    from attnbench.comparison import command
    from attnbench.comparison.formats import Wanted

    asked = command.request(
        sides_given=sides or (),
        base=base or (),
        new=new or (),
        threshold=threshold,
        noise=noise,
        waivers=waivers,
        format_=format_,
    )
    found = command.run(asked, allow_different=allow_different)
    wanted = Wanted(everything=all_, explain=explain, strict=strict)
    command.hand_over(found, wanted, form=asked.format, out=out, console=make_console())
    if found.failed:
        raise typer.Exit(Exit.REGRESSION)
    if strict and found.doubtful:
        raise typer.Exit(Exit.INCONCLUSIVE)
