"""Is the gate to be trusted here? Measures processes of unchanged and of slowed code, and draws gates of them.

    python -m attnbench.gate.evidence ci --minutes 9 --runs runs/evidence -o results/h200/gate

One command, given again until it says that all is measured: a process is a run folder, and none is measured twice. It
measures copies of the package as it stands.
Then gates are drawn: each takes its processes without replacement from the pools. Of unchanged code against itself none
may be slower; a planted slow-down of 5 % has to be found, and one of 2 % never to be faster. Last, a slow-down is
planted in the source on a commit of its own, and `attnbench check --against` has to name the planted cases and no
other. What was found is written as Markdown and JSON, beside the Parquet of all processes.

`--only pools` and `--only branch` measure a part, on other machines of one GPU model if need be: the processes lie in
`processes` of the folder, the check in `branch.json`. Where both are there, gates are drawn on any machine
(`--device cuda`, with or without a GPU); with `--only pools` they are drawn without the check, and say so. The
processes are also what `attnbench noise ci --replay runs/evidence/processes/unchanged-*` and `attnbench check ci
--update --replay ...` take.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from attnbench import store
from attnbench.case import Case
from attnbench.comparison.command import percentage
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.executors.run_folder import write_json, write_text
from attnbench.gate import drawing, noise, trees
from attnbench.gate.planting import SITES, Site
from attnbench.gate.processes import FreshProcesses
from attnbench.gate.telling import Teller
from attnbench.gate.trees import Tree
from attnbench.measure.clock import now_s
from attnbench.measure.gpus import device_kind
from attnbench.options import DeviceOption, make_console
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Sweep
from attnbench.words import duration

UNCHANGED = "unchanged"
_BRANCH_REPORT = "branch.json"
_CHECK_PROCESSES = 12  # ten, and the setting up of the revision


class Part(StrEnum):
    """A part of the evidence that does not need the other one, nor its machine."""

    POOLS = "pools"
    BRANCH = "branch"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Processes of one kind that are to be measured; share: of the planted slow-down, None for unchanged code."""

    name: str
    share: float | None
    processes: int


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the evidence consists of. deadline_s: on the clock of `now_s`, after which nothing new is begun."""

    sweep: Sweep
    site: Site
    pools: Sequence[Pool]
    branch_share: float
    folder: Path
    deadline_s: float

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.sweep.cases()


def pools_of(shares: Sequence[float], *, unchanged: int, planted: int) -> list[Pool]:
    """The pool of unchanged code, and one for each share: `planted-5%`."""
    slowed = [Pool(name=f"planted-{share:.4g}", share=share, processes=planted) for share in shares]
    return [Pool(name=UNCHANGED, share=None, processes=unchanged), *slowed]


def missing(wanted: Wanted) -> list[tuple[Pool, int]]:
    """The processes that are not measured yet, in the order of measurement.

    Pools take turns in proportion to their sizes, so that drift falls on all of them alike.
    """
    order = sorted(
        ((number - 0.5) / pool.processes, place, pool, number)
        for place, pool in enumerate(wanted.pools)
        for number in range(1, pool.processes + 1)
    )
    return [(pool, number) for _, _, pool, number in order if not _is_done(wanted, pool, number)]


def need_one_protocol(wanted: Wanted) -> None:
    """Refuse what was measured by another protocol than the sweep's: nothing could be drawn of both.

    Raises UserError.
    """
    asked = wanted.sweep.as_dict()["protocol"]
    found = {
        f"{pool.name}-{number:02d}": _record(wanted, pool, number).get("protocol", {})
        for pool in wanted.pools
        for number in range(1, pool.processes + 1)
    }
    machine = {} if (branch := _kept_branch(wanted)) is None else branch.get("machine", {})
    found[_BRANCH_REPORT] = {name: machine[name] for name in ("cache", "launch") if name in machine}
    for name, protocol in found.items():
        other = [
            f"{key} {protocol[key]}, not {asked[key]}"
            for key in asked
            if protocol.get(key, asked[key]) != asked[key]
        ]
        if other:
            raise UserError(
                f"{name} in {wanted.folder} was measured with another protocol ({', '.join(other)}) than that of the "
                f"sweep {wanted.sweep.name}: choose another folder with --runs"
            )


def measure(wanted: Wanted, *, command: Sequence[str], teller: Teller) -> None:
    """Measure the processes that are missing, until the deadline.

    Raises UserError without the device, for one that is busy, and where a slow-down cannot be planted.
    """
    todo = missing(wanted)
    if not todo:
        return
    kind = device_kind(wanted.sweep.device)  # refused where it is a GPU that is not here
    with ExitStack() as stack:
        lock = stack.enter_context(device_lock(kind))
        found: dict[str, Tree] = {}
        for pool in {pool.name: pool for pool, _ in todo}.values():
            teller.say(f"setting up {pool.name}")
            edit = None if pool.share is None else partial(_plant, wanted.site, pool.share)
            found[pool.name] = stack.enter_context(trees.copy(label=pool.name, device=kind, edit=edit))
        stack.enter_context(teller)
        source = FreshProcesses(
            sweep=wanted.sweep, folder=wanted.folder, trees=found, command=command, lock=lock, teller=teller
        )
        longest = _longest_s(wanted)
        for place, (pool, number) in enumerate(todo):
            if now_s() + longest > wanted.deadline_s:
                return
            shutil.rmtree(source.folder_of(pool.name, number), ignore_errors=True)  # one that was broken off
            process = source.process(pool.name, number=number, cases=wanted.cases)
            longest = max(longest, process.wall_s or 0.0)
            left = len(todo) - place - 1
            teller.say(
                f"{pool.name}, process {number} of {pool.processes} in {duration(process.wall_s or 0.0)}; "
                f"{left} to go, about {duration(left * longest)}"
            )


def check_branch(wanted: Wanted, *, teller: Teller) -> None:
    """Plant the slow-down on a commit of its own and let `attnbench check --against` judge it, if there is time left.

    The command runs in a repository of a copy of the package, as the commit's author would run it. Its JSON report is
    kept in the folder with the facts of the machine, and not made again.

    Raises UserError without the device, when the command ends with neither of its verdicts, and without git.
    """
    if (
        _kept_branch(wanted) is not None
        or now_s() + _CHECK_PROCESSES * _longest_s(wanted) > wanted.deadline_s
    ):
        return
    device_kind(wanted.sweep.device)  # as above
    teller.say("planting on a branch: attnbench check --against HEAD~1")
    with tempfile.TemporaryDirectory(prefix="attnbench-branch-", ignore_cleanup_errors=True) as temporary:
        root = Path(temporary) / "tree"
        trees.copy_package(root)
        trees.git(root, "init", "--quiet")
        _commit(root, "As it is")
        _plant(wanted.site, wanted.branch_share, root)
        _commit(root, "A planted slow-down")
        begun, runs = now_s(), (wanted.folder / "branch").resolve()
        shutil.rmtree(runs, ignore_errors=True)  # of one that was broken off
        done = subprocess.run(
            [sys.executable, "-m", "attnbench", "check", str((wanted.folder / "sweep.toml").resolve()),
             "--against", "HEAD~1", "--device", wanted.sweep.device, "--format", "json", "--runs", str(runs)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": trees.search_path(root)},
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    if done.returncode not in (0, 1, 3) or not done.stdout.strip():
        raise UserError(
            f"attnbench check on the planted branch ended with exit code {done.returncode} and no report"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    record = next(iter(store.records(store.load_table(runs / "results.parquet")).values()))
    report |= {
        "exit_code": done.returncode,
        "seconds": now_s() - begun,
        "machine": noise.machine_of(record),
    }
    write_json(wanted.folder / _BRANCH_REPORT, report)


def tables_of(wanted: Wanted) -> dict[str, list[pa.Table]]:
    """The processes of each pool, a table each."""
    return {
        pool.name: [
            store.load_table(_run_of(wanted, pool, number)) for number in range(1, pool.processes + 1)
        ]
        for pool in wanted.pools
    }


# ------------------------------------------------------------------------------------------------------------


def _plant(site: Site, share: float, root: Path) -> None:
    site.plant(root, share=share)


def _commit(root: Path, message: str) -> None:
    trees.git(root, "add", "--all")
    identity = ("-c", "user.name=evidence", "-c", "user.email=evidence@localhost")
    trees.git(root, *identity, "commit", "--quiet", "--message", message)


def _run_of(wanted: Wanted, pool: Pool, number: int) -> Path:
    return wanted.folder / "processes" / f"{pool.name}-{number:02d}"


def _record(wanted: Wanted, pool: Pool, number: int) -> dict[str, Any]:
    """The record of a process's run; empty where there is none yet."""
    try:
        found: dict[str, Any] = json.loads(
            (_run_of(wanted, pool, number) / "run.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return found


def _is_done(wanted: Wanted, pool: Pool, number: int) -> bool:
    """A process is there when its run has recorded its effort, which comes last."""
    shards = _run_of(wanted, pool, number) / "shards"
    has_ended = "effort" in _record(wanted, pool, number)
    return has_ended and len(list(shards.glob("*.parquet"))) >= len(wanted.cases)


def _longest_s(wanted: Wanted) -> float:
    """Seconds of the longest process so far; 0 before the first one."""
    records = (
        _record(wanted, pool, number) for pool in wanted.pools for number in range(1, pool.processes + 1)
    )
    return max((record.get("effort", {}).get("wall_s") or 0.0 for record in records), default=0.0)


def _kept_branch(wanted: Wanted) -> dict[str, Any] | None:
    """The report of the check on a branch, where it is there."""
    path = wanted.folder / _BRANCH_REPORT
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _sections(judged: Sequence[drawing.Drawn], branch: Mapping[str, Any] | None, site: Site) -> Iterator[str]:
    for each in judged:
        yield drawing.markdown(each, planted=site.cases)
    if branch is None:
        yield "The check of a slow-down planted on a commit is not measured yet."
    else:
        yield drawing.branch_markdown(branch, planted=site.cases)


def main(
    sweep: Annotated[str, typer.Argument(help="A preset or the path of a TOML file.")] = "ci",
    runs: Annotated[
        Path, typer.Option("--runs", help="Folder of the processes; what is there is not measured again.")
    ] = Path("runs/evidence"),
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the Parquet and what was found.")
    ] = Path("runs/evidence/found"),
    minutes: Annotated[float, typer.Option("--minutes", help="Begin no process after so long.")] = 60.0,
    processes: Annotated[int, typer.Option("--processes", help="Of unchanged code.")] = 40,
    planted: Annotated[int, typer.Option("--planted", help="Processes of each planted slow-down.")] = 15,
    share: Annotated[
        list[str] | None, typer.Option("--share", help="Planted slow-downs; default: 5% and 2%.")
    ] = None,
    gates: Annotated[int, typer.Option("--gates", help="Gates that are drawn of each kind.")] = 20,
    a_side: Annotated[int, typer.Option("--a-side", help="Processes a side of a gate.")] = 5,
    only: Annotated[
        Part | None,
        typer.Option("--only", help="Measure this part alone; the other may come from elsewhere."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the evidence for the gate, in as many sittings as it takes, and say what it shows.

    Exit code 3 while something of what is asked is missing: give the command again.
    """
    begun = now_s()
    # What was measured on a GPU is drawn without one too: it is looked for when something is to be measured.
    kind = "cuda" if device == "cuda" else device_kind(device)
    shares = [percentage(text, option="--share") for text in share or ["5%", "2%"]]
    if min(processes / 2, planted) < a_side:
        raise UserError(
            f"a gate of {a_side} processes a side needs {2 * a_side} of unchanged and {a_side} of planted code"
        )
    wanted = Wanted(
        sweep=load(sweep, device=kind),
        site=SITES[kind],
        pools=pools_of(shares, unchanged=processes, planted=planted),
        branch_share=max(shares),
        folder=runs,
        deadline_s=begun + minutes * 60,
    )
    need_one_protocol(wanted)
    runs.mkdir(parents=True, exist_ok=True)
    drawing.keep_sweep(sweep, runs / "sweep.toml")
    teller = Teller(make_console(stderr=True))
    if only is not Part.BRANCH:
        measure(wanted, command=sys.argv[1:], teller=teller)
    if only is not Part.POOLS:
        check_branch(wanted, teller=teller)
    branch, processes_left = _kept_branch(wanted), len(missing(wanted))
    if processes_left or (branch is None and only is not Part.POOLS):
        left = [f"{processes_left} processes"] if processes_left else []
        left += ["the check on a branch"] if branch is None else []
        print(
            f"Missing still: {' and '.join(left)}. The command goes on with it, here or on another machine."
        )
        raise typer.Exit(3)
    tables = tables_of(wanted)
    judged = drawing.judge(tables, unchanged=UNCHANGED, gates=gates, a_side=a_side)
    cards = drawing.cards(tables, branch or {})
    text = (
        "\n\n".join([drawing.header(wanted.sweep, tables), *cards, *_sections(judged, branch, wanted.site)])
        + "\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    store.write(store.merge(t for pool in tables.values() for t in pool), out / "processes.parquet")
    write_text(out / "evidence.md", text)
    # The check's own sentences are about the machine at hand, down to its files: they stay there.
    kept = branch and {name: value for name, value in branch.items() if name != "sentences"}
    write_json(out / "evidence.json", {"gates": [drawing.as_json(each) for each in judged], "branch": kept})
    print(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is set up is taken down
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
