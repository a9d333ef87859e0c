"""`attnbench crossover`: where it measures next, for curves of known truth, and what it says; and on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from attnbench import store, watching
from attnbench.case import Case, Measurement, Status, Workload
from attnbench.cli import Exit, app
from attnbench.crossings import crossovers, points
from attnbench.crossover.finding import findings, sentence
from attnbench.crossover.measuring import asked, further
from attnbench.crossover.refining import batch_for, middle, next_lengths, steps_left
from attnbench.curves import Curve
from attnbench.errors import UserError
from attnbench.executors.run_folder import open_run, read_run
from attnbench.stats import summarize
from attnbench.sweeping import new_record
from attnbench.sweeps.loader import load
from tests.test_curves import line

RECORDED = Path(__file__).parent.parent / "results" / "h200" / "crossover.parquet"
Ratio = Callable[[int], float]  # of a length: time of b over a


# ---------------------------------------------------------------- refining, of curves that are known


def refined(
    ratio: Ratio,
    *,
    lengths: tuple[int, ...],
    resolution: float,
    noise: float = 0.0,
    seed: int = 0,
    tokens: int | None = None,
) -> tuple[Curve, Curve]:
    """The curves of a and b, refined to the end. Medians of b are off by up to `noise`, and their intervals say so."""
    while True:
        off = [1 + noise * Random(seed * 2**32 + n).uniform(-1, 1) for n in lengths]
        a = line("a", [1.0] * len(lengths), lengths=lengths)
        b = line(
            "b", [ratio(n) * o for n, o in zip(lengths, off, strict=True)], lengths=lengths, ci=1.1 * noise
        )
        more = next_lengths(points(a, b), resolution=resolution, tokens=tokens)
        if not more:
            return a, b
        assert not set(more) & set(lengths), "nothing is measured twice"
        assert len(lengths) < 100
        lengths = tuple(sorted([*lengths, *more]))


def power_law(crossing: float, power: float) -> Ratio:
    return lambda n: math.exp(power * (math.log(n) - math.log(crossing)))


@given(
    crossing=st.floats(min_value=129, max_value=2**20 - 1),
    power=st.sampled_from([-2.0, -0.3, 0.1, 1.0]),
    resolution=st.sampled_from([0.01, 0.03, 0.2]),
    noise=st.sampled_from([0.0, 0.01, 0.1]),
    seed=st.integers(min_value=0, max_value=1000),
)
def test_the_crossing_of_a_monotone_ratio_is_inside_its_interval(
    crossing: float, power: float, resolution: float, noise: float, seed: int
) -> None:
    truth = power_law(crossing, power)
    a, b = refined(truth, lengths=(128, 2**20), resolution=resolution, noise=noise, seed=seed)
    found = points(a, b)
    (crossover,) = crossovers(a, b) or (None,)
    if not (found[0].ahead and found[-1].ahead):
        assert noise, "only noise hides a crossing"
        return
    assert crossover is not None
    assert crossover.low is not None
    assert crossover.low < crossing < crossover.high or crossing.is_integer()
    assert crossover.faster == ("a" if power > 0 else "b")
    told = [point for point in found if crossover.low <= point.seq_len <= crossover.high]
    for left, right in (
        told[:2],
        told[-2:],
    ):  # noise widens the middle, and both ends are as near as asked for
        assert right.seq_len <= left.seq_len * (1 + resolution) or right.seq_len == left.seq_len + 1
    halvings = math.log(math.log(2**13) / math.log1p(resolution)) / math.log(1.5)
    assert len(found) <= 2 + 2 * math.ceil(halvings), "each step leaves two thirds at most"


@given(
    crossing=st.floats(min_value=129, max_value=2**15 - 1), tokens=st.sampled_from([2**15, 2**17, 3 * 2**15])
)
def test_with_constant_tokens_every_length_has_a_whole_batch(crossing: float, tokens: int) -> None:
    """And a crossing is as near as batches let it come: where one stays wide, no length between has a batch."""
    lengths = tuple(2**n for n in range(7, 16))
    a, b = refined(power_law(crossing, 1.0), lengths=lengths, resolution=0.03, tokens=tokens)
    for n in map(int, a.seq_len):
        batch = batch_for(n, tokens=tokens)
        assert batch is not None
        assert 0.98 * tokens <= batch * n <= tokens
    (found,) = crossovers(a, b)
    assert found.low is not None
    assert found.low < crossing < found.high or crossing.is_integer()
    if found.high > found.low * 1.03 and not found.undecided:
        between = range(math.ceil(found.low * 1.021), math.floor(found.high / 1.021) + 1)
        assert [n for n in between if batch_for(n, tokens=tokens) is not None] == []


def test_every_crossing_is_refined() -> None:
    """b is slower, faster, and slower again: a parabola in log N with zeros at 300 and 5,000."""
    x, y = math.log(300), math.log(5000)
    a, b = refined(
        lambda n: math.exp((math.log(n) - x) * (math.log(n) - y)), lengths=(128, 1024, 8192), resolution=0.03
    )
    first, second = crossovers(a, b)
    assert first.low is not None
    assert second.low is not None
    assert (first.faster, second.faster) == ("b", "a")
    assert first.low < 300 < first.high <= first.low * 1.03
    assert second.low < 5000 < second.high <= second.low * 1.03


def test_where_nothing_crosses_nothing_is_measured() -> None:
    a, b = refined(lambda n: 2.0, lengths=(128, 1024), resolution=0.03)
    assert a.seq_len.tolist() == [128, 1024]
    assert steps_left(points(a, b), resolution=0.03) == 0


@pytest.mark.parametrize(
    ("low", "high", "tokens", "expected"),
    [
        (128, 256, None, 192),
        (128, 192, None, 160),
        (1000, 1001, None, None),
        (128, 256, 2**15, 192),  # 170 sequences
        (8192, 16384, 2**15, 10752),  # 21 * 512: of 3 sequences the roundest between 10,706 and 10,922
        (16384, 32768, 2**15, None),  # 1 sequence is too few, 2 are too many
    ],
)
def test_the_middle_is_round(low: int, high: int, tokens: int | None, expected: int | None) -> None:
    assert middle(low, high, tokens=tokens) == expected


# ---------------------------------------------------------------- what a run says


def measured(mechanism: str, seq_len: int, ms: float | Status, *, ci: float = 0.0) -> Measurement:
    """One case at 4,096 tokens a call; a status in place of a time."""
    case = Case(
        mechanism=mechanism,
        workload=Workload.FWD,
        batch=4096 // seq_len,
        heads=2,
        seq_len=seq_len,
        head_dim=16,
        dtype="fp32",
    )
    if isinstance(ms, Status):
        return Measurement(case=case, status=ms, reason=f"full at {seq_len}", device="a device")
    samples = [ms * (1 + ci * off) for off in (-1.0, -1.0, 0.0, 0.0, 1.0, 1.0)]
    return Measurement(case=case, status=Status.OK, device="a device", timing=summarize(samples))


def run_of(path: Path, times: dict[str, dict[int, float | Status]], *, ci: float = 0.01) -> Path:
    rows = [
        store.row(measured(name, n, ms, ci=ci), run_id="r")
        for name, each in times.items()
        for n, ms in each.items()
    ]
    store.write(store.to_table(rows, records={"r": {"run_id": "r"}}), path)
    return path


FLAT: dict[int, float | Status] = {256: 2.0, 512: 2.0, 1024: 2.0, 2048: 2.0}
CASES: dict[str, tuple[dict[int, float | Status], int, str]] = {
    "crosses": (
        {256: 1.0, 512: 1.5, 1024: 3.0, 2048: 6.0},
        0,
        "lightning2 overtakes flash2 between 512 and 1,024 tokens (about 680).",
    ),
    "ahead": (
        {256: 3.0, 512: 4.0, 1024: 6.0, 2048: 8.0},
        0,
        "lightning2 is ahead of flash2 from 256 to 2,048 tokens: flash2 takes 1.50× its time at 256 "
        "and 4.00× at 2,048.",
    ),
    "noise at one end": (
        {256: 2.01, 512: 1.0, 1024: 1.0, 2048: 1.0},
        0,
        "flash2 is ahead of lightning2 from 512 to 2,048 tokens: lightning2 takes 2.00× its time at 512 and 2.00× at "
        "2,048; the two cannot be told apart at 256 tokens.",
    ),
    "twice": (
        {256: 1.0, 512: 4.0, 1024: 4.0, 2048: 1.0},
        0,
        "They cross 2 times: lightning2 overtakes flash2 between 256 and 512 tokens (about 360); flash2 overtakes "
        "lightning2 between 1,024 and 2,048 tokens (about 1,400).",
    ),
    "by failure": (
        {256: 1.0, 512: 1.0, 1024: Status.TIMEOUT, 2048: Status.TIMEOUT},
        0,
        "lightning2 overtakes flash2 by failure between 512 and 1,024 tokens (flash2 at 1,024: timed out: "
        "full at 1024).",
    ),
    "fails later": (
        {256: 3.0, 512: 4.0, 1024: 6.0, 2048: Status.OOM},
        0,
        "lightning2 is ahead of flash2 from 256 to 1,024 tokens: flash2 takes 1.50× its time at 256 "
        "and 3.00× at 1,024; not both have a time at 2,048 tokens (flash2: out of memory).",
    ),
    "undecided": (
        {256: 2.01, 512: 1.99, 1024: 2.01, 2048: 2.0},
        3,
        "lightning2 and flash2 cannot be told apart: the interval of the ratio of their times contains 1 at 256, 512, "
        "1,024 and 2,048 tokens.",
    ),
    "no time": (
        {256: Status.INCORRECT, **dict.fromkeys((512, 1024, 2048), Status.UNSUPPORTED)},
        3,
        "Nothing can be said of lightning2 and flash2: flash2: wrong output: full at 256; flash2: unsupported: full at "
        "512; flash2: unsupported: full at 1024; flash2: unsupported: full at 2048.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_of_a_run(name: str, tmp_path: Path) -> None:
    times, code, said = CASES[name]
    run = run_of(tmp_path / "r.parquet", {"lightning2": FLAT, "flash2": times})
    done = CliRunner().invoke(app, ["crossover", "lightning2", "flash2", "--run", str(run)])
    assert said in done.stdout
    assert done.exit_code == code
    done = CliRunner().invoke(app, ["crossover", "lightning2", "flash2", "--run", str(run), "--json"])
    (found,) = json.loads(done.stdout)["findings"]
    assert found["sentence"] == said
    assert [point["seq_len"] for point in found["points"]] == list(FLAT)
    assert (found["outcome"] in ("undecided", "unknown")) == (code == Exit.INCONCLUSIVE)


def test_a_recorded_run_by_workload() -> None:
    """What README says of it, and `axes` pick its rows."""
    words = ["crossover", "lightning2", "flash2", "--run", str(RECORDED), "--json"]
    (found,) = json.loads(CliRunner().invoke(app, [*words, "--workload", "fwd"]).stdout)["findings"]
    assert found["sentence"] == "lightning2 overtakes flash2 between 128 and 256 tokens (about 160)."
    both = json.loads(CliRunner().invoke(app, words).stdout)["findings"]
    assert [each["outcome"] for each in both] == ["crosses", "ahead"]


def test_why_a_refined_crossing_stayed_wide(tmp_path: Path) -> None:
    """Noise hides it, or no whole batch lies between; of one that was not refined neither is said."""
    hidden: dict[int, float | Status] = {504: 1.0, 508: 1.99, 510: 2.01, 512: 3.0}
    run = run_of(tmp_path / "r.parquet", {"a": dict.fromkeys(hidden, 2.0), "b": hidden})
    (found,) = findings(store.load_results(run), "a", "b")
    assert "noise hides where" in sentence(found, resolution=0.01)
    assert sentence(found).endswith("not told apart at 508 and 510 tokens).")
    run = run_of(tmp_path / "r.parquet", {"a": {2048: 2.0, 4096: 2.0}, "b": {2048: 1.0, 4096: 4.0}})
    (found,) = findings(store.load_results(run), "a", "b")
    assert sentence(found, resolution=0.03).endswith("; no whole batch suits a length between.")


# ---------------------------------------------------------------- what is measured


def test_both_mechanisms_at_each_length_and_only_where_they_cross(tmp_path: Path) -> None:
    what = asked("lightning2", "sdpa", device="cpu", axes={"tokens": "4k", "workload": "fwd"}, protocol={})
    times: dict[int, float | Status] = {64: 1.0, 256: 1.0, 1024: 4.0, 4096: 9.0}
    run = run_of(tmp_path / "r.parquet", {"lightning2": dict.fromkeys(times, 2.0), "sdpa": times})
    more = further(store.load_results(run), what)
    assert [case.case_id for case in more.cases] == [
        f"{name}.fwd.B8-H2-N512-D16.fp32" for name in ("lightning2", "sdpa")
    ]
    assert more.left == 2 * math.ceil(math.log2(math.log(4) / math.log(1.03)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lightning2", "flash9"), "B: unknown mechanism 'flash9'; did you mean 'flash4'?"),
        (("lightning2,sdpa", "flash2"), "A: expected one mechanism, got 'lightning2,sdpa'"),
        (("sdpa", "sdpa"), "A and B are both sdpa: expected two mechanisms"),
        (
            ("lightning2", "retnet"),
            "has values of 32 channels and retnet of 64, which is other work: give --value-dim",
        ),
        (
            ("lightning2", "sdpa", "--seq-len", "1k"),
            "--seq-len: expected two lengths or more to look between, got 1,024",
        ),
        (("lightning2", "sdpa", "--axis", "heads"), "--axis: expected seq_len, got 'heads'"),
        (("lightning2", "sdpa", "--sweep", "kernels"), "--sweep: kernels lists its shapes one by one"),
        (("lightning2", "sdpa", "--resolution", "3"), "--resolution expects a percentage"),
        (("lightning2", "sdpa", "--resume"), "--resume needs --out"),
        (
            ("lightning2", "sdpa", "--run", "RUN", "--cap-s", "1"),
            "--cap-s: expected no such option beside --run",
        ),
        (
            ("lightning2", "sdpa", "--run", "RUN", "--workload", "decode"),
            "--workload: the run has no row with workload",
        ),
        (("lightning2", "flash", "--run", "RUN"), "the run has no row of 'flash'; did you mean 'flash2'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    given = [str(RECORDED) if word == "RUN" else word for word in arguments]
    done = CliRunner().invoke(app, ["crossover", *given, "--device", "cpu"])
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)
    assert done.stdout == ""


def test_a_run_that_may_grow_is_not_finished(tmp_path: Path) -> None:
    """`watch` waits while the results may call for more, though the cases of the sweep are there."""
    sweep = load("ci", device="cpu")
    folder = open_run(
        tmp_path / "run", record={**new_record(sweep, command=[]), "refining": True}, resume=False
    )
    for case in sweep.cases():
        folder.keep(store.row(Measurement(case=case, status=Status.OOM, reason="full"), run_id=folder.run_id))
    state, _ = watching.Watcher(path=folder.path).look()
    assert not state.finished
    assert "9 of 9 cases, and what they call for, (9 oom)" in state.sentence()
    folder.with_record(refining=False)
    assert watching.Watcher(path=folder.path).look()[0].finished


FAST = """
workload = ["fwd"]
dtype = ["fp32"]
seq_len = [16, 256]
batch = [1]
heads = [1]
head_dim = [16]
[protocol]
cache = "hot"
min_samples = 5
max_samples = 5
warmup_s = 0
"""


def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear against quadratic work: measured, refined, and the same again from the folder with nothing measured."""
    (tmp_path / "fast.toml").write_text(FAST)
    monkeypatch.chdir(tmp_path)
    words = ["crossover", "linear-cumsum", "linear-quadratic", "--sweep", "fast.toml", "--device", "cpu"]
    words += ["-o", "run", "--resolution", "90%", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (Exit.FINE, Exit.INCONCLUSIVE), done.output
    (found,) = json.loads(done.stdout)["findings"]
    record = read_run(tmp_path / "run").record
    assert record["refining"] is False
    assert record["sweep"]["axes"]["mechanism"] == ["linear-cumsum", "linear-quadratic"]
    frame = store.load_results(tmp_path / "run" / "results.parquet")
    lengths = sorted(point["seq_len"] for point in found["points"])
    assert sorted(frame["seq_len"]) == sorted(lengths * 2)
    assert (frame["status"] == "ok").all()
    assert (lengths[0], lengths[-1]) == (16, 256)
    if found["outcome"] == "crosses":
        assert len(lengths) > 2
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "shards").iterdir()}
    again = CliRunner().invoke(app, [*words, "--resume"])
    assert json.loads(again.stdout)["findings"] == [found]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "shards").iterdir()} == shards
    told = CliRunner().invoke(
        app, ["crossover", "linear-cumsum", "linear-quadratic", "--run", "run", "--json"]
    )
    assert json.loads(told.stdout)["findings"][0]["points"] == found["points"]
