"""A tuning from request to choices: screen all candidates in parallel, time by halving, admit the winners, and
measure what plans have to know of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from attnbench.executors.pool import Lost, Pool
from attnbench.kernels._configs import Row, ScanConfig, Table
from attnbench.kernels._host import Limits
from attnbench.measure.clock import now_s
from attnbench.tuning.candidates import CHUNKS, Point, candidates, chunk_points, fitted
from attnbench.tuning.choosing import Choice, Entry, Standing, choice, halve, next_in_line
from attnbench.tuning.report import kind_in_words
from attnbench.tuning.trial import Answer, Job, Timing, admission, perform, screening

# Shares of the budget, of which each phase leaves to the next what it does not use: compiling is the slow part. The
# race has what these leave. An admission that takes longer takes it from the chunk times, as an unchecked row is none.
_SCREENING, _ADMISSION, _CHUNK_TIMES = 0.5, 0.25, 0.1
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
Chunks = Callable[
    [ScanConfig], list[Point]
]  # of a row: where the chunk times of a configuration are measured


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
            reserved = (_ADMISSION + _CHUNK_TIMES) * clockwork.budget_s
            share = (watch.left() - reserved) / (len(entries) - place)
            rankings[row] = _rank(
                entries[row], points=points[row], jobs=timers, watch=watch, until=watch.left() - share
            )
        chunks = {
            row: partial(chunk_points, row, dtype=points[row][0].dtype, multiprocessors=multiprocessors)
            for row in entries
        }
        _admit(rankings, chunks=chunks, jobs=checkers, watch=watch)
        choices = [choice(row, entries=entries[row], ranking=rankings[row]) for row in entries]
        _measure_chunks(choices, chunks=chunks, jobs=timers, watch=watch)
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


def _admit(
    rankings: Mapping[Row, Sequence[Entry]], *, chunks: Mapping[Row, Chunks], jobs: Jobs, watch: _Watch
) -> None:
    """Check the next in line of every row, until each row has one that is admitted, or the time is over.

    Beside their checks the launches that will measure their chunks are compiled, while there are processes to do it.
    """
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
        ahead = [job for heir in heirs for job in _chunk_timings(heir, chunks[heir.row])[:1]]
        compiling = dict.fromkeys(replace(job, count=0) for job in ahead)
        waiting = (job for job in (*compiling, *owner) if job in compiling or owner[job].racing)
        for job, answer in jobs.run(waiting, limit_s=_CHECK_LIMIT_S, stop=watch.until(0.0)):
            if job in compiling:  # one that fails says so again when it is to be timed
                continue
            heir = owner[job]
            todo[id(heir)] -= 1
            if not _refused(heir, answer) and not todo[id(heir)]:
                heir.standing = Standing.ADMITTED
            watch.tell(f"admitting: {sum(todo.values())} of {len(owner)} checks to go")


def _chunk_timings(entry: Entry, chunks: Chunks) -> list[Timing]:
    """What measures an entry's chunks: the first call of all is not counted, as in `_rank`; none for Lightning-1."""
    if not isinstance(entry.config, ScanConfig):
        return []
    points = chunks(entry.config)
    calls = [(points[0], _WARM_UP_CALLS), *((point, _CHUNK_SAMPLES) for point in points)]
    return [
        Timing(kernel=entry.row.kernel, config=entry.config, point=point, count=count, segments=1)
        for point, count in calls
    ]


def _measure_chunks(
    choices: Sequence[Choice], *, chunks: Mapping[Row, Chunks], jobs: Jobs, watch: _Watch
) -> None:
    """Tell the winners their chunk times; one whose launches fail, or that the time is over for, is told why not.

    The new ones come first: what stays in the table has chunk times already.
    """
    winners = [c.winner for c in choices if c.winner is not None and isinstance(c.winner.config, ScanConfig)]
    for entry in sorted(winners, key=lambda e: e.current):
        times: list[float] = []
        for job in _chunk_timings(entry, chunks[entry.row]):
            found = _chunk_us(job, jobs=jobs, watch=watch)
            if isinstance(found, str):
                entry.chunk_reason = found
                break
            times.append(found)
        else:
            entry.chunk_us = tuple(times[1:])
    if winners:
        measured = sum(bool(entry.chunk_us) for entry in winners)
        watch.tell(f"measured the chunk times of {measured} of {len(winners)} rows", always=True)


def _chunk_us(job: Timing, *, jobs: Jobs, watch: _Watch) -> float | str:
    """Microseconds of a chunk at a point of `chunk_points`, or why there are none."""
    for _, answer in jobs.run([job], limit_s=_TIMING_LIMIT_S, stop=watch.until(0.0)):
        if isinstance(answer, Answer) and answer.samples_ms:
            return round(statistics.median(answer.samples_ms) * 1e3 / CHUNKS, 2)
        return answer.reason or "no samples came"
    return "the time was over"
