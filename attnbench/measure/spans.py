"""Time spent in one part of a larger call, forward and backward, on the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Spans:
    """Marks where a part begins and ends, in the order in which the device comes there.

    CUDA events on the current stream, host times on the CPU. Gaps in which the device waits for the host inside of
    a span count with it. Marking costs launches of its own, so what is marked is not what is timed otherwise.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def begin(self) -> None:
        self._begun = self._now()

    def end(self) -> None:
        if self._begun is not None:
            self._marks.append((self._begun, self._now()))
            self._begun = None

    def total_ms(self) -> float:
        """Milliseconds in all spans so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return float(sum(start.elapsed_time(end) for start, end in self._marks))
        return float(sum(end - start for start, end in self._marks)) * 1e3

    def around(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """function(*tensors), its time counted here, and that of its backward when it comes."""
        entered: Any = _Enter.apply
        left: Any = _Leave.apply
        out: Tensor = left(self, function(*entered(self, *tensors)))
        return out

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _Enter(torch.autograd.Function):
    """The first thing of a span forward, and the last of its backward."""

    @staticmethod
    def forward(ctx: Any, spans: Spans, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.spans = spans
        spans.begin()
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.spans.end()
        return None, *grads


class _Leave(torch.autograd.Function):
    """The last thing of a span forward, and the first of its backward."""

    @staticmethod
    def forward(ctx: Any, spans: Spans, out: Tensor) -> Tensor:
        ctx.spans = spans
        spans.end()
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.spans.begin()
        return None, grads[0]
