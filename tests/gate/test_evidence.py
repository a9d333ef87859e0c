"""The evidence program: what it measures next, and what it draws from pools whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from attnbench import store
from attnbench.comparison.verdicts import Verdict
from attnbench.errors import UserError
from attnbench.gate import drawing, evidence, trees
from attnbench.gate.planting import SITES
from attnbench.gate.processes import recorded
from attnbench.gate.telling import Teller
from attnbench.options import make_console
from attnbench.sweeps.loader import load

if TYPE_CHECKING:
    import pyarrow as pa

    from tests.gate.conftest import Player


def _pools(player: Player, *, factor: float) -> dict[str, list[pa.Table]]:
    """12 processes of unchanged code, and 6 in which one case of four is slower."""
    files = {
        evidence.UNCHANGED: player.record("unchanged", sides=["new"], processes=12),
        "planted": player.record("planted", sides=["new"], processes=6, factors={0: factor}, seed=1),
    }
    return {name: list(recorded([Path(f)], sides=["new"]).runs["new"]) for name, f in files.items()}


def test_drawn_gates_find_what_is_planted_and_nothing_else(player: Player) -> None:
    planted_case = player.cases[0].case_id
    same, slow = drawing.judge(_pools(player, factor=1.05), unchanged=evidence.UNCHANGED, gates=6, a_side=4)
    assert same.counts() == Counter({Verdict.SAME: 6 * 4})
    assert slow.counts(planted_case) == Counter({Verdict.SLOWER: 6})
    assert slow.counts(planted_case, but=True) == Counter({Verdict.SAME: 6 * 3})
    assert slow.ratios[planted_case] == pytest.approx(1.05, abs=0.005)
    text = drawing.markdown(slow, planted=planted_case)
    assert (
        f"Planted in {planted_case}: 6 of 6 slower, 0 faster. All others: 0 of 18 slower, 0 faster." in text
    )
    assert "0 slower, 0 faster" in drawing.markdown(same, planted=planted_case)
    assert "12 of unchanged, 6 of planted" in drawing.header(
        load("tiny.toml", device="cpu"), _pools(player, factor=1)
    )


def test_a_gate_draws_no_process_twice(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def compared(base: list[pa.Table], new: list[pa.Table]) -> Any:
        drawn.append([run for table in (*base, *new) for run in set(table["run_id"].to_pylist())])
        raise StopIteration

    monkeypatch.setattr(drawing, "_compared", compared)
    with pytest.raises(StopIteration):
        drawing.judge(_pools(player, factor=1), unchanged=evidence.UNCHANGED, gates=1, a_side=6)
    (runs,) = drawn
    assert len(runs) == len(set(runs)) == 12


@pytest.mark.parametrize(
    ("slower", "words"),
    [
        ([0], "exactly the planted cases"),
        ([], "0 of 1 planted cases"),
        ([0, 1], "1 of 1 planted cases and b"),
    ],
)
def test_a_planted_commit_in_words(slower: list[int], words: str) -> None:
    cases = [
        {"case_id": name, "ratio": None, "verdict": "slower" if place in slower else "same"}
        for place, name in enumerate("ab")
    ]
    report = {"cases": cases, "exit_code": 1, "seconds": 12.0}
    assert f"slower: {words}." in drawing.branch_markdown(report, planted="a")


def _kept(player: Player, name: str, *, folder: Path, unit: str = "card a", factor: float = 1.0) -> None:
    """A process that was measured on a card, as a run folder with its shards."""
    number = int(name[-2:])
    gpu = {"name": "H200", "driver": "1", "uuid": unit}
    environment = {"device": "H200", "device_type": "cuda", "gpu": gpu, "versions": {}, "variables": {}}
    file = player.record(
        name,
        sides=["new"],
        processes=1,
        factors={0: factor},
        seed=number,
        environment=environment,
        launch="graph",
    )
    (table,) = recorded([Path(file)], sides=["new"]).runs["new"]
    run = folder / "processes" / name
    for row in table.to_pylist():
        store.write(store.to_table([row], records={}), run / "shards" / f"{row['case_id']}.parquet")
    (record,) = store.records(table).values()
    (run / "run.json").write_text(json.dumps(record))


def _command(*arguments: str) -> int:
    """The program on this machine, which need not have a GPU; its exit code."""
    app = typer.Typer()
    app.command()(evidence.main)
    given = ["graphs.toml", "--device", "cuda", "--runs", "runs", "-o", "found", "--share", "5%", "--processes", "4",
             "--planted", "2", "--a-side", "2", "--gates", "1"]  # fmt: skip
    done = CliRunner().invoke(app, [*given, *arguments])
    if isinstance(done.exception, UserError):
        raise done.exception
    return done.exit_code


def test_what_two_cards_measured_is_drawn_where_there_is_none(
    player: Player, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sweep = Path("tiny.toml").read_text() + '[protocol]\nlaunch = "graph"\n'
    Path("graphs.toml").write_text(sweep)
    runs = Path("runs")
    for number in range(1, 5):
        _kept(player, f"unchanged-{number:02d}", folder=runs)
    with pytest.raises(UserError, match="no CUDA device"):
        _command("--only", "pools")
    for number in (1, 2):
        _kept(player, f"planted-0.05-{number:02d}", folder=runs, factor=1.05)
    assert _command("--only", "pools") == 0
    text = Path("found/evidence.md").read_text()
    assert "Planted in lightning1" in text
    assert "The check of a slow-down planted on a commit is not measured yet." in text
    with pytest.raises(UserError, match="no CUDA device"):
        _command()
    case = {"case_id": player.cases[0].case_id, "ratio": None, "verdict": "slower"}
    machine = {"device": "H200", "GPU unit": "another card", "cache": "cold", "launch": "graph"}
    report = {"cases": [case], "exit_code": 1, "seconds": 100.0, "machine": machine}
    (runs / "branch.json").write_text(json.dumps(report))
    assert _command("--only", "branch") == 0
    text = Path("found/evidence.md").read_text()
    assert "Cards: the processes are of card a, the check on a branch is of another ." in text
    assert "4 of unchanged, 2 of planted-0.05" in text
    (runs / "branch.json").write_text(json.dumps({**report, "machine": {**machine, "device": "A100"}}))
    with pytest.raises(UserError, match="evidence is of one GPU model"):
        _command()
    (runs / "branch.json").write_text(json.dumps({**report, "machine": {**machine, "GPU unit": "card a"}}))
    assert _command() == 0
    assert "Cards:" not in Path("found/evidence.md").read_text()
    Path("graphs.toml").write_text(sweep.replace("graph", "eager"))
    with pytest.raises(
        UserError, match=r"unchanged-01 in runs was .* another protocol \(launch graph, not eager\)"
    ):
        _command()


def _wanted(player: Player) -> evidence.Wanted:
    return evidence.Wanted(
        sweep=load("tiny.toml", device="cpu"),
        site=SITES["cpu"],
        pools=evidence.pools_of([0.05, 0.02], unchanged=4, planted=2),
        branch_share=0.05,
        folder=player.folder / "runs",
        deadline_s=0.0,
    )


def test_the_check_on_a_branch_finds_libraries_where_this_process_does(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch's attnbench comes first, and what else PYTHONPATH holds stays on it."""
    seen: list[list[str]] = []
    really = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "--against" not in command:  # git
            return really(command, **options)
        assert trees.git(options["cwd"], "log", "-1", "--format=%s") == "A planted slow-down"
        first, *rest = options["env"]["PYTHONPATH"].split(os.pathsep)
        assert first == str(options["cwd"])
        seen.append(rest)
        raise StopIteration

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["libraries", "more"]))
    monkeypatch.setattr(subprocess, "run", run)
    wanted = dataclasses.replace(_wanted(player), deadline_s=math.inf)
    with pytest.raises(StopIteration):
        evidence.check_branch(wanted, teller=Teller(make_console()))
    assert seen == [["libraries", "more"]]


def test_pools_take_turns_and_what_is_there_is_not_measured_again(player: Player) -> None:
    wanted = _wanted(player)
    order = [(pool.name, number) for pool, number in evidence.missing(wanted)]
    assert len(order) == 8
    assert [name for name, _ in order[:4]] == ["unchanged", "planted-0.05", "planted-0.02", "unchanged"]
    run = wanted.folder / "processes" / "unchanged-01"
    (table,) = recorded([Path(player.record("one", sides=["new"], processes=1))], sides=["new"]).runs["new"]
    for row in table.to_pylist():
        store.write(store.to_table([row], records={}), run / "shards" / f"{row['case_id']}.parquet")
    (run / "run.json").write_text(json.dumps({"run_id": "one"}))
    assert len(evidence.missing(wanted)) == 8, "it was broken off before its end"
    (run / "run.json").write_text(json.dumps({"run_id": "one", "effort": {"wall_s": 1}}))
    assert ("unchanged", 1) not in [(pool.name, number) for pool, number in evidence.missing(wanted)]
    assert len(evidence.missing(wanted)) == 7
