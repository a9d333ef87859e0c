"""What ran in one call, untimed: the names of its kernels (on the CPU: of torch's operators), and for how long."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnbench.measure.clock import Call, Clock
from attnbench.measure.observed import Observer
from attnbench.measure.timeline import NO_KERNEL, Span, recorded


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What ran in one call.

    kernels: names in order of first appearance, each once; copies and fills by the driver are left out. On the CPU:
    the operators that torch's dispatcher sees, such as `aten::bmm`. None where the profiler brought nothing at all,
    which says nothing of the call. busy_ms: how long the device was at work; None then, and on the CPU.
    """

    kernels: tuple[str, ...] | None
    busy_ms: float | None


def trace(call: Call, *, clock: Clock, device: torch.device) -> Trace:
    """Look at one call, in a pass of its own; on a GPU with the cache in the state in which it is timed."""
    if device.type == "cuda":

        def sample() -> None:
            clock.clear()
            call()

        with torch.cuda.device(device):
            return of_spans(recorded(sample), cleared=clock.clears)
    with _Operators() as operators:
        call()
    return Trace(kernels=tuple(operators.names), busy_ms=None)


def of_spans(spans: Iterable[Span], *, cleared: bool) -> Trace:
    """The trace of a call from its work on the device; cleared: the first piece is that which clears the cache."""
    seen = sorted(spans, key=lambda span: span.start_us)
    if not seen:
        return Trace(kernels=None, busy_ms=None)
    ordered = seen[int(cleared) :]
    names = (span.name for span in ordered if not NO_KERNEL.match(span.name))
    busy_us, end_us = 0.0, -math.inf
    for span in ordered:  # what runs side by side counts once
        busy_us += max(0.0, span.end_us - max(span.start_us, end_us))
        end_us = max(end_us, span.end_us)
    return Trace(kernels=tuple(dict.fromkeys(names)), busy_ms=busy_us * 1e-3)


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


def missing_kernel(names: tuple[str, ...] | None, *, pattern: str | None) -> str | None:
    """The sentence for a mechanism whose own kernel did not run; None where it did, or nothing is known."""
    if pattern is None or names is None or any(re.search(pattern, name) for name in names):
        return None
    return f"no kernel matching '{pattern}' ran; what ran: {', '.join(names) or 'nothing'}"
