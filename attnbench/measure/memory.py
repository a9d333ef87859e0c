"""Memory of one call, split by purpose, in a pass of its own: nothing is timed here.

On CUDA the caching allocator's own counters are read; on the CPU, where they do not exist, a dispatch mode
follows every storage that an operator creates. Scratch memory inside a fused CPU operator is invisible to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from attnbench.case import Case, Memory, Workload
from attnbench.measure.inputs import AnyCalls, DecodeCalls
from attnbench.measure.observed import Observer


class Meter(Interface):
    """Bytes alive now, and the most that were alive since the start or `reset`; above what was alive at the start."""

    def reset(self) -> None: ...
    def alive(self) -> int: ...
    def peak(self) -> int: ...
    def reserved(self) -> int | None: ...


class CudaMeter:
    """The caching allocator's counters of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # reserved memory of earlier cases is not this one's
        self._base = torch.cuda.memory_allocated(device)
        self.reset()  # nor is their peak

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def alive(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.memory_allocated(self._device) - self._base

    def peak(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - self._base

    def reserved(self) -> int | None:
        return torch.cuda.max_memory_reserved(self._device)


class HostMeter(Observer):
    """Follows the storages that operators create, from the moment each one appears until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive = 0
        self._peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._seen.get(key)
        if known is not None and known() is not None:
            return

        def freed(_: object) -> None:
            self._alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self._alive += size
        self._peak = max(self._peak, self._alive)

    def reset(self) -> None:
        self._peak = self._alive

    def alive(self) -> int:
        return self._alive

    def peak(self) -> int:
        return self._peak

    def reserved(self) -> int | None:
        return None


@contextmanager
def open_meter(device: torch.device) -> Iterator[Meter]:
    """The meter of a device."""
    if device.type == "cuda":
        yield CudaMeter(device)
    else:
        with HostMeter() as meter:
            yield meter


def memory_pass(
    case: Case, *, prepare: Callable[[], AnyCalls], device: torch.device, state_bytes: int | None
) -> Memory:
    """Run a case once and account for its bytes.

    saved_bytes: alive between forward and backward and no input, the output o included. workspace_bytes: the
    peak less inputs, outputs, saved and recurrent state. `state_bytes` is the provider's own statement (None:
    unknown, then counted as workspace). What a decode keeps of its context is an input; a state that it returns
    beside the one it was given is an output.
    """
    with open_meter(device) as meter:
        calls = prepare()
        inputs = meter.alive()
        meter.reset()
        saved = 0
        results: tuple[Tensor, ...]
        if isinstance(calls, DecodeCalls):
            given = {t.untyped_storage().data_ptr() for t in calls.inputs.kept}
            results = tuple(t for t in calls.inference() if t.untyped_storage().data_ptr() not in given)
        elif case.workload is Workload.FWD:
            results = (calls.inference(),)
        else:
            o = calls.forward()
            saved = meter.alive() - inputs
            if case.workload is Workload.BWD:
                meter.reset()
            results = calls.gradients(o, keep=False)
        peak, reserved = meter.peak(), meter.reserved()
        outputs = sum(t.untyped_storage().nbytes() for t in results)
    rest = peak - inputs - outputs - saved - (state_bytes or 0)
    return Memory(
        input_bytes=inputs,
        output_bytes=outputs,
        saved_bytes=saved,
        state_bytes=state_bytes,
        workspace_bytes=max(0, rest),
        peak_bytes=peak,
        reserved_bytes=reserved,
    )
