"""The process of one rank: takes cases from the parent, joins the others, and answers each case with a row.

Messages in: {"request": {fields of ParallelRequest}, "rendezvous": path of a file that all ranks share}.
Messages out: {"rows": [{...}], "reason": null, "lost_device": bool}, as of `attnbench.models.worker`.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import Any

import torch
import torch.distributed as dist

from attnbench.case import Status
from attnbench.measure.worker import device_is_lost, serve
from attnbench.models.distributed import Ranks
from attnbench.parallel.measuring import measure_parallel
from attnbench.parallel.requests import ParallelRequest

# The parent watches and ends ranks in time. This is for the case that it is gone, and longer than any call may take.
_PATIENCE = datetime.timedelta(minutes=10)


class Member:
    """This process among the ranks of its group, which it joins with the first case."""

    def __init__(self) -> None:
        self._rank, self._count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._joined = False

    def answer(self, message: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Measure what is asked for, together with the other ranks."""
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        self._join(message["rendezvous"], device=device)
        ranks = Ranks(rank=self._rank, count=self._count, device=device)
        row = measure_parallel(ParallelRequest(**message["request"]), ranks=ranks)
        return {
            "rows": [dataclasses.asdict(row)],
            "reason": None,
            "lost_device": row.status == Status.ERROR and device_is_lost(device),
        }

    def _join(self, rendezvous: str, *, device: torch.device) -> None:
        if self._joined or self._count == 1:
            return
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{rendezvous}",
            rank=self._rank,
            world_size=self._count,
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        self._joined = True


if __name__ == "__main__":
    serve(Member().answer)
