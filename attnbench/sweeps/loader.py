"""From a sweep (a preset's name or a TOML file) to cases.

    description = "what the sweep answers"
    mechanism = ["lightning2", "flash2"]
    workload = ["fwd", "bwd"]
    dtype = ["bf16"]
    seq_len = ["1k", "2k", 4096]    # k = 1024, M = 1024 * 1024
    heads = [16]
    head_dim = [128]
    batch = [4]                     # or tokens = "1M": constant tokens, batch = tokens / seq_len
    value_dim = [128]               # optional; default: the same as head_dim
    kv_heads = [4]                  # optional; default: the same as heads
    window = ["1k"]                 # optional, for mechanisms with a window; default: theirs
    causal = [true, false]          # optional; default: true

    [protocol]                      # optional: fields of attnbench.case.Protocol
    limit_s = 10

    [[also]]                        # optional: one more grid; keys that it does not name are those above
    workload = ["decode"]
    batch = [64]

    [cpu]                           # optional: what replaces the keys above on a machine without a GPU
    seq_len = [256, 512]
    also = []
    [cpu.protocol]
    limit_s = 3

An irregular list of shapes replaces batch, tokens, heads, seq_len and head_dim:

    shapes = [[4, 16, "8k", 128], [1, 32, "32k", 64]]    # [batch, heads, seq_len, head_dim]

A single value may stand for a list of one. Three layers are read by the same rules, a later one replacing
keys of an earlier one: the file, its [cpu] table, the command line. The same quantity given in another way is
replaced too: batch by tokens, the axes by shapes, and the reverse. Where a further
grid names mechanisms, workloads or dtypes, the command line only takes some of them away.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
)

from attnbench.case import DTYPES, Case, Protocol, Workload
from attnbench.errors import UserError, nearest
from attnbench.sweeps.defaults import value_dim_of, windows_of
from attnbench.sweeps.files import Places, Where, open_sweep
from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_size, parse_sizes, shown

Device = Literal["cuda", "cpu"]
Shape = tuple[int, int, int, int]  # batch, heads, seq_len, head_dim
Given = str | int | Sequence[str | int] | None

NAME_KEYS = ("mechanism", "workload", "dtype")
SHAPE_KEYS = ("batch", "tokens", "heads", "seq_len", "head_dim")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What varies: `shapes`, or seq_len, heads, head_dim and one of batch and tokens.

    () and None: not given. kv_heads are then as many as heads, and value_dim and window what the mechanism's
    semantics has by itself: mostly head_dim, and none.
    """

    mechanism: tuple[str, ...]
    workload: tuple[Workload, ...]
    dtype: tuple[str, ...]
    seq_len: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    tokens: int | None = None
    heads: tuple[int, ...] = ()
    head_dim: tuple[int, ...] = ()
    value_dim: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    causal: tuple[bool, ...] = ()
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line says instead of the sweep, as typed ("1k,2k", ["fwd", "bwd"]) or parsed.

    None: nothing. `protocol` holds fields of Protocol by name, numbers as numbers.
    """

    mechanism: Given = None
    workload: Given = None
    dtype: Given = None
    seq_len: Given = None
    batch: Given = None
    tokens: Given = None
    heads: Given = None
    head_dim: Given = None
    value_dim: Given = None
    kv_heads: Given = None
    window: Given = None
    causal: bool | None = None
    protocol: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A named grid of cases (and further ones in `also`) for one kind of device, and how each is measured."""

    name: str
    description: str
    device: Device
    axes: Axes
    protocol: Protocol
    also: tuple[Axes, ...] = ()

    def cases(self) -> tuple[Case, ...]:
        """The cases in the order of measurement, shape by shape, so that mechanisms are timed side by side.

        Outermost first: dtype, causal, head_dim, value_dim, heads, kv_heads, batch, seq_len (ascending), workload,
        mechanism, window. A list of shapes keeps its own order, with value_dim and kv_heads inside each shape. Of
        several windows a mechanism without one has one case. Further grids follow, without cases that were there
        before.
        """
        return tuple(dict.fromkeys(case for axes in (self.axes, *self.also) for case in _cases(axes)))

    def as_dict(self) -> dict[str, Any]:
        """What was asked, in types that JSON has; axes that were not given are left out."""
        protocol = {key: _plain(value) for key, value in self.protocol.as_dict().items()}
        return {
            "name": self.name,
            "description": self.description,
            "device": self.device,
            "axes": _axes_dict(self.axes),
            **({"also": [_axes_dict(axes) for axes in self.also]} if self.also else {}),
            "protocol": protocol,
        }


def load(name_or_path: str | Path, *, device: Device, overrides: Overrides | None = None) -> Sweep:
    """The sweep of that name, or of the TOML file at that path (it ends with .toml or has a separator).

    The [cpu] table is checked on every device. Raises UserError, with the place and the reason in one
    sentence, for whatever keeps the sweep from yielding cases.
    """
    file = open_sweep(name_or_path)
    keys, protocol = _layer(_Document, file.parse(), places=file.places)
    description, cpu = keys.pop("description", ""), keys.pop("cpu", {})
    further = _further(keys.pop("also", []), places=file.places)
    cpu_keys, cpu_protocol = _layer(_CpuTable, cpu, places=file.places, table=("cpu",))
    cpu_further = _further(cpu_keys.pop("also", None), places=file.places, table=("cpu",))
    if device == "cpu":
        keys, protocol = _replace(keys, cpu_keys), protocol | cpu_protocol
        further = further if cpu_further is None else cpu_further
    asked = {key: value for key, value in vars(overrides or Overrides()).items() if value is not None}
    own_keys, own_protocol = _layer(_Table, asked, places=_flags)
    first = _asked_of(keys, own_keys, label=file.label)
    also = [
        _asked_of(
            _over(keys, more, own_keys),
            {key: value for key, value in own_keys.items() if key not in NAME_KEYS or key not in more},
            label=file.label,
        )
        for more in further or ()
    ]
    sweep = Sweep(
        name=file.stem,
        description=description,
        device=device,
        axes=Axes(**first),
        protocol=Protocol(**protocol | own_protocol),
        also=tuple(Axes(**grid) for grid in also if all(grid[key] for key in NAME_KEYS)),
    )
    for axes in (sweep.axes, *sweep.also):
        _consistent(axes, label=file.label)
    _feasible(sweep.protocol, label=file.label)
    return sweep


def sweep_of_record(record: Mapping[str, Any]) -> Sweep:
    """The sweep that `as_dict` gave the record of.

    Raises UserError for one that is damaged, or of another version.
    """
    try:
        return Sweep(
            name=record["name"],
            description=record["description"],
            device=record["device"],
            axes=_axes_of_dict(record["axes"]),
            protocol=Protocol(**record["protocol"]),
            also=tuple(_axes_of_dict(axes) for axes in record.get("also", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the record of the run names no sweep that this attnbench knows: {error}") from None


# The layers: which keys there are, and what a value must be.


def _sizes(value: object, info: ValidationInfo) -> tuple[int, ...]:
    return parse_sizes(value, axis=_place(info))


def _size(value: object, info: ValidationInfo) -> int:
    return parse_size(value, axis=_place(info))


def _mechanisms(value: object, info: ValidationInfo) -> tuple[str, ...]:
    return parse_mechanisms(value, axis=_place(info))


def _workloads(value: object, info: ValidationInfo) -> tuple[Workload, ...]:
    names = parse_names(value, kind="workload", choices=[str(w) for w in Workload], axis=_place(info))
    return tuple(Workload(name) for name in names)


def _booleans(value: object, info: ValidationInfo) -> tuple[bool, ...]:
    given = value if isinstance(value, list) else [value]
    for each in given or [value]:
        if not isinstance(each, bool):
            raise UserError(f"{_place(info)}: expected true or false, got {shown(each)}")
    return tuple(dict.fromkeys(given))


def _dtypes(value: object, info: ValidationInfo) -> tuple[str, ...]:
    return parse_names(value, kind="dtype", choices=DTYPES, axis=_place(info))


def _shape_list(value: object, info: ValidationInfo) -> tuple[Shape, ...]:
    place = _place(info)
    if value == []:
        raise UserError(f"{place}: empty grid: give at least one shape")
    shapes: dict[Shape, None] = {}
    for row in value if isinstance(value, list) else [value]:
        if not isinstance(row, list) or len(row) != 4:
            raise UserError(f"{place}: expected rows of [batch, heads, seq_len, head_dim], got {shown(row)}")
        batch, heads, seq_len, head_dim = (parse_size(item, axis=place) for item in row)
        shapes[batch, heads, seq_len, head_dim] = None
    return tuple(shapes)


def _place(info: ValidationInfo) -> str:
    """The key under validation as an error sentence names it; the layer's `Where` travels as the context."""
    return cast(Where, info.context)(str(info.field_name))


Sizes = Annotated[tuple[int, ...], BeforeValidator(_sizes)]


class _Table(BaseModel):
    """The axes, all of them optional here: completeness is a matter of the layers together."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mechanism: Annotated[tuple[str, ...], BeforeValidator(_mechanisms)] = ()
    workload: Annotated[tuple[Workload, ...], BeforeValidator(_workloads)] = ()
    dtype: Annotated[tuple[str, ...], BeforeValidator(_dtypes)] = ()
    seq_len: Sizes = ()
    batch: Sizes = ()
    tokens: Annotated[int | None, BeforeValidator(_size)] = None
    heads: Sizes = ()
    head_dim: Sizes = ()
    value_dim: Sizes = ()
    kv_heads: Sizes = ()
    window: Sizes = ()
    causal: Annotated[tuple[bool, ...], BeforeValidator(_booleans)] = ()
    shapes: Annotated[tuple[Shape, ...], BeforeValidator(_shape_list)] = ()
    protocol: dict[str, Any] = {}


class _CpuTable(_Table):
    """What replaces keys on a machine without a GPU."""

    also: list[dict[str, Any]] = []


class _Document(_CpuTable):
    """A whole file."""

    description: str = ""
    cpu: dict[str, Any] = {}


_MAY_BE_ZERO = {"min_device_s", "ci_half_width", "warmup_s", "pause_s", "seed"}


def _protocol_field(name: str, kind: type, default: object) -> Any:
    """One field of Protocol with its bounds; choices are given as text, numbers never are."""
    if kind not in (int, float):
        return Annotated[kind, Field(strict=False)], default
    bounds = Field(strict=True, ge=0) if name in _MAY_BE_ZERO else Field(strict=True, gt=0)
    return Annotated[kind, bounds], default


_ProtocolTable: type[BaseModel] = create_model(
    "_ProtocolTable",
    __config__=ConfigDict(extra="forbid", allow_inf_nan=False),
    **{
        name: _protocol_field(name, kind, getattr(Protocol, name))
        for name, kind in get_type_hints(Protocol).items()
    },
)


def _check(model: type[BaseModel], values: dict[str, Any], *, where: Where) -> dict[str, Any]:
    """The keys that were given, parsed.

    Raises UserError for the first thing that is wrong.
    """
    try:
        table = model.model_validate(values, context=where)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = where(str(first["loc"][0]))
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{place}: unknown key; {nearest(str(first['loc'][0]), model.model_fields)}"
            ) from None
        if first["type"] == "dict_type":
            raise UserError(f"{place} should be a table, got {shown(first['input'])}") from None
        message = first["msg"].removeprefix("Input ")
        raise UserError(f"{place} {message}, got {shown(first['input'])}") from None
    return {key: getattr(table, key) for key in table.model_fields_set}


def _layer(
    model: type[_Table], values: Mapping[str, object], *, places: Places, table: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys and the protocol of one layer, parsed, with no quantity given in two ways."""
    where = places(*table)
    keys = _check(model, dict(values), where=where)
    protocol = _check(_ProtocolTable, dict(keys.pop("protocol", {})), where=places(*table, "protocol"))
    if "batch" in keys and "tokens" in keys:
        raise UserError(f"{where('tokens')}: give tokens or batch, not both (batch = tokens / seq_len)")
    if "shapes" in keys:
        for key in SHAPE_KEYS:
            if key in keys:
                raise UserError(f"{where(key)}: give {key} or shapes, not both")
    return keys, protocol


def _further(
    tables: list[dict[str, Any]] | None, *, places: Places, table: tuple[str, ...] = ()
) -> list[dict[str, Any]] | None:
    """The keys of further grids, parsed; None: the layer has nothing to say of them."""
    if tables is None:
        return None
    found = []
    for number, values in enumerate(tables, start=1):
        inner = (*table, f"also[{number}]")
        if "protocol" in values:
            raise UserError(f"{places(*inner)('protocol')}: the grids of a sweep share one protocol")
        found.append(_layer(_Table, values, places=places, table=inner)[0])
    return found


def _over(keys: Mapping[str, Any], more: Mapping[str, Any], own_keys: Mapping[str, Any]) -> dict[str, Any]:
    """A further grid over the first one: of the names it gives, those that the command line has too."""
    grid = _replace(keys, more)
    for key in NAME_KEYS:
        if key in more and key in own_keys:
            grid[key] = tuple(name for name in more[key] if name in own_keys[key])
    return grid


def _asked_of(keys: Mapping[str, Any], own_keys: Mapping[str, Any], *, label: str) -> dict[str, Any]:
    """A grid of the file under what the command line says; complete, or UserError."""
    for key in SHAPE_KEYS:
        if "shapes" in keys and key in own_keys:
            raise UserError(
                f"{_flag(key)}: {label} lists its shapes one by one; choose a sweep with axes instead"
            )
    grid = _replace(keys, own_keys)
    _complete(grid, label=label)
    return grid


def _replace(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One layer over another; what the upper one says in another way is gone from the lower one."""
    gone: set[str] = set()
    if "batch" in above:
        gone.add("tokens")
    if "tokens" in above:
        gone.add("batch")
    if "shapes" in above:
        gone.update(SHAPE_KEYS)
    elif any(key in above for key in SHAPE_KEYS):
        gone.add("shapes")
    return {key: value for key, value in below.items() if key not in gone} | dict(above)


def _complete(keys: Mapping[str, Any], *, label: str) -> None:
    """Is every axis there?"""
    needed = ["mechanism", "workload", "dtype"]
    if "shapes" not in keys:
        needed += ["seq_len", "heads", "head_dim"]
    for key in needed:
        if key not in keys:
            raise UserError(f"{label}: missing key '{key}'")
    if not any(key in keys for key in ("shapes", "batch", "tokens")):
        raise UserError(f"{label}: missing key 'batch' (or 'tokens')")


def _consistent(axes: Axes, *, label: str) -> None:
    """Do the values of the layers fit together?"""
    tokens = axes.tokens
    for seq_len in axes.seq_len:
        if tokens is not None and tokens % seq_len:
            raise UserError(
                f"{label}: tokens {tokens} is not a multiple of seq_len {seq_len}; change one of them "
                "or give batch in place of tokens (batch = tokens / seq_len)"
            )
    for heads in axes.heads or [heads for _, heads, _, _ in axes.shapes]:
        for kv_heads in axes.kv_heads:
            if heads % kv_heads:
                raise UserError(f"{label}: heads {heads} is not a multiple of kv_heads {kv_heads}")
    if axes.window and all(case.window is None for case in _cases(axes)):
        raise UserError(f"{label}: a window is given, and none of {', '.join(axes.mechanism)} has one")


def _feasible(protocol: Protocol, *, label: str) -> None:
    """Can the sampling rule be met at all?"""
    if not protocol.min_samples_floor <= protocol.min_samples <= protocol.max_samples:
        raise UserError(
            f"{label}: the protocol needs min_samples_floor <= min_samples <= max_samples, got "
            f"{protocol.min_samples_floor}, {protocol.min_samples} and {protocol.max_samples}"
        )


def _cases(axes: Axes) -> Iterator[Case]:
    for dtype, causal in itertools.product(axes.dtype, axes.causal or (True,)):
        for (batch, heads, seq_len, head_dim), value_dim, kv_heads in _shapes(axes):
            for workload, mechanism in itertools.product(axes.workload, axes.mechanism):
                for window in windows_of(mechanism, asked=axes.window):
                    yield Case(
                        mechanism=mechanism,
                        workload=workload,
                        batch=batch,
                        heads=heads,
                        seq_len=seq_len,
                        head_dim=head_dim,
                        dtype=dtype,
                        kv_heads=kv_heads,
                        value_dim=value_dim or value_dim_of(mechanism, head_dim=head_dim),
                        causal=causal,
                        window=window,
                    )


def _axes_dict(axes: Axes) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(axes).items() if value not in ((), None)}


def _axes_of_dict(values: Mapping[str, Any]) -> Axes:
    axes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    axes["workload"] = tuple(Workload(name) for name in axes["workload"])
    if "shapes" in axes:
        axes["shapes"] = tuple(tuple(shape) for shape in axes["shapes"])
    return Axes(**axes)


def _shapes(axes: Axes) -> Iterator[tuple[Shape, int, int]]:
    """Shapes with value_dim and kv_heads (0: as head_dim and heads), in the order of `Sweep.cases`."""
    value_dims, kv_heads = axes.value_dim or (0,), axes.kv_heads or (0,)
    if axes.shapes:
        yield from itertools.product(axes.shapes, value_dims, kv_heads)
        return
    batches = axes.batch or (0,)
    for head_dim, value_dim, heads, kv, batch, seq_len in itertools.product(
        axes.head_dim, value_dims, axes.heads, kv_heads, batches, sorted(axes.seq_len)
    ):
        rows = batch if axes.tokens is None else axes.tokens // seq_len
        yield (rows, heads, seq_len, head_dim), value_dim, kv


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _flags(*_table: str) -> Where:
    return _flag
