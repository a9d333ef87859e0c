"""What launches take of a multiprocessor: sizes from CUPTI's records, spills and stages from Triton's binaries."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from attnbench.measure.clock import Call
from attnbench.profiling.found import Resources
from attnbench.profiling.occupancy import Multiprocessor, occupancy_of, programs_of
from attnbench.profiling.traces import Launched


@dataclass(frozen=True, kw_only=True)
class Binary:
    """What Triton knows of a compiled kernel. spilled_bytes: of a thread, all of its local memory."""

    name: str
    spilled_bytes: int
    num_warps: int
    num_stages: int | None


def triton_launches(call: Call) -> list[Binary]:
    """The binaries of Triton's kernels (ours and others') that a call launches, in their order.

    A hook of Triton's hears of each launch, also of one that goes straight to a binary.
    """
    heard: list[int] = []

    def hear(metadata: Any) -> None:
        heard.append(int(metadata.get()["function"]))

    hook = triton.knobs.runtime.launch_enter_hook
    if hook is None or not hasattr(hook, "add"):  # before Triton 3.5 a hook stands alone
        triton.knobs.runtime.launch_enter_hook = hear
    else:
        hook.add(hear)
    try:
        call()
        torch.cuda.synchronize()
    finally:
        if hook is None or not hasattr(hook, "add"):
            triton.knobs.runtime.launch_enter_hook = hook
        else:
            hook.remove(hear)
    known = _binaries()
    return [known[function] for function in heard if function in known]


def resources(
    launches: Sequence[Launched], binaries: Sequence[Binary], *, where: Multiprocessor
) -> tuple[Resources, ...]:
    """The launches of one call, alike ones together, in order of first appearance.

    The n-th launch of a name is taken for Triton's n-th launch of it, where Triton launched as many.
    """
    of_name: dict[str, list[Binary]] = {}
    for binary in binaries:
        of_name.setdefault(binary.name, []).append(binary)
    counts = {name: sum(each.name == name for each in launches) for name in of_name}
    seen: dict[str, int] = {}
    found: dict[tuple[Launched, Binary | None], int] = {}
    for each in launches:
        number = seen.get(each.name, 0)
        seen[each.name] = number + 1
        same = of_name.get(each.name, [])
        triton_knows = bool(same) and len(same) == counts[each.name]
        key = (each, same[number] if triton_knows else None)
        found[key] = found.get(key, 0) + 1
    return tuple(_row(each, binary, count, where=where) for (each, binary), count in found.items())


def _row(each: Launched, binary: Binary | None, count: int, *, where: Multiprocessor) -> Resources:
    threads = math.prod(each.block)
    programs, limited_by = programs_of(
        where, threads=threads, registers=each.registers, shared_bytes=each.shared_bytes
    )
    return Resources(
        name=each.name,
        launches=count,
        grid=each.grid,
        threads=threads,
        registers=each.registers,
        shared_bytes=each.shared_bytes,
        programs=programs,
        occupancy=occupancy_of(where, programs=programs, threads=threads),
        waves=math.prod(each.grid) / max(1, programs * where.count),
        limited_by=limited_by,
        spilled_bytes=None if binary is None else binary.spilled_bytes,
        num_warps=None if binary is None else binary.num_warps,
        num_stages=None if binary is None else binary.num_stages,
    )


def _binaries() -> dict[int, Binary]:
    """All kernels that Triton has loaded in this process, by the driver's handle of their function."""
    found = {}
    for each in gc.get_objects():
        if type(each) is CompiledKernel and isinstance(each.function, int):
            found[each.function] = Binary(
                name=each.name,
                spilled_bytes=4 * each.n_spills,  # Triton counts words
                num_warps=each.metadata.num_warps,
                num_stages=getattr(each.metadata, "num_stages", None),
            )
    return found
