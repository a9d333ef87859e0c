"""Cross-entropy of a token without the logits of a whole step in memory: 64,000 of them would be 6 GB a 50k tokens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import math
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from attnbench.errors import UserError, unknown

# Who computes it: fla-core's fused kernels (CUDA, weights in 16 bits), torch's own chunks (from 2.13 on), and chunks
# of torch's plain operators, which run anywhere. All three multiply with the head once forward: gradients are made
# while a chunk's logits are there.
CHOICES: Final = ("auto", "fla", "torch", "chunked")
# Tokens whose logits are in memory at a time, 1 GB in 16 bits: each chunk reads and writes the head's gradient once.
_CHUNK = 8192


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
    """For the record: `fla-core 0.6.0`, `torch 2.13.0 linear_cross_entropy`, `torch 2.11.0 chunks`."""
    if chosen == "fla":
        return f"fla-core {importlib.metadata.version('fla-core')}"
    return f"torch {torch.__version__} {'linear_cross_entropy' if chosen == 'torch' else 'chunks'}"


def token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *, by: str) -> Tensor:
    """Mean of -log softmax(hidden W^T)[target], a scalar in nats; hidden: [T, d], weight: [V, d], targets: [T]."""
    if by == "fla":
        return _by_fla(hidden, weight, targets)
    if by == "torch":
        fused: Any = functional.linear_cross_entropy
        return cast(
            Tensor,
            fused(hidden, weight.to(hidden.dtype), targets, options=torch.nn.LinearCrossEntropyOptions()),
        )
    apply: Any = _ChunkedLoss.apply
    mean: Tensor = apply(hidden, weight, targets)
    return mean


def _by_fla(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the head in the dtype of the head: in fp32, fla 0.6 multiplies fp32 copies of the logits.

    That product is a third of the head's work, and without TF32 it would not run on a card's tensor cores.
    """
    from fla.modules.fused_linear_cross_entropy import FusedLinearCrossEntropyLoss

    known = inspect.signature(FusedLinearCrossEntropyLoss).parameters
    options = {"accumulate_grad_in_fp32": False} if "accumulate_grad_in_fp32" in known else {}
    chunks = math.ceil(len(hidden) / _CHUNK)
    loss: Tensor = FusedLinearCrossEntropyLoss(num_chunks=chunks, **options)(hidden, targets, weight)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients chunk by chunk, while the logits are there; the gradient of the weight is summed in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        matrix = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        needed = any(ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            pieces = (tensor.split(_CHUNK) for tensor in (hidden, targets, dhidden))
            for x, y, dx in zip(*pieces, strict=True):
                logits = functional.linear(x, matrix)
                likelihoods = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
                total -= likelihoods.gather(1, y[:, None]).sum()
                if needed:
                    slopes = _loss_slopes(likelihoods, y, among=len(targets)).to(logits.dtype)
                    torch.mm(slopes, matrix, out=dx)
                    _add_product(dweight, slopes.mT, x)
        ctx.save_for_backward(dhidden, dweight.to(weight.dtype))
        return total / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        return dhidden * grads[0].to(dhidden.dtype), dweight * grads[0].to(dweight.dtype), None


def _loss_slopes(likelihoods: Tensor, targets: Tensor, *, among: int) -> Tensor:
    """(softmax - one) / tokens, in the place of the logarithms of the softmax, [T, V]."""
    slopes = likelihoods.exp_()
    slopes.scatter_add_(1, targets[:, None], slopes.new_full((len(targets), 1), -1.0))
    return slopes.mul_(1 / among)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b in fp32; on a card a product of 16 bits comes from its tensor cores in fp32, never rounded."""
    if a.is_cuda and a.dtype != total.dtype:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b
