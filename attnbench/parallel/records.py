"""What sequence parallelism records: a row of each case, in a Parquet file of the kind that `models.records` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class ParallelCase:
    """One workload over one sequence (or a batch of them) that is cut over ranks. Times in milliseconds.

    A sample is the time of the slowest rank. compute_ms is the same call with its transfers left out, communication_ms
    the transfers alone with nothing computed meanwhile, exposed_ms what the whole call takes beyond computing; each
    comes from a pass of its own.
    """

    KIND: ClassVar[str] = "parallel"

    case_id: str
    mechanism: str
    semantics: str
    workload: str  # "fwd", "bwd" or "fwd-bwd"
    ranks: int
    seq_len: int  # of the whole sequence
    batch: int
    heads: int
    head_dim: int
    dtype: str
    decay: bool | None  # null for softmax
    status: str  # as of `attnbench.case.Status`
    reason: str | None = None  # always there when not ok
    device: str | None = None
    backend: str | None = None  # "nccl" or "gloo"; null for one rank
    provider: str | None = None  # what computes on each rank
    started_at: str | None = None
    tokens_per_rank: int | None = None  # of the rank that holds most
    samples_ms: tuple[float, ...] | None = None  # in time order, warm-up left out
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    tokens_per_s: float | None = None  # of all ranks together, by the median
    peak_bytes: int | None = None  # of the rank that needs most, inputs included
    sent_bytes: int | None = None  # by all ranks together in one call, counted where they are sent
    sent_bytes_formula: int | None = None
    compute_ms: float | None = None
    communication_ms: float | None = None
    exposed_ms: float | None = None
    checked_len: int | None = None  # tokens of the sequence on which the errors were found
    rel_err_o: float | None = (
        None  # to the fp64 oracle, as in `attnbench.case.Accuracy`; the largest over ranks
    )
    rel_err_dq: float | None = None
    rel_err_dk: float | None = None
    rel_err_dv: float | None = None
