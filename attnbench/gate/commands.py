"""The commands of the gate: they parse, call and print. What they need is imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from attnbench.errors import UserError
from attnbench.options import (
    AllowDifferent,
    DeviceOption,
    Exit,
    Explain,
    Format,
    Json,
    Mechanisms,
    ReportFile,
    ShowAll,
    Strict,
    Threshold,
    Waivers,
    Workloads,
    make_console,
)

SweepArgument = Annotated[
    str, typer.Argument(help="A preset (see: attnbench list) or the path of a TOML file.")
]
Cases = Annotated[
    list[str] | None, typer.Option("--case", help="Only cases of this name or pattern: 'lightning2.bwd.*'.")
]
Replay = Annotated[
    list[Path] | None,
    typer.Option("--replay", help="Take the processes from recorded runs and measure nothing."),
]
# A shell makes several words of a pattern, and the option takes the first.
Further = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN",
        help="Further recorded runs behind --replay: --replay FOLDER/processes/*.",
        show_default=False,
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option("--runs", help="Folder for what is measured; default: runs/<command>-<sweep>-<time>."),
]
Budget = Annotated[
    str | None,
    typer.Option("--time-budget", help="Measure on where a verdict is unclear, for so long in all: 90s, 5m."),
]
Install = Annotated[
    bool, typer.Option("--install", help="Let pip give the revision the libraries that it declares itself.")
]
NoiseFile = Annotated[
    Path | None,
    typer.Option("--noise-file", help="Record of noise; default: where attnbench noise keeps it."),
]


def check(
    sweep: SweepArgument,
    further: Further = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="A git revision to measure in turns with the working tree."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", help="Stored results to hold to; default: results/baselines/<GPU>/<sweep>.parquet."
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make what is measured the new baseline; the old one is logged.")
    ] = False,
    mechanism: Mechanisms = None,
    workload: Workloads = None,
    case: Cases = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=2,
            help="Fresh processes a side; default: 5, with --time-budget 3 to begin with, with --update 10.",
        ),
    ] = None,
    time_budget: Budget = None,
    threshold: Threshold = None,
    noise_file: NoiseFile = None,
    waivers: Waivers = None,
    install: Install = False,
    replay: Replay = None,
    runs: Runs = None,
    all_: ShowAll = False,
    explain: Explain = False,
    strict: Strict = False,
    require_baseline: Annotated[
        bool, typer.Option("--require-baseline", help="Exit code 3 when base does not have a case.")
    ] = False,
    allow_different: AllowDifferent = False,
    format_: Format = "table",
    out: ReportFile = None,
    device: DeviceOption = "auto",
) -> None:
    """Did the working tree make anything slower? Measures a sweep in fresh processes and judges each case.

    Held to a stored baseline, or with --against to a git revision: that is checked out into a throw-away worktree and
    environment, and its processes take turns with those of the working tree.

    \b
    Exit codes:
      0  no regression
      1  a regression: slower, broken (ok before and not now), or more peak memory; or an expired waiver
      2  bad input, no baseline, a revision that does not build, another device, driver or library
      3  nothing could be judged; with --strict a case is unclear or no longer measured
    """
    from attnbench.comparison import command, formats
    from attnbench.gate.checking import Request
    from attnbench.gate.checking import check as run
    from attnbench.gate.stage import Subject
    from attnbench.gate.telling import Teller, seconds

    form = command.known_format(format_)
    asked = Request(
        subject=Subject(
            sweep=sweep,
            mechanism=mechanism,
            workload=workload,
            cases=case or (),
            device=device,
            replay=_replayed(replay, further),
            runs=runs,
        ),
        against=against,
        install=install,
        baseline=baseline,
        update=update,
        threshold=None if threshold is None else command.percentage(threshold, option="--threshold"),
        processes=processes,
        budget_s=None if time_budget is None else seconds(time_budget, option="--time-budget"),
        waivers=waivers,
        noise_file=noise_file,
        allow_different=allow_different,
    )
    teller = Teller(make_console(stderr=True))
    checked = run(asked, command=sys.argv[1:], teller=teller)
    found = checked.comparison
    if checked.results is not None:
        teller.say(f"Results: {checked.results}")
    if found is None:
        return
    wanted = formats.Wanted(everything=all_, explain=explain, strict=strict, title="attnbench check")
    command.hand_over(found, wanted, form=form, out=out, console=make_console())
    if checked.baseline is not None:
        return  # whoever stores a baseline accepts what changed
    if found.failed:
        raise typer.Exit(Exit.REGRESSION)
    doubt = (strict and found.doubtful) or (require_baseline and checked.new_cases)
    if doubt or not found.judged:
        raise typer.Exit(Exit.INCONCLUSIVE)


def noise(
    sweep: SweepArgument,
    further: Further = None,
    mechanism: Mechanisms = None,
    workload: Workloads = None,
    case: Cases = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=2, help="Processes a side of the gate that this prepares; default: 5."
        ),
    ] = None,
    noise_file: Annotated[
        Path | None,
        typer.Option(
            "--noise-file", help="Where to keep it; default: a file of this GPU in the user's folder."
        ),
    ] = None,
    replay: Replay = None,
    runs: Runs = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """How much do times differ here by chance? Measures the working tree against itself and keeps each case's noise.

    `check` widens its threshold where a case is noisy, refuses one below the noise, and warns when the noise is missing
    or was measured with another driver, clock or GPU. Exit code 3 if a gate would have alarmed.
    """
    import json

    from attnbench.gate import against_itself
    from attnbench.gate.stage import Subject
    from attnbench.gate.telling import Teller

    subject = Subject(
        sweep=sweep,
        mechanism=mechanism,
        workload=workload,
        cases=case or (),
        device=device,
        replay=_replayed(replay, further),
        runs=runs,
    )
    teller = Teller(make_console(stderr=True))
    found = against_itself.measure_noise(
        subject, processes=processes, file=noise_file, command=sys.argv[1:], teller=teller
    )
    if json_:
        print(json.dumps(against_itself.as_json(found), indent=1))
    else:
        against_itself.render(found, make_console())
    if found.alarms:
        raise typer.Exit(Exit.INCONCLUSIVE)


def bisect(
    good: Annotated[str, typer.Argument(help="A revision that was fast.")],
    bad: Annotated[str, typer.Argument(help="A later one that is slow.")],
    case: Annotated[
        list[str],
        typer.Option("--case", help="The case that became slower, or a pattern: 'lightning2.bwd.*'."),
    ],
    sweep: Annotated[
        str, typer.Option("--sweep", help="The preset or TOML file that the case is from.")
    ] = "ci",
    threshold: Threshold = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=2, help="Fresh processes a side of a step, to begin with; default: 3."
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="For all steps together: 90s, 5m; default: no limit.")
    ] = None,
    install: Install = False,
    runs: Runs = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """Which commit made a case slower? Searches between two revisions, by the verdicts of `check`.

    Each step measures the good revision anew, in turns with a commit. Commits that do not build, or that cannot be told
    from the good one, are skipped. Exit code 3 if no commit, or no single one, was found.
    """
    import json

    from attnbench.comparison.command import percentage
    from attnbench.gate import bisecting
    from attnbench.gate.stage import Subject
    from attnbench.gate.telling import Teller, seconds

    found = bisecting.bisect(
        Subject(sweep=sweep, cases=case, device=device, runs=runs),
        good=good,
        bad=bad,
        threshold=None if threshold is None else percentage(threshold, option="--threshold"),
        processes=processes,
        budget_s=None if time_budget is None else seconds(time_budget, option="--time-budget"),
        install=install,
        command=sys.argv[1:],
        teller=Teller(make_console(stderr=True)),
    )
    if json_:
        print(json.dumps(bisecting.as_json(found, good=good, bad=bad), indent=1))
    else:
        print(bisecting.closing(found, good=good, bad=bad))
    if found.first is None:
        raise typer.Exit(Exit.INCONCLUSIVE)


def _replayed(replay: list[Path] | None, further: list[Path] | None) -> Sequence[Path]:
    """All recorded runs that are given. Raises UserError for some without --replay."""
    if further and not replay:
        raise UserError(
            f"one sweep is expected, and behind it comes '{further[0]}': recorded runs follow --replay"
        )
    return (*(replay or ()), *(further or ()))
