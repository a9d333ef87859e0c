"""Standings over a list of shapes: shares of the bound, ratios to the fastest, and the words for them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from attnbench.errors import UserError
from attnbench.plots import plot_shapes
from attnbench.shapes import lists_shapes, shares, standings
from attnbench.summary import as_json, render, sentences, summarize_run

SHAPES = ((4, 16, 8192, 128), (1, 16, 32_768, 128), (8, 12, 4096, 96))
# Times in ms and shares of the bound at the three shapes; None: no value there.
TIMES: dict[str, list[tuple[float, float] | None]] = {
    "lightning2": [(1.0, 0.8), (2.0, 0.4), (1.0, 0.2)],
    "fla-simple-gla": [(2.0, 0.4), (8.0, 0.1), (0.5, 0.4)],
    "flash2": [None, (200.0, 0.5), None],
    "tfla": [None, None, None],
}


def row(
    mechanism: str, shape: tuple[int, int, int, int], found: tuple[float, float] | None
) -> dict[str, Any]:
    batch, heads, seq_len, dim = shape
    return {
        "case_id": f"{mechanism}-{shape}",
        "run_id": "run",
        "mechanism": mechanism,
        "provider": "torch",
        "workload": "fwd",
        "batch": batch,
        "heads": heads,
        "kv_heads": heads,
        "seq_len": seq_len,
        "head_dim": dim,
        "value_dim": dim,
        "dtype": "bf16",
        "causal": True,
        "device": "a card",
        "status": "timeout" if found is None else "ok",
        "reason": "too slow" if found is None else None,
        "median_ms": None if found is None else found[0],
        "ci_low_ms": None if found is None else found[0],
        "ci_high_ms": None if found is None else found[0],
        "peak_bytes": None,
        "energy_j": None,
        "roofline": None if found is None else found[1],
        "busy_ms": None,
        "sm_clock_mhz": None,
        "throttle": None,
    }


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        row(mechanism, shape, found)
        for mechanism, all_found in TIMES.items()
        for shape, found in zip(SHAPES, all_found, strict=True)
    ]
    made = pd.DataFrame(rows)
    made.attrs["runs"] = {"run": {"sweep": {"axes": {"shapes": [list(shape) for shape in SHAPES]}}}}
    return made


def test_shares_and_ratios(frame: pd.DataFrame) -> None:
    (found,) = standings(frame)
    assert (found.workload, found.shapes, found.reference) == ("fwd", 3, "lightning2")
    first, second, third = found.standings  # tfla has no time at all
    assert (first.mechanism, first.fastest, first.shapes) == ("lightning2", 2, 3)
    assert first.share == pytest.approx(0.4)  # the cube root of 0.8 x 0.4 x 0.2
    assert (first.worst_share, first.worst_at) == (0.2, "B8 H12 N4k D96")
    assert (first.times, first.least_times, first.most_times) == (1.0, 1.0, 1.0)
    assert (second.mechanism, second.fastest) == ("fla-simple-gla", 1)
    assert second.times == pytest.approx(4 ** (1 / 3))  # of 2, 4 and 1/2
    assert (second.least_times, second.most_times) == (0.5, 4.0)
    assert (second.worst_share, second.worst_at) == (0.1, "B1 H16 N32k D128")
    assert (third.mechanism, third.shapes) == ("flash2", 1)
    assert third.times == pytest.approx(100.0)


def test_several_runs_of_a_case_count_once(frame: pd.DataFrame) -> None:
    again = frame.assign(run_id="again", median_ms=frame["median_ms"] * 3)
    both = pd.concat([frame, again])
    (found,) = standings(both)
    assert [each.shapes for each in found.standings] == [3, 3, 1]
    (alone,) = standings(frame)
    assert [each.times for each in found.standings] == pytest.approx([each.times for each in alone.standings])


def test_shares_are_unknown_without_ceilings(frame: pd.DataFrame) -> None:
    (found,) = standings(frame.assign(roofline=None))
    assert {each.share for each in found.standings} == {None}
    assert {each.worst_at for each in found.standings} == {None}


def test_a_value_dim_of_its_own_is_named(frame: pd.DataFrame) -> None:
    (found,) = standings(frame.assign(value_dim=64, kv_heads=4))
    assert found.standings[0].worst_at == "B8 H12 KV4 N4k D96 E64"


def test_only_listed_shapes_have_standings(frame: pd.DataFrame) -> None:
    assert lists_shapes(frame)
    assert len(summarize_run(frame).standings) == 1
    elsewhere: tuple[dict[str, Any], ...] = (
        {"run": {"sweep": {"axes": {"seq_len": [1024]}}}},
        {"run": {}},
        {},
    )
    for runs in elsewhere:
        frame.attrs["runs"] = runs
        assert not lists_shapes(frame)
        assert summarize_run(frame).standings == ()


def test_the_summary_says_it(frame: pd.DataFrame) -> None:
    summary = summarize_run(frame)
    words = (
        "lightning2 is fastest at 2 of 3 shapes; it reaches 40% of its bound (geometric mean), 20% at worst "
        "(B8 H12 N4k D96)."
    )
    assert f"Forward: {words}" in sentences(summary)
    assert as_json(summary)["standings"][0]["standings"][1]["mechanism"] == "fla-simple-gla"
    text = io.StringIO()
    render(summary, Console(file=text, width=120))
    printed = text.getvalue()
    assert "Forward, 3 shapes" in printed
    assert "1.59× (0.50× to 4.00×)" in printed
    assert words in printed
    assert "tfla (fwd): timed out at every length (3 cases): too slow" in printed
    assert "max / min" not in printed  # single points are not flat


def test_shares_by_shape_in_the_order_of_measurement(frame: pd.DataFrame) -> None:
    (found,) = shares(frame)
    assert list(found.known) == ["B4 H16 N8k D128", "B1 H16 N32k D128", "B8 H12 N4k D96"]
    assert found.known["B1 H16 N32k D128"] == {"lightning2": 0.4, "fla-simple-gla": 0.1, "flash2": 0.5}


def test_what_differs_between_shapes_of_one_name_is_told(frame: pd.DataFrame) -> None:
    both = pd.concat([frame, frame.assign(dtype="fp16")])
    (found,) = shares(both)
    assert len(found.known) == 6
    assert "B8 H12 N4k D96 bf16" in found.known
    assert "B8 H12 N4k D96 fp16" in found.known


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_figure_is_the_same_every_time(kind: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    (first,) = plot_shapes(frame, tmp_path / "1", formats=(kind,))
    (second,) = plot_shapes(frame, tmp_path / "2", formats=(kind,))
    assert first.name == f"share.fwd.{kind}"
    assert first.read_bytes() == second.read_bytes()
    (other,) = plot_shapes(frame.assign(roofline=frame["roofline"] / 2), tmp_path / "3", formats=(kind,))
    assert first.read_bytes() != other.read_bytes()
    if kind == "svg":
        device = str(frame["device"].iloc[0])
        assert f"measured on {device}: between" in " ".join(re.findall("<!-- (.*?) -->", first.read_text()))


def test_a_share_beyond_the_bound_stays_on_the_page(frame: pd.DataFrame, tmp_path: Path) -> None:
    beyond = frame.assign(roofline=frame["roofline"] * 3)
    (path,) = plot_shapes(beyond, tmp_path, formats=("svg",))
    assert path.stat().st_size > 0


def test_without_shares_there_is_no_figure(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case has a share of its bound"):
        plot_shapes(frame.assign(roofline=None), tmp_path)
    with pytest.raises(UserError, match="figure format"):
        plot_shapes(frame, tmp_path, formats=("gif",))
