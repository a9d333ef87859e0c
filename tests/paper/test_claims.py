"""Claims on lines of known truth: what holds, what does not, and what cannot be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.paper.claims import Boundary, Crossover, Ends, Equal, Flat, Floor, Growth, Leads, Ratio
from attnbench.paper.lines import Line, Origin, Point, line

LENGTHS = tuple(2**n for n in range(10, 18))
ALL: Mapping[str, Any] = {"text": "a claim", "source": "a table", "panels": ("p",)}


def _line(series: str, values: Mapping[int, float | None]) -> Line:
    points = [Point(x=x, value=value, status="ok" if value else "oom") for x, value in values.items()]
    return line(points, origin=Origin.MEASURED, edition="a device", panel="p", series=series)


def _power(series: str, factor: float, order: float) -> Line:
    return _line(series, {n: factor * n**order for n in LENGTHS})


def _lines(*lines: Line) -> dict[str, Line]:
    return {each.series: each for each in lines}


@given(order=st.floats(0, 3), factor=st.floats(1e-6, 1e6))
def test_growth_finds_the_power(order: float, factor: float) -> None:
    claim = Growth(check="growth", series="a", order=1, within=0.1, start=1024, **ALL)
    judged = claim.judge(_lines(_power("a", factor, order)), quantity="time")
    assert judged.value == pytest.approx(order, abs=1e-6)
    if abs(abs(order - 1) - 0.1) > 1e-6:
        assert judged.holds is (abs(order - 1) <= 0.1)


def test_growth_looks_from_its_start_only() -> None:
    short = {n: 1.0 if n < 8192 else n / 8192 for n in LENGTHS}  # launches, then work
    claim = Growth(check="growth", series="a", order=1, within=0.01, start=8192, **ALL)
    assert claim.judge(_lines(_line("a", short)), quantity="time").holds
    alone = Growth(check="growth", series="a", order=1, within=0.01, start=131072, **ALL)
    assert alone.judge(_lines(_line("a", short)), quantity="time").holds is None


@given(values=st.lists(st.floats(0.1, 1e3), min_size=2, max_size=8), within=st.floats(1, 3))
def test_flat_is_largest_over_smallest(values: list[float], within: float) -> None:
    claim = Flat(check="flat", series="a", within=within, **ALL)
    judged = claim.judge(_lines(_line("a", dict(zip(LENGTHS, values, strict=False)))), quantity="rate")
    assert judged.holds is (max(values) / min(values) <= within)


@pytest.mark.parametrize(
    ("reach", "holds"), [(None, False), (0.005, False), (0.04, None)], ids=["unknown", "narrow", "wide"]
)
def test_what_is_not_flat_by_chance_cannot_be_told(reach: float | None, holds: bool | None) -> None:
    def point(x: int, value: float) -> Point:
        low, high = (None, None) if reach is None else (value * (1 - reach), value * (1 + reach))
        return Point(x=x, value=value, low=low, high=high)

    made = line(
        [point(1024, 100.0), point(2048, 107.0)],
        origin=Origin.MEASURED,
        edition="a device",
        panel="p",
        series="a",
    )
    judged = Flat(check="flat", series="a", within=1.05, **ALL).judge(_lines(made), quantity="rate")
    assert judged.holds is holds


@pytest.mark.parametrize(("quantity", "ratio"), [("rate", 0.25), ("time", 4.0), ("memory", 4.0)], ids=str)
def test_a_ratio_says_how_many_times_as_good(quantity: str, ratio: float) -> None:
    lines = _lines(_line("a", {1024: 10.0}), _line("b", {1024: 40.0}))
    claim = Ratio(check="ratio", series="a", than="b", at=1024, published=4.0, **ALL)
    judged = claim.judge(lines, quantity=quantity)
    assert judged.value == ratio
    assert judged.holds is (ratio >= 3.6)


def test_a_ratio_at_a_length_that_is_missing_says_the_nearest() -> None:
    lines = _lines(_line("a", {1024: 10.0, 2048: None}), _line("b", {1024: 40.0, 2048: 80.0}))
    claim = Ratio(check="ratio", series="a", than="b", at=2048, published=4.0, **ALL)
    judged = claim.judge(lines, quantity="time")
    assert judged.holds is None
    assert judged.said == "a has no value at 2,048; at 1,024 it is 4.00×"


@pytest.mark.parametrize(
    ("before", "quantity", "holds"),
    [(8192, "time", True), (2048, "time", False), (8192, "rate", False)],
    ids=["in-time", "too-late", "other-way-round"],
)
def test_a_crossing_is_held_to_its_length(before: int, quantity: str, holds: bool) -> None:
    linear, square = _power("linear", 1.0, 1), _power("square", 1 / 4000, 2)  # they cross at 4,000
    claim = Crossover(check="crossover", faster="linear", slower="square", before=before, **ALL)
    judged = claim.judge(_lines(linear, square), quantity=quantity)
    assert judged.holds is holds
    assert "4,000" in judged.said


def test_who_was_ahead_all_along_has_overtaken_in_time() -> None:
    claim = Crossover(check="crossover", faster="linear", slower="square", before=512, **ALL)
    judged = claim.judge(_lines(_power("linear", 1.0, 1), _power("square", 1.0, 2)), quantity="time")
    assert judged.holds
    assert "from 1,024 tokens or earlier" in judged.said


def test_who_is_told_to_be_ahead_too_late_may_have_overtaken_in_time_or_not() -> None:
    def reach(series: str, value: float) -> Line:
        points = [Point(x=x, value=value, low=value * 0.9, high=value * 1.1) for x in (1024, 16384)]
        points.append(Point(x=32768, value=100 * value, low=99 * value, high=101 * value) if value > 1
                      else Point(x=32768, value=1.0, low=0.9, high=1.1))  # fmt: skip
        return line(points, origin=Origin.MEASURED, edition="a device", panel="p", series=series)

    claim = Crossover(check="crossover", faster="linear", slower="square", before=8192, **ALL)
    judged = claim.judge(_lines(reach("linear", 1.0), reach("square", 1.01)), quantity="time")
    assert judged.holds is None
    assert judged.said.endswith("from 32,768 tokens or earlier; below it nothing tells them apart")


def test_who_is_behind_up_to_the_last_length_may_overtake_behind_it() -> None:
    claim = Crossover(check="crossover", faster="linear", slower="square", before=2**20, **ALL)
    lines = _lines(_power("linear", 1e9, 1), _power("square", 1.0, 2))
    judged = claim.judge(lines, quantity="time")
    assert judged.holds is None
    assert judged.said.endswith(f"; lengths that both have end at {max(LENGTHS):,}")
    within = claim.model_copy(update={"before": max(LENGTHS)})
    assert within.judge(lines, quantity="time").holds is False


def test_leads_names_where_it_is_behind() -> None:
    linear, square = _power("linear", 1.0, 1), _power("square", 1 / 4000, 2)
    everywhere = Leads(check="leads", series="linear", than="square", **ALL)
    judged = everywhere.judge(_lines(linear, square), quantity="time")
    assert judged.holds is False
    assert judged.said.endswith("behind at 1,024 and 2,048")
    later = Leads(check="leads", series="linear", than="square", start=4096, **ALL)
    assert later.judge(_lines(linear, square), quantity="time").holds
    nowhere = Leads(check="leads", series="linear", than="square", start=2**20, **ALL)
    assert nowhere.judge(_lines(linear, square), quantity="time").holds is None


def test_equal_looks_at_the_worst_point_or_at_the_last() -> None:
    lines = _lines(_line("a", {1: 2.0, 2: 1.0}), _line("b", {1: 1.0, 2: 1.001}))
    assert (
        Equal(check="equal", series=("a", "b"), within=1.01, **ALL).judge(lines, quantity="loss").holds
        is False
    )
    assert (
        Equal(check="equal", series=("a", "b"), within=1.01, last=True, **ALL)
        .judge(lines, quantity="loss")
        .holds
    )


@pytest.mark.parametrize(("extra", "holds"), [(0.0, True), (0.5, False)])
def test_a_floor_is_exceeded_by_workspace(extra: float, holds: bool) -> None:
    lines = _lines(_line("a", {n: 64.0 * n * (1 + extra) for n in LENGTHS}))
    claim = Floor(check="floor", series="a", per_token=64, of="q", within=1.01, **ALL)
    judged = claim.judge(lines, quantity="memory")
    assert judged.holds is holds
    assert judged.value == pytest.approx(1 + extra)


@pytest.mark.parametrize(
    ("a", "b", "holds", "said"),
    [
        (4096, 4096, True, "out of memory: all at 4,096 tokens"),
        (4096, 2048, False, "out of memory: a at 4,096 and b at 2,048"),
        (4096, None, False, "out of memory: a at 4,096 and b never"),
        (None, None, None, "none ran out of memory up to 8,192 tokens"),
    ],
    ids=["same", "other", "one-only", "none"],
)
def test_a_boundary_is_where_memory_ends(a: int | None, b: int | None, holds: bool | None, said: str) -> None:
    lines = _lines(
        *(
            _line(name, {n: None if end and n >= end else 1.0 for n in (1024, 2048, 4096, 8192)})
            for name, end in (("a", a), ("b", b))
        )
    )
    judged = Boundary(check="boundary", series=("a", "b"), **ALL).judge(lines, quantity="rate")
    assert (judged.holds, judged.said) == (holds, said)


@pytest.mark.parametrize(
    "b",
    [{1024: 1.0}, {1024: 1.0, 4096: "timeout"}, {1024: 1.0, 8192: None}],
    ids=["not asked for", "over its time", "at a later one alone"],
)
def test_a_length_without_a_measurement_is_no_evidence_of_memory(b: dict[int, Any]) -> None:
    points = [
        Point(x=x, value=value if value == 1.0 else None, status="ok" if value == 1.0 else value or "oom")
        for x, value in b.items()
    ]
    other = line(points, origin=Origin.MEASURED, edition="a device", panel="p", series="b")
    lines = _lines(_line("a", {1024: 1.0, 4096: None}), other)
    boundary = Boundary(check="boundary", series=("a", "b"), **ALL).judge(lines, quantity="rate")
    assert boundary.holds is None
    assert boundary.said.endswith("; b not measured at 4,096")
    ends = Ends(check="ends", series="a", before="b", **ALL).judge(lines, quantity="rate")
    assert (ends.holds, ends.said) == (None, "a is out of memory from 4,096 tokens, b was not measured there")


def test_ends_asks_who_goes_on() -> None:
    claim = Ends(check="ends", series="a", before="b", **ALL)
    full = _line("b", dict.fromkeys((1024, 2048), 1.0))
    assert claim.judge(_lines(_line("a", {1024: 1.0, 2048: None}), full), quantity="memory").holds
    assert claim.judge(_lines(_line("a", {1024: None, 2048: None}), full), quantity="memory").holds
    short = _line("b", {1024: 1.0, 2048: None})
    assert claim.judge(_lines(_line("a", {1024: 1.0, 2048: None}), short), quantity="memory").holds is False
    assert claim.judge(_lines(full, _line("a", {1024: 1.0})), quantity="memory").holds is None


def test_what_is_not_there_cannot_be_told() -> None:
    claim = Ratio(check="ratio", series="a", than="b", at=1024, published=4.0, **ALL)
    judged = claim.judge(_lines(_line("a", {1024: 10.0})), quantity="time")
    assert (judged.holds, judged.said) == (None, "no value of b")


def test_what_fails_at_another_shape_tells_nothing() -> None:
    points = [Point(x=x, value=float(x), low=None, high=None) for x in (1024, 16384)]
    one = line(points, origin=Origin.MEASURED, edition="a device", panel="p", series="linear")
    claim = Flat(check="flat", series="linear", within=1.1, **ALL)
    assert claim.judge({"linear": one}, quantity="memory").holds is False
    elsewhere = dataclasses.replace(one, as_assumed=False)
    judged = claim.judge({"linear": elsewhere}, quantity="memory")
    assert judged.holds is None
    assert judged.said.endswith(", but measured at another shape")
    level = dataclasses.replace(elsewhere, value=one.value * 0 + 7.0)
    assert claim.judge({"linear": level}, quantity="memory").holds is True
