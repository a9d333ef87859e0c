"""The parent of the ranks: starts them, hands each case to all, and ends all when one dies, hangs or fails alone."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attnbench.case import Status
from attnbench.executors.lock import Descriptors
from attnbench.executors.worker_process import Interpreter, WorkerDiedError, WorkerHungError, WorkerProcess

# How long the others may take to say that they failed too, once one did; then they wait for it in vain.
_GRACE_S = 5.0
_FIRST = (Status.OOM, Status.UNSUPPORTED, Status.INCORRECT, Status.TIMEOUT, Status.ERROR)


# Of every rank: NVLink multicast stays off.
NO_MULTICAST: Mapping[str, str] = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}


def variables(*, rank: int, ranks: int, device: str) -> dict[str, str]:
    """The environment of a rank, over that of the parent.

    On the CPU ranks share the cores and reach each other over the loopback, unless the user set that otherwise.
    """
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), **NO_MULTICAST}
    if device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // ranks)
        usual = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
        own |= {name: value for name, value in usual.items() if name not in os.environ}
    return own


class _Rank(WorkerProcess):
    """A rank's process."""

    def strike(self) -> None:
        """Kill it, and leave the rest to the thread that waits for it: its pipe must not be closed under it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class RankGroup:
    """Processes that measure together, one for each rank; a worker as `attnbench.models.running` wants one.

    They are started for the first case, and anew for one with another number of ranks. environment: of the machine.
    """

    alive = True

    def __init__(
        self, *, device: str, log: Path, inherit: Descriptors, environment: Mapping[str, Any]
    ) -> None:
        self.environment = dict(environment)
        self._device, self._log, self._inherit = device, log, inherit
        self._processes: list[_Rank] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Hand a case to all ranks; the answer of the one that says most.

        Raises WorkerDiedError when a rank died, WorkerHungError when one gave no answer in time; all are gone then.
        """
        count = int(message["request"]["ranks"])
        if len(self._processes) != count:
            self.end()
            self._begin(count)
        assert self._folder is not None
        full = {**message, "rendezvous": str(Path(self._folder.name) / "rendezvous")}
        answers = self._together([partial(each.ask, full, limit_s=limit_s) for each in self._processes])
        errors = [(rank, each) for rank, each in enumerate(answers) if isinstance(each, Exception)]
        replies = [each for each in answers if isinstance(each, dict)]
        statuses = {reply["rows"][0]["status"] for reply in replies}
        if errors or len(statuses) > 1 or any(reply["lost_device"] for reply in replies):
            self.kill()  # ranks that do not agree where they are cannot go on together
        failed = [reply for status in _FIRST for reply in replies if reply["rows"][0]["status"] == status]
        died = [(rank, error) for rank, error in errors if not isinstance(error, _StruckError)]
        if died:
            rank, error = died[0]
            kind = WorkerHungError if isinstance(error, WorkerHungError) else WorkerDiedError
            raise kind(f"rank {rank} of {count}: {error}")
        return {**(failed or replies)[0], "lost_device": False}

    def end(self) -> None:
        """Let idle ranks go."""
        for process in self._processes:
            process.end()
        self._forget()

    def kill(self) -> None:
        """End all ranks at once."""
        for process in self._processes:
            process.kill()
        self._forget()

    def _begin(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="attnbench-ranks-")
        with ThreadPoolExecutor(count) as pool:
            started = [pool.submit(self._start, rank, count) for rank in range(count)]
        self._processes = [each.result() for each in started if each.exception() is None]
        for each in started:
            error = each.exception()
            if error is not None:
                self.kill()
                raise error

    def _start(self, rank: int, count: int) -> _Rank:
        return _Rank(
            device=self._device,
            log=self._log,
            inherit=self._inherit,
            module="attnbench.parallel.rank",
            interpreter=Interpreter(variables=variables(rank=rank, ranks=count, device=self._device)),
        )

    def _together(self, asks: Sequence[Callable[[], dict[str, Any]]]) -> list[dict[str, Any] | Exception]:
        """What each rank answers, or what became of it; once one failed the others have a moment, and no more."""
        with ThreadPoolExecutor(len(asks)) as pool:
            futures = [pool.submit(ask) for ask in asks]
            struck: set[Future[dict[str, Any]]] = set()
            try:
                _, waiting = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
                while waiting and all(_is_fine(each) for each in futures if each.done()):
                    _, waiting = concurrent.futures.wait(
                        waiting, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                if waiting:
                    _, struck = concurrent.futures.wait(waiting, timeout=_GRACE_S)
            except BaseException:
                struck = set(futures)
                raise
            finally:
                for process, future in zip(self._processes, futures, strict=True):
                    if future in struck:
                        process.strike()
        found: list[dict[str, Any] | Exception] = []
        for future in futures:
            error = future.exception()
            if future in struck and error is not None:
                error = _StruckError(str(error))
            assert error is None or isinstance(error, Exception)
            found.append(future.result() if error is None else error)
        return found

    def _forget(self) -> None:
        self._processes = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class _StruckError(Exception):
    """A rank that waited for one that had failed, and was ended."""


def _is_fine(future: Future[dict[str, Any]]) -> bool:
    return future.exception() is None and future.result()["rows"][0]["status"] == Status.OK
