"""What the measurements of whole models record: a Parquet file of each kind, with the environment in its metadata.

Unknown values are null, never 0 or -1. A field that a status other than `ok` leaves without a value is null too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from attnbench import store
from attnbench.errors import UserError

VERSION: Final = 2
VERSION_KEY: Final = b"attnbench.models.version"
KIND_KEY: Final = store.KIND_KEY
ENVIRONMENT_KEY: Final = b"attnbench.models.environment"  # JSON: machine, device, versions, command line, ...


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Training steps of one model at one length: forward, loss, backward and AdamW, over constant tokens."""

    KIND: ClassVar[str] = "train-step"

    case_id: str
    model: str  # "tnl" or "llama"
    size: str  # "tiny", "0.4B", "1B" or "3B"
    attention: str  # mechanism: "lightning2", "lightning1", "flash2", ...
    seq_len: int
    tokens_per_step: int  # over all micro-batches and GPUs
    checkpointing: (
        str  # "none", "selective" (matrix products and attention are kept) or "full" (inputs of blocks are)
    )
    precision: str  # "bf16" (weights, gradients and moments), "autocast" (bf16 over fp32 weights) or "fp32"
    gpus: int
    status: str  # as of `attnbench.case.Status`
    compiled: bool | None = None  # were the blocks, by torch.compile? From version 2 on
    reason: str | None = None  # always there when not ok
    device: str | None = None
    provider: str | None = None  # the library that computed the attention
    loss_by: str | None = None  # what computed the cross-entropy
    started_at: str | None = None
    parameters: int | None = None
    batch: int | None = None  # sequences of a micro-batch on one GPU
    micro_batches: int | None = None  # per step and GPU
    first_step_ms: float | None = None  # on the host's clock, compiling included; from version 2 on
    samples_ms: tuple[float, ...] | None = None  # steps in time order, warm-up left out
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    tokens_per_s: float | None = None  # per GPU, by the median
    peak_bytes: int | None = None  # of one GPU
    attention_share: float | None = (
        None  # of a step's time, recomputation included; of compiled ones an estimate
    )
    model_flops: float | None = None  # of a step over all GPUs, without what checkpointing computes twice
    matmul_flops: float | None = None  # per second and GPU, measured on the device in the same run
    peak_flops: float | None = None  # per second and GPU: the data sheet's dense bf16 rate, where it is known
    mfu: float | None = None  # model_flops over the time and peak_flops of all GPUs
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One phase of inference at one context."""

    KIND: ClassVar[str] = "inference"

    case_id: str
    model: str
    size: str
    attention: str
    cache: str  # "state", "kv", "kv-interpolated" or "kv-streaming"
    phase: str  # "prefill", "decode" or "generate"
    context: int  # tokens before the first new one; of a prefill, those put in
    precision: str
    status: str
    reason: str | None = None
    device: str | None = None
    provider: str | None = None
    started_at: str | None = None
    parameters: int | None = None
    batch: int | None = None
    new_tokens: int | None = None  # per sequence; null of a prefill
    launch: str | None = None  # of a step of decode: "eager" or "graph"
    samples_ms: tuple[float, ...] | None = (
        None  # a call: a whole prefill, one step of decode, a whole generation
    )
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    tokens_per_s: float | None = None  # over the batch: put in (prefill), put out (decode, generate)
    peak_bytes: int | None = None  # weights included
    weight_bytes: int | None = None
    kept_bytes: int | None = None  # of the context over the batch: states, or allocated caches


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one training step of a small model."""

    KIND: ClassVar[str] = "losses"

    case_id: str  # of the training run
    model: str
    size: str
    attention: str
    task: str  # "markov" (a synthetic language) or "text"
    seed: int
    step: int  # from 0
    tokens: int  # seen before this step
    loss: float  # mean cross-entropy of a token, in nats
    seq_len: int
    batch: int
    learning_rate: float
    precision: str
    parameters: int
    device: str
    provider: str


def seed_text(seed: int) -> str:
    """What a seed adds to the name of a case; nothing of the first one."""
    return f".seed{seed}" if seed else ""


Record = TrainStep | Inference | Loss
KINDS: Final = (TrainStep, Inference, Loss)


class Row(Protocol):
    """A kind of record: a frozen dataclass of the columns, with the name of its file; not of models alone."""

    KIND: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def case_id(self) -> str: ...


R = TypeVar("R", bound=Row)
T = TypeVar("T")

_TYPES: Final[Mapping[str, pa.DataType]] = {
    "str": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float": pa.float64(),
    "tuple[float, ...]": pa.list_(pa.float32()),
}


def schema(kind: type[Row]) -> pa.Schema:
    """The Arrow schema of a kind of record; a field that may be unknown is nullable."""
    fields = []
    for field in dataclasses.fields(kind):
        name = str(field.type)
        fields.append(
            pa.field(field.name, _TYPES[name.removesuffix(" | None")], nullable=name.endswith(" | None"))
        )
    return pa.schema(fields)


def file_name(kind: type[Row]) -> str:
    """`train-step.parquet`, `inference.parquet`, `losses.parquet`, ..."""
    return f"{kind.KIND}.parquet"


def kind_of(path: Path) -> str | None:
    """The kind of records in a Parquet file; None where it holds none of these, as a sweep's does.

    Raises UserError for a file that is missing or damaged.
    """
    schema = _opened(pq.read_schema, path, missing=f"there is no file {path}")
    found = (schema.metadata or {}).get(KIND_KEY)
    return None if found is None else found.decode()


def write(rows: Iterable[R], path: Path, *, kind: type[R], environment: Mapping[str, Any]) -> None:
    """Write records of one kind, whole or not at all.

    Raises UserError when that fails, ValueError for a number that is not finite.
    """
    dicts = [dataclasses.asdict(row) for row in rows]
    for row in dicts:
        _check_finite(row)
    metadata = {
        VERSION_KEY: str(VERSION).encode(),
        KIND_KEY: kind.KIND.encode(),
        ENVIRONMENT_KEY: json.dumps(environment).encode(),
    }
    store.write(pa.Table.from_pylist(dicts, schema=schema(kind).with_metadata(metadata)), path)


def read(path: Path, *, kind: type[R]) -> list[R]:
    """The records in a file, or in the file of their kind in a folder; what an older file does not have is None.

    Raises UserError for a file that is missing, damaged, of another kind, or of a newer version.
    """
    table = _table(path / file_name(kind) if path.is_dir() else path, kind=kind)
    names = [field.name for field in dataclasses.fields(kind)]
    rows: list[Any] = table.select([name for name in names if name in table.column_names]).to_pylist()
    make: Any = kind
    return [make(**{n: tuple(v) if isinstance(v, list) else v for n, v in row.items()}) for row in rows]


def read_environment(path: Path, *, kind: type[Row]) -> dict[str, Any]:
    """What is known of the machine that recorded a file. Raises UserError as `read` does."""
    metadata = _table(path / file_name(kind) if path.is_dir() else path, kind=kind).schema.metadata
    environment: dict[str, Any] = json.loads(metadata.get(ENVIRONMENT_KEY, b"{}"))
    return environment


def _table(path: Path, *, kind: type[Row]) -> pa.Table:
    reader = functools.partial(pq.read_table, partitioning=None)
    table = _opened(reader, path, missing=f"there are no {kind.KIND} records at {path}")
    metadata = table.schema.metadata or {}
    found = metadata.get(KIND_KEY, b"").decode()
    if found != kind.KIND:
        raise UserError(f"{path} holds {found or 'no model'} records, expected {kind.KIND}")
    version = int(metadata[VERSION_KEY])
    if version > VERSION:
        raise UserError(
            f"{path} has version {version} of model records, and this attnbench reads up to {VERSION}: update attnbench"
        )
    return table


def _opened(reader: Callable[[Path], T], path: Path, *, missing: str) -> T:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no readable Parquet file (truncated or of another kind): {error}"
        ) from error


def _check_finite(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{row['case_id']}: {name} is {number}; an unknown value must be None")
