"""A profile in words and tables: the same rows for the terminal and for Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.case import Status
from attnbench.profiling.diagnosis import SUM_TOLERANCE, stall_name, traffic
from attnbench.profiling.found import Bound, Counters, Profile
from attnbench.words import bytes_text, count_text, three, time_text

_NAME = 64  # characters of a kernel's name in a table
_ROWS = 12  # of a table of kernels or operators
_DEVICE_BOUND = (Bound.MEMORY, Bound.TENSOR, Bound.ARITHMETIC, Bound.LATENCY, Bound.UNCLEAR)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: a title, headings and rows of text; `left` columns are names."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    closing: str | None = None


def title(profile: Profile) -> str:
    """What was profiled, where and by whom."""
    who = [text for text in (profile.device, profile.provider) if text]
    return f"{profile.label}{' on ' if who else ''}{', '.join(who)}"


def verdict(profile: Profile) -> str:
    """The diagnosis as a sentence, or why there is none."""
    if profile.status is not Status.OK:
        return f"{profile.status}: {profile.reason}"
    said = "not diagnosed" if profile.diagnosis is None else profile.diagnosis.sentence
    return f"{said[0].upper()}{said[1:]}."


def closing(profile: Profile) -> str:
    """The same with the name of the case."""
    return f"{profile.label}: {verdict(profile)}"


def facts(profile: Profile) -> list[str]:
    """What a profile says beside its tables, a sentence or figure each."""
    return [*_time(profile), *_work(profile), *_device(profile), *_memory(profile), *_set_up(profile)]


def caveats(profile: Profile) -> list[str]:
    """What is missing, and what to be careful with."""
    found = [*profile.notes]
    if profile.counters_note:
        found.append(profile.counters_note)
    telemetry = profile.telemetry
    if telemetry is not None and telemetry.throttle:
        found.append(f"While it was timed the device held itself back: {', '.join(telemetry.throttle)}.")
    if sums_astray(profile):
        found.append(
            f"The kernel times differ from the CUDA-event time of the same calls by more than {SUM_TOLERANCE:.0%}."
        )
    slowdown = profile.slowdown
    if slowdown is not None and abs(slowdown) > SUM_TOLERANCE:
        found.append(
            f"The profiled calls took {abs(slowdown):.1%} {'more' if slowdown > 0 else 'less'} time than those before: "
            "the device ran at another clock, or the profiler disturbed them."
        )
    return found


def sums_astray(profile: Profile) -> bool:
    """Whether the kernels of a call that the device bounds do not sum to its time."""
    deviation, diagnosis = profile.deviation, profile.diagnosis
    bounded = diagnosis is not None and diagnosis.bound in _DEVICE_BOUND
    return bounded and deviation is not None and abs(deviation) > SUM_TOLERANCE


def grids(profile: Profile) -> list[Grid]:
    """The tables of a profile: kernels or operators, resources, counters."""
    return [
        grid
        for grid in (_kernels(profile), _operators(profile), _resources(profile), _counters(profile))
        if grid is not None
    ]


def short(name: str, *, longest: int = _NAME) -> str:
    """A kernel's name without its arguments, cut in the middle where it is long."""
    name = name.removeprefix("void ")
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def us(microseconds: float) -> str:
    """A time in microseconds to three digits, in the unit that suits it."""
    return time_text(microseconds / 1e3)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


# ------------------------------------------------------------------------------------------------------------


def _time(profile: Profile) -> list[str]:
    timing = profile.timing
    if timing is None or profile.time_us is None:
        return []
    clock = "CUDA events" if profile.device_type == "cuda" else "the host's clock"
    lines = [
        f"{us(profile.time_us)} a call by {clock}, before any profiler: the median of "
        f"{count_text(len(timing.samples_ms), 'sample')}, each with a cold cache."
    ]
    line, deviation = profile.timeline, profile.deviation
    if line is not None and deviation is not None:
        side = "above" if deviation >= 0 else "below"
        lines.append(
            f"Its kernels take {us(line.kernels_us)}, {abs(deviation):.1%} {side} what events say of the same "
            f"{count_text(line.calls, 'profiled call')}, {us(line.events_us)}."
        )
    if profile.host_us is not None and profile.device_type == "cuda":
        lines.append(f"The host takes {us(profile.host_us)} to enqueue a call.")
    return lines


def _work(profile: Profile) -> list[str]:
    work = profile.work
    if work is None:
        return []
    bandwidth = f"{three(work.gbps)} GB/s" + (
        "" if work.memory_share is None or work.copy_gbps is None
        else f", {work.memory_share:.0%} of the {three(work.copy_gbps)} GB/s of a copy here"
    )  # fmt: skip
    rate = f"{three(work.tflops)} TFLOP/s" + (
        "" if work.matrix_share is None or work.matmul_tflops is None
        else f", {work.matrix_share:.0%} of the {three(work.matmul_tflops)} TFLOP/s of a matrix product here"
    )  # fmt: skip
    return [
        f"By formula it moves at least {bytes_text(work.moved_bytes)}: {bandwidth}.",
        f"By formula it needs {_count(work.flops)}FLOP: {rate}.",
    ]


def _device(profile: Profile) -> list[str]:
    line = profile.timeline
    if line is None:
        told = profile.operators
        if told is None:
            return []
        return [
            f"Under the profiler a call takes {us(told.call_us)}, of which torch's operators {us(told.operators_us)}."
        ]
    lines = [
        f"{count_text(round(line.launches), 'launch').replace('launchs', 'launches')} a call; gaps between them take "
        f"{us(line.gap_us)} of the {us(line.span_us)} from the first begin to the last end"
        + (f", the longest {us(line.longest_gap_us)}." if line.longest_gap_us > 0 else ".")
    ]
    moved, work = traffic(profile.counters), profile.work
    if moved is not None and work is not None:
        rate = moved / (line.kernels_us * 1e-6) / 1e9
        ceiling = "" if not work.copy_gbps else f", {rate / work.copy_gbps:.0%} of a copy's"
        lines.append(
            f"Counted, {bytes_text(moved)} cross the DRAM, {moved / work.moved_bytes:.2f} times the least: "
            f"{three(rate)} GB/s{ceiling}."
        )
    return lines


def _memory(profile: Profile) -> list[str]:
    memory = profile.memory
    if memory is None or memory.peak_bytes is None:
        return []
    parts = [
        f"{name} {bytes_text(size)}"
        for name, size in (
            ("inputs", memory.input_bytes),
            ("outputs", memory.output_bytes),
            ("saved", memory.saved_bytes),
            ("workspace", memory.workspace_bytes),
        )
        if size
    ]
    return [f"Peak memory {bytes_text(memory.peak_bytes)}: {', '.join(parts)}."]


def _set_up(profile: Profile) -> list[str]:
    if profile.config is None:
        return []
    chosen = json.loads(profile.config)
    return [f"Configuration: {_settings(chosen) if isinstance(chosen, dict) else chosen}."]


def _settings(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_settings(value)})" if isinstance(value, dict) else f"{name} {json.dumps(value)}"
        for name, value in chosen.items()
    )


def _kernels(profile: Profile) -> Grid | None:
    line = profile.timeline
    if line is None:
        return None
    rows = [
        (short(k.name), _number(k.launches), us(k.time_us), f"{k.share:.1%}") for k in line.kernels[:_ROWS]
    ]
    return Grid(
        title="Kernels of a call",
        headings=("kernel", "launches", "time", "share"),
        rows=tuple(rows),
        closing=_more(len(line.kernels), "kernel"),
    )


def _operators(profile: Profile) -> Grid | None:
    told = profile.operators
    if told is None:
        return None
    rows = [
        (short(o.name), _number(o.calls), us(o.time_us), f"{o.share:.1%}", bytes_text(o.allocated_bytes))
        for o in told.operators[:_ROWS]
    ]
    return Grid(
        title="Operators of a call",
        headings=("operator", "calls", "own time", "share", "allocated"),
        rows=tuple(rows),
        closing=_more(len(told.operators), "operator"),
    )


def _resources(profile: Profile) -> Grid | None:
    if not profile.resources:
        return None
    rows = [
        (
            short(r.name),
            str(r.launches),
            "×".join(map(str, _trimmed(r.grid))),
            str(r.threads),
            "" if r.num_stages is None else str(r.num_stages),
            str(r.registers),
            "" if r.spilled_bytes is None else f"{r.spilled_bytes} B",
            bytes_text(r.shared_bytes),
            f"{r.occupancy:.0%} ({r.programs}, {r.limited_by})",
            three(r.waves),
        )
        for r in profile.resources[:_ROWS]
    ]
    return Grid(
        title="What launches take of a multiprocessor",
        headings=(
            "kernel", "launches", "grid", "threads", "stages", "registers", "spilled", "shared memory",
            "occupancy (programs, limited by)", "waves",
        ),
        rows=tuple(rows),
        closing=_more(len(profile.resources), "kind", "of launches"),
    )  # fmt: skip


def _counters(profile: Profile) -> Grid | None:
    if not profile.counters:
        return None
    longest = sorted(profile.counters, key=lambda each: -(each.time_us or 0.0))
    return Grid(
        title="Hardware counters by launch (Nsight Compute, caches flushed before each, clocks as they are)",
        headings=(
            "kernel", "time", "DRAM read", "written", "DRAM", "L2", "shared pipe", "tensor", "issue", "occupancy",
            "waits most for",
        ),
        rows=tuple(_counter_row(each) for each in longest[:_ROWS]),
        closing=_more(len(longest), "launch"),
    )  # fmt: skip


def _counter_row(each: Counters) -> tuple[str, ...]:
    total = sum(each.stalls.values())
    waits = ", ".join(
        f"{stall_name(name)} {value / total:.0%}" for name, value in list(each.stalls.items())[:2]
    )
    sizes = ("" if size is None else bytes_text(size) for size in (each.read_bytes, each.written_bytes))
    shares = (each.dram, each.l2, each.shared_pipe, each.tensor, each.issue, each.occupancy)
    time = "" if each.time_us is None else us(each.time_us)
    return (short(each.name), time, *sizes, *map(percent, shares), waits)


def _more(number: int, noun: str, tail: str = "") -> str | None:
    if number <= _ROWS:
        return None
    plural = "launches" if noun == "launch" else f"{noun}s"
    return f"{number - _ROWS} more {plural}{f' {tail}' if tail else ''} in profile.json."


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.005 else f"{value:.2f}"


def _trimmed(grid: Sequence[int]) -> Sequence[int]:
    """A grid without its last ones."""
    sizes = list(grid)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _count(value: float) -> str:
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{three(value / unit)} {name}"
    return f"{value:,.0f} "
