"""A short Chrome/Perfetto trace of some calls, what it says of launches, and what torch's operators took on the CPU."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from attnbench.measure.clock import Call, Clock
from attnbench.measure.timeline import let_go, taken
from attnbench.profiling.found import Operator, Operators

_LABEL = "attnbench call"
_FREED = "[memory]"  # what the profiler saw freed outside of any operator, which takes no time
# What a trace says of whoever took it.
_PRIVATE = ("traceName", "host_name", "hostname")


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A launch as CUPTI recorded it: sizes of grid and block, registers of a thread, shared memory of a block."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    registers: int
    shared_bytes: int


def take(call: Call, *, clock: Clock, device: torch.device, calls: int, path: Path) -> list[Launched]:
    """Write a trace of `calls` calls, host and device, to `path` (gzip); all launches in it, in their order.

    The clock clears the cache before each call; that work stands outside of what is labelled "attnbench call".
    """

    def work() -> None:
        clock.batch(_labelled(call), calls)

    content = taken(
        lambda: _recorded(work, device=device, memory=False)[0],
        seen=lambda content: launches(content["traceEvents"]),
    )
    _write(content, path)
    return launches(content["traceEvents"])


def take_operators(call: Call, *, calls: int, path: Path) -> Operators:
    """The same on the CPU: a trace, and torch's operators with their own times and what they allocated."""

    def work() -> None:
        for _ in range(calls):
            _labelled(call)()

    content, averages = _recorded(work, device=torch.device("cpu"), memory=True)
    _write(content, path)
    return operators([_average(each) for each in averages], calls=calls)


def operators(averages: Sequence[Mapping[str, Any]], *, calls: int) -> Operators:
    """A table of operators from the profiler's sums over `calls` calls.

    averages: name, calls, own_us and bytes of each operator; total_us of the one that labels the calls.
    """
    own = [each for each in averages if each["name"] not in (_LABEL, _FREED)]
    total = sum(each["own_us"] for each in own)
    whole = [each["total_us"] for each in averages if each["name"] == _LABEL]
    found = [
        Operator(
            name=each["name"],
            calls=each["calls"] / calls,
            time_us=each["own_us"] / calls,
            share=each["own_us"] / total if total else 0.0,
            allocated_bytes=each["bytes"] / calls,
        )
        for each in sorted(own, key=lambda each: -each["own_us"])
    ]
    return Operators(
        calls=calls,
        operators=tuple(found),
        operators_us=total / calls,
        call_us=(whole[0] if whole else total) / calls,
    )


def launches(events: Sequence[Mapping[str, Any]]) -> list[Launched]:
    """Kernel launches in a trace, in the order in which they ran."""
    kernels = sorted((e for e in events if e.get("cat") == "kernel"), key=lambda e: float(e["ts"]))
    return [_launched(e) for e in kernels]


# ------------------------------------------------------------------------------------------------------------


def _launched(event: Mapping[str, Any]) -> Launched:
    told = event["args"]
    return Launched(
        name=str(event["name"]),
        grid=tuple(int(n) for n in told["grid"]),
        block=tuple(int(n) for n in told["block"]),
        registers=int(told["registers per thread"]),
        shared_bytes=int(told["shared memory"]),
    )


def _labelled(call: Call) -> Call:
    def labelled() -> object:
        with record_function(_LABEL):
            return call()

    return labelled


def _recorded(
    work: Callable[[], object], *, device: torch.device, memory: bool
) -> tuple[dict[str, Any], Sequence[Any]]:
    """The trace's content, and the sums over operators where memory is followed."""
    let_go()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=memory, acc_events=True) as profiler:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory(prefix="attnbench-trace-") as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        content = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    return content, profiler.key_averages() if memory else ()


def _average(event: Any) -> dict[str, Any]:
    return {
        "name": event.key,
        "calls": event.count,
        "own_us": event.self_cpu_time_total,
        "total_us": event.cpu_time_total,
        "bytes": max(0, event.self_cpu_memory_usage),
    }


def _write(content: Mapping[str, Any], path: Path) -> None:
    kept = {key: value for key, value in content.items() if key not in _PRIVATE}
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(kept, file)
