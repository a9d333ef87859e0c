"""The mechanisms that work on a sequence over many ranks: what each computes, and what it sends by formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from attnbench.case import Workload
from attnbench.providers import Cost

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnbench.parallel.sharding import Sharding
    from attnbench.parallel.wire import Wire

_ACCUMULATOR_BYTES: Final = 4  # of an element of a state, or of a sum of gradients


class ParallelAttention(Protocol):
    """Attention on one rank; `wire` may be exchanged between calls by another for the same rank and ranks."""

    sharding: Sharding
    wire: Wire

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The sizes on which a volume depends: counts, and bytes of an element of q."""

    ranks: int
    seq_len: int
    batch: int
    heads: int
    head_dim: int
    element_bytes: int

    @property
    def state_bytes(self) -> int:
        """Of the fp32 states of all heads, [B, H, D, D]."""
        return self.batch * self.heads * self.head_dim**2 * _ACCUMULATOR_BYTES

    @property
    def key_value_elements(self) -> int:
        """Of the keys and values of the whole sequence."""
        return 2 * self.batch * self.heads * self.seq_len * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Transfers that follow each other on the path that is waited for.

    steps: how many; launches: how many of them the host starts, the rest following inside of a collective; bytes: put
    out by one rank in one of them; sent: by all ranks together, in all steps.
    """

    steps: int
    launches: int
    bytes: float
    sent: int


@dataclass(frozen=True, kw_only=True)
class ParallelMechanism:
    """A row of the table. The volumes are of one forward, and of one backward."""

    name: str
    summary: str
    cost: Cost  # work as a function of sequence length
    decays: bool
    forward: Callable[[Problem], tuple[Traffic, ...]]
    backward: Callable[[Problem], tuple[Traffic, ...]]

    def semantics(self, *, decay: bool) -> str:
        """The function that it computes, by its name in `attnbench.semantics`."""
        return ("decay-linear" if decay else "linear") if self.decays else "softmax"

    def traffic(self, problem: Problem, workload: Workload) -> tuple[Traffic, ...]:
        """The transfers of one call, the forward's first."""
        forward = () if workload is Workload.BWD else self.forward(problem)
        return forward + (self.backward(problem) if workload.has_backward else ())

    def sent_bytes(self, problem: Problem, workload: Workload) -> int:
        """Bytes that all ranks together put out in one call."""
        return sum(each.sent for each in self.traffic(problem, workload))


def _chain(p: Problem) -> tuple[Traffic, ...]:
    """A state from rank to rank: W - 1 messages, one after the other (LASP, arXiv 2404.02882, section 3.2)."""
    hops = p.ranks - 1
    return (Traffic(steps=hops, launches=hops, bytes=p.state_bytes, sent=hops * p.state_bytes),)


def _gather(p: Problem) -> tuple[Traffic, ...]:
    """Every state to every other rank (LASP-2, arXiv 2502.07563, section 3.3), by a ring of W - 1 steps."""
    steps = p.ranks - 1
    sent = p.ranks * steps * p.state_bytes
    return (Traffic(steps=steps, launches=min(1, steps), bytes=p.state_bytes, sent=sent),)


def _keys_round(p: Problem) -> tuple[Traffic, ...]:
    """Each rank's keys and values to every other one: W - 1 steps."""
    total, steps = p.key_value_elements * p.element_bytes, p.ranks - 1
    return (Traffic(steps=steps, launches=steps, bytes=total / p.ranks, sent=steps * total),)


def _sums_round(p: Problem) -> tuple[Traffic, ...]:
    """Keys and values again, and the sums of their gradients all the way round: W steps, in fp32."""
    total, steps = p.key_value_elements * _ACCUMULATOR_BYTES, p.ranks if p.ranks > 1 else 0
    return (*_keys_round(p), Traffic(steps=steps, launches=steps, bytes=total / p.ranks, sent=steps * total))


MECHANISMS: Final[Mapping[str, ParallelMechanism]] = {
    row.name: row
    for row in (
        ParallelMechanism(
            name="lightning2-lasp",
            summary="Lightning Attention-2, states from rank to rank",
            cost="N",
            decays=True,
            forward=_chain,
            backward=_chain,
        ),
        ParallelMechanism(
            name="lightning2-lasp2",
            summary="Lightning Attention-2, one all-gather of states forward and one backward",
            cost="N",
            decays=True,
            forward=_gather,
            backward=_gather,
        ),
        ParallelMechanism(
            name="ring-attention",
            summary="exact softmax attention, keys and values going round in a balanced layout",
            cost="N^2",
            decays=False,
            forward=_keys_round,
            backward=_sums_round,
        ),
    )
}


def build(
    name: str,
    seq_len: int,
    *,
    wire: Wire,
    slopes: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> ParallelAttention:
    """A mechanism for a length, on this rank. slopes: fp32 [H], or None for no decay.

    Raises ValueError for a length that is too short for the ranks, NotImplementedError for what it does not take.
    """
    from attnbench.parallel.lightning import LightningParallel
    from attnbench.parallel.ring import RingAttention

    if MECHANISMS[name].decays:
        return LightningParallel(
            seq_len,
            wire=wire,
            slopes=slopes,
            dtype=dtype,
            device=device,
            gathers=name == "lightning2-lasp2",
        )
    return RingAttention(seq_len, wire=wire, dtype=dtype, device=device)
