"""What the ranks of `test_equality.py` run: all cases on any number of ranks against the fp64 oracle, and a wait."""

from __future__ import annotations

import datetime
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from attnbench.measure.spans import Spans
from attnbench.parallel.mechanisms import MECHANISMS, build
from attnbench.parallel.wire import Arrival, BlockingWire, GroupWire
from attnbench.semantics import SEMANTICS

HEADS, DIM = 3, 16
# Slopes under which a token is forgotten within a piece, or never, and none at all.
SLOPES = {"mixed": [0.9, 0.05, 0.0], "short": [2.0, 1.5, 3.0], "none": None}
LENGTHS = {"ragged": 101, "few": 9}  # tokens; no number of ranks but one divides them all
RANKS = (1, 2, 3, 4)
WAITING = 2  # ranks of the test of a transfer alone
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}


def names() -> Iterator[tuple[str, str, str, str]]:
    """(mechanism, slopes, length, dtype) of every case."""
    for mechanism, slopes, length, dtype in itertools.product(MECHANISMS, SLOPES, LENGTHS, DTYPES):
        if slopes == "none" or MECHANISMS[mechanism].decays:
            yield mechanism, slopes, length, dtype


def errors(name: tuple[str, str, str, str], wire: GroupWire) -> dict[str, Any]:
    """Relative errors of o, dq, dk, dv on this rank, and the bytes it sent."""
    mechanism, slope_name, length, dtype = name
    row = MECHANISMS[mechanism]
    values = SLOPES[slope_name]
    slopes = None if values is None else torch.tensor(values)
    seq_len, kind = LENGTHS[length], DTYPES[dtype]
    generator = torch.Generator().manual_seed(5)
    whole = [torch.randn(2, HEADS, seq_len, DIM, generator=generator, dtype=kind) for _ in range(4)]
    attention = build(mechanism, seq_len, wire=wire, slopes=slopes, dtype=kind, device=torch.device("cpu"))
    q, k, v, do = (attention.sharding.take(x, wire.rank) for x in whole)
    for x in (q, k, v):
        x.requires_grad_(True)
    scale = 0.3
    before = wire.sent_bytes
    o = attention(q, k, v, scale=scale)
    forward = wire.sent_bytes
    found = (o.detach(), *torch.autograd.grad(o, (q, k, v), do))
    by_pair = [x.flatten(0, 1) for x in whole]
    reference = SEMANTICS[row.semantics(decay=slopes is not None)].oracle(
        *by_pair, slopes=None if slopes is None else slopes.repeat(2), scale=scale, causal=True
    )
    truth = [
        attention.sharding.take(x.unflatten(0, (2, HEADS)), wire.rank)
        for x in (reference.o, reference.dq, reference.dk, reference.dv)
        if x is not None
    ]
    return {
        "name": "-".join(name),
        "errors": [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)],
        "sent": [forward - before, wire.sent_bytes - forward],
    }


class LateWire(GroupWire):
    """Whose last rank is late to ask for what it gets, and leaves a file when it does."""

    def __init__(self, device: torch.device, *, sign: Path) -> None:
        super().__init__(device)
        self.sign = sign

    def chain(self, own: torch.Tensor, *, factor: torch.Tensor, reverse: bool) -> Arrival | None:
        if self.rank == self.ranks - 1:
            time.sleep(0.2)
            self.sign.touch()
        return super().chain(own, factor=factor, reverse=reverse)


class WatchedSpans(Spans):
    """Whether the sign was there at the end of the last span."""

    there: bool | None = None

    def __init__(self, sign: Path) -> None:
        super().__init__(torch.device("cpu"))
        self.sign = sign

    def end(self) -> None:
        super().end()
        self.there = self.sign.exists()


def waits_for_its_receiver(folder: Path) -> bool | None:
    """Does a transfer that is timed alone last, on the rank that only sends, until it is received?"""
    wire = LateWire(torch.device("cpu"), sign=folder / "received")
    blocking = BlockingWire(wire, device=torch.device("cpu"))
    blocking.spans = spans = WatchedSpans(wire.sign)
    blocking.chain(torch.randn(1, HEADS, DIM, DIM), factor=torch.ones(1, 1, 1), reverse=False)
    wire.finish()  # whatever was seen
    return spans.there


def main() -> None:
    """All ranks, as forks of one process: importing torch in each of four is what would cost."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(rank, folder), daemon=True) for rank in range(max(RANKS))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(max(abs(rank.exitcode or 0) for rank in ranks))


def _rank(rank: int, folder: Path) -> None:
    for ranks in RANKS:
        if rank < ranks:
            _run(rank, ranks, folder)


def _run(rank: int, ranks: int, folder: Path) -> None:
    """All cases in one group, then the group is left."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'rendezvous-{ranks}'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    wire = GroupWire(torch.device("cpu"))
    found = [errors(name, wire) for name in names()]
    (folder / f"{ranks}-{rank}.json").write_text(json.dumps(found))
    if ranks == WAITING:
        (folder / f"waits-{rank}.json").write_text(json.dumps(waits_for_its_receiver(folder)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
