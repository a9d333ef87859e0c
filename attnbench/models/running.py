"""Hand requests to a worker process, keep what it answers, and stop before the time is up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from attnbench.case import Status
from attnbench.errors import UserError
from attnbench.executors import idle
from attnbench.executors.lock import Descriptors
from attnbench.executors.spared import NOT_ATTEMPTED, Forecast
from attnbench.executors.worker_process import Interpreter, WorkerDiedError, WorkerHungError, WorkerProcess
from attnbench.measure.clock import now_s
from attnbench.models.folder import Folder
from attnbench.models.records import Loss, R, TrainStep
from attnbench.words import count_text, duration

GRACE_S = 30.0  # beyond the limit that a worker keeps by itself, before it is taken to hang
LEAST_S = 5.0  # of budget, below which no case is begun
# With fixed segments a long step may fail for want of one large piece, with enough free in small ones.
_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


class Request(Protocol):
    """What the three kinds of requests share."""

    @property
    def case_id(self) -> str: ...
    @property
    def limit_s(self) -> float: ...


class Worker(Protocol):
    """What a run needs of a worker: `WorkerProcess` is one."""

    environment: dict[str, Any]

    @property
    def alive(self) -> bool: ...
    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]: ...
    def end(self) -> None: ...
    def kill(self) -> None: ...


Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What a run ended with: its rows in the order asked for, and why others are missing."""

    rows: Sequence[R]
    missing: Sequence[str]  # sentences: of losses that could not be had
    left: int  # cases that the budget had no time for


@dataclass
class Run(Generic[R]):
    """Requests of one kind, in the order in which they are measured.

    series: of a request, what it shares with those that differ from it in length alone; once one of them took too
    long, longer ones are not attempted. blank: the record of a request of which nothing is known. start: makes a
    worker that inherits the descriptors of the device's lock; None: a process of `models.worker`. forecast: of
    requests that must take too long; None: all are attempted. warm_grace_s: the time beyond its limit of a worker that
    answered a case of the series before, and so has started, compiled and checked what this one needs.
    """

    folder: Folder[R]
    device: str
    budget_s: float | None
    series: Callable[[Any], tuple[object, ...]]
    blank: Callable[[Any], R]
    say: Say
    describe: Callable[[R], str]
    start: Callable[[Descriptors], Worker] | None = None
    forecast: Forecast | None = None
    warm_grace_s: float = GRACE_S
    _worker: Worker | None = None
    _environment: dict[str, Any] = field(default_factory=dict)  # of the worker that was started last
    _lock: Descriptors | None = None
    _overlong: dict[tuple[object, ...], str] = field(default_factory=dict)
    _warm: set[tuple[object, ...]] = field(default_factory=set)  # what the worker has answered

    def measure(self, requests: Sequence[Any]) -> Outcome[R]:
        """Measure those that the folder lacks; it is merged in the end, however that comes.

        Raises UserError when another process times on the device, or the folder holds other devices' records or a
        damaged file.
        """
        begun = now_s()
        self.folder.lay_out()
        done = self.folder.done()
        todo = [request for request in requests if request.case_id not in done]
        for request in requests:
            if self.forecast is not None and request.case_id in done:
                self.forecast.learn(request, self.folder.rows([request.case_id]))
        tell_done(len(requests) - len(todo), len(requests), folder=self.folder, say=self.say)
        missing: list[str] = []
        left = 0
        try:
            with self._running() if todo else contextlib.nullcontext():
                for count, request in enumerate(todo):
                    remaining = None if self.budget_s is None else self.budget_s - (now_s() - begun)
                    reason: str | None = _CUT
                    if remaining is None or remaining >= LEAST_S:
                        self._tell_beginning(request, count=count + 1, total=len(todo))
                        reason = self._case(request, remaining=remaining)
                    if reason is _CUT:
                        left += len(todo) - count
                        break
                    if reason is _LATER:
                        left += 1
                        continue
                    if reason is not None:
                        missing.append(f"{request.case_id}: {reason}")
                    self._tell(request, reason, count=count + 1, total=len(todo), begun=begun)
        except KeyboardInterrupt:
            count = len(self.folder.done() & {request.case_id for request in requests})
            done_text = f"{count:,} of {count_text(len(requests), 'case')}"
            self.say(
                f"stopped: {done_text} are measured and safe in {self.folder.path}; the same command goes on"
            )
            raise
        finally:
            if self.folder.done():
                self.folder.merge()
        return Outcome(rows=self.folder.rows([r.case_id for r in requests]), missing=missing, left=left)

    def _case(self, request: Any, *, remaining: float | None) -> str | None:
        """Measure one case and keep it. Returns why there is nothing to keep: None, a reason, _CUT or _LATER."""
        series = self.series(request)
        reason = self._spared(request, limit_s=request.limit_s)
        if reason is not None:
            return self._keep_failed(request, Status.TIMEOUT, reason)
        whole = request.limit_s + _allowance_s(request)
        given = whole if remaining is None else min(whole, remaining)
        if self._spared(request, limit_s=min(request.limit_s, given)) is not None:
            return _LATER
        grace = self.warm_grace_s if series in self._warm else GRACE_S
        message = {
            "kind": self.folder.kind.KIND,
            "request": dataclasses.asdict(_within(request, given)),
        }
        worker = self._ready()
        try:
            reply = worker.ask(message, limit_s=given + grace)
        except WorkerDiedError as error:
            self._warm.clear()
            return self._keep_failed(request, Status.CRASHED, str(error))
        except WorkerHungError as error:
            self._warm.clear()
            if given < whole:
                return _CUT
            reason = f"{error}: the worker was ended"
            self._overlong[series] = f"a shorter one took too long ({reason})"
            return self._keep_failed(request, Status.TIMEOUT, reason)
        if all(row["status"] == Status.OK for row in reply["rows"] if "status" in row):
            self._warm.add(series)
        else:
            self._warm.clear()  # what failed may have ended processes
        rows: list[R] = [self.folder.kind(**_tuples(row)) for row in reply["rows"]]
        ends = [*reply["rows"], {"status": reply.get("status"), "reason": reply["reason"]}]
        timeouts = [each["reason"] for each in ends if each.get("status") == Status.TIMEOUT]
        if timeouts and given < whole:
            return _CUT  # the budget's fault, not the case's: the next sitting measures it
        if timeouts:
            self._overlong[series] = f"a shorter one took too long ({timeouts[0]})"
        if self.forecast is not None:
            self.forecast.learn(request, rows)
        if rows:
            self.folder.keep(request.case_id, rows, environment=self._environment)
        if reply["lost_device"]:
            self._warm.clear()
            worker.end()
            self._worker = None
        reason_text: str | None = reply["reason"]
        return reason_text

    def _spared(self, request: Any, *, limit_s: float) -> str | None:
        """Why a request need not be attempted, by shorter ones of its series; None: it should be."""
        series = self.series(request)
        if series in self._overlong:
            return f"{NOT_ATTEMPTED}: {self._overlong[series]}"
        return None if self.forecast is None else self.forecast.reason(request, limit_s=limit_s)

    def _keep_failed(self, request: Any, status: Status, reason: str) -> str | None:
        if self.folder.kind is Loss:
            return reason
        row = dataclasses.replace(self.blank(request), status=str(status), reason=reason)
        self.folder.keep(request.case_id, [row], environment=self._environment)
        return None

    def _tell_beginning(self, request: Any, *, count: int, total: int) -> None:
        """Of a case that is silent for long before anything is timed."""
        if allowance := _allowance_s(request):
            self.say(
                f"[{count}/{total}] {request.case_id}: compiling (up to {allowance:.0f} s beside its limit)"
            )

    def _tell(self, request: Any, reason: str | None, *, count: int, total: int, begun: float) -> None:
        rows = self.folder.rows([request.case_id])
        what = self.describe(rows[-1]) if rows else f"{request.case_id}: {reason}"
        self.say(progress(what, count=count, total=total, begun=begun))

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The device to ourselves, and no worker left behind."""
        with idle.lock(self.device) as self._lock:
            try:
                self._ready()
                self.folder.open(device=self._environment["device"])
                yield
            except BaseException:
                if self._worker is not None and self._worker.alive:
                    self._worker.kill()
                raise
            else:
                if self._worker is not None and self._worker.alive:
                    idle.end(self._worker)
            finally:
                self._worker = None

    def _ready(self) -> Worker:
        """A worker that is alive. Raises UserError when none can be started: that is no case's fault."""
        if self._worker is None or not self._worker.alive:
            self.folder.make()
            assert self._lock is not None
            try:
                self._worker = (self.start or self._process)(self._lock)
            except (WorkerDiedError, WorkerHungError) as error:
                raise UserError(
                    f"no worker process can be started ({error}); what was measured is in {self.folder.path}, and the "
                    "same command goes on with the rest"
                ) from error
            self._environment = {**self._worker.environment, "command": sys.argv[1:]}
        return self._worker

    def _process(self, lock: Descriptors) -> Worker:
        return idle.worker(
            WorkerProcess,
            device=self.device,
            log=self.folder.log,
            inherit=lock,
            module="attnbench.models.worker",
            interpreter=Interpreter(variables=self._variables()),
        )

    def _variables(self) -> dict[str, str]:
        """Of a worker that trains; the captured graphs of inference are left with the allocator as it is."""
        if self.folder.kind is not TrainStep:
            return {}
        return {name: value for name, value in _ALLOCATOR.items() if name not in os.environ}


def tell_done(done: int, total: int, *, folder: Folder[Any], say: Say) -> None:
    """That cases are there already, whatever steps and samples were asked for this time."""
    if done:
        say(
            f"{done:,} of {count_text(total, 'case')} in {folder.path} already: what is there is not measured again"
        )


def progress(what: str, *, count: int, total: int, begun: float) -> str:
    """One of so many cases, and about how long the others take if they take as long as those since `begun`."""
    left = (now_s() - begun) / count * (total - count)
    return f"[{count}/{total}] {what}" + (f" (about {duration(left)} left)" if count < total else "")


_CUT = "the budget ended"
_LATER = "more than what is left of the budget"


def _allowance_s(request: Any) -> float:
    """Seconds that a request may take before its limit begins, for compiling; most kinds have none."""
    return float(getattr(request, "allowance_s", 0.0))


def _within(request: Any, given_s: float) -> Any:
    """The request in so many seconds at most: its limit, and what is left beside it to compile in."""
    limit_s = min(request.limit_s, given_s)
    beside = {"compile_limit_s": given_s - limit_s} if _allowance_s(request) else {}
    return dataclasses.replace(request, limit_s=limit_s, **beside)


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
