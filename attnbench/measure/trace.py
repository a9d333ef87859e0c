"""What ran: the names of the kernels (on the CPU: of torch's operators) behind one call, untimed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from attnbench.measure.observed import Observer
from attnbench.measure.timeline import NO_KERNEL, recorded


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
    with torch.cuda.device(device):
        spans = recorded(call)
    names = (span.name for span in sorted(spans, key=lambda span: span.start_us))
    return tuple(dict.fromkeys(name for name in names if not NO_KERNEL.match(name)))


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
