"""The tables of a sweep: which keys there are, and what a value must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
)

from attnbench.case import DTYPES, Protocol, Workload
from attnbench.errors import UserError, nearest
from attnbench.sweeps.axes import SHAPE_KEYS, Shape
from attnbench.sweeps.files import Places, Where
from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_size, parse_sizes, shown


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


class Table(BaseModel):
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


class CpuTable(Table):
    """What replaces keys on a machine without a GPU."""

    also: list[dict[str, Any]] = []


class Document(CpuTable):
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


def layer(
    model: type[Table], values: Mapping[str, object], *, places: Places, table: tuple[str, ...] = ()
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


def further_grids(
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
        found.append(layer(Table, values, places=places, table=inner)[0])
    return found
