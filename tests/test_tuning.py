"""The tuner: what it tries, what it refuses, how it chooses, and what it leaves behind.

Devices are played: a stand-in for the processes answers checks and timings, and its clock runs by the job.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.resources
import itertools
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench.errors import UserError
from attnbench.executors.pool import Lost
from attnbench.kernels._configs import VARIABLE, Config, Row, ScanConfig, Tiles, parse, table
from attnbench.kernels._host import Limits
from attnbench.kernels._scan import Scan, run_scans
from attnbench.tuning import command, report, trial
from attnbench.tuning.candidates import DEFAULT_SHAPES, Point, candidates, chunk_points, fitted, points_by_row
from attnbench.tuning.choosing import WORTH, Choice, Entry, Standing, choice, gain, halve, next_in_line
from attnbench.tuning.race import Clockwork, Jobs, entries_of, race
from attnbench.tuning.trial import LAUNCHES, Answer, Check, Job, Timing, Work, admission, check, screening

H200 = Limits(multiprocessors=132, shared_memory=232_448, architecture="hopper")
SMALL = Limits(multiprocessors=40, shared_memory=65_536, architecture="default")
ROW = Row(kernel="lightning2", element_size=2, key_dim=64, programs=2)
OTHER = Row(kernel="lightning2", element_size=2, key_dim=128, programs=2)
CROWDED = dataclasses.replace(OTHER, programs=3)
SPECIALISED = dataclasses.replace(OTHER, programs=1, specialised=True)
POINT = Point(dtype="bf16", head_dim=64, batch=1, heads=2, seq_len=4096)
CPU = torch.device("cpu")

CURRENT = ScanConfig(block_c=64, block_e=64, num_warps=4, num_stages=4, programs=2)  # of ROW on Hopper
FAST = dataclasses.replace(CURRENT, block_c=32)
FASTER = dataclasses.replace(CURRENT, num_stages=3)


@pytest.fixture(autouse=True)
def fresh_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    table.cache_clear()
    yield
    table.cache_clear()


def never() -> bool:
    return False


# ---------------------------------------------------------------- candidates


def test_rows_gather_the_points_that_they_serve() -> None:
    found = points_by_row(
        "lightning2",
        table=table("hopper"),
        dtypes=["bf16", "fp32"],
        head_dims=[96, 128],
        shapes=[(1, 2, 512)],
    )
    # All rows of one key dim are meant, whatever their programs.
    assert {row: len(points) for row, points in found.items()} == {
        OTHER: 2,
        CROWDED: 2,
        SPECIALISED: 2,
        dataclasses.replace(OTHER, element_size=4): 2,
    }
    assert found[OTHER][0] == Point(dtype="bf16", head_dim=96, batch=1, heads=2, seq_len=512)


def test_by_default_a_row_for_many_programs_has_a_point_with_many() -> None:
    found = points_by_row("lightning2", table=table("hopper"), dtypes=["bf16"], head_dims=[128], shapes=None)
    shapes = {row: [(p.batch, p.heads, p.seq_len) for p in points] for row, points in found.items()}
    usual = [*DEFAULT_SHAPES]
    assert shapes == {OTHER: usual, CROWDED: [*usual, (16, 16, 8192)], SPECIALISED: usual}


def rows_of_tables() -> list[Any]:
    """Every row of the tables of two devices, with the device."""
    found = []
    for name, limits in (("H200", H200), ("small", SMALL)):
        packaged = importlib.resources.files("attnbench.kernels") / "configs" / f"{limits.architecture}.toml"
        for row in parse(packaged.read_text(encoding="utf-8"), source=name).rows:
            numbers = f"{row.element_size}-{row.key_dim}-{row.programs}{'-specialised' * row.specialised}"
            found.append(pytest.param(row, limits, id=f"{name}-{row.kernel}-{numbers}"))
    return found


@pytest.mark.parametrize(("row", "limits"), rows_of_tables())
def test_candidates_are_distinct_and_fit(row: Row, limits: Limits) -> None:
    current = fitted(table(limits.architecture).rows[row], row=row, limits=limits)
    found = candidates(row, current=current, limits=limits)
    assert found[0] == current
    assert len(found) == len(set(found)) >= 2
    assert [c for c in found if fitted(c, row=row, limits=limits) != c] == []
    kinds = {"lightning2": ScanConfig, "lightning1": Tiles}
    assert {type(c) for c in found} == {kinds[row.kernel]}
    for config in found:
        if not isinstance(config, ScanConfig):
            continue
        assert config.programs == len(config.chunk_us) == row.programs
        assert config.specialised == row.specialised
        # The programs fit together: the tiles into the shared memory, the state into half of the registers.
        tiles = config.num_stages * config.block_c * (2 * row.key_dim + config.block_e) * row.element_size
        assert config.programs * tiles <= limits.shared_memory
        groups = config.block_e // 64 if config.specialised else 1
        state = config.block_e * row.key_dim // (32 * config.num_warps * groups)
        # Where warps specialise, those that keep a state take registers of those that keep none.
        assert state <= (256 if config.specialised else config.max_registers or 256) // 2


def test_the_nearest_candidates_come_first() -> None:
    found = candidates(ROW, current=CURRENT, limits=H200)
    assert {FAST, FASTER} <= set(found[1:8])
    far = ScanConfig(block_c=16, block_e=32, num_warps=8, num_stages=2, programs=2)
    assert found.index(FASTER) < found.index(far)


def test_chunk_times_are_guessed_by_the_work_until_they_are_measured() -> None:
    current = dataclasses.replace(CURRENT, chunk_us=(0.9, 1.8))
    found = {c: c for c in candidates(ROW, current=current, limits=H200) if isinstance(c, ScanConfig)}
    assert found[FAST].chunk_us == (0.45, 0.9)
    assert found[FASTER].chunk_us == found[current].chunk_us == (0.9, 1.8)


def test_a_chunk_is_measured_with_one_program_on_a_multiprocessor_up_to_all() -> None:
    config = ScanConfig(block_c=32, block_e=64, num_warps=4, num_stages=3, programs=3)
    found = chunk_points(CROWDED, config, dtype="bf16", multiprocessors=132)
    assert {(p.dtype, p.head_dim, p.batch, p.seq_len) for p in found} == {("bf16", 128, 1, 256 * 32)}
    assert [p.heads * 128 // config.block_e for p in found] == [132, 264, 396]
    narrow = dataclasses.replace(config, block_e=16)
    assert [p.heads for p in chunk_points(CROWDED, narrow, dtype="bf16", multiprocessors=7)] == [1, 1, 2]


# ---------------------------------------------------------------- the check


SCAN = ScanConfig(block_c=16, block_e=64, num_warps=4, num_stages=1, programs=1)
TILES = Tiles(block_m=32, block_n=32, block_e=32, num_warps=4, num_stages=1)


def a_check(kernel: str = "lightning2", **changes: Any) -> Check:
    given: dict[str, Any] = {
        "kernel": kernel,
        "config": SCAN if kernel == "lightning2" else TILES,
        "dtype": "fp32",
        "key_dim": 48,
        "value_dim": 32,
        "work": Work.FORWARD,
        "thorough": False,
    }
    return Check(**{**given, **changes})


@pytest.mark.parametrize(
    ("kernel", "work"),
    [(kernel, work) for kernel in LAUNCHES for work in (Work.FORWARD, Work.REVERSED)]
    + [("lightning2", Work.GRADIENTS)],
)
def test_a_right_configuration_passes(kernel: str, work: Work) -> None:
    value_dim = 48 if work is Work.GRADIENTS else 32
    assert check(a_check(kernel, work=work, value_dim=value_dim, thorough=True), device=CPU) is None


def broken(spoil: Callable[..., None], *, kernel: str = "lightning2") -> Callable[..., None]:
    """The kernel, and then a fault in what it wrote."""

    def launch(scans: Sequence[Scan], **given: Any) -> None:
        LAUNCHES[kernel](scans, **given)
        for place, scan in enumerate(scans):
            spoil(scan, place=place, **given)

    return launch


def spoil_a_head(scan: Scan, **given: Any) -> None:
    scan.out[:, 0] *= 1.001


def spoil_the_last_token(scan: Scan, **given: Any) -> None:
    scan.out[:, :, -1] = 0.0


def leave_an_element(scan: Scan, **given: Any) -> None:
    scan.out[0, 1, 7, 3] = float("nan")


def spoil_two_segments(scan: Scan, *, segments: int, **given: Any) -> None:
    if segments == 2:
        scan.out[:, :, scan.out.shape[2] // 2 :] *= 1.01


def spoil_the_reverse(scan: Scan, **given: Any) -> None:
    if scan.reverse:
        scan.out.mul_(1.01)


def spoil_what_does_not_decay(scan: Scan, *, slopes: tuple[float, ...] | None, **given: Any) -> None:
    if slopes is None:
        scan.out.mul_(1.01)


def spoil_where_all_forget(scan: Scan, *, slopes: tuple[float, ...] | None, **given: Any) -> None:
    if slopes is not None and min(slopes) == 0.5:
        scan.out.mul_(1.01)


def spoil_the_state(scan: Scan, **given: Any) -> None:
    if scan.final is not None:
        scan.final[:, 2] *= 1.01


def spoil_the_second(scan: Scan, *, place: int, **given: Any) -> None:
    if place == 1:
        scan.out.mul_(1.01)


@pytest.mark.parametrize(
    ("spoil", "changes", "words"),
    [
        (
            spoil_a_head,
            {},
            r"^fp32 forward D48 E32, 133 tokens, segments 1: off by 1\.0e-03, fp32 allows 2e-05$",
        ),
        (spoil_the_last_token, {}, "off by"),
        (leave_an_element, {}, "off by nan"),
        (spoil_two_segments, {}, "segments 2: off by"),
        (spoil_the_reverse, {"work": Work.REVERSED}, "fp32 reversed D48 E32"),
        (
            spoil_the_second,
            {"work": Work.GRADIENTS, "value_dim": 48},
            "fp32 gradients D48 E48, .*: dk off by",
        ),
        (spoil_where_all_forget, {"thorough": True}, "steep decay: off by"),
        (spoil_what_does_not_decay, {"thorough": True}, "no decay: off by"),
        (spoil_the_state, {"thorough": True}, "a state handed on: off by"),
    ],
)
def test_wrong_numbers_are_refused(spoil: Callable[..., None], changes: dict[str, Any], words: str) -> None:
    fault = check(a_check(**changes), device=CPU, launch=broken(spoil))
    assert fault is not None
    assert re.search(words, fault), fault


def test_the_gradients_are_computed_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def counted(scans: Sequence[Scan], **given: Any) -> None:
        together.append(len(scans))
        assert len({scan.kind for scan in scans}) == 1
        run_scans(scans, **given)

    monkeypatch.setattr(trial, "run_scans", counted)
    assert check(a_check(work=Work.GRADIENTS, value_dim=48), device=CPU) is None
    assert together == [3] * 4  # two lengths, in one segment and in two


def test_an_admission_asks_for_all_that_the_row_serves() -> None:
    checks = admission(ROW, CURRENT)
    assert {c.dtype for c in checks} == {"bf16", "fp16"}
    for dtype in ("bf16", "fp16"):
        found = [c for c in checks if c.dtype == dtype]
        assert {(c.key_dim, c.value_dim, c.work) for c in found if c.thorough} == {
            (64, 64, work) for work in Work
        }
        for work in Work:
            assert any(c.key_dim & (c.key_dim - 1) for c in found if c.work is work)
    assert any(c.key_dim != c.value_dim for c in checks)
    assert all(c.key_dim == c.value_dim for c in checks if c.work is Work.GRADIENTS)
    assert {c.work for c in admission(Row(kernel="lightning1", element_size=4, key_dim=64), TILES)} == {
        Work.FORWARD,
        Work.REVERSED,
    }
    assert [c.dtype for c in screening("lightning2", CURRENT, points=[POINT, POINT])] == ["bf16"]


# ---------------------------------------------------------------- choosing


def an_entry(config: Config = CURRENT, *, row: Row = ROW, standing: Standing = Standing.SCREENED) -> Entry:
    return Entry(row=row, config=config, current=config == CURRENT, standing=standing)


def chunks(count: int) -> list[Entry]:
    """Entries with 1 to `count` stages, the first being the table's."""
    found = [an_entry(dataclasses.replace(CURRENT, num_stages=n + 10)) for n in range(count - 1)]
    return [an_entry(), *found]


def test_halving_spends_its_samples_on_the_fast_ones() -> None:
    entries = chunks(40)
    cost = {id(e): 1.0 + place for place, e in enumerate(reversed(entries))}  # the table's is the slowest

    def timer(entry: Entry, point: Point, count: int) -> Sequence[float]:
        return [cost[id(entry)]] * count

    ranking = halve(entries, points=[POINT], timer=timer, stop=never)
    assert ranking[:4] == list(reversed(entries))[:4]
    assert {id(e) for e in ranking} == {id(e) for e in entries}
    samples = [len(e.samples_ms[POINT]) for e in ranking]
    assert samples[0] >= 30
    assert samples[-1] == 3
    assert len(entries[0].samples_ms[POINT]) == samples[0]  # the measure of the others


def test_halving_keeps_to_its_time() -> None:
    entries, calls = chunks(40), []

    def timer(entry: Entry, point: Point, count: int) -> Sequence[float]:
        calls.append(entry)
        return [1.0] * count

    ranking = halve(entries, points=[POINT], timer=timer, stop=lambda: len(calls) >= 10)
    assert len(calls) == len(ranking) == 10
    assert entries[0] in ranking
    assert halve(chunks(40), points=[POINT], timer=timer, stop=lambda: True) == []


def test_an_entry_that_fails_while_it_is_timed_leaves_the_race() -> None:
    entries = chunks(3)

    def timer(entry: Entry, point: Point, count: int) -> Sequence[float]:
        if entry is entries[1]:
            entry.refuse(Standing.FAILED, "an illegal address")
            return ()
        return [1.0] * count

    assert halve(entries, points=[POINT], timer=timer, stop=never) == [entries[0], entries[2]]


def timed(config: Config, ms: float, standing: Standing = Standing.SCREENED) -> Entry:
    entry = an_entry(config, standing=standing)
    entry.samples_ms = {POINT: [ms]}
    return entry


def test_the_score_is_the_geometric_mean_of_medians() -> None:
    entry = an_entry()
    other = dataclasses.replace(POINT, seq_len=8192)
    entry.samples_ms = {POINT: [1.0, 1.0, 50.0], other: [4.0]}
    assert entry.score_ms == pytest.approx(2.0)
    assert gain(entry, over=timed(FAST, 3.0)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="timed"):
        gain(entry, over=an_entry(FAST))


def test_the_tables_row_gives_way_to_a_real_gain_only() -> None:
    current = timed(CURRENT, 1.0)
    close, clear = timed(FAST, 0.976), timed(FASTER, 0.9)
    assert next_in_line([close, current]) is current
    assert next_in_line([clear, current]) is clear
    clear.refuse(Standing.WRONG, "off by 1")
    assert next_in_line([clear, close, current]) is current
    current.refuse(Standing.WRONG, "off by 1")
    assert next_in_line([clear, close, current]) is close
    assert next_in_line([clear, current]) is None


def test_a_gain_is_more_than_two_recordings_differ_by() -> None:
    """Of the same pairs of configurations, at the same shapes, on one GPU model at two times."""
    folder = Path(__file__).parent.parent / "results" / "h200"
    first, second = (_forwards(folder / f"{name}-search.csv") for name in ("joint", "design"))
    shapes: dict[tuple[str, ...], list[float]] = {}
    for (shape, config), ms in first.items():
        if (shape, config) in second:
            shapes.setdefault(shape, []).append(math.log(second[shape, config] / ms))
    pairs = [abs(a - b) for logs in shapes.values() for a, b in itertools.combinations(logs, 2)]
    quarters = [math.expm1(x) for x in statistics.quantiles(pairs, n=4)]
    assert len(pairs) == 1351
    assert [round(x, 3) for x in quarters[1:]] == [0.009, 0.023]  # as the words beside `WORTH` say
    assert quarters[2] < WORTH


def _forwards(path: Path) -> dict[tuple[tuple[str, ...], tuple[str, ...]], float]:
    """Milliseconds of the portable kernel's forwards, by shape and by configuration."""
    shape = ("batch", "heads", "seq_len", "head_dim")
    config = ("block_c", "block_e", "num_warps", "num_stages", "max_registers", "segments")
    with path.open(encoding="utf-8") as file:
        return {
            (tuple(row[x] for x in shape), tuple(row[x] for x in config)): float(row["median_ms"])
            for row in csv.DictReader(file)
            if row["workload"] == "fwd"
            and row.get("slopes", "geometric") == "geometric"
            and row.get("specialised") != "1"
        }


def test_nobody_wins_who_was_not_admitted() -> None:
    ranking = [timed(FAST, 0.5), timed(CURRENT, 1.0, Standing.ADMITTED)]
    assert choice(ROW, entries=ranking, ranking=ranking).winner is None
    ranking[0].standing = Standing.ADMITTED
    found = choice(ROW, entries=ranking, ranking=ranking)
    assert (found.winner, found.runner_up, found.current) == (ranking[0], ranking[1], ranking[1])


# ---------------------------------------------------------------- the race, on a device that is played


class Played:
    """Stands in for processes: times by `ms`, wrong or lost where told; each job takes seconds of its clock."""

    def __init__(
        self,
        *,
        ms: Callable[[Config], float],
        chunk_ms: Callable[[Point], float] = lambda point: 0.256,
        wrong: Callable[[Check], bool] = lambda job: False,
        lost: Callable[[Job], bool] = lambda job: False,
        seconds: float | Callable[[Job], float] = 0.01,
    ) -> None:
        self.time = 0.0
        self.jobs: list[Job] = []
        self._ms, self._chunk_ms = ms, chunk_ms
        self._wrong, self._lost, self._seconds = wrong, lost, seconds

    def run(
        self, jobs: Iterable[Job], *, limit_s: float, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Answer | Lost]]:
        for job in jobs:
            if stop():
                return
            self.time += self._seconds(job) if callable(self._seconds) else self._seconds
            self.jobs.append(job)
            yield job, self._answer(job)

    def _answer(self, job: Job) -> Answer | Lost:
        if self._lost(job):
            return Lost(reason="its process ended with signal SIGSEGV")
        if isinstance(job, Timing):
            ms = self._ms(job.config) if job.segments is None else self._chunk_ms(job.point)
            return Answer(samples_ms=(ms,) * job.count)
        return Answer(reason="off by 1e+00", wrong=True) if self._wrong(job) else Answer()

    def pools(self, size: int) -> contextlib.AbstractContextManager[Jobs]:
        return contextlib.nullcontext(self)


def by_chunk(config: Config) -> float:
    """Chunk 32 is fastest, then by stages."""
    assert isinstance(config, ScanConfig)
    return 1.0 + abs(math.log2(config.block_c / 32)) + config.num_stages / 20


def by_stages(config: Config) -> float:
    """The more stages, the faster."""
    return 1.0 / config.num_stages


def run_race(played: Played, *rows: Row, budget_s: float = 1000.0) -> tuple[list[Choice], list[str]]:
    told: list[str] = []
    points = {row: [dataclasses.replace(POINT, head_dim=row.key_dim)] for row in rows}
    found = race(
        entries_of(rows, table=table("hopper"), limits=H200),
        points=points,
        clockwork=Clockwork(budget_s=budget_s, tell=told.append, now=lambda: played.time),
        size=4,
        multiprocessors=H200.multiprocessors,
        pools=played.pools,
    )
    return found, told


def test_the_fastest_right_configuration_wins_each_row() -> None:
    choices, told = run_race(Played(ms=by_chunk), ROW, OTHER)
    assert [c.row for c in choices] == [ROW, OTHER]
    for c in choices:
        assert isinstance(c.winner, Entry)
        assert isinstance(c.winner.config, ScanConfig)
        assert (c.winner.config.block_c, c.winner.config.num_stages) == (32, 2)
        assert c.winner.standing is Standing.ADMITTED
        assert c.count(Standing.UNTRIED) == 0
    assert any("s left] checked" in line for line in told)
    assert any("timed lightning2 at 2 bytes, D 64, 2 programs: " in line for line in told)
    assert told[-1].endswith("measured the chunk times of 2 of 2 rows")


def test_a_wrong_configuration_is_never_timed() -> None:
    played = Played(ms=by_chunk, wrong=lambda job: getattr(job.config, "block_c", 0) == 32)
    (found,), _ = run_race(played, ROW)
    assert found.winner is not None
    assert getattr(found.winner.config, "block_c", 0) != 32
    assert found.count(Standing.WRONG) > 5
    assert not [j for j in played.jobs if isinstance(j, Timing) and getattr(j.config, "block_c", 0) == 32]
    assert all(e.reason == "off by 1e+00" for e in found.entries if e.standing is Standing.WRONG)


def test_one_that_is_wrong_in_reverse_is_refused_at_the_admission() -> None:
    def wrong(job: Check) -> bool:
        return job.work is Work.REVERSED and getattr(job.config, "num_stages", 0) == 2

    (found,), _ = run_race(Played(ms=by_chunk, wrong=wrong), ROW)
    assert found.winner is not None
    assert isinstance(found.winner.config, ScanConfig)
    assert (found.winner.config.block_c, found.winner.config.num_stages) == (32, 3)
    assert 1 <= found.count(Standing.WRONG) < 10


def test_one_that_takes_its_process_along_is_refused() -> None:
    (found,), _ = run_race(Played(ms=by_chunk, lost=lambda job: job.config == FAST), ROW)
    (entry,) = [e for e in found.entries if e.config == FAST]
    assert (entry.standing, entry.reason) == (Standing.FAILED, "its process ended with signal SIGSEGV")
    assert found.winner is not None


def test_one_whose_gradients_are_wrong_is_refused_at_the_admission() -> None:
    def wrong(job: Check) -> bool:
        return (
            job.work is Work.GRADIENTS and job.dtype == "fp16" and getattr(job.config, "num_stages", 0) == 2
        )

    (found,), _ = run_race(Played(ms=by_chunk, wrong=wrong), ROW)
    assert found.winner is not None
    assert getattr(found.winner.config, "num_stages", 0) == 3


def by_heads(point: Point) -> float:
    """Of 256 chunks of CROWDED with a value tile of 64: 1 us for each program on a multiprocessor of an H200."""
    return point.heads / 66 * 0.256


def chunk_timings(played: Played) -> list[Timing]:
    return [j for j in played.jobs if isinstance(j, Timing) and j.segments is not None and j.count]


@pytest.mark.parametrize("better", [False, True])
def test_a_winners_chunks_are_measured(better: bool) -> None:
    played = Played(ms=by_stages if better else lambda config: 1.0, chunk_ms=by_heads)
    (found,), _ = run_race(played, CROWDED)
    assert found.winner is not None
    assert found.winner.current is not better
    assert found.winner.chunk_us == (1.0, 2.0, 3.0)
    assert [e for e in found.entries if e.chunk_us] == [found.winner]
    jobs = chunk_timings(played)
    assert [(j.segments, j.point.heads) for j in jobs] == [(1, 66), (1, 66), (1, 132), (1, 198)]
    assert played.jobs[-len(jobs) :] == jobs  # after all checks, with the device for themselves
    ahead = [j for j in played.jobs if isinstance(j, Timing) and not j.count]
    assert ahead == [dataclasses.replace(jobs[0], count=0)]  # compiled where many processes do it


def test_chunk_times_have_their_share_of_a_budget_that_the_race_would_spend() -> None:
    """The race goes on while it may, and an admission takes its share: what a chunk takes is measured all the same."""

    def seconds(job: Job) -> float:
        return (
            1.15 if isinstance(job, Check) and job.dtype == "fp16" else 0.5
        )  # the former at admissions only

    played = Played(ms=by_chunk, seconds=seconds)
    choices, told = run_race(played, ROW, OTHER, CROWDED, budget_s=160.0)
    winners = [c.winner for c in choices if c.winner is not None]
    assert len(winners) == 3
    assert any(
        len(samples) < 24 for e in winners for samples in e.samples_ms.values()
    )  # a race was cut short
    assert all(e.chunk_us for e in winners)
    assert told[-1].endswith("measured the chunk times of 3 of 3 rows")
    assert played.time <= 160.0


def test_rows_that_are_new_have_their_chunks_measured_first() -> None:
    """What stays in the table has its times already."""

    def late(point: Point) -> float:
        played.time += 2000.0 if played.time < 1000 and len(chunk_timings(played)) == 4 else 0.0
        return by_heads(point)

    def ms(config: Config) -> float:
        return by_stages(config) if getattr(config, "programs", 0) == 3 else 1.0

    played = Played(ms=ms, chunk_ms=late)
    (stays, new), told = run_race(played, OTHER, CROWDED)
    assert stays.winner is not None
    assert new.winner is not None
    assert (stays.winner.current, new.winner.current) == (True, False)
    assert new.winner.chunk_us == (1.0, 2.0, 3.0)
    assert (stays.winner.chunk_us, stays.winner.chunk_reason) == ((), "the time was over")
    assert told[-1].endswith("measured the chunk times of 1 of 2 rows")


def test_a_winner_whose_chunks_cannot_be_measured_stays_a_winner() -> None:
    def lost(job: Job) -> bool:
        return isinstance(job, Timing) and job.segments is not None and job.point.heads > 100

    (found,), told = run_race(Played(ms=by_chunk, lost=lost), CROWDED)
    assert found.winner is not None
    assert found.winner.standing is Standing.ADMITTED
    assert (found.winner.chunk_us, found.winner.chunk_reason) == ((), "its process ended with signal SIGSEGV")
    assert told[-1].endswith("measured the chunk times of 0 of 1 rows")


def test_chunks_are_not_measured_after_the_time() -> None:
    def late(point: Point) -> float:
        if chunk_timings(played):  # the second of three launches is never made
            played.time = 2000.0
        return 0.256

    played = Played(ms=by_chunk, chunk_ms=late)
    (found,), _ = run_race(played, ROW)
    assert found.winner is not None
    assert found.winner.chunk_us == ()
    assert found.winner.chunk_reason == "the time was over"
    assert len(chunk_timings(played)) == 1


def test_where_all_is_wrong_nothing_is_admitted() -> None:
    (found,), _ = run_race(Played(ms=by_chunk, wrong=lambda job: True), ROW)
    assert found.winner is None
    assert found.count(Standing.WRONG) == len(found.entries)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0])
def test_the_budget_holds(seconds: float) -> None:
    played = Played(ms=by_chunk, seconds=seconds)
    choices, _ = run_race(played, ROW, OTHER, budget_s=120.0)
    assert played.time <= 120.0 + seconds
    assert seconds < 1 or all(c.count(Standing.UNTRIED) for c in choices)
    for c in choices:
        assert c.winner is None or c.winner.standing is Standing.ADMITTED


def test_a_middling_budget_still_settles_every_row() -> None:
    choices, _ = run_race(Played(ms=by_chunk, seconds=0.5), ROW, OTHER, budget_s=120.0)
    assert all(c.winner is not None for c in choices)


# ---------------------------------------------------------------- the command


@pytest.fixture
def played_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The command believes to be on an H200, whose table has no rows of warps that specialise."""
    packaged = importlib.resources.files("attnbench.kernels") / "configs" / "hopper.toml"
    lines = packaged.read_text(encoding="utf-8").splitlines()
    portable = tmp_path_factory.mktemp("table") / "portable.toml"
    portable.write_text("\n".join(x for x in lines if "specialised = true" not in x), encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(portable))
    monkeypatch.setattr(command, "_has_gpu", lambda: True)
    monkeypatch.setattr(command, "interpreting", lambda: False)
    monkeypatch.setattr(command, "limits", lambda device: H200)
    environment = {"attnbench": "1", "device": "played GPU", "versions": {"torch": "2", "triton": "3"}}
    monkeypatch.setattr(command, "collect", lambda device: environment)


def a_request(**changes: Any) -> command.Request:
    given: dict[str, Any] = {
        "kernels": None, "dtypes": None, "head_dims": ["64,128"], "shapes": ["1x2x4k"], "budget_s": 600.0,
        "processes": 2,
    }  # fmt: skip
    return command.request(**{**given, **changes})


def chunk_times(config: Config) -> tuple[float, ...]:
    assert isinstance(config, ScanConfig)
    return config.chunk_us


def tune(played: Played, out: Path, told: list[str] | None = None) -> command.Outcome:
    words = ["tune", "--shape", "1x2x4k", "-o", str(out)]
    tell = (told if told is not None else []).append
    return command.tune(a_request(), out=out, words=words, tell=tell, pools=played.pools)


@pytest.mark.usefixtures("played_gpu")
def test_the_files_that_a_tuning_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mine.toml"
    outcome = tune(Played(ms=by_chunk, wrong=lambda job: job.config == FASTER and job.key_dim == 64), out)
    assert (outcome.table, outcome.candidates, outcome.admitted) == (out, tmp_path / "mine.csv", 3)
    text = out.read_text(encoding="utf-8")
    assert "# on played GPU, 20" in text
    assert "#   attnbench tune --shape 1x2x4k -o " in text
    assert "torch 2, triton 3" in text
    assert "bf16 B1 H2 N4096 D64" in text

    # What was tuned replaced its row, the rest was carried over, and a plan follows the file.
    before, after = table("hopper"), parse(text, source="mine")
    changed = {row for row in after.rows if after.rows[row] != before.rows[row]}
    assert changed == {ROW, OTHER, CROWDED}
    assert [chunk_times(after.rows[row]) for row in (ROW, OTHER, CROWDED)] == [(1.0,) * n for n in (2, 2, 3)]
    table.cache_clear()
    monkeypatch.setenv(VARIABLE, str(out))
    assert table("hopper") == after
    assert getattr(after.rows[ROW], "block_c", 0) == 32

    rows = list(csv.DictReader((tmp_path / "mine.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == list(report.CSV_COLUMNS)
    addresses = {(r["kernel"], r["key_dim"], r["programs"]) for r in rows}
    assert addresses == {
        ("lightning2", dim, programs) for dim, programs in (("64", "2"), ("128", "2"), ("128", "3"))
    }
    (refused,) = [r for r in rows if r["standing"] == "wrong"]
    assert (refused["reason"], refused["median_ms"]) == ("off by 1e+00", "")
    (first,) = [r for r in rows if r["current"] == "True" and r["key_dim"] == "64"]
    assert (first["block_c"], first["seq_len"], float(first["median_ms"])) == ("64", "4096", 2.2)

    won, wrong = outcome.sentences[:2]
    assert won.startswith("lightning2, 2 bytes, D up to 64, 2 programs: chunk 32, value tile ")
    assert outcome.sentences[3].startswith("lightning2, 2 bytes, D up to 128, 3 programs: ")
    assert "is 100.0% faster than the table's row (chunk 64, value tile 64, 4 warps, 4 stages)" in won
    assert "; the runner-up, chunk 32" in won
    assert wrong.endswith(
        "configurations 1 returned wrong numbers and were refused; one reason: "
        "chunk 64, value tile 64, 4 warps, 3 stages: off by 1e+00"
    )
    assert outcome.rows[0]["gain_over_table"] == pytest.approx(1.0)
    assert outcome.rows[0]["wrong"] == 1
    assert outcome.rows[2]["programs"] == 3
    assert outcome.rows[2]["config"]["chunk_us"] == [1.0, 1.0, 1.0]
    assert {row["chunk_us_are"] for row in outcome.rows} == {"measured"}
    assert not [sentence for sentence in outcome.sentences if "chunk times" in sentence]


@pytest.mark.usefixtures("played_gpu")
def test_a_row_without_an_admitted_configuration_is_carried_over(tmp_path: Path) -> None:
    outcome = tune(Played(ms=by_chunk, wrong=lambda job: job.key_dim == 64), tmp_path / "t.toml")
    assert outcome.admitted == 2
    assert outcome.sentences[0].endswith(
        "D up to 64, 2 programs: no configuration was admitted; the table's row stays as it was, unchecked"
    )
    after = parse((tmp_path / "t.toml").read_text(encoding="utf-8"), source="t")
    assert after.rows[ROW] == CURRENT
    assert chunk_times(after.rows[ROW]) == chunk_times(table("hopper").rows[ROW])


@pytest.mark.usefixtures("played_gpu")
def test_the_tables_row_stays_where_nothing_is_better(tmp_path: Path) -> None:
    outcome = tune(Played(ms=lambda config: 1.0), tmp_path / "t.toml")
    assert outcome.sentences[0].startswith(
        "lightning2, 2 bytes, D up to 64, 2 programs: the table's row stays: chunk 64"
    )
    after = parse((tmp_path / "t.toml").read_text(encoding="utf-8"), source="t")
    assert after == table("hopper")
    assert chunk_times(after.rows[CROWDED]) == (
        1.0,
        1.0,
        1.0,
    )  # the row stays, its times are those of this device


@pytest.mark.usefixtures("played_gpu")
@pytest.mark.parametrize(
    ("ms", "words"), [(by_chunk, "guessed from the row before"), (lambda config: 1.0, "as before")]
)
def test_a_table_says_which_chunk_times_were_not_measured(
    tmp_path: Path, ms: Callable[[Config], float], words: str
) -> None:
    outcome = tune(
        Played(ms=ms, lost=lambda job: isinstance(job, Timing) and job.segments is not None),
        tmp_path / "t.toml",
    )
    text = (tmp_path / "t.toml").read_text(encoding="utf-8")
    assert text.count(f"; chunk_us {words}") == 3
    said = [sentence for sentence in outcome.sentences if "chunk times" in sentence]
    assert [sentence.partition(": ")[2] for sentence in said] == [
        "chunk times, by which plans choose among rows, were not measured (its process ended with signal SIGSEGV); "
        f"those in the table are {words}"
    ] * 3
    assert {row["chunk_us_are"] for row in outcome.rows} == {words}
    after, before = parse(text, source="t"), table("hopper")
    for row in (ROW, OTHER, CROWDED):
        times = chunk_times(after.rows[row])
        assert len(times) == row.programs
        assert (times == chunk_times(before.rows[row])) or ms is by_chunk
    if ms is by_chunk:  # half a chunk's work, and twice as fast in the race
        expected = [us / 2 / 2 for us in chunk_times(before.rows[ROW])]
        assert chunk_times(after.rows[ROW]) == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("played_gpu")
def test_a_gain_that_is_too_little_is_told(tmp_path: Path) -> None:
    outcome = tune(Played(ms=lambda config: 0.976 if config == FAST else 1.0), tmp_path / "t.toml")
    assert outcome.sentences[0].partition("the table's row stays: ")[2] == (
        "chunk 64, value tile 64, 4 warps, 4 stages; "
        "chunk 32, value tile 64, 4 warps, 4 stages is 2.5% faster, too little for a change, which takes 3%"
    )


@pytest.mark.usefixtures("played_gpu")
def test_a_dry_run_names_the_programs() -> None:
    lines = list(map(report.entry_in_words, command.candidates(a_request(head_dims=["128"]))))
    tables = [line for line in lines if line.endswith(" (the table)")]
    assert tables == [
        "lightning2, 2 bytes, D up to 128, 2 programs: chunk 32, value tile 64, 4 warps, 5 stages (the table)",
        "lightning2, 2 bytes, D up to 128, 3 programs: chunk 32, value tile 64, 4 warps, 3 stages (the table)",
    ]


@pytest.mark.usefixtures("played_gpu")
def test_nothing_is_overwritten_and_a_bad_table_in_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(ms=by_chunk)
    (tmp_path / "there.csv").touch()
    with pytest.raises(UserError, match=r"there\.csv exists already"):
        tune(played, tmp_path / "there.toml")
    with pytest.raises(UserError, match="cannot write into the folder"):
        tune(played, tmp_path / "nowhere" / "t.toml")
    with pytest.raises(UserError, match=r"ends in \.toml, got"):
        tune(played, tmp_path / "t.csv")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.toml"))
    with pytest.raises(UserError, match="cannot read the table"):
        tune(played, tmp_path / "t.toml")
    assert played.jobs == []


@pytest.mark.gpu
def test_a_small_tuning_on_the_card(tmp_path: Path) -> None:
    out = tmp_path / "t.toml"
    arguments = ["--head-dim", "64", "--shape", "1x16x4k", "--time-budget", "60", "-o", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", "tune", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "lightning2, 2 bytes, D up to 64" in done.stdout
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text(encoding="utf-8").splitlines()))
    assert "admitted" in {r["standing"] for r in rows}
    assert any(r["current"] == "True" and r["median_ms"] for r in rows)
    assert parse(out.read_text(encoding="utf-8"), source="t").rows
