"""From the words of the command to the cases that it means; what does not fit is one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from attnbench.case import Workload
from attnbench.errors import UserError
from attnbench.parallel.mechanisms import MECHANISMS
from attnbench.parallel.requests import ELEMENT_BYTES, ParallelRequest
from attnbench.sweeps.values import parse_names, parse_size, parse_sizes

Given = Sequence[str] | None  # the values of an option; None: it was not given

_SEQ_LENS: Final = {"cuda": ("64k", "256k", "1M"), "cpu": ("1k", "4k")}
_HEADS: Final = {"cuda": ("16", "128"), "cpu": ("4", "64")}  # and channels of each
_DTYPE: Final = {"cuda": "bf16", "cpu": "fp32"}
_WORKLOADS: Final = (Workload.FWD, Workload.BWD, Workload.FWD_BWD)
_MOST_RANKS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """What `parallel run` was asked for."""

    ranks: Given
    mechanisms: Given
    seq_lens: Given
    seq_lens_per_rank: Given
    workloads: Given
    batch: str
    heads: str | None
    head_dim: str | None
    dtype: str | None
    decay: bool
    samples: int
    limit_s: float
    seed: int

    def requests(self, *, kind: str, gpus: int, launched: int | None = None) -> list[ParallelRequest]:
        """What is compared comes together, and what is cheap before what is not. kind: "cuda" or "cpu".

        Mechanisms whose cost is linear come first, at all lengths, as all of them take less than a quadratic one does
        at the longest; then lengths from short to long; and a case on one rank right before those on more.

        gpus: how many there are here; launched: the ranks that torchrun started, which are the only choice then.

        Raises UserError for what does not fit.
        """
        counts = self._ranks(kind=kind, gpus=gpus, launched=launched)
        mechanisms = parse_names(
            self.mechanisms or list(MECHANISMS),
            kind="parallel mechanism",
            choices=MECHANISMS,
            axis="--mechanism",
        )
        workloads = parse_names(
            self.workloads or [Workload.FWD_BWD],
            kind="workload",
            choices=[str(each) for each in _WORKLOADS],
            axis="--workload",
        )
        (dtype,) = parse_names(
            self.dtype or _DTYPE[kind], kind="dtype", choices=ELEMENT_BYTES, axis="--dtype"
        )
        heads, head_dim = _HEADS[kind]
        found = [
            ParallelRequest(
                mechanism=mechanism,
                ranks=ranks,
                seq_len=seq_len,
                batch=parse_size(self.batch, axis="--batch"),
                heads=parse_size(self.heads or heads, axis="--heads"),
                head_dim=_head_dim(self.head_dim or head_dim),
                dtype=dtype,
                workload=workload,
                decay=self.decay,
                samples=self.samples,
                limit_s=self.limit_s,
                seed=self.seed,
            )
            for workload in workloads
            for mechanism in mechanisms
            for ranks in sorted(counts)
            for seq_len in self._lengths(ranks, kind=kind)
        ]
        found.sort(
            key=lambda each: (MECHANISMS[each.mechanism].cost != "N", each.seq_len)
        )  # else as they are
        return list({request.case_id: request for request in found}.values())

    def _ranks(self, *, kind: str, gpus: int, launched: int | None) -> tuple[int, ...]:
        given = parse_sizes(list(self.ranks), axis="--ranks") if self.ranks else None
        if launched is not None:
            if given is not None and given != (launched,):
                raise UserError(
                    f"--ranks: torchrun started {launched} ranks, so expected {launched} or nothing"
                )
            return (launched,)
        counts = given or (1, 2)
        most = max(counts)
        if most > _MOST_RANKS:
            raise UserError(f"--ranks: expected at most {_MOST_RANKS:,}, got {most:,}")
        if kind == "cuda" and most > gpus:
            raise UserError(
                f"--ranks: {most} ranks need {most} GPUs, and torch sees {gpus} here; try --ranks {gpus}, or "
                "--device cpu"
            )
        return counts

    def _lengths(self, ranks: int, *, kind: str) -> list[int]:
        """Whole lengths for so many ranks. Lengths that ranks do not divide are fine; too short ones are not."""
        per_rank = parse_sizes(list(self.seq_lens_per_rank or ()) or "1", axis="--seq-len-per-rank")
        weak = {ranks * length for length in per_rank} if self.seq_lens_per_rank else set()
        usual = () if weak else _SEQ_LENS[kind]
        strong = (
            set(parse_sizes(list(self.seq_lens or usual), axis="--seq-len"))
            if self.seq_lens or usual
            else set()
        )
        lengths = sorted(weak | strong)
        if lengths[0] < 2 * ranks:
            raise UserError(
                f"--seq-len: expected at least 2 tokens for each of {ranks} ranks, {2 * ranks:,}, got {lengths[0]:,}"
            )
        return lengths


def series(request: ParallelRequest) -> tuple[object, ...]:
    """What requests share that differ in length alone."""
    values = dataclasses.replace(request, seq_len=1, samples=1, limit_s=1.0, seed=0)
    return dataclasses.astuple(values)


def _head_dim(value: str) -> int:
    dim = parse_size(value, axis="--head-dim")
    if dim % 16 or dim > 256:
        raise UserError(f"--head-dim: expected a multiple of 16 up to 256, got {dim}")
    return dim
