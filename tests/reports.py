"""Runs made up for the tests of the report: of any size, with every status, and with names that try to be HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.case import Accuracy, Case, Measurement, Memory, Status, Telemetry, Workload
from attnbench.stats import summarize

HOSTILE = "</script><img src=x onerror=document.title='owned'>\"'&"

RECORD: Mapping[str, Any] = {
    "created_at": "2026-01-02T03:04:05+00:00",
    "command": ["sweep", "made-up", "-o", "runs/<b>x</b>"],
    "sweep": {"name": "made-up", "description": "how it ends, <i>if</i> it ends", "axes": {}},
    "protocol": {"cache": "cold", "launch": "eager"},
    "environment": {"device": "a device", "gpu": {"name": "a device"}, "versions": {"torch": "2.0"}},
    "ceilings": {"copy_gbps": 4000.0, "matmul_tflops": {"bf16": 800.0}},
}


def measured(case: Case, *, status: Status = Status.OK, reason: str | None = None) -> Measurement:
    """A case with everything a device may tell, made up from its sizes."""
    if status is not Status.OK:
        return Measurement(case=case, status=status, reason=reason or f"{status} at {case.seq_len}")
    work = len(case.mechanism) * case.tokens * case.heads * 1e-6 * (2 if case.workload.has_backward else 1)
    return Measurement(
        case=case,
        status=status,
        semantics="decay-linear",
        provider="a library 1.0",
        device="a device",
        first_call_ms=12.5,
        timing=summarize([work * factor for factor in (1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.005)]),
        tflops=40.0 + math.log2(case.seq_len),
        gbps=1000.0,
        roofline=0.5,
        memory=Memory(input_bytes=1000, peak_bytes=2**20 * case.heads),
        accuracy=Accuracy(rel_err_o=0.002, rel_err_dq=0.003),
        telemetry=Telemetry(sm_clock_mhz=1500.0, power_w=693.5, throttle=("power-cap",), energy_j=0.25),
        kernels=(f"kernel_of_{case.mechanism}",),
        config='{"BLOCK": 64}',
    )


def grid(
    mechanisms: Sequence[str],
    *,
    lengths: Sequence[int] = (128, 256, 512, 1024),
    heads: Sequence[int] = (4,),
    dtypes: Sequence[str] = ("bf16",),
    workloads: Sequence[str] = ("fwd", "bwd"),
    failing: Mapping[tuple[str, int], Status] | None = None,
) -> list[Measurement]:
    """Cases of batch 2; `failing` ends those of a mechanism and length."""
    failing = failing or {}
    return [
        measured(
            Case(
                mechanism=mechanism,
                workload=Workload(workload),
                batch=2,
                heads=count,
                seq_len=length,
                head_dim=64,
                dtype=dtype,
            ),
            status=failing.get((mechanism, length), Status.OK),
        )
        for dtype in dtypes
        for count in heads
        for length in lengths
        for workload in workloads
        for mechanism in mechanisms
    ]


def written(
    path: Path, found: Sequence[Measurement], *, run: str = "run-1", record: Mapping[str, Any] = RECORD
) -> Path:
    """A run as a Parquet file, its cases a second apart."""
    rows = [store.row(each, run_id=run) for each in found]
    for place, row in enumerate(rows):
        row["started_at"] = f"2026-01-02T03:{place // 60:02d}:{place % 60:02d}.250+00:00"
    store.write(store.to_table(rows, records={run: {"run_id": run, **record}}), path)
    return path
