"""A tuning from request to choices: screen all candidates in parallel, time by halving, admit the winners, and
measure what plans have to know of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from attnbench.executors.pool import Lost, Pool
from attnbench.kernels._configs import Row, ScanConfig, Table
from attnbench.kernels._host import Limits
from attnbench.measure.clock import now_s
from attnbench.tuning.candidates import CHUNKS, Point, candidates, chunk_points, fitted
from attnbench.tuning.choosing import Choice, Entry, Standing, choice, halve, next_in_line
from attnbench.tuning.report import kind_in_words
from attnbench.tuning.trial import Answer, Job, Timing, admission, perform, screening

# Shares of the budget, of which each phase leaves to the next what it does not use: compiling is the slow part.
_SCREENING, _ADMISSION = 0.55, 0.25
# Seconds: a configuration that the compiler takes longer over would keep a user waiting too.
_CHECK_LIMIT_S, _TIMING_LIMIT_S = 60.0, 60.0
_WARM_UP_CALLS = 100
_CHUNK_SAMPLES = 24
_TELL_EVERY_S = 2.0


class Jobs(Protocol):
    """What does the jobs: a `Pool`, or a test's stand-in."""

    def run(
        self, jobs: Iterable[Job], *, limit_s: float, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Answer | Lost]]: ...


Pools = Callable[[int], AbstractContextManager[Jobs]]


def processes(size: int) -> Pool[Job, Answer]:
    """A pool of that many processes on the first GPU."""
    return Pool(perform, size=size)


@dataclass(frozen=True, kw_only=True)
class Clockwork:
    """The budget, in seconds of `now`, and a voice for progress."""

    budget_s: float
    tell: Callable[[str], None]
    now: Callable[[], float] = now_s


def entries_of(rows: Iterable[Row], *, table: Table, limits: Limits) -> dict[Row, list[Entry]]:
    """Every candidate of every row, the table's own first, as it would be launched on that device."""
    found = {}
    for row in rows:
        current = fitted(table.rows[row], row=row, limits=limits)
        configs = candidates(row, current=current, limits=limits)
        found[row] = [Entry(row=row, config=c, current=c == current) for c in configs]
    return found


def race(
    entries: Mapping[Row, Sequence[Entry]],
    *,
    points: Mapping[Row, Sequence[Point]],
    clockwork: Clockwork,
    size: int,
    multiprocessors: int,
    pools: Pools = processes,
) -> list[Choice]:
    """A choice for each row within the budget; entries are told their standing and their times.

    size: processes that check at a time. Timing has the device for itself, in a process of its own.
    multiprocessors: of the device.
    """
    watch = _Watch(clockwork)
    with pools(size) as checkers, pools(1) as timers:
        _screen(entries, points=points, jobs=checkers, watch=watch)
        rankings: dict[Row, list[Entry]] = {}
        for place, row in enumerate(entries):
            # The rows that are left share what is left before the admissions.
            share = (watch.left() - _ADMISSION * clockwork.budget_s) / (len(entries) - place)
            rankings[row] = _rank(
                entries[row], points=points[row], jobs=timers, watch=watch, until=watch.left() - share
            )
        _admit(rankings, jobs=checkers, watch=watch)
        choices = [choice(row, entries=entries[row], ranking=rankings[row]) for row in entries]
        winners = [(c.winner, points[c.row][0].dtype) for c in choices if c.winner is not None]
        _measure_chunks(winners, multiprocessors=multiprocessors, jobs=timers, watch=watch)
    return choices


class _Watch:
    """What is left of the budget, and progress told now and then."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self._start = clockwork.now()
        self._told = -_TELL_EVERY_S

    def left(self) -> float:
        """Seconds; negative when the budget is spent."""
        return self._clockwork.budget_s - (self._clockwork.now() - self._start)

    def until(self, left_s: float) -> Callable[[], bool]:
        return lambda: self.left() <= left_s

    def tell(self, text: str, *, always: bool = False) -> None:
        elapsed = self._clockwork.budget_s - self.left()
        if always or elapsed - self._told >= _TELL_EVERY_S:
            self._told = elapsed
            self._clockwork.tell(f"[{max(0.0, self.left()):3.0f} s left] {text}")


def _screen(
    entries: Mapping[Row, Sequence[Entry]],
    *,
    points: Mapping[Row, Sequence[Point]],
    jobs: Jobs,
    watch: _Watch,
) -> None:
    """The nearest candidates of every row come first, so that no row starves."""
    everyone = [entry for row in entries for entry in entries[row]]
    places = {id(e): place for row in entries for place, e in enumerate(entries[row])}
    owner: dict[Job, Entry] = {}
    todo: dict[int, int] = {}
    for entry in sorted(everyone, key=lambda e: places[id(e)]):
        checks = screening(entry.row.kernel, entry.config, points=list(points[entry.row]))
        todo[id(entry)] = len(checks)
        for check in checks:
            owner[check] = entry
    waiting = (job for job, entry in owner.items() if entry.standing is Standing.UNTRIED)
    stop = watch.until((1 - _SCREENING) * (watch.left()))
    for done, (job, answer) in enumerate(jobs.run(waiting, limit_s=_CHECK_LIMIT_S, stop=stop), start=1):
        entry = owner[job]
        todo[id(entry)] -= 1
        if not _refused(entry, answer) and not todo[id(entry)]:
            entry.standing = Standing.SCREENED
        refused = sum(e.standing in (Standing.WRONG, Standing.FAILED) for e in everyone)
        watch.tell(f"checked {done} of {len(owner)}: {refused} refused", always=done == len(owner))


def _refused(entry: Entry, answer: Answer | Lost) -> bool:
    if entry.standing in (Standing.WRONG, Standing.FAILED):
        return True
    if answer.reason is None:
        return False
    wrong = isinstance(answer, Answer) and answer.wrong
    entry.refuse(Standing.WRONG if wrong else Standing.FAILED, answer.reason)
    return True


def _rank(
    entries: Sequence[Entry], *, points: Sequence[Point], jobs: Jobs, watch: _Watch, until: float
) -> list[Entry]:
    stop = watch.until(until)
    name = _row_name(entries[0].row)
    timed = 0

    def timer(entry: Entry, point: Point, count: int) -> Sequence[float]:
        nonlocal timed
        job = Timing(kernel=entry.row.kernel, config=entry.config, point=point, count=count)
        for _, answer in jobs.run([job], limit_s=_TIMING_LIMIT_S, stop=stop):
            timed += 1
            watch.tell(f"timing {name}: {timed} timings")
            if not _refused(entry, answer) and isinstance(answer, Answer):
                return answer.samples_ms
        return ()

    first = next((e for e in entries if e.racing), None)
    if first is not None:  # unrecorded: the device has slept, and its clocks rise
        timer(first, points[0], _WARM_UP_CALLS)
    ranking = halve(entries, points=points, timer=timer, stop=stop)
    best = ranking[0] if ranking else None
    watch.tell(
        f"timed {name}: {len(ranking)} configurations, the best {best.score_ms:.4g} ms"
        if best is not None
        else f"timed {name}: nothing, as no configuration passed its check in time",
        always=True,
    )
    return ranking


def _row_name(row: Row) -> str:
    return f"{row.kernel} at {row.element_size} bytes, D {row.key_dim}{kind_in_words(row)}"


def _admit(rankings: Mapping[Row, Sequence[Entry]], *, jobs: Jobs, watch: _Watch) -> None:
    """Check the next in line of every row, until each row has one that is admitted, or the time is over."""
    while watch.left() > 0:
        heirs = [e for e in map(next_in_line, rankings.values()) if e and e.standing is Standing.SCREENED]
        if not heirs:
            return
        owner: dict[Job, Entry] = {}
        todo: dict[int, int] = {}
        for heir in heirs:
            checks = admission(heir.row, heir.config)
            todo[id(heir)] = len(checks)
            for check in checks:
                owner[check] = heir
        waiting = (job for job, heir in owner.items() if heir.racing)
        for job, answer in jobs.run(waiting, limit_s=_CHECK_LIMIT_S, stop=watch.until(0.0)):
            heir = owner[job]
            todo[id(heir)] -= 1
            if not _refused(heir, answer) and not todo[id(heir)]:
                heir.standing = Standing.ADMITTED
            watch.tell(f"admitting: {sum(todo.values())} of {len(owner)} checks to go")


def _measure_chunks(
    winners: Sequence[tuple[Entry, str]], *, multiprocessors: int, jobs: Jobs, watch: _Watch
) -> None:
    """Tell the winners, each with a dtype of its row, their chunk times; one whose launches fail, or that the time is
    over for, is told none."""
    scans = [(entry, entry.config, dtype) for entry, dtype in winners if isinstance(entry.config, ScanConfig)]
    for entry, config, dtype in scans:
        points = chunk_points(entry.row, config, dtype=dtype, multiprocessors=multiprocessors)
        # The first call of all is unrecorded, as in `_rank`.
        calls = [(points[0], _WARM_UP_CALLS), *((point, _CHUNK_SAMPLES) for point in points)]
        times: list[float] = []
        for point, count in calls:
            us = _chunk_us(entry, point, count, jobs=jobs, watch=watch)
            if not us:
                break
            times.append(us)
        if len(times) == len(calls):
            entry.chunk_us = tuple(times[1:])
    if scans:
        measured = sum(bool(entry.chunk_us) for entry, _, _ in scans)
        watch.tell(f"measured the chunk times of {measured} of {len(scans)} rows", always=True)


def _chunk_us(entry: Entry, point: Point, count: int, *, jobs: Jobs, watch: _Watch) -> float | None:
    """Microseconds of a chunk at a point of `chunk_points`; None without an answer."""
    job = Timing(kernel=entry.row.kernel, config=entry.config, point=point, count=count, segments=1)
    for _, answer in jobs.run([job], limit_s=_TIMING_LIMIT_S, stop=watch.until(0.0)):
        if isinstance(answer, Answer) and answer.samples_ms:
            return round(statistics.median(answer.samples_ms) * 1e3 / CHUNKS, 2)
    return None
