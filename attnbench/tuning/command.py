"""What `attnbench tune` does: from the words of a command to a table on disk."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnbench.case import DTYPES
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.kernels import _configs
from attnbench.kernels._configs import VARIABLE, Row, Table, TableError
from attnbench.kernels._host import Limits, interpreting, limits
from attnbench.measure.clock import timestamp
from attnbench.measure.environment import collect
from attnbench.sweeps.values import parse_names, parse_size, parse_sizes, shown
from attnbench.tuning import report
from attnbench.tuning.candidates import Point, Shape, checked_head_dims, points_by_row
from attnbench.tuning.choosing import Entry
from attnbench.tuning.race import Clockwork, Pools, entries_of, processes, race

__all__ = ["VARIABLE", "Outcome", "Request", "candidates", "request", "tune"]

_LEAST_BUDGET_S = 5.0
# Free device memory for each process that checks: its context, its kernels, and its tensors.
_PROCESS_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to tune: the inputs whose rows are meant, all of the table in use that serve them; the budget in seconds."""

    kernels: Sequence[str]
    dtypes: Sequence[str]
    head_dims: Sequence[int]
    shapes: Sequence[Shape] | None  # at which each row is timed; None: the default of `points_by_row`
    budget_s: float
    processes: int | None  # that check at a time; None: as many as cores and memory allow


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a tuning's table and candidates lie, and what it found: in words, and by row."""

    table: Path
    candidates: Path
    sentences: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    admitted: int  # rows that have a checked configuration now


def request(
    *,
    kernels: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    head_dims: Sequence[str] | None,
    shapes: Sequence[str] | None,
    budget_s: float,
    processes: int | None,
) -> Request:
    """A request from what was typed; None: the default.

    Raises UserError for a value that is not what it should be, with the nearest name.
    """
    if not budget_s >= _LEAST_BUDGET_S:
        raise UserError(f"--time-budget: expected at least {_LEAST_BUDGET_S:g} seconds, got {budget_s:g}")
    return Request(
        kernels=parse_names(kernels or ["lightning2"], kind="kernel", choices=_configs.KERNELS),
        dtypes=parse_names(dtypes or ["bf16"], kind="dtype", choices=DTYPES, axis="--dtype"),
        head_dims=checked_head_dims(parse_sizes(head_dims or ["64,128,256"], axis="--head-dim")),
        shapes=_shapes(shapes) if shapes else None,
        budget_s=budget_s,
        processes=processes,
    )


def candidates(wanted: Request) -> list[Entry]:
    """Every configuration that would be tried here, the table's own first in each row."""
    limit = limits(torch.device("cuda" if _has_gpu() else "cpu"))
    _, _, entries = _entries(wanted, limit)
    return [entry for row in entries.values() for entry in row]


def tune(
    wanted: Request,
    *,
    out: Path | None,
    words: Sequence[str],
    tell: Callable[[str], None],
    pools: Pools = processes,
) -> Outcome:
    """Tune on the first GPU and write the table, and a CSV of all candidates beside it.

    words: the command line, for the table's header. tell: hears of progress. pools: makes the processes.

    Raises UserError without a GPU, for an output that exists, for an unusable table in use, and when another
    attnbench times on the device.
    """
    if not _has_gpu():
        raise UserError(
            "tune needs a CUDA device, and torch sees no GPU here (torch.cuda.is_available() is False); "
            "--dry-run prints the candidates"
        )
    if interpreting():
        raise UserError("tune times compiled kernels, and TRITON_INTERPRET is set: unset it")
    device = torch.device("cuda", 0)
    limit = limits(device)
    path, beside = _files(out or Path(f"tuned-{limit.architecture}.toml"))
    table, points, entries = _entries(wanted, limit)
    count = sum(map(len, entries.values()))
    with device_lock(device.type):
        size = min(count, wanted.processes or _processes(device))
        tell(f"{count} configurations, {size} processes, {wanted.budget_s:g} s")
        choices = race(
            entries,
            points=points,
            clockwork=Clockwork(budget_s=wanted.budget_s, tell=tell),
            size=size,
            multiprocessors=limit.multiprocessors,
            pools=pools,
        )
    text = report.table_text(
        choices,
        table=table,
        command=f"attnbench {shlex.join(words)}",
        date=timestamp(),
        environment=collect(device),
    )
    path.write_text(text, encoding="utf-8")
    beside.write_text(report.candidates_csv(choices), encoding="utf-8")
    return Outcome(
        table=path,
        candidates=beside,
        sentences=report.sentences(choices),
        rows=report.as_json(choices),
        admitted=sum(c.winner is not None for c in choices),
    )


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _entries(wanted: Request, limit: Limits) -> tuple[Table, dict[Row, list[Point]], dict[Row, list[Entry]]]:
    """The table in use, and for each of its rows that are meant the points and the candidates."""
    try:
        table = _configs.table(limit.architecture)
    except TableError as error:
        raise UserError(str(error)) from error
    points: dict[Row, list[Point]] = {}
    for kernel in wanted.kernels:
        points |= points_by_row(
            kernel,
            table=table,
            dtypes=wanted.dtypes,
            head_dims=wanted.head_dims,
            shapes=wanted.shapes,
        )
    return table, points, entries_of(points, table=table, limits=limit)


def _shapes(given: Sequence[str]) -> tuple[Shape, ...]:
    """(batch, heads, seq_len) of each "8x16x8k"."""
    found: dict[Shape, None] = {}
    for text in ",".join(given).split(","):
        sizes = text.strip().lower().split("x")
        if len(sizes) != 3:
            raise UserError(f"--shape: expected BATCHxHEADSxSEQ_LEN such as 8x16x8k, got {shown(text)}")
        batch, heads, seq_len = (parse_size(size, axis="--shape") for size in sizes)
        found[batch, heads, seq_len] = None
    return tuple(found)


def _files(path: Path) -> tuple[Path, Path]:
    """The table's and the candidates' files: neither may exist, and their folder must."""
    beside = path.with_suffix(".csv")
    if path.suffix != ".toml":
        raise UserError(f"--out: expected a file that ends in .toml, got {shown(path)}")
    for file in (path, beside):
        if file.exists():
            raise UserError(f"{file} exists already; choose another file with --out")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write into the folder {path.parent}; choose another file with --out")
    return path, beside


def _processes(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(len(os.sched_getaffinity(0)), free // _PROCESS_BYTES))
