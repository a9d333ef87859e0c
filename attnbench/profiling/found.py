"""What a profile holds, and its JSON. Times in microseconds of one call, sizes in bytes; None: not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from attnbench.case import Case, Memory, Status, Telemetry, Timing
from attnbench.errors import UserError
from attnbench.words import without_folders

VERSION = 1
FILE = "profile.json"
TRACE = "trace.json.gz"


class Bound(StrEnum):
    """What keeps a call from being faster."""

    MEMORY = "memory"  # DRAM, the L2 or the shared memory's data pipe
    TENSOR = "tensor"  # the tensor cores; on the CPU the rate of matrix products
    ARITHMETIC = "arithmetic"  # what else a multiprocessor does with instructions
    LATENCY = "latency"  # no unit is busy: warps wait for each other, for data, or are too few
    LAUNCHES = "launches"  # the device is idle between kernels
    HOST = "host"  # the host takes longer over a call than the device
    UNCLEAR = "unclear"  # without counters that cannot be told


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel (or copy, or fill) of one call: how often it is launched, how long it takes, its share of all."""

    name: str
    launches: float
    time_us: float  # of all its launches in a call, the median over calls
    share: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What the device did in a call, medians over `calls` calls, each with a cold cache."""

    calls: int
    kernels: tuple[Kernel, ...]  # longest first
    launches: float  # of all kernels
    kernels_us: float  # the kernels' times added up
    busy_us: float  # the device at work: as kernels_us, but for what ran side by side
    span_us: float  # from the first begin to the last end
    gaps: float  # between one end and the next begin
    gap_us: float  # all of them together
    longest_gap_us: float
    events_us: float  # the same calls by CUDA events


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of torch in one call on the CPU: its own time without its callees', and what it allocated."""

    name: str
    calls: float
    time_us: float
    share: float
    allocated_bytes: float


@dataclass(frozen=True, kw_only=True)
class Operators:
    """All operators of a call on the CPU, longest first. call_us: the whole call, under the profiler."""

    calls: int
    operators: tuple[Operator, ...]
    operators_us: float
    call_us: float


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Launches of one kernel that are alike, and what they take of a multiprocessor.

    spilled_bytes: local memory of a thread, of Triton's kernels only. programs: that share a multiprocessor;
    occupancy: their warps over those that it can hold. waves: the grid over all programs that run at once.
    """

    name: str
    launches: int  # of one call
    grid: tuple[int, ...]
    threads: int
    registers: int
    shared_bytes: int
    programs: int
    occupancy: float
    waves: float
    limited_by: str  # registers, shared memory, threads or programs
    spilled_bytes: int | None = None
    num_warps: int | None = None
    num_stages: int | None = None


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What Nsight Compute counted in one launch, its caches flushed before. Shares of each unit's own peak, 0 to 1."""

    name: str
    time_us: float | None = None
    read_bytes: float | None = None  # from DRAM
    written_bytes: float | None = None
    dram: float | None = None
    l2: float | None = None
    l2_hits: float | None = None
    shared_pipe: float | None = None  # the data pipe of L1 and shared memory
    tensor: float | None = None
    multiprocessor: float | None = None  # its busiest part, whichever that is
    issue: float | None = None  # cycles in which a scheduler issued
    occupancy: float | None = None
    registers: float | None = None
    stalls: Mapping[str, float] = field(
        default_factory=dict
    )  # warps that wait, by reason, for each instruction


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs and bytes of a call by formula, and what that makes of its median time."""

    flops: float
    moved_bytes: float
    tflops: float
    gbps: float
    copy_gbps: float | None  # the ceilings, measured in the same process
    matmul_tflops: float | None
    bound_share: float | None  # of the time that the nearer ceiling allows

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.moved_bytes

    @property
    def memory_share(self) -> float | None:
        return None if not self.copy_gbps else self.gbps / self.copy_gbps

    @property
    def matrix_share(self) -> float | None:
        return None if not self.matmul_tflops else self.tflops / self.matmul_tflops


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What bounds a call, in one sentence, and the figures that say so."""

    bound: Bound
    sentence: str
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One case, profiled. Groups are None where a part of it failed or does not exist on the device: `notes` say why.

    timing is of the project's clock, before a profiler was used in the process. host_us: the host's time for a call.
    """

    case: Case
    status: Status
    reason: str | None = None
    version: int = VERSION
    device: str | None = None
    device_type: str | None = None
    provider: str | None = None
    command: tuple[str, ...] = ()
    started_at: str | None = None
    first_call_ms: float | None = None
    config: str | None = None
    timing: Timing | None = None
    telemetry: Telemetry | None = None
    work: Work | None = None
    host_us: float | None = None
    timeline: Timeline | None = None
    operators: Operators | None = None
    memory: Memory | None = None
    resources: tuple[Resources, ...] = ()
    counters: tuple[Counters, ...] = ()
    counters_note: str | None = None  # why there are none
    notes: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None
    environment: Mapping[str, Any] | None = None

    @property
    def time_us(self) -> float | None:
        """The median call by the clock."""
        return None if self.timing is None else self.timing.median_ms * 1e3

    @property
    def deviation(self) -> float | None:
        """How far the kernels' times, added up, lie from what CUDA events say of the same calls: -0.01 is 1 % below."""
        return None if self.timeline is None else self.timeline.kernels_us / self.timeline.events_us - 1

    @property
    def slowdown(self) -> float | None:
        """How much longer the profiled calls took than those before any profiler, both by CUDA events."""
        if self.timeline is None or self.time_us is None:
            return None
        return self.timeline.events_us / self.time_us - 1

    @property
    def label(self) -> str:
        return self.case.case_id


@cache
def _adapter() -> TypeAdapter[Profile]:
    return TypeAdapter(Profile)


def as_dict(profile: Profile) -> dict[str, Any]:
    """A profile in types that JSON has; of folders in its environment's variables it tells no more than a page does."""
    found: dict[str, Any] = _adapter().dump_python(profile, mode="json")
    environment = found["environment"] or {}
    if "variables" in environment:
        told = environment["variables"].items()
        environment["variables"] = {name: without_folders(str(value)) for name, value in told}
    return found


def save(profile: Profile, path: Path) -> None:
    """Write a profile whole or not at all, so that a process that dies leaves what it had."""
    text = json.dumps(as_dict(profile), indent=1, allow_nan=False) + "\n"
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def load(path: Path) -> Profile:
    """A profile from its JSON, or from the folder that holds it.

    Raises UserError for a file that is not there, is damaged, or of a version unknown here.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no profile there: expected a folder with {FILE}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a profile: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(f"{file}: expected a profile of version {VERSION}, got {version!r}")
    try:
        return _adapter().validate_python(content)
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{file}: damaged: {first}") from error
