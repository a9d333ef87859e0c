"""The evidence program: what it measures next, and what it draws from pools whose truth is known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attnbench import store
from attnbench.comparison.verdicts import Verdict
from attnbench.gate import drawing, evidence
from attnbench.gate.planting import SITES
from attnbench.gate.processes import recorded
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


def _wanted(player: Player) -> evidence.Wanted:
    return evidence.Wanted(
        sweep=load("tiny.toml", device="cpu"),
        site=SITES["cpu"],
        pools=evidence.pools_of([0.05, 0.02], unchanged=4, planted=2),
        branch_share=0.05,
        folder=player.folder / "runs",
        deadline_s=0.0,
    )


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
