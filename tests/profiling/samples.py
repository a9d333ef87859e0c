"""Profiles of known truth, and what tools print, for the tests of the profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench.case import Case, Status, Timing, Workload
from attnbench.profiling.found import Counters, Kernel, Profile, Timeline, Work

CASE = Case(
    mechanism="lightning2", workload=Workload.FWD, batch=4, heads=16, seq_len=8192, head_dim=128, dtype="bf16"
)
COPY_GBPS, MATMUL_TFLOPS = 4000.0, 700.0


def timing(microseconds: float) -> Timing:
    ms = microseconds / 1e3
    return Timing(samples_ms=(ms,) * 30, median_ms=ms, p10_ms=ms, p90_ms=ms, ci_low_ms=ms, ci_high_ms=ms)


def timeline(
    *, busy_us: float, launches: int = 1, gap_us: float = 0.0, events_us: float | None = None
) -> Timeline:
    return Timeline(
        calls=50,
        kernels=(Kernel(name="some_kernel", launches=launches, time_us=busy_us, share=1.0),),
        launches=launches,
        kernels_us=busy_us,
        busy_us=busy_us,
        span_us=busy_us + gap_us,
        gaps=launches - 1,
        gap_us=gap_us,
        longest_gap_us=gap_us / max(1, launches - 1),
        events_us=busy_us + gap_us if events_us is None else events_us,
    )


def work(*, time_us: float, memory: float, matrix: float) -> Work:
    """Work that takes these shares of both ceilings in the time."""
    seconds = time_us * 1e-6
    return Work(
        flops=matrix * MATMUL_TFLOPS * 1e12 * seconds,
        moved_bytes=memory * COPY_GBPS * 1e9 * seconds,
        tflops=matrix * MATMUL_TFLOPS,
        gbps=memory * COPY_GBPS,
        copy_gbps=COPY_GBPS,
        matmul_tflops=MATMUL_TFLOPS,
        bound_share=max(memory, matrix),
    )


def counters(
    *,
    time_us: float,
    dram: float,
    l2: float = 0.3,
    shared: float = 0.2,
    tensor: float = 0.1,
    multiprocessor: float = 0.3,
    **stalls: float,
) -> Counters:
    """A launch that moves bytes at `dram` of the copy ceiling, two thirds of them read."""
    moved = dram * COPY_GBPS * 1e9 * time_us * 1e-6
    return Counters(
        name="some_kernel", time_us=time_us, read_bytes=moved * 2 / 3, written_bytes=moved / 3, dram=dram, l2=l2,
        shared_pipe=shared, tensor=tensor, multiprocessor=multiprocessor, issue=0.3, occupancy=0.4, stalls=stalls,
    )  # fmt: skip


def profile(*, time_us: float, busy_us: float | None = None, **fields: Any) -> Profile:
    """A profile on a GPU; without `busy_us` its one kernel takes all of the time."""
    given: dict[str, Any] = {
        "case": CASE,
        "status": Status.OK,
        "device": "a GPU",
        "device_type": "cuda",
        "provider": "triton 3.6.0",
        "timing": timing(time_us),
        "work": work(time_us=time_us, memory=0.2, matrix=0.1),
        "host_us": 20.0,
        "timeline": timeline(busy_us=time_us if busy_us is None else busy_us),
    }
    return Profile(**given | fields)


# In the form of `ncu --csv --page raw --print-units base`: lines of progress, a header, units, a row for each launch.
# The second launch has a figure that did not come back; some numbers have separators.
NCU_RAW = (Path(__file__).parent / "ncu-raw.csv").read_text(encoding="utf-8")
