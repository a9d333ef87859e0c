"""What every launch layer here needs from the host: device limits, output layout, tile widths, the launch
itself."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The two figures of a device on which launch plans depend."""

    multiprocessors: int
    shared_memory: int  # bytes one thread block may use


# Triton's interpreter runs one program at a time, so there is nothing to fill.
_INTERPRETER = Limits(multiprocessors=1, shared_memory=232_448)


@functools.lru_cache(maxsize=64)
def _cuda_limits(index: int) -> Limits:
    properties: Any = torch.cuda.get_device_properties(index)
    return Limits(
        multiprocessors=properties.multi_processor_count,
        shared_memory=properties.shared_memory_per_block_optin,
    )


def limits(device: torch.device) -> Limits:
    """The limits of the device a tensor is on."""
    if device.type != "cuda":
        return _INTERPRETER
    return _cuda_limits(torch.cuda.current_device() if device.index is None else device.index)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def operand_dtype(dtype: torch.dtype) -> Any:
    """The Triton type in which tiles enter a dot product: the tensor's own.

    Triton's interpreter keeps bf16 as bare bits and multiplies those, so there it becomes fp32.
    """
    if dtype == torch.bfloat16 and interpreting():
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def index_dtype(rows: int, *tensors: torch.Tensor) -> Any:
    """The integer type for offsets within a tile of that many rows: 32 bits, which saves registers, if they
    suffice."""
    return tl.int64 if any(rows * x.stride(2) >= 2**31 for x in tensors) else tl.int32


def empty_in_order_of(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised tensor of x's shape, dense, its dimensions in memory in the order of x's.

    torch.empty_like forgets the order when x has gaps, such as a slice of a fused projection.
    The last dimension is innermost whatever its stride.
    """
    outer = sorted(range(x.ndim - 1), key=lambda dim: x.stride(dim), reverse=True)
    strides = [1] * x.ndim
    size = x.shape[-1]
    for dim in reversed(outer):
        strides[dim] = size
        size *= x.shape[dim]
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensors' device current, as Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], /, *args: Any, **options: Any) -> None:
    """Enqueues one kernel on the current stream; the only place where kernels are launched."""
    kernel[grid](*args, **options)
