"""Verdicts on data whose truth is known: chance is not called a change, and a change is found."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnbench import store
from attnbench.case import Case, Status, Workload
from attnbench.comparison import picks, ratios, verdicts
from attnbench.comparison.comparing import compare
from attnbench.comparison.found import Comparison
from attnbench.comparison.verdicts import Verdict, judge_errors, judge_memory, judge_status, judge_time
from attnbench.errors import UserError

FAST = 250  # resamples: enough for a rate over thousands of cases
Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]  # relative times of `count` samples of one process
ALARMS = (Verdict.SLOWER, Verdict.FASTER)


def _case(number: int) -> Case:
    return Case(
        mechanism=("lightning2", "sdpa")[number % 2],
        workload=Workload.FWD,
        batch=1,
        heads=2,
        seq_len=64 * (number + 1),
        head_dim=64,
        dtype="bf16",
    )


def _noisy(random: np.random.Generator, count: int) -> Floats:
    """A process that differs from others by 0.5 %, whose samples drift by 1 % and scatter by 2 %."""
    drift = np.linspace(0, random.normal(0, 0.01), count)
    return np.exp(random.normal(0, 0.005) + drift + random.normal(0, 0.02, count))


def _frame(
    *,
    side: str,
    seed: int,
    cases: int = 1,
    processes: int = 5,
    samples: int = 40,
    draw: Draw = _noisy,
    factor: float | Mapping[int, float] = 1.0,
) -> pd.DataFrame:
    """A results frame of `processes` runs; `factor` multiplies all times, or those of single cases."""
    rows = []
    for process in range(processes):
        random = np.random.default_rng([seed, sum(side.encode()), process])
        for number in range(cases):
            times = 2.0 * draw(random, samples)
            times *= factor if isinstance(factor, float) else factor.get(number, 1.0)
            each = _case(number)
            fields = {name: getattr(each, name) for name in store.GROUPS["identity"] if hasattr(each, name)}
            rows.append(
                {
                    **dict.fromkeys(store.COLUMNS),
                    **fields,
                    "case_id": each.case_id,
                    "workload": str(each.workload),
                    "run_id": f"{side}-{seed}-{process}",
                    "status": "ok",
                    "samples_ms": times,
                    "median_ms": float(np.median(times)),
                }
            )
    found = pd.DataFrame(rows)
    found.attrs = {"runs": {str(run): {} for run in found["run_id"].unique()}}
    return found


def _compare(seed: int, *, factor: Any = 1.0, noise: float | None = None, **shape: Any) -> Comparison:
    base = _frame(side="base", seed=seed, **shape)
    new = _frame(side="new", seed=seed, factor=factor, **shape)
    return compare(base, new, resamples=FAST, noise=noise)


def _counts(seeds: range, **given: Any) -> Counter[Verdict]:
    return Counter(each.verdict for seed in seeds for each in _compare(seed, **given).cases)


# ---------------------------------------------------------------- chance


def test_chance_is_no_change() -> None:
    """A/A: 60 comparisons of 20 cases, 5 processes a side that differ by 0.5 % and drift."""
    counts = _counts(range(60), cases=20, samples=20)
    assert counts.total() == 1200
    assert sum(counts[verdict] for verdict in ALARMS) < 0.01 * 1200
    assert counts[Verdict.SAME] > 0.9 * 1200


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_interval_covers_and_the_p_value_is_not_too_small(processes: int) -> None:
    """Of 400 A/A pairs the 95 % interval misses 1 in about 20, whatever the number of processes.

    Samples scatter little, as their scatter enters twice (in the medians, and drawn anew) and hides what lacks.
    """
    missed = small = 0
    for seed in range(400):
        random = np.random.default_rng([seed, processes])
        scatter = np.exp(
            random.normal(0, 0.0002, (2, processes, 9)) + random.normal(0, 0.005, (2, processes, 1))
        )
        draw = [
            {f"{name}{i}": side[i] for i in range(processes)}
            for name, side in zip("ab", scatter, strict=True)
        ]
        effect = ratios.effect(*draw, name=str(seed), resamples=FAST)
        low, high = ratios.interval(effect) or (math.nan, math.nan)
        missed += not low <= 1 <= high
        p = ratios.p_value(effect)
        assert p is not None
        small += p < 0.05
    assert missed <= 33  # 20 expected, and 3 standard deviations more
    assert small <= 33


@pytest.mark.parametrize(
    ("processes", "noise"),
    [((2, 2), None), ((5, 4), None), ((1, 1), 0.01), ((1, 3), 0.01), ((1, 1), 0.0), ((1, 3), 0.0)],
)
def test_the_p_value_is_where_the_interval_ends(processes: tuple[int, int], noise: float | None) -> None:
    """A ratio whose interval just reaches 1 has p = 0.05."""
    random = np.random.default_rng(5)
    draw = [
        {f"{n}{i}": _noisy(random, 30) for i in range(count)}
        for n, count in zip("ab", processes, strict=True)
    ]
    effect = ratios.effect(*draw, name="case", noise=noise, resamples=20_000)
    low, high = ratios.interval(effect) or (math.nan, math.nan)
    edge = dataclasses.replace(effect, log_ratio=math.log(high / low) / 2)
    assert ratios.p_value(edge) == pytest.approx(0.05, abs=0.004)


def _read_as(few: float, most: float) -> Draw:
    """A process whose samples are `most` steps of the timer, but for one."""
    return lambda random, count: np.array([few] + [most] * (count - 1))


def test_one_step_of_the_timer_is_no_change() -> None:
    """Most samples are 25 steps on one side and 26 on the other: 4 % that may be anything from 0 to 8 %."""
    base = _frame(side="base", seed=0, draw=_read_as(26, 25))
    (found,) = compare(base, _frame(side="new", seed=0, draw=_read_as(25, 26))).cases
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(26 / 25)
    assert found.verdict is Verdict.UNCLEAR
    six_steps = _frame(side="new", seed=0, draw=_read_as(30, 31))
    assert compare(base, six_steps).cases[0].verdict is Verdict.SLOWER


def _always(steps: int) -> Draw:
    """A process whose samples are all as many steps of the timer."""
    return lambda random, count: np.full(count, float(steps))


@pytest.mark.parametrize(
    ("processes", "noise"), [(1, 0.0), (1, 0.001), (2, None), (5, None), (20, None)], ids=str
)
def test_one_step_is_no_change_where_each_side_reads_one_value(processes: int, noise: float | None) -> None:
    """16 steps always and 17 always: 6 %, of which nobody knows whether it is anything."""
    sides = [
        _frame(side=side, seed=0, draw=_always(steps), processes=processes)
        for side, steps in (("base", 16), ("new", 17))
    ]
    for base, new in (sides, sides[::-1]):
        (found,) = compare(base, new, noise=noise).cases
        assert found.ratio is not None
        assert found.ratio.low is not None
        assert found.ratio.high is not None
        assert found.ratio.low < 1 < found.ratio.high
        assert found.p is not None
        assert found.p > 0.05
        assert found.verdict is Verdict.UNCLEAR


def test_a_finer_timer_on_the_other_side_makes_no_step_finer() -> None:
    """10 steps or 11 on one side; the other, of another device, tells a thousandth of such a step apart."""

    def fine(random: np.random.Generator, count: int) -> Floats:
        found: Floats = np.round(random.normal(10.5, 0.002, count), 3)
        return found

    base, new = _frame(side="base", seed=0, draw=_read_as(11, 10)), _frame(side="new", seed=0, draw=fine)
    for one, other in ((base, new), (new, base)):
        assert compare(one, other).cases[0].verdict is Verdict.UNCLEAR


def _bimodal(random: np.random.Generator, count: int) -> Floats:
    """Two speeds 10 % apart, equally often: the median of a process is either."""
    speeds: Floats = random.choice([1, 1.1], count)
    return np.exp(random.normal(0, 0.005) + random.normal(0, 0.003, count)) * speeds


def _heavy_tails(random: np.random.Generator, count: int) -> Floats:
    return float(np.exp(random.normal(0, 0.005))) * (1 + 0.02 * np.abs(random.standard_cauchy(count)))


def _quantised(random: np.random.Generator, count: int) -> Floats:
    """A timer whose step is 4 % of the time: most samples are equal, and the rest is one step away."""
    return np.round(np.exp(random.normal(0, 0.005) + random.normal(0, 0.02, count)) / 0.04) * 0.04


def _constant(random: np.random.Generator, count: int) -> Floats:
    return np.ones(count)


@pytest.mark.parametrize("processes", [2, 5])
@pytest.mark.parametrize(
    "draw", [_bimodal, _heavy_tails, _quantised, _constant], ids=lambda draw: draw.__name__.strip("_")
)
def test_odd_distributions_do_not_alarm(draw: Draw, processes: int) -> None:
    counts = _counts(range(10), cases=20, draw=draw, processes=processes)
    assert sum(counts[verdict] for verdict in ALARMS) <= 1  # of 200


def test_one_sample_of_each_process_does_not_alarm() -> None:
    counts = _counts(range(20), cases=20, samples=1)
    assert sum(counts[verdict] for verdict in ALARMS) <= 2  # of 400


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_one_process_a_side_is_never_judged_by_its_samples(factor: float) -> None:
    for cases in (_compare(seed, cases=5, processes=1, factor=factor).cases for seed in range(10)):
        assert {each.verdict for each in cases} == {Verdict.UNCLEAR}
        assert all(each.ratio and each.ratio.low is None and each.p is None for each in cases)
        assert all(each.reason.startswith("one process a side: ") for each in cases)


def test_one_process_on_one_side_is_not_judged_either() -> None:
    base = _frame(side="base", seed=0)
    new = _frame(side="new", seed=0, processes=1, factor=1.5)
    (found,) = compare(base, new).cases
    assert (found.verdict, found.processes) == (Verdict.UNCLEAR, (5, 1))
    assert found.reason.startswith("one process on the new side: ")


# ---------------------------------------------------------------- changes


def test_a_true_slow_down_is_found() -> None:
    """5 %, in a quarter of the cases, with 5 processes a side."""
    slow = dict.fromkeys(range(5), 1.05)
    found = [each for seed in range(20) for each in _compare(seed, cases=20, factor=slow).cases]
    truly = [each for each in found if each.case.seq_len <= 5 * 64]
    assert len(truly) == 100
    assert sum(each.verdict is Verdict.SLOWER for each in truly) >= 0.95 * 100
    others = [each for each in found if each.case.seq_len > 5 * 64]
    assert sum(each.verdict in ALARMS for each in others) <= 0.01 * len(others)


def test_a_change_below_the_threshold_is_no_alarm_however_certain() -> None:
    (found,) = _compare(0, factor=1.02, samples=200, processes=20).cases
    assert found.q is not None
    assert found.q < 0.05
    assert found.verdict is Verdict.SAME


def test_a_stated_noise_stands_for_processes_that_are_not_there() -> None:
    (slower,) = _compare(0, processes=1, noise=0.005, factor=1.1).cases
    assert slower.verdict is Verdict.SLOWER
    (same,) = _compare(1, processes=1, noise=0.005).cases
    assert same.verdict is Verdict.SAME
    found = _compare(0, processes=1, noise=0.05, factor=1.1)
    assert found.threshold == 0.1  # twice the noise
    assert found.cases[0].verdict is Verdict.UNCLEAR


def test_a_noise_of_nothing_leaves_the_samples_to_judge() -> None:
    """Stated as 0, processes do not differ: the p-value is a number, and the share of the bootstrap's deviations."""
    found = _compare(0, processes=1, noise=0.0, cases=6, factor={0: 1.2}).cases
    assert all(each.p is not None and each.q is not None and 0 <= each.p <= each.q <= 1 for each in found)
    assert [each.verdict for each in found] == [Verdict.SLOWER, *[Verdict.SAME] * 5]
    random = np.random.default_rng(2)
    base, new = ({name: np.exp(random.normal(0, 0.02, 30))} for name in "ab")
    effect = ratios.effect(base, new, name="case", noise=0.0)
    half = dataclasses.replace(effect, log_ratio=float(np.median(np.abs(effect.deviations))))
    assert ratios.p_value(half) == pytest.approx(0.5, abs=0.001)
    beyond = dataclasses.replace(effect, log_ratio=2 * float(np.abs(effect.deviations).max()))
    assert ratios.p_value(beyond) == 0


def test_with_a_true_noise_single_processes_do_not_alarm() -> None:
    counts = _counts(range(25), cases=20, processes=1, noise=0.015)
    assert sum(counts[verdict] for verdict in ALARMS) <= 1  # of 500


def test_the_mean_over_cases_does_not_forget_that_processes_are_few() -> None:
    """6 cases of the same 3 processes, each as slow in all its cases: the mean is no surer than one case."""

    def shared(random: np.random.Generator, count: int) -> Floats:
        # The same for all cases of a process: from a generator that its first number seeds anew.
        own = np.random.default_rng(random.bit_generator.seed_seq.entropy)  # type: ignore[attr-defined]
        return float(np.exp(own.normal(0, 0.02))) * np.exp(random.normal(0, 0.001, count))

    missed = 0
    for seed in range(40):
        found = _compare(seed, cases=6, processes=3, samples=10, draw=shared)
        (mean, _) = found.means
        assert mean.ratio.low is not None
        assert mean.ratio.high is not None
        missed += not mean.ratio.low <= 1 <= mean.ratio.high
    assert missed <= 6  # 2 expected


# ---------------------------------------------------------------- properties

times = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=12)
side_of = st.lists(times, min_size=1, max_size=4)


def _effect(base: list[list[float]], new: list[list[float]], scale: float = 1.0) -> ratios.Effect:
    named = [
        {f"{name}{i}": scale * np.array(samples) for i, samples in enumerate(side)}
        for name, side in (("base", base), ("new", new))
    ]
    return ratios.effect(named[0], named[1], name="case", noise=0.01, resamples=200)


def _reversed(base: list[list[float]], new: list[list[float]]) -> ratios.Effect:
    named = [
        {f"{name}{i}": np.array(samples) for i, samples in enumerate(side)}
        for name, side in (("base", base), ("new", new))
    ]
    return ratios.effect(named[1], named[0], name="case", noise=0.01, resamples=200)


def _verdict(effect: ratios.Effect) -> Verdict:
    return judge_time(
        log_ratio=effect.log_ratio,
        interval=ratios.interval(effect),
        q=ratios.p_value(effect),
        cases=1,
        processes=(2, 2),
        threshold=0.03,
    ).verdict


@settings(max_examples=60, deadline=None)
@given(side_of, side_of)
def test_exchanging_the_sides_inverts_the_ratio_and_the_verdict(
    base: list[list[float]], new: list[list[float]]
) -> None:
    there, back = _effect(base, new), _reversed(base, new)
    assert back.log_ratio == pytest.approx(-there.log_ratio, abs=1e-12)
    low, high = ratios.interval(there) or (1, 1)
    assert ratios.interval(back) == pytest.approx((1 / high, 1 / low))
    assert ratios.p_value(back) == pytest.approx(ratios.p_value(there))
    inverse = {Verdict.SLOWER: Verdict.FASTER, Verdict.FASTER: Verdict.SLOWER}
    assert _verdict(back) == inverse.get(_verdict(there), _verdict(there))


@settings(max_examples=60, deadline=None)
@given(side_of, side_of, st.sampled_from([2.0**-10, 0.5, 4.0, 2.0**20]))
def test_the_unit_of_time_changes_nothing(
    base: list[list[float]], new: list[list[float]], scale: float
) -> None:
    one, other = _effect(base, new), _effect(base, new, scale)
    assert other.log_ratio == pytest.approx(one.log_ratio, abs=1e-9)
    assert ratios.interval(other) == pytest.approx(ratios.interval(one), rel=1e-6)
    assert ratios.p_value(other) == pytest.approx(ratios.p_value(one), rel=1e-3, abs=1e-9)


def test_the_order_of_runs_and_the_presence_of_other_cases_change_nothing() -> None:
    base, new = (_frame(side=side, seed=3, cases=4, factor=1.02) for side in ("base", "new"))
    whole = compare(base, new)
    turned = compare(
        base.iloc[::-1].reset_index(drop=True), new.sample(frac=1, random_state=1), resamples=ratios.RESAMPLES
    )
    assert turned == whole
    one = base["case_id"].iloc[0]
    alone = compare(base[base["case_id"] == one], new[new["case_id"] == one]).cases[0]
    assert alone.ratio == next(each.ratio for each in whole.cases if each.name == one)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg(p: list[float]) -> None:
    q = ratios.adjusted(p)
    assert all(a <= b + 1e-12 <= 1 + 1e-9 for a, b in zip(p, q, strict=True))
    # The definition: reject the k smallest, k the largest with p_(k) <= k/m alpha.
    for alpha in (0.01, 0.05, 0.3):
        ordered = sorted(p)
        k = max((i + 1 for i, v in enumerate(ordered) if v * len(p) / (i + 1) <= alpha), default=0)
        # Up to the rounding of a quotient at alpha itself.
        assert sum(value <= alpha * (1 - 1e-9) for value in q) <= k <= sum(v <= alpha * (1 + 1e-9) for v in q)


def test_benjamini_hochberg_by_hand() -> None:
    assert ratios.adjusted([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.16 / 3, 0.04, 0.16 / 3, 0.5])
    assert ratios.adjusted([]) == []


def test_many_cases_ask_for_more_evidence() -> None:
    given: dict[str, Any] = {
        "log_ratio": math.log(1.05),
        "interval": (1.01, 1.09),
        "processes": (3, 3),
        "threshold": 0.03,
    }
    assert judge_time(q=0.03, cases=1, **given).verdict is Verdict.SLOWER
    unsure = judge_time(q=0.4, cases=20, **given)
    assert unsure.verdict is Verdict.UNCLEAR
    assert "among 20" in unsure.reason
    assert "3 processes a side are few" in unsure.reason


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [math.nan], [math.inf], [-1.0]])
def test_a_time_that_is_none_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ratios.effect({"a": bad}, {"b": [1.0]}, name="case")


def test_the_median_of_a_resample_has_the_distribution_of_one() -> None:
    """By order statistics of uniform numbers, against resampling as the words say it."""
    random = np.random.default_rng(0)
    for count in (2, 5, 8, 31):
        ordered = np.sort(random.uniform(1, 2, count))
        quick = ratios._bootstrap_medians(ordered, 40_000, np.random.default_rng(1))
        plain = np.log(np.median(random.choice(ordered, (40_000, count)), axis=1)) - np.log(
            np.median(ordered)
        )
        # Rounded, as equal values must tie. 0.015: chance exceeds it once in some 5,000 times.
        assert stats.ks_2samp(quick.round(12), plain.round(12)).statistic < 0.015


def test_a_row_that_is_no_case_is_one_sentence() -> None:
    base, new = _frame(side="base", seed=0), _frame(side="new", seed=0)
    base["workload"] = "dance"
    with pytest.raises(UserError, match="describes no case"):
        compare(base, new)


# ---------------------------------------------------------------- status, memory, errors

OK, OOM, CRASHED, INCORRECT = Status.OK, Status.OOM, Status.CRASHED, Status.INCORRECT


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        ([OK], [OK], None),
        *(([OK, OK], [status], Verdict.BROKEN) for status in Status if status is not OK),
        *(([status], [OK, OK], Verdict.FIXED) for status in Status if status is not OK),
        ([OOM], [OOM], Verdict.UNTIMED),
        ([OOM], [CRASHED], Verdict.UNTIMED),
        ([OOM], [INCORRECT], Verdict.BROKEN),
        ([OK, OK], [OK, CRASHED], Verdict.BROKEN),
        ([OK, CRASHED], [OK, OK], Verdict.FIXED),
        ([OK, CRASHED], [CRASHED, OK, OK], None),
        ([OK, CRASHED], [OK, INCORRECT], Verdict.BROKEN),
        ([OK, CRASHED], [CRASHED], Verdict.BROKEN),
    ],
    ids=str,
)
def test_how_a_case_ended(base: list[Status], new: list[Status], verdict: Verdict | None) -> None:
    judged = judge_status(base, new, reason="the reason")
    assert (None if judged is None else judged.verdict) == verdict
    assert judged is None or judged.reason.endswith(": the reason")


def test_how_a_case_ended_in_words() -> None:
    judged = judge_status([OK, OK], [OK, CRASHED], reason="")
    assert judged is not None
    assert judged.reason == "it was ok before and was crashed in 1 of 2 processes now"


@pytest.mark.parametrize(
    ("base", "new", "worse"),
    [(100.0, 102.0, False), (100.0, 103.0, True), (100.0, 50.0, False), (0, 1, True)],
)
def test_memory_that_grows(base: float, new: float, worse: bool) -> None:
    change = judge_memory(base, new)
    assert change is not None
    assert change.worse is worse
    assert judge_memory(None, new) is None


def test_errors_grow_beyond_rounding() -> None:
    base = {"rel_err_o": 0.002, "rel_err_dq": 1e-5, "rel_err_dk": 0.01}
    new = {"rel_err_o": 0.009, "rel_err_dq": 1e-4, "rel_err_dv": 0.5}
    o, dq = judge_errors(base, new, dtype="bf16")
    assert (o.name, o.worse, dq.worse) == ("rel_err_o", True, False)
    assert judge_errors(base, new, dtype="fp32")[1].worse


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.082, "+8.2 %"), (0.9959, "-0.41 %"), (3.1, "×3.1"), (0.25, "/4"), (1.0, "+0.00 %")],
)
def test_a_change_in_words(ratio: float, text: str) -> None:
    assert verdicts.change_text(ratio) == text


# ---------------------------------------------------------------- what ran


def _ran(config: object = None, kernels: list[str] | None = None) -> list[dict[str, Any]]:
    row = {"config": None if config is None else json.dumps(config), "kernels": kernels}
    return [row, {"config": None, "kernels": None}]


@pytest.mark.parametrize(
    ("base", "new", "words"),
    [
        (_ran({"tile": 64}), _ran({"tile": 64}), None),
        (_ran({"tile": 64}), _ran(), None),
        (
            _ran({"fwd": {"tile": 64, "warps": 4}}),
            _ran({"fwd": {"tile": 32, "warps": 4}}),
            "it ran in another configuration: fwd.tile 64 before, 32 now",
        ),
        (
            _ran({"tile": 64}),
            _ran({"tile": 64, "new": True}),
            "it ran in another configuration: new none before, true now",
        ),
        (_ran(kernels=["a", "b"]), _ran(kernels=["b", "a"]), None),
        (_ran(kernels=["a", "b"]), _ran(kernels=["b", "c"]), "other kernels ran: a before, c now"),
        (_ran(kernels=["b"]), _ran(kernels=["b", "c"]), "other kernels ran: c now"),
    ],
)
def test_what_ran_otherwise_is_said(
    base: list[dict[str, Any]], new: list[dict[str, Any]], words: str | None
) -> None:
    assert picks.difference(base, new) == words
