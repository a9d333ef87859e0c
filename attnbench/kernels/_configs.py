"""Launch configurations as data: a TOML table per architecture, read once, written by `attnbench tune`.

The package's tables lie in `configs/`. The variable ATTNBENCH_CONFIGS names a table of one's own, which replaces
the package's for the architecture that it is for; a process reads it once, at its first launch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "ATTNBENCH_CONFIGS"

ELEMENT_SIZES = (2, 4)  # bytes; 2 serves fp16 and bf16
KEY_DIMS = (64, 128, 256)  # a key dim is rounded up to one of them
DEFAULT = "default"
# By the major number of the compute capability; any other device, and the interpreter, take the default.
_ARCHITECTURES = {8: "ampere", 9: "hopper"}
ARCHITECTURES = (*_ARCHITECTURES.values(), DEFAULT)


class TableError(ValueError):
    """A table that cannot be used; the text names the file and what is wrong with it."""


GROUP_COLUMNS = 64  # value columns of a group of warps that specialises: the rows of a wgmma instruction
_REGISTERS = 65_536  # of a multiprocessor, on every architecture here
_MOST_REGISTERS = 255  # of a thread


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Lightning-2's launch configuration: tokens per chunk, value columns per tile, programs per multiprocessor.

    specialised: by the kernel whose warps specialise, in groups of num_warps, one for every 64 columns and one
    more. programs: so many are to share a multiprocessor; registers and shared memory are limited to let them.
    chunk_us: microseconds that a chunk takes with one of them on a multiprocessor, with two, up to all.
    """

    specialised: bool = False
    block_c: int
    block_e: int
    num_warps: int
    num_stages: int
    programs: int
    chunk_us: tuple[float, ...] = field(default=(), compare=False)

    @property
    def max_registers(self) -> int | None:
        """The most that a thread may use, or None for no limit of ours."""
        groups = self.block_e // GROUP_COLUMNS + 1 if self.specialised else 1
        most = _REGISTERS // (self.programs * 32 * self.num_warps * groups) // 8 * 8
        return most if most < _MOST_REGISTERS else None


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Lightning-1's launch configuration: queries, keys and value columns per tile."""

    block_m: int
    block_n: int
    block_e: int
    num_warps: int
    num_stages: int


Config = ScanConfig | Tiles
KERNELS: Mapping[str, type[Config]] = {"lightning2": ScanConfig, "lightning1": Tiles}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row's address: the kernel, the bytes of an element, and the key dim rounded up to one of `KEY_DIMS`.

    Lightning-2 may have several, that differ in their programs per multiprocessor and in whether warps specialise: a
    launch takes the one that suits its number of programs. Lightning-1 has one.
    """

    kernel: str
    element_size: int
    key_dim: int
    programs: int = 1
    specialised: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """At least one configuration for every kernel, element size and key dim, for one architecture."""

    architecture: str
    rows: Mapping[Row, Config]

    def rows_for(self, kernel: str, *, element_size: int, key_dim: int) -> list[Row]:
        """The rows that serve these inputs, by programs per multiprocessor, those that specialise last; key_dim up
        to 256."""
        dim = next(dim for dim in KEY_DIMS if key_dim <= dim)
        found = [r for r in self.rows if (r.kernel, r.element_size, r.key_dim) == (kernel, element_size, dim)]
        return sorted(found, key=lambda row: (row.specialised, row.programs))


def architecture_of(capability_major: int) -> str:
    """The architecture whose table serves a CUDA device, by the major number of its compute capability."""
    return _ARCHITECTURES.get(capability_major, DEFAULT)


@functools.cache
def scan_configs(architecture: str, *, element_size: int, key_dim: int) -> tuple[ScanConfig, ...]:
    """Lightning-2's configurations for these inputs. Raises TableError for a table that cannot be used."""
    found = table(architecture)
    rows = found.rows_for("lightning2", element_size=element_size, key_dim=key_dim)
    return tuple(config for row in rows if isinstance(config := found.rows[row], ScanConfig))


@functools.cache
def tile_config(architecture: str, *, element_size: int, key_dim: int) -> Tiles:
    """Lightning-1's row of the table in use. Raises TableError for a table that cannot be used."""
    found = table(architecture)
    (row,) = found.rows_for("lightning1", element_size=element_size, key_dim=key_dim)
    config = found.rows[row]
    assert isinstance(config, Tiles)
    return config


@functools.cache
def table(architecture: str) -> Table:
    """The table in use for an architecture: that of ATTNBENCH_CONFIGS if it is set, else the package's.

    Raises TableError for a table that cannot be used; one for another architecture is not passed over, as
    its configurations were never checked on this one.
    """
    own = os.environ.get(VARIABLE)
    if not own:
        packaged = importlib.resources.files("attnbench.kernels") / "configs" / f"{architecture}.toml"
        return parse(packaged.read_text(encoding="utf-8"), source=f"{architecture}.toml")
    try:
        text = Path(own).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{VARIABLE}: cannot read the table {own}: {error}") from error
    found = parse(text, source=own)
    if found.architecture != architecture:
        raise TableError(
            f"{own}: the table is for the architecture '{found.architecture}', this device needs one for "
            f"'{architecture}'"
        )
    return found


def parse(text: str, *, source: str) -> Table:
    """A table from the text of a TOML file; `source` opens the error sentence.

    Raises TableError for anything but exactly one sound configuration for every row.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"{source}: not valid TOML: {error}") from error
    strange = sorted(set(content) - {"architecture", *KERNELS})
    if strange:
        raise TableError(
            f"{source}: unknown key '{strange[0]}'; expected: architecture, {', '.join(KERNELS)}"
        )
    architecture = content.get("architecture")
    if architecture not in ARCHITECTURES:
        raise TableError(
            f"{source}: architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    rows: dict[Row, Config] = {}
    for kernel in KERNELS:
        entries = content.get(kernel, [])
        if not isinstance(entries, list):
            raise TableError(f"{source}: {kernel} must be a list of rows")
        for number, entry in enumerate(entries, start=1):
            row, config = _entry(kernel, entry, where=f"{source}: {kernel}, row {number}")
            if row in rows:
                raise TableError(f"{source}: {kernel} has two rows for {_named(row)}")
            rows[row] = config
    strays = [row for row in rows if row.specialised and not _can_specialise(row, architecture)]
    if strays:
        raise TableError(
            f"{source}: only hopper has a kernel whose warps specialise, for element_size 2; "
            f"got one for {architecture}, {_named(strays[0])}"
        )
    found = Table(architecture=architecture, rows=rows)
    for kernel, size, dim in itertools.product(KERNELS, ELEMENT_SIZES, KEY_DIMS):
        if all(row.specialised for row in found.rows_for(kernel, element_size=size, key_dim=dim)):
            raise TableError(f"{source}: {kernel} has no row for element_size {size}, key_dim {dim}")
    return found


def write(found: Table, *, header: str, notes: Mapping[Row, str]) -> str:
    """The text of a table's TOML file, which `parse` reads back.

    header: lines above the table; notes: what is said beside a row. Both become comments.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    lines += ["", f'architecture = "{found.architecture}"']
    for kernel in KERNELS:
        lines += ["", f"{kernel} = ["]
        for row in sorted(found.rows, key=lambda r: (r.element_size, r.key_dim, r.specialised, r.programs)):
            if row.kernel != kernel:
                continue
            fields: dict[str, Any] = {"element_size": row.element_size, "key_dim": row.key_dim}
            fields |= dataclasses.asdict(found.rows[row])
            if row in notes:
                lines.append(f"    # {notes[row]}")
            cells = (f"{name} = {_literal(value)}" for name, value in fields.items())
            lines.append("    { " + ", ".join(cells) + " },")
        lines.append("]")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """A field's value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(list(value) if isinstance(value, tuple) else value)


def _entry(kernel: str, entry: Any, *, where: str) -> tuple[Row, Config]:
    kind = KERNELS[kernel]
    names = ["element_size", "key_dim", *(field.name for field in dataclasses.fields(kind))]
    if not isinstance(entry, dict) or sorted(entry) != sorted(names):
        raise TableError(f"{where}: expected exactly the fields {', '.join(names)}")
    for name, value in entry.items():
        fault = _fault(name, value)
        if fault:
            raise TableError(f"{where}: {name} must be {fault}, got {value!r}")
    if "chunk_us" in entry:
        entry["chunk_us"] = tuple(map(float, entry["chunk_us"]))
        if len(entry["chunk_us"]) != entry["programs"]:
            raise TableError(
                f"{where}: chunk_us must have a time for each of 1 to {entry['programs']} programs, "
                f"got {len(entry['chunk_us'])}"
            )
    row = Row(
        kernel=kernel,
        element_size=entry.pop("element_size"),
        key_dim=entry.pop("key_dim"),
        programs=entry.get("programs", 1),
        specialised=entry.get("specialised", False),
    )
    config = kind(**entry)
    if isinstance(config, Tiles) and config.block_m < config.block_n:
        raise TableError(f"{where}: block_m must be at least block_n, got {config.block_m}")
    return row, config


def _fault(name: str, value: object) -> str | None:
    """What a field must be, if it is not."""
    if name == "specialised":
        return None if isinstance(value, bool) else "true or false"
    if name == "chunk_us":
        times = value if isinstance(value, list) else [None]
        good = all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf for x in times
        )
        return None if good else "a list of positive microseconds"
    number = value if isinstance(value, int) and not isinstance(value, bool) else 0
    power = number > 0 and number & (number - 1) == 0
    good, expected = {
        "element_size": (number in ELEMENT_SIZES, f"one of {', '.join(map(str, ELEMENT_SIZES))}"),
        "key_dim": (number in KEY_DIMS, f"one of {', '.join(map(str, KEY_DIMS))}"),
        "num_warps": (power and number <= 16, "a power of two up to 16"),
        "num_stages": (1 <= number <= 8, "from 1 to 8"),
        "programs": (1 <= number <= 8, "from 1 to 8"),
    }.get(name, (power and 16 <= number <= 256, "a power of two from 16 to 256"))
    return None if good else expected


def _can_specialise(row: Row, architecture: str) -> bool:
    """Hopper's tensor cores take elements of two bytes."""
    return architecture == "hopper" and row.element_size == 2


def _named(row: Row) -> str:
    special = ", specialised" if row.specialised else ""
    return f"element_size {row.element_size}, key_dim {row.key_dim}, programs {row.programs}{special}"
