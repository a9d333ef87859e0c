"""Cross-entropy of a token without the logits of a whole step in memory: 64,000 of them would be 6 GB a 50k tokens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from attnbench.errors import UserError, unknown

# Who computes it: fla-core's fused kernels (CUDA, weights in 16 bits), torch's own chunks (from 2.13 on), and chunks
# of torch's plain cross-entropy under activation checkpointing, which run anywhere.
CHOICES: Final = ("auto", "fla", "torch", "chunked")
_CHUNK = 4096  # tokens whose logits are in memory at a time


def choose(wanted: str, *, device: torch.device, dtype: torch.dtype) -> str:
    """`fla`, `torch` or `chunked`: what was asked for, or with "auto" the first that is here.

    Raises UserError for an unknown name and for one that is not here.
    """
    if wanted not in CHOICES:
        raise unknown("loss", wanted, CHOICES)
    missing = _missing(device=device, dtype=dtype)
    if wanted == "auto":
        return next(name for name in CHOICES[1:] if missing[name] is None)
    if (why := missing[wanted]) is not None:
        raise UserError(f"loss '{wanted}' is not available: {why}")
    return wanted


def _missing(*, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    fla = None
    if device.type != "cuda" or dtype.itemsize != 2:
        fla = "it needs a CUDA device and weights in bf16"
    elif importlib.util.find_spec("fla") is None:
        fla = "fla-core is not installed (pip install fla-core)"
    own = (
        None
        if hasattr(torch.nn, "LinearCrossEntropyOptions")
        else f"torch {torch.__version__} is before 2.13"
    )
    return {"fla": fla, "torch": own, "chunked": None}


def label(chosen: str) -> str:
    """For the record: `fla-core 0.6.0`, `torch 2.13.0 linear_cross_entropy`, `torch 2.11.0 checkpointed chunks`."""
    if chosen == "fla":
        return f"fla-core {importlib.metadata.version('fla-core')}"
    return (
        f"torch {torch.__version__} {'linear_cross_entropy' if chosen == 'torch' else 'checkpointed chunks'}"
    )


def token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *, by: str) -> Tensor:
    """Mean of -log softmax(hidden W^T)[target], a scalar in nats; hidden: [T, d], weight: [V, d], targets: [T]."""
    if by == "fla":
        from fla.modules.fused_linear_cross_entropy import FusedLinearCrossEntropyLoss

        loss: Tensor = FusedLinearCrossEntropyLoss(num_chunks=max(8, len(hidden) // _CHUNK))(
            hidden, targets, weight
        )
        return loss
    if by == "torch":
        fused: Any = functional.linear_cross_entropy
        return cast(
            Tensor,
            fused(hidden, weight.to(hidden.dtype), targets, options=torch.nn.LinearCrossEntropyOptions()),
        )
    total = hidden.new_zeros((), dtype=torch.float32)
    for x, y in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True):
        total = total + checkpoint(_summed, x, weight, y, use_reentrant=False, preserve_rng_state=False)
    return total / len(targets)


def _summed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="sum")
