"""Under torchrun: all processes measure the same cases, and the first of them keeps the records."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from attnbench.case import Status
from attnbench.executors.lock import device_lock
from attnbench.measure.clock import now_s
from attnbench.measure.environment import collect
from attnbench.models.distributed import Ranks
from attnbench.models.folder import Folder
from attnbench.models.records import R
from attnbench.models.running import LEAST_S, Outcome, Say


def measure_together(
    requests: Sequence[Any],
    *,
    folder: Folder[R],
    measure: Callable[[Any], Any],
    ranks: Ranks,
    budget_s: float | None,
    say: Say,
) -> Outcome[R]:
    """Measure what the folder lacks, on all ranks: `measure` makes the record of a request.

    What is returned counts on the first rank alone. One that runs out of memory by itself takes the others down when
    they have waited for it: the case is `crashed` when the same command is given again, and the run goes on behind it.

    Each rank holds its own GPU, and on processors the first rank holds that of its machine.

    Raises UserError when another process times on the device, or the folder holds other devices' records.
    """
    ours = ranks.device.type == "cuda" or ranks.rank == 0
    with device_lock(ranks.device.type, index=ranks.device.index) if ours else contextlib.nullcontext():
        return _measure(requests, folder=folder, measure=measure, ranks=ranks, budget_s=budget_s, say=say)


def _measure(
    requests: Sequence[Any],
    *,
    folder: Folder[R],
    measure: Callable[[Any], Any],
    ranks: Ranks,
    budget_s: float | None,
    say: Say,
) -> Outcome[R]:
    environment = collect(ranks.device)
    if ranks.rank == 0:
        folder.open(device=environment["device"])
    begun = now_s()
    left = 0
    for request in requests:
        if ranks.any(budget_s is not None and now_s() - begun > budget_s - LEAST_S):
            left += 1
            continue
        if not ranks.any(ranks.rank == 0 and _to_do(request, folder, environment=environment)):
            continue
        row = measure(request)
        if ranks.rank == 0:
            folder.keep(request.case_id, [row], environment=environment)
            say(f"{request.case_id}: {row.status}" + (f": {row.reason}" if row.reason else ""))
    dist.barrier()
    if ranks.rank == 0 and folder.done():
        folder.merge()
    done = folder.rows([request.case_id for request in requests]) if ranks.rank == 0 else []
    return Outcome(rows=done, missing=[], left=left)


def _to_do(request: Any, folder: Folder[Any], *, environment: dict[str, object]) -> bool:
    """Is a case still to be measured? One at which the processes ended before is not: it becomes a row now."""
    if request.case_id in folder.done():
        return False
    if folder.unfinished(request.case_id):
        reason = "the processes ended during this case, as they do when one of them runs out of memory"
        row = dataclasses.replace(request.blank(), status=str(Status.CRASHED), reason=reason)
        folder.keep(request.case_id, [row], environment=environment)
        return False
    folder.begin(request.case_id)
    return True
