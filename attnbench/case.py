"""The nouns: what is measured (`Case`), what came out (`Measurement`), and how (`Protocol`). No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Workload(StrEnum):
    """What one timed call does."""

    FWD = "fwd"  # forward under no_grad
    BWD = "bwd"  # gradients alone, from a saved forward
    FWD_BWD = "fwd-bwd"  # forward that saves, then gradients
    DECODE = "decode"  # one token of each sequence joins a context that is there; seq_len counts it in

    @property
    def has_backward(self) -> bool:
        return self in (Workload.BWD, Workload.FWD_BWD)

    def tokens(self, *, batch: int, seq_len: int) -> int:
        """Tokens that one call on `batch` sequences of `seq_len` tokens puts out."""
        return batch if self is Workload.DECODE else batch * seq_len


class Status(StrEnum):
    """How a case ended; every status but `ok` comes with a reason."""

    OK = "ok"
    INCORRECT = "incorrect"
    OOM = "oom"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"


class Cache(StrEnum):
    """State of the L2 cache when a sample starts."""

    COLD = "cold"
    HOT = "hot"


class Launch(StrEnum):
    """How a sample reaches the device: call by call from Python, or as a replayed CUDA graph."""

    EAGER = "eager"
    GRAPH = "graph"


DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of a sweep: everything that decides what is computed, nothing about where.

    Sizes are counts: `batch` sequences of `seq_len` tokens (of a decode: the context, its new token included),
    `heads` query heads of `head_dim` channels, `kv_heads` key/value heads, `value_dim` channels per value head,
    `window` last tokens that a query sees (None: all of them).
    """

    mechanism: str
    workload: Workload
    batch: int
    heads: int
    seq_len: int
    head_dim: int
    dtype: str
    kv_heads: int = 0  # 0: as many as heads (filled in on construction)
    value_dim: int = 0  # 0: the same as head_dim (filled in on construction)
    causal: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "workload", Workload(self.workload))
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)

    @property
    def tokens(self) -> int:
        """Tokens that one call puts out; tokens/s counts these."""
        return self.workload.tokens(batch=self.batch, seq_len=self.seq_len)

    @property
    def shape_id(self) -> str:
        """Readable shape, e.g. `B4-H16-N8192-D128`; the unusual axes appear only when they are unusual."""
        kv = f"-KV{self.kv_heads}" if self.kv_heads != self.heads else ""
        value = f"-E{self.value_dim}" if self.value_dim != self.head_dim else ""
        full = "" if self.causal else "-full"
        window = "" if self.window is None else f"-W{self.window}"
        return f"B{self.batch}-H{self.heads}{kv}-N{self.seq_len}-D{self.head_dim}{value}{window}{full}"

    @property
    def case_id(self) -> str:
        """The case's name, the same on every machine, e.g. `lightning2.fwd.B4-H16-N8192-D128.bf16`."""
        return f"{self.mechanism}.{self.workload}.{self.shape_id}.{self.dtype}"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How every case of a run is measured. Times in seconds of wall clock unless said otherwise.

    cap_s bounds the sampling of one case (but never below `min_samples_floor` samples); limit_s bounds the
    whole case after its first call: one that cannot collect the floor within it gets the status `timeout`.
    """

    cache: Cache = Cache.COLD
    launch: Launch = Launch.EAGER
    min_samples: int = 30
    min_samples_floor: int = 5
    max_samples: int = 2000
    min_device_s: float = 0.5  # of sampling: samples, clearing the cache between them, waiting
    ci_half_width: float = 0.005  # relative half width of the 95 % interval of the median
    warmup_s: float = 0.1
    cap_s: float = 5.0
    limit_s: float = 60.0
    first_call_limit_s: float = 180.0  # compilation, tuning and one call
    pause_s: float = 0.0  # rest between two cases
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Cache(self.cache))
        object.__setattr__(self, "launch", Launch(self.launch))

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Samples of one case in milliseconds, in time order, and what a user derives first from them."""

    samples_ms: tuple[float, ...]
    median_ms: float
    p10_ms: float
    p90_ms: float
    ci_low_ms: float
    ci_high_ms: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one call by purpose; None where the platform cannot tell."""

    input_bytes: int | None = None
    output_bytes: int | None = None
    saved_bytes: int | None = None
    state_bytes: int | None = None
    workspace_bytes: int | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Norm of the difference to the fp64 oracle over the oracle's norm; None where not checked."""

    rel_err_o: float | None = None
    rel_err_dq: float | None = None
    rel_err_dk: float | None = None
    rel_err_dv: float | None = None


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What the device said of itself while it was timed; None where it says nothing."""

    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] | None = None
    energy_j: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one case yielded: a row of the results. Groups are absent (None) when the case never got there."""

    case: Case
    status: Status
    reason: str | None = None
    semantics: str | None = None
    provider: str | None = None
    device: str | None = None
    node: str | None = None  # the machine's name
    gpu_index: int | None = None  # of the GPU in its machine
    started_at: str | None = None
    first_call_ms: float | None = None
    timing: Timing | None = None
    tflops: float | None = None
    gbps: float | None = None
    roofline: float | None = None
    memory: Memory = field(default_factory=Memory)
    accuracy: Accuracy = field(default_factory=Accuracy)
    telemetry: Telemetry = field(default_factory=Telemetry)
    kernels: tuple[str, ...] | None = None
    busy_ms: float | None = None  # how long the device was at work in one call that was traced
    config: str | None = None
    phases_s: Mapping[str, float] = field(
        default_factory=dict
    )  # wall seconds by phase; kept in the run's record

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"{self.case.case_id}: status '{self.status}' needs a reason")

    @property
    def tokens_per_s(self) -> float | None:
        return None if self.timing is None else self.case.tokens / (self.timing.median_ms * 1e-3)
