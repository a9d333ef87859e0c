"""Crossings whose truth is known: by time, by failure, none, several, and where noise hides them."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.crossings import crossovers, lengths_text, points
from attnbench.curves import Curve, Gap
from tests.test_curves import LENGTHS, line


@given(
    crossing=st.floats(min_value=LENGTHS[0] * 1.01, max_value=LENGTHS[-1] * 0.99),
    powers=st.tuples(st.floats(min_value=0, max_value=2), st.floats(min_value=0, max_value=2)),
    ci=st.sampled_from([0.0, 1e-6]),
)
def test_power_laws_cross_where_they_do(crossing: float, powers: tuple[float, float], ci: float) -> None:
    p, q = powers
    if abs(p - q) < 1e-2 or min(abs(math.log(crossing / n)) for n in LENGTHS) < 1e-3:
        return  # not told apart next to the crossing
    a = line("a", [(n / crossing) ** p for n in LENGTHS], ci=ci)
    b = line("b", [(n / crossing) ** q for n in LENGTHS], ci=ci)
    (found,) = crossovers(a, b)
    assert found.low is not None
    assert found.estimate is not None
    assert found.low < crossing < found.high
    assert found.high == 2 * found.low
    assert found.estimate == pytest.approx(crossing, rel=1e-6)
    assert found.faster == ("a" if p < q else "b")
    assert crossovers(b, a) == (found,), "the order of the two does not matter"


@given(
    st.lists(st.floats(min_value=0.1, max_value=10), min_size=2, max_size=9),
    st.lists(st.floats(min_value=0.1, max_value=10), min_size=2, max_size=9),
    st.sampled_from([0.0, 0.02, 0.5]),
)
def test_crossings_alternate_in_order(a: list[float], b: list[float], ci: float) -> None:
    found = [each for each in crossovers(line("a", a, ci=ci), line("b", b, ci=ci)) if each.low is not None]
    for each in found:
        assert each.low is not None
        assert each.estimate is not None
        assert each.low <= each.estimate <= each.high
    for before, after in pairwise(found):
        assert before.faster == after.slower
        assert after.low is not None
        assert before.high <= after.low


def test_overlapping_intervals_widen_the_crossing() -> None:
    a = line("a", [1.0, 1.00, 1.0, 1.0], ci=0.05)
    b = line("b", [0.5, 0.98, 1.4, 2.0], ci=0.05)
    (found,) = crossovers(a, b)
    assert (found.low, found.high) == (256, 1024)
    assert found.estimate is not None
    assert 512 < found.estimate < 1024
    (sharp,) = crossovers(line("a", [1.0] * 4), line("b", [0.5, 0.98, 1.4, 2.0]))
    assert (sharp.low, sharp.high) == (512, 1024)


def test_ahead_from_the_start() -> None:
    (found,) = crossovers(line("a", [1.0, 1.0]), line("b", [2.0, 4.0]))
    assert (found.faster, found.low, found.high, found.estimate) == ("a", None, 256, None)
    assert found.sentence() == "a is ahead of b from 256 tokens or earlier"


def test_never_told_apart() -> None:
    assert crossovers(line("a", [1.0, 1.1], ci=0.2), line("b", [1.1, 1.0], ci=0.2)) == ()
    assert crossovers(line("a", [1.0, 2.0]), line("b", [1.0, 2.0])) == ()
    assert crossovers(line("a", []), line("b", [1.0])) == ()


def test_only_common_lengths_count() -> None:
    a = line("a", [1.0, 1.0, 1.0], lengths=(256, 512, 2048))
    b = line("b", [0.5, 0.7, 4.0], lengths=(256, 1024, 2048))
    (found,) = crossovers(a, b)
    assert (found.low, found.high) == (256, 2048)


def test_sentence_of_a_crossing() -> None:
    a = line("lightning2", [1.0, 1.0], lengths=(512, 1024))
    b = line("flash2", [0.73, 1.46], lengths=(512, 1024))
    (found,) = crossovers(a, b)
    assert found.sentence() == "lightning2 overtakes flash2 between 512 and 1,024 tokens (about 700)"


# ---------------------------------------------------------------- by failure


def with_gaps(c: Curve, **statuses: str) -> Curve:
    """A curve that has no value at further lengths: `n1024="oom"`."""
    gaps = tuple(
        Gap(seq_len=int(name[1:]), status=status, reason=f"{status} there")
        for name, status in statuses.items()
    )
    return dataclasses.replace(c, gaps=gaps)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("oom", "out of memory"),
        ("timeout", "timed out: timeout there"),
        ("incorrect", "wrong output: incorrect there"),
        ("unsupported", "unsupported: unsupported there"),
    ],
)
def test_who_is_overtaken_by_failing(status: str, words: str) -> None:
    """b leads at 256 and 512 and has no time at 1,024: a is ahead there, and not by speed."""
    a = line("a", [2.0, 3.0, 4.0], lengths=(256, 512, 1024))
    b = with_gaps(line("b", [1.0, 2.0], lengths=(256, 512)), n1024=status)
    (found,) = crossovers(a, b)
    assert (found.faster, found.low, found.high, found.estimate) == ("a", 512, 1024, None)
    assert found.sentence() == f"a overtakes b by failure between 512 and 1,024 tokens (b at 1,024: {words})"
    assert crossovers(b, a) == (found,)


def test_a_crossing_by_time_is_none_by_failure() -> None:
    """a is faster before b fails: the failure adds nothing."""
    a = line("a", [2.0, 3.0, 4.0], lengths=(256, 512, 1024))
    b = with_gaps(line("b", [1.0, 6.0], lengths=(256, 512)), n1024="oom")
    (found,) = crossovers(a, b)
    assert (found.low, found.high, found.failure) == (256, 512, None)


def test_one_that_fails_at_short_lengths() -> None:
    a = line("a", [1.0, 2.0], lengths=(256, 512))
    b = with_gaps(line("b", [1.0], lengths=(512,)), n256="unsupported")
    (found,) = crossovers(a, b)
    assert found.failure is not None
    assert (found.faster, found.low, found.high, found.failure.seq_len) == ("b", 256, 512, 256)


def test_where_both_fail_nobody_is_ahead() -> None:
    a = with_gaps(line("a", [1.0], lengths=(256,)), n512="oom", n1024="oom")
    b = with_gaps(line("b", [2.0], lengths=(256,)), n512="oom")
    assert [(point.seq_len, point.ahead) for point in points(a, b)] == [(256, 1), (512, 0)]
    (found,) = crossovers(a, b)
    assert (found.faster, found.low) == ("a", None)


def test_one_that_never_had_a_time_is_overtaken_by_nobody() -> None:
    assert crossovers(line("a", [1.0, 1.0]), with_gaps(line("b", []), n256="oom", n512="oom")) == ()


# ---------------------------------------------------------------- points


@given(
    st.floats(min_value=0.1, max_value=10),
    st.floats(min_value=0.1, max_value=10),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_the_interval_of_the_ratio_contains_it(a: float, b: float, ci: float) -> None:
    """And tells who is ahead exactly where the intervals of the medians leave a space."""
    (point,) = points(line("a", [a], ci=ci), line("b", [b], ci=ci))
    assert point.ratio is not None
    assert point.low is not None
    assert point.high is not None
    assert point.low <= point.ratio <= point.high
    assert point.ratio == pytest.approx(b / a)
    if not math.isclose(a * (1 + ci), b * (1 - ci)) and not math.isclose(b * (1 + ci), a * (1 - ci)):
        assert (point.ahead == 1) == (a * (1 + ci) < b * (1 - ci))
        assert (point.ahead == -1) == (b * (1 + ci) < a * (1 - ci))


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([512], "at 512 tokens"),
        ([512, 2048], "at 512 and 2,048 tokens"),
        ([1, 2, 3, 4, 5], "at 5 lengths from 1 to 5 tokens"),
    ],
)
def test_lengths_in_words(lengths: list[int], said: str) -> None:
    assert lengths_text(lengths) == said
