"""What a function is given beside q, k and v: drawn at random like them, and without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnbench.case import Case
from attnbench.semantics.features import RANDOM_FEATURES

SINKS = 4  # first tokens that a windowed attention keeps; the paper's choice (arXiv 2309.17453)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor: its name in every call, where it is, and how unit normal entries become its values.

    Along "tokens" it is laid out and typed like k; along "heads" it is fp32 [H, ...].
    """

    name: str
    along: Literal["tokens", "heads"]
    shape: Callable[[Case], tuple[int, ...]]  # behind the tokens, or behind the heads
    values: Callable[[Tensor], Tensor]


def _log_gates(x: Tensor) -> Tensor:
    """Logarithms of forget gates, sigmoid(x)^(1/16), at most 0.

    Source: "Gated Linear Attention" (arXiv 2312.06635), section 4.4: tau = 16.
    """
    return torch.nn.functional.logsigmoid(x.float()).div_(16).to(x.dtype)


def _orthogonal(x: Tensor) -> Tensor:
    """x: [H, M, D] with rows that are orthogonal in blocks of D, and as long as they were.

    The directions that Gram-Schmidt finds do not depend on how long the rows are, so each row is still normal.
    Source: "Rethinking Attention with Performers" (arXiv 2009.14794), section 2.4.
    """
    blocks = [torch.linalg.qr(block.double().mT)[0].mT for block in x.split(x.shape[-1], dim=1)]
    rows: Tensor = torch.cat(blocks, dim=1) * x.double().norm(dim=-1, keepdim=True)
    return rows.float()


GATES = Parameter(name="gates", along="tokens", shape=lambda case: (case.head_dim,), values=_log_gates)

ORTHOGONAL_PROJECTION = Parameter(
    name="projection",
    along="heads",
    shape=lambda case: (RANDOM_FEATURES, case.head_dim),
    values=_orthogonal,
)

GAUSSIAN_PROJECTION = Parameter(
    name="projection",
    along="heads",
    shape=lambda case: (RANDOM_FEATURES // 2, case.head_dim),  # a sine and a cosine of each
    values=lambda x: x,
)
