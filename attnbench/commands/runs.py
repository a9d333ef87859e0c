"""The commands `watch`, `import` and `merge`: following a run, taking one in, joining several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from attnbench.options import Exit, Json, make_console


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a sweep that runs in another shell.")],
    once: Annotated[bool, typer.Option("--once", help="Say how far it is, and end.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the last state as JSON on stdout, for scripts.")
    ] = False,
) -> None:
    """Follow a sweep from another shell: each case as it ends, how many are left, and about how long.

    It ends with the sweep; Ctrl-C ends the watching alone. Exit code 3 if the sweep stopped before its end.
    """
    from attnbench import watching

    watcher = watching.Watcher(path=run)
    state = watcher.look()[0] if once else watching.watch(run, make_console(stderr=json_))
    print(watching.as_json(state) if json_ else state.sentence())
    if state.stopped:
        raise typer.Exit(Exit.INCONCLUSIVE)


def import_(
    files: Annotated[
        list[Path], typer.Argument(help="JSON files that pytest benchmarks/ --benchmark-json=FILE wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the Parquet files; default: beside each JSON."),
    ] = None,
    json_: Json = False,
) -> None:
    """Turn the JSON of our pytest-benchmark suite into Parquet, one file each, for plot, report and compare.

    A file is one process: measure several for a side of a comparison.
    """
    from attnbench import importing
    from attnbench.words import count_text

    done = importing.import_files(files, folder=out)
    if json_:
        found = [
            {
                "source": str(each.source),
                "results": str(each.results),
                "run_id": each.run_id,
                "device": each.device,
                "statuses": dict(each.statuses),
            }
            for each in done
        ]
        print(json.dumps(found, indent=1))
        return
    for each in done:
        ended = ", ".join(f"{count:,} {status}" for status, count in each.statuses.items())
        cases = count_text(sum(each.statuses.values()), "case")
        print(f"{each.source} -> {each.results}: {cases} on {each.device} ({ended})")


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, finished or not, or Parquet files; or all of `attnbench model` or `parallel`."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The Parquet file, or a folder for its results.parquet.")
    ],
    every_process: Annotated[
        bool,
        typer.Option(
            "--every-process",
            help="Keep a case once for each run that measured it, for compare; default: once for each environment.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Join runs and shards of many machines into one Parquet file, each case once for each environment.

    Of what was measured twice on one GPU model, driver, libraries, commit and protocol, the first that is ok stays.
    Records of whole models, and of sequences over many GPUs, are joined into a file of each kind, each case once for
    each GPU model.
    """
    import dataclasses

    from attnbench.models import joining
    from attnbench.words import count_text

    if any(map(joining.files_of, runs)):
        _merge_records(runs, out=out, every_process=every_process, json_=json_)
        return
    from attnbench.merging import merge_runs

    done = merge_runs(runs, out=out, every_process=every_process)
    if json_:
        print(json.dumps({**dataclasses.asdict(done), "path": str(done.path)}, indent=1))
        return
    print(
        f"{done.path}: {count_text(done.rows, 'case')} of {count_text(done.runs, 'run')} ({_on(done.devices)})"
    )
    if done.duplicates:
        print(f"{count_text(done.duplicates, 'row')} left out, measured before in the same environment.")


def _merge_records(runs: Sequence[Path], *, out: Path, every_process: bool, json_: bool) -> None:
    import dataclasses

    from attnbench.errors import UserError
    from attnbench.models.joining import join_records
    from attnbench.models.records import KINDS
    from attnbench.parallel.records import ParallelCase
    from attnbench.words import count_text

    if every_process:
        raise UserError(
            "--every-process keeps the runs of sweeps apart; records of models have no runs: leave it out"
        )
    done = join_records(runs, out=out, kinds=(*KINDS, ParallelCase))
    if json_:
        print(json.dumps([{**dataclasses.asdict(each), "path": str(each.path)} for each in done], indent=1))
        return
    for each in done:
        print(f"{each.path}: {count_text(each.cases, 'case')} ({_on(each.devices)})")
        if each.duplicates:
            print(f"{count_text(each.duplicates, 'case')} left out, measured before on the same device.")


def _on(devices: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} on {device}" for device, count in devices.items()) or "none"
