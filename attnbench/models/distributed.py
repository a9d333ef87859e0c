"""Several GPUs: FSDP2 with one process each, as torchrun starts them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import torch.distributed as dist

from attnbench.errors import UserError
from attnbench.options import Exit

if TYPE_CHECKING:
    from attnbench.models.model import LanguageModel

_PATIENCE: Final = datetime.timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device) -> Ranks:
        return cls(rank=0, count=1, device=device)

    def shard(self, model: LanguageModel) -> None:
        """Cut the parameters of each block, and of the rest, over the ranks (FSDP2). Alone: nothing."""
        if self.count == 1:
            return
        # It takes a process as long to import as half of torch, and few shard.
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What one rank is refused in here ends all: else the others would wait for it until they are killed.

        Raises UserError on the rank that was refused, and ends the others without a word (exit code 2).
        """
        refusal: UserError | None = None
        try:
            yield
        except UserError as error:
            refusal = error
        if self.any(refusal is not None):
            raise refusal or SystemExit(Exit.USAGE)

    def any(self, here: bool) -> bool:
        """Is it so on any rank? All ranks ask together: they must go the same way."""
        if self.count == 1:
            return here
        flag = torch.tensor(int(here), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


def launched() -> bool:
    """Did torchrun start this process?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def joined(kind: str) -> Iterator[Ranks]:
    """The process group of torchrun's processes, on a GPU each ("cuda", NCCL) or on the CPU (gloo).

    Raises UserError when this host has fewer GPUs than processes.
    """
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if kind == "cuda" and here > gpus:
        raise UserError(
            f"torchrun started {here} ranks on this host, which need {here} GPUs, and torch sees {gpus}; try "
            f"--nproc-per-node {gpus}"
        )
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # A rank that ran out of memory leaves the others waiting: not for longer than this.
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(rank=dist.get_rank(), count=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()
