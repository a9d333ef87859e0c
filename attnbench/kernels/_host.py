"""What every launch layer here needs from the host: device limits, output layout, tile widths, the launch
itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from attnbench.kernels._configs import DEFAULT, architecture_of


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What launch plans depend on in a device."""

    multiprocessors: int
    shared_memory: int  # bytes one thread block may use
    architecture: str  # whose table of launch configurations serves it


# Triton's interpreter runs one program at a time, so there is nothing to fill.
_INTERPRETER = Limits(multiprocessors=1, shared_memory=232_448, architecture=DEFAULT)


@functools.lru_cache(maxsize=64)
def _cuda_limits(index: int) -> Limits:
    properties: Any = torch.cuda.get_device_properties(index)
    return Limits(
        multiprocessors=properties.multi_processor_count,
        shared_memory=properties.shared_memory_per_block_optin,
        architecture=architecture_of(properties.major),
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


def index_dtype(rows: int, *tensors: Traits) -> Any:
    """The integer type for offsets within a tile of that many rows: 32 bits, which saves registers, if they
    suffice."""
    return tl.int64 if any(rows * x.strides[2] >= 2**31 for x in tensors) else tl.int32


def empty_in_order_of(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised tensor of x's shape, dense, its dimensions in memory in the order of x's.

    torch.empty_like forgets the order when x has gaps, such as a slice of a fused projection.
    The last dimension is innermost whatever its stride.
    """
    if x.is_contiguous():
        return torch.empty_like(x)
    outer = sorted(range(x.ndim - 1), key=lambda dim: x.stride(dim), reverse=True)
    strides = [1] * x.ndim
    size = x.shape[-1]
    for dim in reversed(outer):
        strides[dim] = size
        size *= x.shape[dim]
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def needs_gradient(*inputs: torch.Tensor | None) -> bool:
    """Whether autograd has to hear of a call with these inputs."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def seen_by_torch() -> bool:
    """Whether a call must be one operator that torch knows: in compiled code, and where a dispatch mode looks on.

    Such modes are those of selective checkpointing, which keeps the outputs of operators by their names; of a launch
    they would see the empty output alone, and launch again.
    """
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensors' device current, as Triton launches on the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


class Traits(NamedTuple):
    """All of a tensor on which a launch can depend: of its address only whether it is aligned to 16 bytes."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    aligned: bool


def traits(x: torch.Tensor) -> Traits:
    """The traits of a tensor."""
    return Traits(x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16 == 0)


class Launch:
    """One kernel on one grid, with all but its leading arguments bound; the only place where kernels are launched.

    The first call lets Triton bind the arguments, and compile at need. Later ones go to the binary that it chose:
    that binding costs the host more than a short kernel takes. So every call must be given the same types,
    alignments and None's; what else Triton would specialise on belongs into the constants.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], constants: dict[str, Any]) -> None:
        """grid: one to three counts of programs. constants: the later parameters and options by name."""
        self._kernel, self._grid, self._constants = kernel, grid, constants
        self._run: Callable[..., object] | None = None
        self._bound: tuple[Any, ...] = ()

    def __call__(self, *leading: Any) -> None:
        """leading: tensors, floats, None, and tuples of them; enqueued on the current stream."""
        if self._run is not None:
            self._run(*map(_address, leading), *self._bound)
            return
        compiled = self._kernel[self._grid](*leading, **self._constants)
        if not interpreting():
            self._bound = tuple(self._constants[name] for name in self._kernel.arg_names[len(leading) :])
            self._run = compiled[(*self._grid, 1, 1)[:3]]


def _address(argument: Any) -> Any:
    """An argument as a binary takes it: a tensor is an address."""
    if isinstance(argument, tuple):
        return tuple([_address(each) for each in argument])
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
