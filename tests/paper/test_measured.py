"""Measured lines: from recorded sweeps, from several runs of one figure, from records of whole models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attnbench.models.records import Inference, Loss, TrainStep
from attnbench.paper.deviations import Verdict, deviations, verdict_words
from attnbench.paper.figures import find
from attnbench.paper.lines import Line, Origin
from attnbench.paper.measured import Measured, devices, of_records, of_runs
from attnbench.paper.published import published
from attnbench.store import load_results

ROOT = Path(__file__).parents[2]
H200 = "NVIDIA H200"


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    return load_results(ROOT / "results/h200/paper-fig3.parquet")


def _one(measured: Measured, panel: str, series: str, edition: str = H200) -> Line:
    found = [
        each for each in measured.lines if (each.panel, each.series, each.edition) == (panel, series, edition)
    ]
    assert len(found) == 1
    return found[0]


def _step(attention: str, seq_len: int, rate: float | None, **more: Any) -> TrainStep:
    values: dict[str, Any] = {
        "case_id": f"{attention}.{seq_len}", "model": "llama" if "flash" in attention else "tnl", "size": "1B",
        "attention": attention, "seq_len": seq_len, "tokens_per_step": 2**17, "checkpointing": "none",
        "precision": "bf16", "gpus": 1, "status": "ok" if rate else "oom",
        "reason": None if rate else "it is full. Of it much is reserved", "device": H200, "tokens_per_s": rate,
        "median_ms": 100.0 if rate else None, "p10_ms": 99.0 if rate else None, "p90_ms": 102.0 if rate else None,
    }  # fmt: skip
    return TrainStep(**{**values, **more})


# ---------------------------------------------------------------- sweeps


def test_lines_are_what_the_run_holds(recorded: pd.DataFrame) -> None:
    measured = of_runs(find("fig3"), [recorded])
    assert len(measured.lines) == 12
    assert all(" timed cases " in each for each in measured.remarks)  # doubts of short times and nothing else
    assert devices(measured.lines) == H200
    rows = recorded[(recorded["mechanism"] == "flash2") & (recorded["workload"] == "bwd")].sort_values(
        "seq_len"
    )
    times = _one(measured, "bwd-time", "Flash2")
    assert times.value.tolist() == rows["median_ms"].tolist()
    assert (times.low <= times.value).all()
    (ran,) = measured.details
    assert {row[:2] for row in ran.rows} == {
        (str(name), str(who)) for name, who in zip(recorded["mechanism"], recorded["provider"], strict=True)
    }
    assert _one(measured, "bwd-memory", "Flash2").value.tolist() == rows["peak_bytes"].tolist()


def test_a_later_run_adds_only_what_an_earlier_one_lacks(recorded: pd.DataFrame) -> None:
    here = recorded[recorded["workload"] == "fwd"]
    first = here[(here["mechanism"] == "lightning2") & (here["seq_len"] == 4096)].assign(median_ms=7.0)
    later = here.assign(median_ms=9.0)
    line = _one(of_runs(find("fig3"), [first, later]), "fwd-time", "Lightning2")
    assert line.at(4096) == 7.0
    assert line.at(8192) == 9.0


def test_what_lies_beyond_a_table_is_left_out(recorded: pd.DataFrame) -> None:
    line = _one(of_runs(find("readme-speed"), [recorded]), "fwd-time", "Lightning2")
    assert line.x.max() == 32768


def test_another_shape_and_another_mechanism_are_said(recorded: pd.DataFrame) -> None:
    small = recorded.assign(heads=4, kv_heads=4, mechanism=recorded["mechanism"].replace("flash2", "sdpa"))
    measured = of_runs(find("fig3"), [small])
    assert len(measured.lines) == 12
    found = deviations(find("fig3"), published=(), measured=measured.lines)
    of_a_shape = [each for each in found if each.here == "measured at another shape"]
    assert [each.verdict for each in of_a_shape] == [Verdict.OPEN] * 2
    assert measured.remarks[:2] == (
        "measured at another shape than assumed: batch 4, 4 heads, head dim 128, bf16, causal, NVIDIA H200",
        "Flash-2 is sdpa here",
    )


def test_times_that_are_the_hosts_are_said_and_of_memory_nothing(recorded: pd.DataFrame) -> None:
    waiting = recorded.assign(busy_ms=recorded["median_ms"] / 2)
    late = [said for said in of_runs(find("fig3"), [waiting]).remarks if "waited for its host" in said]
    timed = (recorded["status"] == "ok").sum()
    assert len(late) == 1
    assert late[0].startswith(f"in {timed} of {timed} timed cases")
    assert late[0].endswith("with --launch graph times are the device's alone")
    assert of_runs(find("readme-memory"), [waiting]).remarks == ()
    busy = recorded.assign(busy_ms=recorded["median_ms"])
    assert not any("host" in said for said in of_runs(find("fig3"), [busy]).remarks)


def test_every_device_has_lines_of_its_own(recorded: pd.DataFrame) -> None:
    both = [recorded, recorded.assign(device="another")]
    measured = of_runs(find("fig3"), both)
    assert {line.edition for line in measured.lines} == {H200, "another"}
    assert len(measured.lines) == 24


# ---------------------------------------------------------------- records of whole models


def test_training_is_drawn_by_size_and_attention_with_its_spread_and_its_end() -> None:
    rows = [
        _step("lightning1", 1024, 1100.0, size="3B"),
        _step("lightning2", 16384, None), _step("lightning2", 1024, 1000.0),
        _step("lightning2", 2048, 980.0), _step("flash2@torch", 1024, 800.0),
    ]  # fmt: skip
    measured = of_records(find("table1"), rows)
    line = _one(measured, "1B", "TNL-LA2")
    assert line.value.tolist() == [1000.0, 980.0]
    assert line.low[0] == pytest.approx(1000 / 1.02)
    assert line.high[0] == pytest.approx(1000 / 0.99)
    assert [(gap.x, gap.status, gap.reason) for gap in line.gaps] == [
        (16384, "oom", "it is full. Of it much is reserved")
    ]
    assert _one(measured, "1B", "LLaMA-FA2").at(1024) == 800.0
    assert _one(measured, "3B", "TNL-LA1").at(1024) == 1100.0
    assert len(measured.lines) == 3
    (table,) = measured.details
    cells = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
    assert [(row["size"], row["attention"], row["tokens"]) for row in cells] == [
        ("1B", "flash2@torch", "1,024"), ("1B", "lightning2", "1,024"), ("1B", "lightning2", "2,048"),
        ("1B", "lightning2", "16,384"), ("3B", "lightning1", "1,024"),
    ]  # fmt: skip
    first, full = cells[1], cells[3]
    assert (full["status"], full["tokens/s per GPU"], full["MFU"]) == ("oom: it is full", "", "")
    assert first["10 to 90 % of the steps"] == "-2.0% to +1.0%"


def test_settings_that_differ_at_one_length_part_the_lines() -> None:
    rows = [
        _step("lightning2", 1024, 1000.0),
        _step("lightning2", 1024, 700.0, checkpointing="full"),
        _step("lightning2", 2048, 700.0, checkpointing="full"),
    ]
    measured = of_records(find("table1"), rows)
    assert _one(measured, "1B", "TNL-LA2", f"{H200}, checkpointing none").at(1024) == 1000.0
    assert len(_one(measured, "1B", "TNL-LA2", f"{H200}, checkpointing full")) == 2
    assert devices(measured.lines) == H200


def test_a_length_reached_by_other_settings_alone_is_no_part_of_the_line_and_of_its_claims() -> None:
    rows = [
        _step("lightning2", 1024, 1000.0),
        _step("lightning2", 65536, 990.0),
        _step("flash2", 1024, 900.0),
        _step("flash2", 65536, 100.0),
        _step("lightning2", 262_144, 700.0, checkpointing="full"),
    ]
    measured = of_records(find("table1"), rows)
    assert len(_one(measured, "1B", "TNL-LA2", f"{H200}, checkpointing none")) == 2
    judged = deviations(find("table1"), published=[], measured=measured.lines)
    flat = [each for each in judged if each.panel == "1B" and "same speed" in each.claim]
    assert [(each.verdict, each.device) for each in flat] == [(Verdict.HOLDS, f"{H200}, checkpointing none")]
    ahead = [
        each for each in judged if each.panel == "1B" and "LLaMA with FlashAttention-2 at every" in each.claim
    ]
    assert [each.verdict for each in ahead] == [Verdict.HOLDS]


def test_several_gpus_are_named_with_the_device_and_stand_apart_from_one() -> None:
    rows = [
        _step("lightning2", 1024, 1000.0),
        _step("lightning2", 1024, 970.0, gpus=2),
        _step("lightning2", 2048, 960.0, gpus=2),
    ]
    both = of_records(find("table1"), rows)
    assert _one(both, "1B", "TNL-LA2").at(1024) == 1000.0
    assert _one(both, "1B", "TNL-LA2", f"2 x {H200}").value.tolist() == [970.0, 960.0]
    alone = of_records(find("table1"), rows[1:])
    assert devices(alone.lines) == f"2 x {H200}"


def _generation(model: str, cache: str, rate: float, **more: Any) -> Inference:
    values: dict[str, Any] = {
        "case_id": f"{model}.{cache}", "model": model, "size": "0.4B", "attention": "x", "cache": cache,
        "phase": "generate", "context": 512, "precision": "bf16", "status": "ok", "device": H200,
        "tokens_per_s": rate, "peak_bytes": 2**30,
    }  # fmt: skip
    return Inference(**{**values, **more})


def test_generations_of_different_lengths_are_lines_of_their_own() -> None:
    rows = [
        _generation("tnl", "state", 300.0, new_tokens=128), _generation("tnl", "state", 500.0, new_tokens=1024),
        _generation("llama", "kv", 100.0, new_tokens=128), _generation("llama", "kv", 100.0, new_tokens=1024),
    ]  # fmt: skip
    measured = of_records(find("tnl-fig5"), rows)
    assert _one(measured, "0.4B", "TNL", f"{H200}, 128 new tokens").at(512) == 300.0
    assert _one(measured, "0.4B", "TNL", f"{H200}, 1,024 new tokens").at(512) == 500.0
    judged = deviations(find("tnl-fig5"), published=[], measured=measured.lines)
    found = {each.device: each.here for each in judged if each.panel == "0.4B"}
    assert found == {
        f"{H200}, 128 new tokens": "3.00× (300 tokens/s and 100 tokens/s)",
        f"{H200}, 1,024 new tokens": "5.00× (500 tokens/s and 100 tokens/s)",
    }
    (table,) = measured.details
    place = table.headings.index("new tokens")
    assert [row[place] for row in table.rows] == ["128", "1,024", "128", "1,024"]


def test_inference_stands_beside_what_is_published() -> None:
    rows = [
        _generation("tnl", "state", 5000.0), _generation("llama", "kv", 1250.0),
        _generation("llama", "kv-streaming", 2000.0), _generation("tnl", "state", 1.0, phase="prefill"),
    ]  # fmt: skip
    figure = find("tnl-fig5")
    measured = of_records(figure, rows)
    assert {(line.panel, line.series) for line in measured.lines} == {
        ("0.4B", "TNL"), ("0.4B", "LLaMA2"), ("0.4B", "LLaMA-streaming"),
    }  # fmt: skip
    found = deviations(figure, published=published(figure), measured=measured.lines)
    assert [each.verdict for each in found] == [Verdict.FAILS, Verdict.UNMEASURED, Verdict.UNMEASURED]
    assert found[0].published is not None
    assert found[0].published.startswith("5.24×")
    assert found[0].here is not None
    assert found[0].here.startswith("4.00×")


def _losses(attention: str, values: Sequence[float], seed: int = 0) -> list[Loss]:
    one = Loss(
        case_id=f"{attention}.{seed}", model="tnl", size="tiny", attention=attention, task="text", seed=seed,
        step=0, tokens=0, loss=0.0, seq_len=64, batch=2, learning_rate=1e-3, precision="fp32", parameters=1000,
        device="cpu", provider="torch",
    )  # fmt: skip
    return [dataclasses.replace(one, step=step, loss=loss) for step, loss in enumerate(values)]


def test_losses_count_updates_from_one_and_seeds_are_a_median() -> None:
    rows = [
        *_losses("lightning1", (4.0, 3.0), seed=0), *_losses("lightning1", (5.0, 3.1), seed=1),
        *_losses("lightning1", (4.5, 3.2), seed=2), *_losses("lightning2", (4.5, 3.1)),
    ]  # fmt: skip
    figure = find("table2")
    measured = of_records(figure, rows)
    line = _one(measured, "text", "TNL-LA1", "cpu")
    assert (line.x.tolist(), line.value.tolist()) == ([1.0, 2.0], [4.5, 3.1])
    assert line.origin is Origin.MEASURED
    found = deviations(figure, published=published(figure), measured=measured.lines)
    verdicts = {(each.claim, each.panel): each.verdict for each in found}
    assert verdicts["Lightning-1 and Lightning-2 end at the same loss", "Small text"] is Verdict.HOLDS
    assert verdicts["Their losses stay together on the way", "A synthetic language"] is Verdict.UNMEASURED


# ---------------------------------------------------------------- deviations in words


def test_verdicts_are_counted_in_words() -> None:
    figure = find("table1")
    none = deviations(figure, published=published(figure), measured=())
    assert verdict_words(none) == "all 17 claims are not measured"
    rows = [_step("lightning2", 1024, 1000.0), _step("lightning2", 2048, 900.0), _step("flash2", 1024, 900.0)]
    some = deviations(figure, published=published(figure), measured=of_records(figure, rows).lines)
    failing = [each for each in some if each.verdict is Verdict.FAILS]
    assert [(each.panel, each.here) for each in failing] == [
        ("1B", "1.11× from 1,024 to 2,048 (900 tokens/s to 1.00 k tokens/s)")
    ]
    assert verdict_words(some).startswith("of 17 claims 1 holds here, 1 does not hold, ")
