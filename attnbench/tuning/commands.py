"""The command `tune`: its options, and how what was found is handed over."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.options import Dtypes, Exit, Json


def tune(
    kernel: Annotated[
        list[str] | None, typer.Argument(help="lightning2 or lightning1; default: lightning2.")
    ] = None,
    dtype: Dtypes = None,
    head_dim: Annotated[
        list[str] | None, typer.Option("--head-dim", help="Channels per head; default: 64,128,256.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="BATCHxHEADSxSEQ_LEN to time; default: 8x16x8k,1x16x32k; rows of 3 programs also 16x16x8k.",
        ),
    ] = None,
    time_budget: Annotated[
        float, typer.Option("--time-budget", help="Seconds from the first compiler to the last check.")
    ] = 120.0,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Compile and check so many at a time.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The table; candidates go beside it. Default: tuned-<device>.toml."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the candidates and measure nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find launch configurations for this GPU: check each against fp64, time the right ones, write a table.

    A row of the table in use gives way only to a configuration that is faster by 3%.

    ATTNBENCH_CONFIGS=table.toml makes every other command use the table. Exit code 3 if nothing was admitted.
    """
    from attnbench.tuning import command, report

    request = command.request(
        kernels=kernel,
        dtypes=dtype,
        head_dims=head_dim,
        shapes=shape,
        budget_s=time_budget,
        processes=processes,
    )
    if dry_run:
        entries = command.candidates(request)
        print(
            json.dumps([report.entry_as_json(each) for each in entries], indent=1)
            if json_
            else "\n".join(map(report.entry_in_words, entries))
        )
        print(f"{len(entries)} candidates; nothing was measured", file=sys.stderr)
        return
    outcome = command.tune(
        request,
        out=out,
        words=sys.argv[1:],
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if json_:
        print(json.dumps({"table": str(outcome.table), "rows": outcome.rows}, indent=1))
    else:
        print("\n".join(outcome.sentences))
        print(f"\nTable: {outcome.table} (try it: {command.VARIABLE}={shlex.quote(str(outcome.table))})")
        print(f"Candidates: {outcome.candidates}")
    if not outcome.admitted:
        raise typer.Exit(Exit.INCONCLUSIVE)
