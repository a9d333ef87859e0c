"""What one case asks for. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.case import Status, Workload
from attnbench.models.records import seed_text
from attnbench.parallel.mechanisms import MECHANISMS, Problem
from attnbench.parallel.records import ParallelCase

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class ParallelRequest:
    """One case. seq_len: of the whole sequence; samples: at most; decay: by the geometric law, where there is one."""

    mechanism: str
    ranks: int
    seq_len: int
    batch: int
    heads: int
    head_dim: int
    dtype: str
    workload: str
    decay: bool = True
    samples: int = 10
    limit_s: float = 60.0
    seed: int = 0

    @property
    def decays(self) -> bool:
        """Has what is computed a decay?"""
        return self.decay and MECHANISMS[self.mechanism].decays

    @property
    def semantics(self) -> str:
        return MECHANISMS[self.mechanism].semantics(decay=self.decay)

    @property
    def problem(self) -> Problem:
        return Problem(
            ranks=self.ranks,
            seq_len=self.seq_len,
            batch=self.batch,
            heads=self.heads,
            head_dim=self.head_dim,
            element_bytes=ELEMENT_BYTES[self.dtype],
        )

    @property
    def case_id(self) -> str:
        plain = ".no-decay" if MECHANISMS[self.mechanism].decays and not self.decay else ""
        return (
            f"{self.mechanism}.{self.workload}.R{self.ranks}-B{self.batch}-H{self.heads}-N{self.seq_len}-"
            f"D{self.head_dim}.{self.dtype}{plain}{seed_text(self.seed)}"
        )

    def blank(self) -> ParallelCase:
        """The record of a case of which nothing is known yet."""
        return ParallelCase(
            case_id=self.case_id,
            mechanism=self.mechanism,
            semantics=self.semantics,
            workload=self.workload,
            ranks=self.ranks,
            seq_len=self.seq_len,
            batch=self.batch,
            heads=self.heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            decay=self.decay if MECHANISMS[self.mechanism].decays else None,
            status=str(Status.OK),
            tokens_per_rank=-(-self.seq_len // self.ranks),
            sent_bytes_formula=MECHANISMS[self.mechanism].sent_bytes(self.problem, Workload(self.workload)),
        )
