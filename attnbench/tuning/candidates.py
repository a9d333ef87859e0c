"""Which configurations are tried, and where: rows of a table, points at which they are timed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from attnbench.errors import UserError
from attnbench.kernels._configs import Config, Row, ScanConfig, Table, Tiles
from attnbench.kernels._host import Limits
from attnbench.kernels._plan import fitted as fitted_scan
from attnbench.kernels.lightning1 import tiles
from attnbench.semantics import TORCH_DTYPES

# Accumulators that fill more fp32 registers of a thread than this spill, or more than half of a lower limit.
_MAX_ACCUMULATOR_REGISTERS = 128
CHUNKS = 256  # of the launches that measure a chunk: their start and end are little beside so many


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a configuration is timed: one forward over [batch, heads, seq_len], head_dim wide, v too."""

    dtype: str
    head_dim: int
    batch: int
    heads: int
    seq_len: int


Shape = tuple[int, int, int]  # batch, heads, seq_len

DEFAULT_SHAPES: tuple[Shape, ...] = ((8, 16, 8192), (1, 16, 32_768))
# A row for many programs on a multiprocessor serves launches that have them, so it is timed at such a one as well.
_MANY_PROGRAMS = 3
_MANY_SHAPE: Shape = (16, 16, 8192)


def checked_head_dims(head_dims: Iterable[int]) -> tuple[int, ...]:
    """The head dims as they are. Raises UserError for one that the kernels do not take."""
    found = tuple(head_dims)
    for dim in found:
        if dim % 16 or not 16 <= dim <= 256:
            raise UserError(f"--head-dim: expected a multiple of 16 from 16 to 256, got {dim}")
    return found


def points_by_row(
    kernel: str,
    *,
    table: Table,
    dtypes: Sequence[str],
    head_dims: Sequence[int],
    shapes: Sequence[Shape] | None,
) -> dict[Row, list[Point]]:
    """All rows of the table that serve these inputs of a kernel, each with the points at which it is timed.

    head_dims: multiples of 16 up to 256. shapes: for every row; None: the default ones, and for rows of three
    programs or more one with many programs.
    """
    found: dict[Row, list[Point]] = {}
    for dtype, dim in itertools.product(dtypes, head_dims):
        for row in table.rows_for(kernel, element_size=TORCH_DTYPES[dtype].itemsize, key_dim=dim):
            many = (_MANY_SHAPE,) if row.programs >= _MANY_PROGRAMS else ()
            found.setdefault(row, []).extend(
                Point(dtype=dtype, head_dim=dim, batch=batch, heads=heads, seq_len=seq_len)
                for batch, heads, seq_len in (shapes or (*DEFAULT_SHAPES, *many))
            )
    return found


def chunk_points(row: Row, config: ScanConfig, *, dtype: str, multiprocessors: int) -> list[Point]:
    """Where the time of a chunk is measured: as nearly as heads allow 1, 2, up to all programs on a multiprocessor.

    Each point has `CHUNKS` chunks in one segment, and is as wide as the row.
    """
    counts = (m * multiprocessors * config.block_e // row.key_dim for m in range(1, config.programs + 1))
    return [
        Point(
            dtype=dtype, head_dim=row.key_dim, batch=1, heads=max(1, heads), seq_len=CHUNKS * config.block_c
        )
        for heads in counts
    ]


def fitted(config: Config, *, row: Row, limits: Limits) -> Config:
    """What a launch on that device makes of a configuration: it shrinks until it fits the shared memory."""
    dims = {"key_dim": row.key_dim, "value_dim": row.key_dim, "element_size": row.element_size}
    if isinstance(config, Tiles):
        return tiles(
            **dims, shared_memory=limits.shared_memory, architecture=limits.architecture, config=config
        )
    return fitted_scan(config, shared_memory=limits.shared_memory, **dims)


def candidates(row: Row, *, current: Config, limits: Limits) -> list[Config]:
    """All configurations worth trying that fit the device as they stand: `current` first, then by nearness to it.

    So what is tried when time is short is what resembles the configuration in use. Those of a row have its programs
    per multiprocessor, which together fit the shared memory. Their chunk times are guesses from those of `current`.
    """
    found = [c for c in _grid(row) if c != current and fitted(c, row=row, limits=limits) == c]
    found.sort(key=lambda config: _distance(config, current))
    return [current, *(_guessed(config, like=current) for config in found)]


def _guessed(config: Config, *, like: Config) -> Config:
    """With another's chunk times, in proportion to a chunk's work, so that a plan has times of the right size."""
    if not isinstance(config, ScanConfig) or not isinstance(like, ScanConfig):
        return config
    work = config.block_c * config.block_e / (like.block_c * like.block_e)
    return dataclasses.replace(config, chunk_us=tuple(float(f"{us * work:.3g}") for us in like.chunk_us))


def _grid(row: Row) -> Iterator[Config]:
    narrow = row.element_size == 2
    warps = (4, 8)
    if row.specialised:
        for width, stages in itertools.product((64, 128), (2, 3, 4, 5)):
            yield ScanConfig(
                specialised=True,
                block_c=64,
                block_e=width,
                num_warps=4,
                num_stages=stages,
                programs=row.programs,
            )
        return
    if row.kernel == "lightning2":
        chunks, widths = ((16, 32, 64, 128), (32, 64, 128)) if narrow else ((16, 32), (32, 64))
        depths = (2, 3, 4, 5) if narrow else (1, 2, 3)
        for chunk, width, w, stages in itertools.product(chunks, widths, warps, depths):
            config = ScanConfig(
                block_c=chunk, block_e=width, num_warps=w, num_stages=stages, programs=row.programs
            )
            registers = _MAX_ACCUMULATOR_REGISTERS
            if config.max_registers is not None:
                registers = min(registers, config.max_registers // 2)
            if width * row.key_dim <= registers * 32 * w:
                yield config
        return
    queries, keys, columns = (
        ((64, 128), (32, 64, 128), (64, 128)) if narrow else ((32, 64), (16, 32), (32, 64))
    )
    for m, n, width, w, stages in itertools.product(queries, keys, columns, warps, (1, 2, 3, 4)):
        if n <= m and m * width <= _MAX_ACCUMULATOR_REGISTERS * 32 * w:
            yield Tiles(block_m=m, block_n=n, block_e=width, num_warps=w, num_stages=stages)


def _distance(config: Config, other: Config) -> float:
    """Doublings and halvings of sizes, and stages, between two configurations."""
    others = ("specialised", "num_stages", "programs", "chunk_us")
    sizes = [f.name for f in dataclasses.fields(config) if f.name not in others]
    steps = (abs(math.log2(getattr(config, name) / getattr(other, name))) for name in sizes)
    return abs(config.num_stages - other.num_stages) + sum(steps)
