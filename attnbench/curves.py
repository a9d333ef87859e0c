"""Curves of a results frame: what stays fixed along one, and how flat it is. Where two cross: `crossings.py`.

Pure functions on the frame that `store.load_results` returns; nothing is drawn and nothing is printed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.case import Status, Workload
from attnbench.words import workload_order

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Row = Mapping[Any, Any]

_PLACE = ("batch", "heads", "kv_heads", "seq_len", "head_dim", "value_dim", "dtype", "causal")
_VALUES = ("median_ms", "ci_low_ms", "ci_high_ms", "peak_bytes", "energy_j")

SAME_TOKENS = 0.02  # tokens a call that differ by no more count as constant

# One case measured by several runs: `incorrect` in one of them outranks a value, a value outranks a failure.
_RANK = (
    Status.INCORRECT,
    Status.OK,
    Status.OOM,
    Status.TIMEOUT,
    Status.CRASHED,
    Status.ERROR,
    Status.UNSUPPORTED,
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """What stays fixed along a curve; exactly one of `batch`, `tokens` and `context` is given.

    `tokens` and `context` are batch times length: what a call works through or, of a decode, what it looks back on.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    causal: bool
    device: str  # empty when unknown
    batch: int | None = None
    tokens: int | None = None
    context: int | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorting key: device and type first, then the shape from coarse to fine."""
        shape = (self.head_dim, self.value_dim, self.heads, self.kv_heads)
        work = (self.batch or 0, self.tokens or 0, self.context or 0)
        return (self.device, self.dtype, not self.causal, *shape, *work)

    def parts(self) -> dict[str, str]:
        """What is fixed, in words, by the name of what it is about; the usual is left out."""
        parts = {}
        if self.batch is not None:
            parts["batch"] = f"batch {self.batch}"
        if self.tokens is not None:
            parts["tokens"] = f"{length_label(self.tokens)} tokens a call"
        if self.context is not None:
            parts["context"] = f"{length_label(self.context)} tokens of context a call"
        kv = f" ({self.kv_heads} KV)" if self.kv_heads != self.heads else ""
        value = f" (value {self.value_dim})" if self.value_dim != self.head_dim else ""
        parts["heads"] = f"{self.heads} heads{kv}" if self.heads != 1 else f"1 head{kv}"
        parts["head_dim"] = f"head dim {self.head_dim}{value}"
        parts["dtype"] = self.dtype
        parts["causal"] = "causal" if self.causal else "not causal"
        parts["device"] = self.device or "unknown device"
        return parts

    def label(self, *, without: Iterable[str] = ()) -> str:
        """One line of `parts`, e.g. `batch 4, 16 heads, head dim 128, bf16, causal, NVIDIA H200`."""
        skip = set(without)
        return ", ".join(text for name, text in self.parts().items() if name not in skip)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A case without a value: its length, its status (never `ok`) and the reason given."""

    seq_len: int
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One mechanism over sequence length, all arrays in order of `seq_len` and of equal length.

    Times in milliseconds, tokens per second, bytes, joules of one call; NaN marks what is unknown.
    """

    mechanism: str
    workload: str
    group: Group
    seq_len: Ints
    median_ms: Floats
    ci_low_ms: Floats
    ci_high_ms: Floats
    tokens_per_s: Floats
    peak_bytes: Floats
    energy_j: Floats
    gaps: tuple[Gap, ...] = ()

    def __len__(self) -> int:
        return len(self.seq_len)


def line_names(frame: pd.DataFrame) -> pd.Series[str]:
    """What each row's line is called: its mechanism and, where a window is an axis, that too: `streaming-llm W1k`."""
    if "window" not in frame:
        return frame["mechanism"]
    names = [
        str(mechanism) if pd.isna(window) else f"{mechanism} W{length_label(int(window))}"
        for mechanism, window in zip(frame["mechanism"], frame["window"], strict=True)
    ]
    return pd.Series(names, index=frame.index, dtype=object)


def curves(frame: pd.DataFrame) -> tuple[Curve, ...]:
    """All curves of a results frame, by workload, group and mechanism.

    A value is the median, over the runs that measured the case on the same device, of their medians; its
    interval reaches from the smallest lower end to the largest upper end, so that it shows what differs
    between processes. A case that one run found incorrect has no value. Rows whose shape is unknown belong to
    no curve.
    """
    by_curve: dict[tuple[str, str, Group], dict[int, list[_Row]]] = {}
    for group, row in _placed(frame):
        key = (str(row["mechanism"]), str(row["workload"]), group)
        by_curve.setdefault(key, {}).setdefault(int(row["seq_len"]), []).append(row)
    found = [
        _curve(rows, mechanism=mechanism, workload=workload, group=group)
        for (mechanism, workload, group), rows in by_curve.items()
    ]
    return tuple(sorted(found, key=lambda c: (workload_order(c.workload), c.group.order, c.mechanism)))


def groups_of_rows(frame: pd.DataFrame) -> list[Group | None]:
    """The group of each row, in the order of the frame; None for a row whose shape is unknown."""
    placed = {int(row["_place"]): group for group, row in _placed(frame)}
    return [placed.get(place) for place in range(len(frame))]


def curve(frame: pd.DataFrame, *, mechanism: str, workload: str, group: Group) -> Curve:
    """One curve of a frame, as `curves` builds it.

    Raises KeyError when the frame has no such row.
    """
    for candidate in curves(frame):
        if (candidate.mechanism, candidate.workload, candidate.group) == (mechanism, workload, group):
            return candidate
    raise KeyError(f"no row of {mechanism}, {workload}, {group.label()}")


def groups(found: Iterable[Curve]) -> tuple[Group, ...]:
    """The groups of some curves, each once, in order."""
    return tuple(sorted({c.group for c in found}, key=lambda group: group.order))


def flatness(tokens_per_s: Sequence[float] | Floats) -> float:
    """Largest over smallest rate of a curve: 1 is constant speed.

    Raises ValueError when there is no rate, or one that is not positive.
    """
    rates = np.asarray(tokens_per_s, dtype=np.float64)
    if not len(rates) or not (rates > 0).all():
        raise ValueError("flatness needs at least one rate, and all of them positive")
    return float(rates.max() / rates.min())


def slope(seq_len: Sequence[int] | Ints, tokens_per_s: Sequence[float] | Floats) -> float | None:
    """Least-squares slope of log(tokens/s) on log(N): 0 is constant speed, -1 a cost per token like N.

    None for fewer than two different lengths.
    """
    if len(set(seq_len)) < 2:
        return None
    x = np.log(np.asarray(seq_len, dtype=np.float64))
    y = np.log(np.asarray(tokens_per_s, dtype=np.float64))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def length_label(tokens: int) -> str:
    """A count of tokens as the axes write it: 512, 1k, 1.5k, 128k, 1M (k = 1,024); others in full."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= unit and tokens % (unit // 4) == 0:
            return f"{tokens / unit:g}{name}"
    return f"{tokens:,}"


def _placed(frame: pd.DataFrame) -> Iterator[tuple[Group, _Row]]:
    """The rows whose shape is known, each with its group."""
    rows = frame.assign(_place=range(len(frame)))
    rows = rows[rows[list(_PLACE)].notna().all(axis=1)]
    rows = rows.assign(mechanism=line_names(rows))
    product = rows["batch"].astype("int64") * rows["seq_len"].astype("int64")
    rows = rows.assign(_product=product)
    rows = rows.assign(_tokens=_constant_tokens(rows))
    needed = [
        "mechanism",
        "workload",
        "status",
        "reason",
        "device",
        *_PLACE,
        *_VALUES,
        "_place",
        "_tokens",
    ]
    for row in rows[needed].to_dict("records"):
        constant, decode = int(row["_tokens"]), row["workload"] == Workload.DECODE
        group = Group(
            heads=int(row["heads"]),
            kv_heads=int(row["kv_heads"]),
            head_dim=int(row["head_dim"]),
            value_dim=int(row["value_dim"]),
            dtype=str(row["dtype"]),
            causal=bool(row["causal"]),
            device=row["device"] if isinstance(row["device"], str) else "",
            batch=None if constant else int(row["batch"]),
            tokens=constant if constant and not decode else None,
            context=constant if constant and decode else None,
        )
        yield group, row


def _constant_tokens(rows: pd.DataFrame) -> pd.Series[int]:
    """The tokens of a constant-token sweep, by row, be it all of the frame or a run of it; 0 for other rows."""
    if tokens := _same_tokens(rows):
        return pd.Series(tokens, index=rows.index)
    by_run = {run: _same_tokens(part) for run, part in rows.groupby("run_id", sort=False)}
    return rows["run_id"].map(by_run).astype("int64")


def _same_tokens(rows: pd.DataFrame) -> int:
    """What batch times length comes to at most where that is constant while the batch varies; else 0.

    It may fall short by `SAME_TOKENS`: a batch is whole, and not every length divides the tokens.
    """
    if rows["batch"].nunique() < 2 or rows["_product"].min() < (1 - SAME_TOKENS) * rows["_product"].max():
        return 0
    return int(rows["_product"].max())


def _curve(rows: Mapping[int, Sequence[_Row]], *, mechanism: str, workload: str, group: Group) -> Curve:
    points: list[tuple[float, ...]] = []
    gaps: list[Gap] = []
    for seq_len in sorted(rows):
        status = min((str(row["status"]) for row in rows[seq_len]), key=_status_rank)
        same = [row for row in rows[seq_len] if row["status"] == status]
        if status != Status.OK:
            reason = min((row["reason"] for row in same if isinstance(row["reason"], str)), default="")
            gaps.append(Gap(seq_len=seq_len, status=status, reason=reason))
        elif timed := [row for row in same if row["median_ms"] > 0]:  # False for NaN, which is unknown
            median = float(np.median([row["median_ms"] for row in timed]))
            low = min(_known(timed, "ci_low_ms"), default=math.nan)
            high = max(_known(timed, "ci_high_ms"), default=math.nan)
            rate = _tokens(timed[0]) / (median * 1e-3)
            peak, energy = (_median(_known(timed, name)) for name in ("peak_bytes", "energy_j"))
            points.append((seq_len, median, low, high, rate, peak, energy))
    table = np.array(points, dtype=np.float64).reshape(-1, 7).T
    return Curve(
        mechanism=mechanism,
        workload=workload,
        group=group,
        seq_len=table[0].astype(np.int64),
        median_ms=table[1],
        ci_low_ms=table[2],
        ci_high_ms=table[3],
        tokens_per_s=table[4],
        peak_bytes=table[5],
        energy_j=table[6],
        gaps=tuple(gaps),
    )


def _tokens(row: _Row) -> int:
    """Tokens of one call; a workload that this version does not know is taken for one over whole sequences."""
    workload = Workload(row["workload"]) if row["workload"] in list(Workload) else Workload.FWD
    return workload.tokens(batch=int(row["batch"]), seq_len=int(row["seq_len"]))


def _known(rows: Iterable[_Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if not pd.isna(row[name])]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _status_rank(status: str) -> int:
    return _RANK.index(Status(status)) if status in _RANK else len(_RANK)
