"""What the public calls accept. Each error is one sentence: the tensor, what was expected, what came."""

from __future__ import annotations

import functools
import math
import weakref

import torch

from attnbench.kernels._host import Traits, interpreting, traits
from attnbench.kernels._plan import MAX_SEGMENTS

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 256

# Slopes on a CUDA device whose values were found good, by id, with the version they had and the values. Reading them
# waits for the device, so it happens once per tensor and version, and never again while the tensor lives unchanged.
_checked_slopes: dict[int, tuple[weakref.ref[torch.Tensor], int, tuple[float, ...]]] = {}
_MAX_CHECKED_SLOPES = 256


def _shape(x: torch.Tensor | Traits) -> str:
    return str(list(x.shape))


def tensor(name: str, x: object) -> None:
    """Rejects what is not a tensor."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def runnable(function: str, name: str, x: torch.Tensor) -> None:
    """Rejects tensors on a device for which the kernels are not compiled."""
    if x.device.type != "cuda" and not interpreting():
        raise ValueError(f"{function} needs CUDA tensors; {name} is on {x.device}")


def same_device(name: str, x: torch.Tensor | Traits, q: torch.Tensor | Traits) -> None:
    """Rejects a tensor that is not on q's device."""
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device, {q.device}; it is on {x.device}")


def _head_dim(name: str, x: Traits) -> None:
    dim = x.shape[-1]
    if dim % 16 or not 16 <= dim <= _MAX_DIM:
        raise ValueError(f"the last dim of {name} must be a multiple of 16 from 16 to {_MAX_DIM}, got {dim}")


def qkv(
    function: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, layout: str
) -> tuple[Traits, Traits, Traits]:
    """Rejects q, k, v that do not agree; returns their traits. layout: the leading dims, `B, H, N` or `B, H`."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        tensor(name, x)
    runnable(function, "q", q)
    found = traits(q), traits(k), traits(v)
    _qkv(*found, layout)
    return found


@functools.lru_cache(maxsize=1024)
def _qkv(q: Traits, k: Traits, v: Traits, layout: str) -> None:
    """The same by traits, so that a call like an earlier one is not looked at again: checks cost the host time."""
    ndim = layout.count(",") + 2
    if len(q.shape) != ndim:
        raise ValueError(f"q must have the shape [{layout}, D], got {_shape(q)}")
    if q.dtype not in _DTYPES:
        raise TypeError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    if k.shape != q.shape:
        raise ValueError(f"k must have the shape of q, {_shape(q)}, got {_shape(k)}")
    if len(v.shape) != ndim or v.shape[:-1] != q.shape[:-1]:
        leading = str(list(q.shape[:-1]))[1:-1]
        raise ValueError(
            f"v must have the shape [{layout}, E] with {layout} = {leading} as in q, got {_shape(v)}"
        )
    for size, dim in zip(q.shape[:-1], layout.split(", "), strict=True):
        if size == 0:
            raise ValueError(f"q must have {dim} of at least 1, got the shape {_shape(q)}")
    _head_dim("q", q)
    _head_dim("v", v)
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {x.dtype}")
        same_device(name, x, q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.strides[-1] != 1:
            raise ValueError(f"the last dim of {name} must have stride 1, got the strides {list(x.strides)}")


def state(name: str, x: torch.Tensor, q: Traits, v: Traits, *, updatable: bool = False) -> Traits:
    """Rejects what is not an fp32 state [B, H, D, E] for these q and v; returns its traits.

    updatable: a kernel writes to it in place, so its last dim must have stride 1, and no heads may share memory.
    """
    tensor(name, x)
    found = traits(x)
    _state(name, found, q, v, updatable)
    return found


@functools.lru_cache(maxsize=1024)
def _state(name: str, x: Traits, q: Traits, v: Traits, updatable: bool) -> None:
    expected = [q.shape[0], q.shape[1], q.shape[-1], v.shape[-1]]
    if list(x.shape) != expected:
        raise ValueError(f"{name} must have the shape [B, H, D, E] = {expected}, got {_shape(x)}")
    if x.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {x.dtype}")
    same_device(name, x, q)
    if not updatable:
        return
    if x.strides[-1] != 1:
        raise ValueError(f"the last dim of {name} must have stride 1, got the strides {list(x.strides)}")
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.strides, strict=True)):
        raise ValueError(f"{name} must not be an expanded tensor, got the strides {list(x.strides)}")


def _slope_values(x: torch.Tensor) -> tuple[float, ...]:
    values = tuple(x.tolist())
    for head, value in enumerate(values):
        if not 0 <= value < math.inf:
            raise ValueError(f"slopes must be finite and not negative, got slopes[{head}] = {value}")
    return values


def slopes(
    x: torch.Tensor | None, q: torch.Tensor, *, read: bool = True
) -> tuple[torch.Tensor | None, tuple[float, ...] | None]:
    """The slopes as the kernels take them, fp32 [H], contiguous, on q's device, and their values; or None.

    Values are read, and checked, at once on the CPU, and once per tensor and version on CUDA; with `read` False, or
    while a CUDA graph captures, when reading is impossible, values that were not read before are None.
    """
    if x is None:
        return None, None
    tensor("slopes", x)
    heads = q.shape[1]
    if x.dtype != torch.float32:
        raise TypeError(f"slopes must be float32, got {x.dtype}")
    if x.ndim != 1 or x.shape[0] != heads:
        raise ValueError(f"slopes must have the shape [H] = [{heads}], got {_shape(x)}")
    if x.device.type == "cpu":
        return x.detach().to(q.device).contiguous(), _slope_values(x)
    same_device("slopes", x, q)
    version = 0 if x.is_inference() else x._version  # Inference tensors keep no version.
    checked = _checked_slopes.get(id(x))
    values = None
    if checked is not None and checked[0]() is x and checked[1] == version:  # an id may be another's by now
        values = checked[2]
    elif read and not torch.cuda.is_current_stream_capturing():
        values = _slope_values(x)
        if len(_checked_slopes) >= _MAX_CHECKED_SLOPES:
            _checked_slopes.clear()
        _checked_slopes[id(x)] = (weakref.ref(x), version, values)
    return (x.detach() if x.requires_grad else x).contiguous(), values


def scale(x: float) -> float:
    """The scale as a float, so that an integer 1 is not compiled in; rejects infinity and NaN."""
    if not math.isfinite(x):
        raise ValueError(f"scale must be finite, got {x}")
    return float(x)


def segments(x: int | None) -> None:
    """Rejects a number of segments that no launch can have."""
    if x is not None and not 1 <= x <= MAX_SEGMENTS:
        raise ValueError(f"segments must be from 1 to {MAX_SEGMENTS}, or None, got {x}")


def no_gradient(function: str, **tensors: torch.Tensor) -> None:
    """Rejects tensors that require a gradient where one would be recorded, and lost."""
    if torch.is_grad_enabled():
        for name, x in tensors.items():
            if x.requires_grad:
                raise ValueError(
                    f"{function} has no gradient, but {name} requires one; call it under torch.no_grad()"
                )
