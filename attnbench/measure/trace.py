"""What ran: the names of the kernels (on the CPU: of torch's operators) behind one call, untimed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from attnbench.measure.observed import Observer

_NO_KERNEL = re.compile(r"^(Memcpy|Memset)")


def kernel_names(call: Callable[[], object], *, device: torch.device) -> tuple[str, ...]:
    """Names in order of first appearance, each once; copies and fills by the driver are left out.

    On the CPU: the operators that torch's dispatcher sees, such as `aten::bmm`.
    """
    if device.type == "cuda":
        return _cuda_kernels(call, device=device)
    with _Operators() as operators:
        call()
    return tuple(operators.names)


def _cuda_kernels(call: Callable[[], object], *, device: torch.device) -> tuple[str, ...]:
    names = _profiled(call, device=device)
    # Where other processes profile too, the profiler may come back with nothing; a call that launches nothing
    # does so twice.
    return names or _profiled(call, device=device)


def _profiled(call: Callable[[], object], *, device: torch.device) -> tuple[str, ...]:
    # Left attached, the profiler slows later launches (DESIGN.md has what was seen of it).
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize(device)
    events = [e for e in profiler.events() or () if e.device_type == DeviceType.CUDA]
    names = (e.name for e in sorted(events, key=lambda e: e.time_range.start))
    return tuple(dict.fromkeys(name for name in names if not _NO_KERNEL.match(name)))


class _Operators(Observer):
    """Collects the names of the operators that run below it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.names[func._schema.name] = None
        return func(*args, **(kwargs or {}))


def missing_kernel(names: tuple[str, ...], *, pattern: str | None) -> str | None:
    """The sentence for a mechanism whose own kernel did not run, or None."""
    if pattern is None or any(re.search(pattern, name) for name in names):
        return None
    return f"no kernel matching '{pattern}' ran; what ran: {', '.join(names) or 'nothing'}"
