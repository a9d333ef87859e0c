"""Curves from frames: groups, merging, flatness, and crossings whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.case import Case
from attnbench.curves import Curve, Group, curve, curves, flatness, groups, length_label, slope
from attnbench.store import COLUMNS, SCHEMA

LENGTHS = tuple(2**k for k in range(8, 17))
GROUP = Group(
    heads=16, kv_heads=16, head_dim=128, value_dim=128, dtype="bf16", causal=True, device="GPU", batch=1
)


def row(mechanism: str = "a", seq_len: int = 1024, ms: float | None = 1.0, **given: Any) -> dict[str, Any]:
    """A row with every column of the schema; the interval is the median +-1 %."""
    axes = {"batch": 1, "heads": 16, "head_dim": 128, "dtype": "bf16", "workload": "fwd"}
    axes |= {name: given.pop(name) for name in tuple(given) if name in axes}
    case = Case(mechanism=mechanism, seq_len=seq_len, **axes)  # type: ignore[arg-type]
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= case.as_dict() | {"workload": str(case.workload), "case_id": case.case_id}
    values |= {"run_id": "run-1", "device": "GPU", "status": "ok" if ms is not None else "oom"}
    if ms is not None:
        rate = case.tokens / (ms * 1e-3)
        values |= {"median_ms": ms, "ci_low_ms": ms * 0.99, "ci_high_ms": ms * 1.01, "tokens_per_s": rate}
    else:
        values["reason"] = "out of memory"
    return values | given


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """A frame as `load_results` makes one."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    result: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    result.attrs = {"runs": {}}
    return result


def line(name: str, ms: list[float], *, lengths: tuple[int, ...] = LENGTHS, ci: float = 0.0) -> Curve:
    n, times = np.array(lengths[: len(ms)], dtype=np.int64), np.array(ms)
    unknown = np.full(len(ms), math.nan)
    return Curve(
        mechanism=name,
        workload="fwd",
        group=GROUP,
        seq_len=n,
        median_ms=times,
        ci_low_ms=times * (1 - ci) if ci else unknown,
        ci_high_ms=times * (1 + ci) if ci else unknown,
        tokens_per_s=n / times * 1e3,
        peak_bytes=unknown,
        energy_j=unknown,
    )


def test_sorted_and_only_ok_values() -> None:
    (only,) = curves(frame(row(seq_len=4096, ms=4.0), row(seq_len=1024), row(seq_len=2048, ms=None)))
    assert only.seq_len.tolist() == [1024, 4096]
    assert only.median_ms.tolist() == [1.0, 4.0]
    assert only.tokens_per_s.tolist() == [1024e3, 1024e3]
    assert [(gap.seq_len, gap.status, gap.reason) for gap in only.gaps] == [(2048, "oom", "out of memory")]
    assert np.isnan(only.peak_bytes).all()


def test_batch_is_part_of_the_group() -> None:
    found = curves(frame(*(row(batch=b, seq_len=n) for b in (1, 4) for n in (256, 512))))
    assert [(c.group.batch, c.group.tokens, len(c)) for c in found] == [(1, None, 2), (4, None, 2)]


def test_constant_tokens() -> None:
    (only,) = curves(frame(*(row(batch=1024 // n, seq_len=n) for n in (256, 512, 1024))))
    assert (only.group.batch, only.group.tokens, len(only)) == (None, 1024, 3)
    assert "1k tokens a call" in only.group.label()


def test_tokens_that_a_whole_batch_misses_by_two_percent_are_constant() -> None:
    """512, 170 and 128 tokens in batches of 8, 24 and 32: 4,096, 4,080 and 4,096 a call; 3 of 1,300 would be 3,900."""
    near = [row(batch=b, seq_len=n) for b, n in ((8, 512), (24, 170), (32, 128))]
    (only,) = curves(frame(*near))
    assert (only.group.tokens, only.seq_len.tolist()) == (4096, [128, 170, 512])
    assert only.tokens_per_s.tolist() == pytest.approx([4096e3, 4080e3, 4096e3]), (
        "the true count, not the nominal"
    )
    assert len(curves(frame(*near, row(batch=3, seq_len=1300)))) == 4


def test_one_batch_of_one_length_is_no_constant_token_sweep() -> None:
    (only,) = curves(frame(row(seq_len=1024)))
    assert (only.group.batch, only.group.tokens) == (1, None)


def test_a_decode_puts_out_one_token_of_each_sequence() -> None:
    (only,) = curves(frame(*(row(batch=4, seq_len=n, ms=0.01, workload="decode") for n in (256, 1024))))
    assert (only.group.batch, only.group.tokens, only.group.context) == (4, None, None)
    assert only.tokens_per_s.tolist() == pytest.approx([400e3, 400e3])


def test_constant_tokens_of_a_decode_are_its_context() -> None:
    rows = [row(batch=1024 // n, seq_len=n, ms=0.01, workload="decode") for n in (256, 512, 1024)]
    (only,) = curves(frame(*rows))
    assert (only.group.batch, only.group.tokens, only.group.context) == (None, None, 1024)
    assert only.tokens_per_s.tolist() == pytest.approx([400e3, 200e3, 100e3])
    assert "1k tokens of context a call" in only.group.label()


def test_each_run_keeps_its_mode() -> None:
    constant = [row(batch=1024 // n, seq_len=n, run_id="constant") for n in (256, 512, 1024)]
    grid = [row(batch=2, seq_len=n, run_id="grid") for n in (256, 512, 1024)]
    found = groups(curves(frame(*constant, *grid)))
    assert {(group.batch, group.tokens) for group in found} == {(None, 1024), (2, None)}


@pytest.mark.parametrize(
    "changed",
    [
        {"heads": 8},
        {"head_dim": 64},
        {"dtype": "fp16"},
        {"causal": False},
        {"device": "other"},
        {"kv_heads": 4},
        {"workload": "bwd"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_separates_curves(changed: dict[str, Any]) -> None:
    assert len(curves(frame(row(), row(**changed)))) == 2


def test_runs_are_merged_by_the_median_of_their_medians() -> None:
    rows = [row(ms=ms, run_id=f"run-{ms}") for ms in (1.0, 9.0, 2.0)]
    (only,) = curves(frame(*rows))
    assert only.median_ms.tolist() == [2.0]
    assert only.ci_low_ms[0] == pytest.approx(0.99)
    assert only.ci_high_ms[0] == pytest.approx(9.09)


def test_a_value_outranks_a_failure_and_incorrect_outranks_both() -> None:
    ok, oom = row(), row(ms=None, run_id="run-2")
    wrong = row(run_id="run-3", status="incorrect", reason="off by one")
    (merged,) = curves(frame(ok, oom))
    assert (len(merged), merged.gaps) == (1, ())
    (merged,) = curves(frame(ok, oom, wrong))
    assert len(merged) == 0
    assert [gap.status for gap in merged.gaps] == ["incorrect"]


def test_nothing_known() -> None:
    empty = dict.fromkeys(COLUMNS) | {
        "case_id": "x",
        "run_id": "r",
        "mechanism": "m",
        "workload": "fwd",
        "status": "ok",
    }
    assert curves(frame(empty)) == ()
    assert curves(frame()) == ()
    (only,) = curves(frame(row() | {"median_ms": None, "device": None}))
    assert len(only) == 0
    assert only.group.device == ""


def test_curve_by_name() -> None:
    results = frame(row(), row("b"))
    group = curves(results)[0].group
    assert curve(results, mechanism="b", workload="fwd", group=group).mechanism == "b"
    with pytest.raises(KeyError, match="no row of c, fwd"):
        curve(results, mechanism="c", workload="fwd", group=group)


@given(
    st.lists(st.floats(min_value=1, max_value=1e9), min_size=1, max_size=20),
    st.floats(min_value=0.01, max_value=100),
)
def test_flatness_has_no_unit(rates: list[float], unit: float) -> None:
    score = flatness(rates)
    assert score >= 1
    assert flatness([rate * unit for rate in rates]) == pytest.approx(score)


@pytest.mark.parametrize("rates", [[], [1.0, 0.0], [1.0, math.nan]])
def test_flatness_refuses(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        flatness(rates)


@given(st.floats(min_value=-3, max_value=3), st.integers(min_value=2, max_value=len(LENGTHS)))
def test_slope_of_a_power_law(power: float, count: int) -> None:
    lengths = list(LENGTHS[:count])
    assert slope(lengths, [5e6 * n**power for n in lengths]) == pytest.approx(power, abs=1e-9)


def test_slope_needs_two_lengths() -> None:
    assert slope([1024], [1.0]) is None
    assert slope([1024, 1024], [1.0, 2.0]) is None


@given(st.integers(min_value=1, max_value=2**24))
def test_length_label_is_exact(tokens: int) -> None:
    label = length_label(tokens)
    unit = {"k": 1 << 10, "M": 1 << 20}.get(label[-1])
    value = float(label[:-1]) * unit if unit else int(label.replace(",", ""))
    assert value == tokens


@pytest.mark.parametrize(
    ("tokens", "label"),
    [(512, "512"), (1000, "1,000"), (1024, "1k"), (1536, "1.5k"), (3000, "3,000"), (1 << 20, "1M")],
)
def test_length_label(tokens: int, label: str) -> None:
    assert length_label(tokens) == label


# ---------------------------------------------------------------- windows


def test_each_window_is_a_line_in_the_panel_of_the_others() -> None:
    rows = [
        row(name, n, 1.0, window=window)
        for name, window in (("streaming-llm", 1024), ("streaming-llm", 300), ("flash2", None))
        for n in LENGTHS
    ]
    found = curves(frame(*rows))
    assert [c.mechanism for c in found] == ["flash2", "streaming-llm W1k", "streaming-llm W300"]
    assert len(groups(found)) == 1
    assert all(len(c) == len(LENGTHS) for c in found)
