"""Under torchrun: all processes measure the same cases, and the first of them keeps the records."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from attnbench.case import Status
from attnbench.executors.lock import device_lock
from attnbench.executors.spared import Forecast
from attnbench.measure.clock import now_s
from attnbench.measure.environment import collect
from attnbench.models.distributed import Ranks
from attnbench.models.folder import Folder
from attnbench.models.records import R
from attnbench.models.running import LEAST_S, Outcome, Say, progress, tell_done


def measure_together(
    requests: Sequence[Any],
    *,
    folder: Folder[R],
    measure: Callable[[Any], R],
    ranks: Ranks,
    budget_s: float | None,
    say: Say,
    describe: Callable[[R], str],
    forecast: Forecast | None = None,
) -> Outcome[R]:
    """Measure what the folder lacks, on all ranks: `measure` makes the record of a request, `forecast` spares some.

    What is returned counts on the first rank alone. One that runs out of memory by itself takes the others down when
    they have waited for it: the case is `crashed` when the same command is given again, and the run goes on behind it.

    Each rank holds its own GPU, and on processors the first rank holds that of its machine.

    Raises UserError when another process times on the device, or the folder holds other devices' records.
    """
    ours = ranks.device.type == "cuda" or ranks.rank == 0
    environment = collect(ranks.device)
    with contextlib.ExitStack() as held:
        with ranks.together():
            if ours:
                held.enter_context(device_lock(ranks.device.type, index=ranks.device.index))
            if ranks.rank == 0:
                folder.open(device=environment["device"])
        return _measure(
            requests,
            folder=folder,
            environment=environment,
            measure=measure,
            ranks=ranks,
            budget_s=budget_s,
            say=say,
            describe=describe,
            forecast=forecast,
        )


def _measure(
    requests: Sequence[Any],
    *,
    folder: Folder[R],
    environment: dict[str, Any],
    measure: Callable[[Any], R],
    ranks: Ranks,
    budget_s: float | None,
    say: Say,
    describe: Callable[[R], str],
    forecast: Forecast | None,
) -> Outcome[R]:
    begun, total = now_s(), _lacking(requests, folder)
    left = 0
    if ranks.rank == 0:
        tell_done(
            len({request.case_id for request in requests}) - total, len(requests), folder=folder, say=say
        )
    for request in requests:
        if not ranks.any(ranks.rank == 0 and _is_lacking(request, folder, forecast)):
            continue
        if ranks.any(budget_s is not None and now_s() - begun > budget_s - LEAST_S):
            left += 1
            continue
        if not ranks.any(ranks.rank == 0 and _begins(request, folder, environment, forecast)):
            continue
        row = measure(request)
        if forecast is not None:
            forecast.learn(request, [row])
        if ranks.rank == 0:
            folder.keep(request.case_id, [row], environment=environment)
            count = total - _lacking(requests, folder)
            say(progress(describe(row), count=count, total=total, begun=begun))
    ranks.any(False)  # all are done
    if ranks.rank == 0 and folder.done():
        folder.merge()
    done = folder.rows([request.case_id for request in requests]) if ranks.rank == 0 else []
    return Outcome(rows=done, missing=[], left=left)


def _lacking(requests: Sequence[Any], folder: Folder[Any]) -> int:
    """How many cases the folder does not hold."""
    return len({request.case_id for request in requests} - folder.done())


def _is_lacking(request: Any, folder: Folder[Any], forecast: Forecast | None) -> bool:
    """Does the folder not hold a case? From one that it holds others are foretold."""
    if request.case_id not in folder.done():
        return True
    if forecast is not None:
        forecast.learn(request, folder.rows([request.case_id]))
    return False


def _begins(
    request: Any, folder: Folder[Any], environment: dict[str, object], forecast: Forecast | None
) -> bool:
    """Is a case to be measured now?

    One at which the processes ended before is not, nor one that must take too long: it becomes a row now.
    """
    status, reason = Status.TIMEOUT, forecast and forecast.reason(request, limit_s=request.limit_s)
    if folder.unfinished(request.case_id):
        status = Status.CRASHED
        reason = "the processes ended during this case, as they do when one of them runs out of memory"
    if reason:
        row = dataclasses.replace(request.blank(), status=str(status), reason=reason)
        folder.keep(request.case_id, [row], environment=environment)
        return False
    folder.begin(request.case_id)
    return True
