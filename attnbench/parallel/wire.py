"""What travels between ranks: three patterns, the bytes counted where they are sent, and stand-ins for measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from attnbench.measure.spans import Spans
from attnbench.parallel.states import advanced

Arrival = Callable[[], Tensor]  # waits for what was asked for; on CUDA the current stream does

# Half a millisecond of an H200, for the host to enqueue a transfer, its marks and the meeting before it.
_PAUSE_CYCLES = 1_000_000


def meeting(device: torch.device) -> Callable[[], object]:
    """Where all ranks wait for each other: on CUDA their current streams do, and no host is blocked."""
    if device.type != "cuda":
        return dist.barrier
    token = torch.zeros(1, device=device)
    return lambda: dist.all_reduce(token)


class Wire(Protocol):
    """Transfers that all ranks of a group begin in the same order.

    sent_bytes: what this rank has put out so far; of a gather its own part once for every other rank.
    """

    rank: int
    ranks: int
    sent_bytes: int

    def gather(self, own: Tensor) -> Arrival:
        """The tensors of all ranks, stacked: [ranks, ...]."""

    def chain(self, own: Tensor, *, factor: Tensor, reverse: bool) -> Arrival | None:
        """The state before this rank: each rank hands factor * (what it got) + own to the next one.

        own: [B, H, D, E]; factor: [H, 1, 1] or [1, 1, 1]. reverse: from the last rank to the first. None for the
        rank where the chain begins, which gets nothing.
        """

    def rotate(self, own: Tensor, *, shape: Sequence[int]) -> Arrival:
        """What the rank before sent, of that shape; `own` goes to the rank behind. Ranks stand in a ring."""

    def finish(self) -> None:
        """Wait until all that this rank sent is gone: on CUDA the current stream does, else the caller."""


class GroupWire:
    """torch.distributed's default group: NCCL or gloo."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.sent_bytes = 0
        self._unsent: tuple[dist.Work, Tensor] | None = None
        # A hop of the chain must not wait for what the segment computes meanwhile, nor for its multiprocessors.
        self._side = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def gather(self, own: Tensor) -> Arrival:
        everyone = own.new_empty(self.ranks * own.shape[0], *own.shape[1:])
        self.sent_bytes += own.nbytes * (self.ranks - 1)
        # torch 2.13 has a new name for it, and warns of the old one, which is all that others have.
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        work = all_gather(everyone, own.contiguous(), async_op=True)

        def arrive() -> Tensor:
            work.wait()
            return everyone.view(self.ranks, *own.shape)

        return arrive

    def chain(self, own: Tensor, *, factor: Tensor, reverse: bool) -> Arrival | None:
        source, target = _neighbours(self.rank, self.ranks, reverse=reverse)
        own = own.contiguous()
        before = None if source is None else torch.empty_like(own)
        if self._side is not None:
            return self._chain_aside(own, before, factor=factor, source=source, target=target)
        self._finish_sending()
        if before is None:
            self._send(own, target)
            return None
        coming = dist.irecv(before, source)
        assert coming is not None

        def arrive() -> Tensor:
            coming.wait()
            if target is not None:
                self._send(advanced(before, own, factor), target)
            return before

        return arrive

    def _chain_aside(
        self, own: Tensor, before: Tensor | None, *, factor: Tensor, source: int | None, target: int | None
    ) -> Arrival | None:
        assert self._side is not None
        side, current = self._side, torch.cuda.current_stream(own.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            if before is not None:
                coming = dist.irecv(before, source)
                assert coming is not None
                coming.wait()
            for tensor in (own, before):
                if tensor is not None:
                    tensor.record_stream(side)
            if target is not None:
                self._send(advanced(before, own, factor), target)
            self._finish_sending()  # on the side stream, which alone waits for it

        def arrive() -> Tensor:
            assert before is not None
            current.wait_stream(side)
            return before

        return None if before is None else arrive

    def _send(self, tensor: Tensor, target: int | None) -> None:
        self.sent_bytes += tensor.nbytes
        work = dist.isend(tensor, target)
        assert work is not None
        self._unsent = (work, tensor)  # which must live until it is sent

    def _finish_sending(self) -> None:
        if self._unsent is not None:
            self._unsent[0].wait()
            self._unsent = None

    def finish(self) -> None:
        if self._side is None:
            self._finish_sending()
        else:  # which waits for every send
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)

    def rotate(self, own: Tensor, *, shape: Sequence[int]) -> Arrival:
        incoming = own.new_empty(tuple(shape))
        own = own.contiguous()
        self.sent_bytes += own.nbytes
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, own, (self.rank + 1) % self.ranks),
                dist.P2POp(dist.irecv, incoming, (self.rank - 1) % self.ranks),
            ]
        )

        def arrive() -> Tensor:
            for work in works:
                work.wait()
            return incoming

        return arrive


class CutWire:
    """Sends nothing and hands out numbers at once: what is left of a call is computing.

    They are random, as constant operands make a GPU faster than it is, and are drawn once for each shape.
    """

    def __init__(self, *, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.sent_bytes = 0
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def gather(self, own: Tensor) -> Arrival:
        return lambda: self._like(own, (self.ranks, *own.shape))

    def chain(self, own: Tensor, *, factor: Tensor, reverse: bool) -> Arrival | None:
        source, _ = _neighbours(self.rank, self.ranks, reverse=reverse)
        return None if source is None else lambda: self._like(own, own.shape)

    def rotate(self, own: Tensor, *, shape: Sequence[int]) -> Arrival:
        return lambda: self._like(own, shape)

    def finish(self) -> None:
        """Nothing was sent."""

    def _like(self, own: Tensor, shape: Sequence[int]) -> Tensor:
        wanted = tuple(shape)
        if wanted == tuple(own.shape):
            return own
        if wanted not in self._drawn:
            self._drawn[wanted] = torch.randn(wanted, dtype=own.dtype, device=own.device)
        return self._drawn[wanted]


class BlockingWire:
    """Each transfer alone, begun by all ranks together, and timed: nothing is computed meanwhile.

    On CUDA the device pauses before, so that the transfer is enqueued when it comes there: what a host takes to
    launch it is no time of the link.
    """

    def __init__(self, wire: Wire, *, device: torch.device) -> None:
        self.spans = Spans(device)
        self._wire, self._device = wire, device
        self._meet = meeting(device)
        self.rank, self.ranks = wire.rank, wire.ranks
        self.sent_bytes = 0

    def gather(self, own: Tensor) -> Arrival:
        return self._over(lambda: self._wire.gather(own))

    def chain(self, own: Tensor, *, factor: Tensor, reverse: bool) -> Arrival | None:
        begun = False

        def begin() -> Arrival:
            nonlocal begun
            coming = self._wire.chain(own, factor=factor, reverse=reverse)
            begun = coming is None
            return coming or (lambda: own)

        arrival = self._over(begin)
        return None if begun else arrival

    def rotate(self, own: Tensor, *, shape: Sequence[int]) -> Arrival:
        return self._over(lambda: self._wire.rotate(own, shape=shape))

    def finish(self) -> None:
        """Nothing is on its way: each transfer was waited for."""

    def _over(self, begin: Callable[[], Arrival]) -> Arrival:
        if self._device.type == "cuda":
            torch.cuda._sleep(_PAUSE_CYCLES)
        self._meet()
        self.spans.begin()
        arrived = begin()()
        self._wire.finish()  # a rank that only sends would compute on, and its send wait for what that occupies
        self.spans.end()
        return lambda: arrived


def _neighbours(rank: int, ranks: int, *, reverse: bool) -> tuple[int | None, int | None]:
    """From whom a rank receives in a chain, and to whom it sends; None at the ends."""
    step = -1 if reverse else 1
    source, target = rank - step, rank + step
    inside = range(ranks)
    return (source if source in inside else None), (target if target in inside else None)
