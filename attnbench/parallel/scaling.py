"""A model of how sequence parallelism scales: fitted to parts that were measured, checked against the whole.

The time of a call on W ranks is what one rank computes, plus of the transfers what computing does not hide:

    T = compute(n, N) + sum over forward and backward of max(0, transfers - hidden share * compute)

compute is max(floor, slope n) in the tokens n of a rank, on one rank and on several with constants of their own (ring
attention: a sum of terms in n times N, n and W), fitted to compute_ms; a step of a transfer takes latency + bytes /
bandwidth, fitted to communication_ms. The whole of several ranks, median_ms, takes no part in the fit, so that
comparing with it is a check.
"""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from attnbench.case import Status, Workload
from attnbench.curves import length_label
from attnbench.errors import UserError
from attnbench.parallel.computing import Compute, LinearCompute, fit_compute, relative_fit, tokens_per_rank
from attnbench.parallel.findings import Key, same_line
from attnbench.parallel.lightning import HEAD_SHARE
from attnbench.parallel.mechanisms import MECHANISMS, Problem, Traffic
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.requests import ELEMENT_BYTES
from attnbench.parallel.states import Decay
from attnbench.semantics import TORCH_DTYPES, geometric_slopes
from attnbench.words import time_text

PREDICTED_RANKS: Final = (8, 64, 1024)

# Useful FLOPs of a forward among those of forward and backward: 4 of 14, of Lightning as of flash attention.
_FORWARD_SHARE: Final = 2 / 7
_BACKWARD_HIDDEN: Final = (
    1 / 3
)  # dq is one of the three scans of a backward, and computed while states travel that all of the piece waits for
_HOP_S: Final = 2e-6  # of a step inside of a collective within a host
_FABRIC_S: Final = 2e-6  # what a step over InfiniBand takes longer than one within a host
_LATENCY_S: Final = 10e-6  # of a step, where none was measured


@dataclass(frozen=True, kw_only=True)
class Link:
    """What transfers cost: seconds of one that the host starts, of each further step inside of a collective (hop_s),
    and bytes per second out of one GPU in one direction."""

    name: str
    latency_s: float
    bytes_per_s: float
    source: str
    hop_s: float = _HOP_S

    def seconds(self, transfers: Iterable[Traffic]) -> float:
        """Of transfers one after the other."""
        return sum(
            each.launches * self.latency_s
            + (each.steps - each.launches) * self.hop_s
            + each.steps * each.bytes / self.bytes_per_s
            for each in transfers
        )


# Rates of data sheets, per GPU and direction: NVLink 4 of H100 and H200 (900 GB/s both ways), and one NDR port.
_NVLINK_BYTES_PER_S: Final = 450e9
_INFINIBAND_BYTES_PER_S: Final = 50e9


@dataclass(frozen=True, kw_only=True)
class Check:
    """The predicted time of a case on several ranks over the measured one, less 1."""

    error: float
    case: str  # in words


@dataclass(frozen=True, kw_only=True)
class Line:
    """The model of one mechanism at one shape, and how well it says what was measured."""

    key: Key
    compute: Compute
    checks: tuple[Check, ...] = ()

    @property
    def mechanism(self) -> str:
        return self.key[0]

    @property
    def errors(self) -> tuple[float, ...]:
        """Of all checks."""
        return tuple(check.error for check in self.checks)

    def exposed_ms(self, *, ranks: int, seq_len: int, link: Link) -> float:
        """Communication that computing does not hide."""
        mechanism, workload, batch, heads, head_dim, dtype, _ = self.key
        problem = Problem(
            ranks=ranks,
            seq_len=seq_len,
            batch=batch,
            heads=heads,
            head_dim=head_dim,
            element_bytes=ELEMENT_BYTES[dtype],
        )
        row, compute = MECHANISMS[mechanism], self.compute.ms(ranks=ranks, seq_len=seq_len)
        forward = {Workload.FWD: 1.0, Workload.BWD: 0.0, Workload.FWD_BWD: _FORWARD_SHARE}[Workload(workload)]
        parts = ((row.forward, forward, True), (row.backward, 1 - forward, False))
        return sum(
            max(
                0.0,
                link.seconds(transfers(problem)) * 1e3
                - self._hidden(problem, forward=first) * share * compute,
            )
            for transfers, share, first in parts
            if share
        )

    def total_ms(self, *, ranks: int, seq_len: int, link: Link) -> float:
        """The whole call."""
        compute = self.compute.ms(ranks=ranks, seq_len=seq_len)
        return compute + self.exposed_ms(ranks=ranks, seq_len=seq_len, link=link)

    def tokens_per_s(self, *, ranks: int, seq_len: int, link: Link) -> float:
        """Of all ranks together."""
        return self.key[2] * seq_len / (self.total_ms(ranks=ranks, seq_len=seq_len, link=link) * 1e-3)

    def _hidden(self, problem: Problem, *, forward: bool) -> float:
        """The share of computing during which states or keys may travel."""
        decay, dtype = self.key[6], self.key[5]
        if decay is None:
            return 1 - 1 / problem.ranks  # the last block has nothing to wait for
        slopes = geometric_slopes(problem.heads) if decay else None
        if Decay.of(slopes, dtype=TORCH_DTYPES[dtype]).reach < problem.seq_len // problem.ranks:
            return 1.0
        return 1 / HEAD_SHARE if forward else _BACKWARD_HIDDEN


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Models of all lines of a run, over the link that was measured and over those that are assumed."""

    lines: Mapping[Key, Line]
    measured: Link | None
    links: tuple[Link, ...]  # those to predict for

    @property
    def assumptions(self) -> list[str]:
        """Sentences on all lines."""
        return self.assumptions_of(self.lines)

    def assumptions_of(self, keys: Container[Key]) -> list[str]:
        """Sentences for a figure of some lines."""
        lines = [line for key, line in self.lines.items() if key in keys]
        return [
            "Assumptions: computing is a slope times the tokens of a rank, or a floor where launching takes longer, "
            f"fitted apart for one rank and for several{_floors(lines)}; of ring attention a sum of terms in "
            "tokens times sequence, tokens and steps. The same holds beyond what was measured.",
            *(
                f"{link.name}: a step takes {time_text(link.latency_s * 1e3)} and its bytes at "
                f"{link.bytes_per_s / 1e9:.3g} GB/s ({link.source})."
                for link in self.links
            ),
            "States go round in W - 1 steps, keys and values too; every step costs the slowest link on its way, and "
            "all ranks are equally fast. The steps of one all-gather but the first take "
            f"{_HOP_S * 1e6:.0f} µs and their bytes, over InfiniBand {(_HOP_S + _FABRIC_S) * 1e6:.0f} µs (assumed).",
            "Hidden are transfers behind all of a call whose heads forget within a piece, else behind "
            f"1/{HEAD_SHARE} of its forward and 1/3 of its backward; behind all blocks of ring attention but one.",
            f"A forward is taken as {_FORWARD_SHARE:.0%} of forward and backward; transfers do not slow computing "
            "down.",
            self._check(lines),
        ]

    def _check(self, lines: Iterable[Line]) -> str:
        """How the model does over the link that was measured."""
        checks = [check for line in lines for check in line.checks]
        if not checks or self.measured is None:
            return (
                "Not checked: no case ran on several ranks with its parts measured; lines are one rank's computing and "
                "the link's transfers."
            )
        errors = [abs(check.error) for check in checks]
        worst = max(checks, key=lambda check: abs(check.error))
        return (
            f"Check: over {len(errors)} measured cases the predicted time is off by {statistics.median(errors):.0%} in "
            f"the median and by {max(errors):.0%} at most, that of {worst.case} ({self.measured.name}: "
            f"{time_text(self.measured.latency_s * 1e3)} a step and {self.measured.bytes_per_s / 1e9:.3g} GB/s)."
        )


def _floors(lines: Iterable[Line]) -> str:
    """What short calls take on several ranks, in brackets; nothing where no line has such a floor."""
    found = [
        f"{line.mechanism} {line.key[1]} {time_text(line.compute.parallel.floor)}"
        for line in lines
        if isinstance(line.compute, LinearCompute) and line.compute.parallel.floor
    ]
    return f" (floors of several: {', '.join(found)})" if found else ""


def fit(rows: Sequence[ParallelCase]) -> Scaling:
    """Models from records.

    Raises UserError when no mechanism was measured at two lengths or more.
    """
    known = [row for row in rows if row.status == Status.OK and row.median_ms]
    groups: dict[Key, list[ParallelCase]] = {}
    for row in known:
        groups.setdefault(same_line(row), []).append(row)
    groups = {key: group for key, group in groups.items() if _lengths(group) > 1}
    if not groups:
        raise UserError(
            "expected records of a mechanism at two lengths or more, so that its time can be told from its tokens; got "
            f"{sum(1 for row in known if row.compute_ms)} that were measured: attnbench parallel run --seq-len 64k,256k"
        )
    measured = _fit_link(known)
    lines = {}
    for key, group in groups.items():
        line = Line(key=key, compute=fit_compute(group))
        checks = () if measured is None else tuple(_checks(line, group, measured))
        lines[key] = replace(line, checks=checks)
    return Scaling(lines=lines, measured=measured, links=_links(known, measured))


def _checks(line: Line, group: Sequence[ParallelCase], link: Link) -> Iterable[Check]:
    for row in group:
        if row.ranks > 1 and row.median_ms:
            predicted = line.total_ms(ranks=row.ranks, seq_len=row.seq_len, link=link)
            case = (
                f"{row.mechanism} {row.workload} on {row.ranks} ranks at {length_label(row.seq_len)} tokens"
            )
            yield Check(error=predicted / row.median_ms - 1, case=case)


def _lengths(group: Sequence[ParallelCase]) -> int:
    """How many numbers of tokens a rank there are with computing measured apart."""
    return len({tokens_per_rank(ranks=row.ranks, seq_len=row.seq_len) for row in group if row.compute_ms})


def _fit_link(rows: Sequence[ParallelCase]) -> Link | None:
    """The link between the ranks that were measured; None when nothing travelled."""
    columns, times = [], []
    for row in rows:
        if row.ranks > 1 and row.communication_ms:
            problem = Problem(
                ranks=row.ranks,
                seq_len=row.seq_len,
                batch=row.batch,
                heads=row.heads,
                head_dim=row.head_dim,
                element_bytes=ELEMENT_BYTES[row.dtype],
            )
            traffic = MECHANISMS[row.mechanism].traffic(problem, Workload(row.workload))
            seconds = row.communication_ms / 1e3
            inside = sum((t.steps - t.launches) * _HOP_S for t in traffic)
            columns.append([float(sum(t.launches for t in traffic)), sum(t.steps * t.bytes for t in traffic)])
            times.append(max(seconds - inside, seconds / 10))  # what is assumed may be more than there was
    if not columns:
        return None
    latency, per_byte = relative_fit(columns, times)
    backend = next(row.backend for row in rows if row.ranks > 1)
    rate, source = (1 / per_byte, "measured") if per_byte > 0 else (_NVLINK_BYTES_PER_S, "latency measured")
    return Link(name=f"{backend} as measured", latency_s=latency, bytes_per_s=rate, source=source)


def _links(rows: Sequence[ParallelCase], measured: Link | None) -> tuple[Link, ...]:
    """What is predicted: the link as measured, which on GPUs is NVLink's, and links by their data sheets."""
    on_gpus = any(row.backend == "nccl" for row in rows)
    latency = measured.latency_s if measured is not None and on_gpus else _LATENCY_S
    origin = "measured" if measured is not None and on_gpus else "assumed"
    nvlink = Link(
        name="NVLink 4",
        latency_s=latency,
        bytes_per_s=_NVLINK_BYTES_PER_S,
        source=f"data sheet, latency {origin}",
    )
    if measured is not None and on_gpus:
        nvlink = Link(
            name="NVLink",
            latency_s=measured.latency_s,
            bytes_per_s=measured.bytes_per_s,
            source=measured.source,
        )
    infiniband = Link(
        name="InfiniBand NDR",
        latency_s=latency + _FABRIC_S,
        hop_s=_HOP_S + _FABRIC_S,
        bytes_per_s=_INFINIBAND_BYTES_PER_S,
        source=f"one 400 Gb/s port a GPU by its data sheet, latency {origin} and 2 µs for the fabric",
    )
    return (nvlink, infiniband)
