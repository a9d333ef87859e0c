"""Mechanisms over a list of shapes: how near to its bound each one comes, and how far from the fastest.

For sweeps whose shapes are listed one by one, where nothing varies along a line and curves have single points. Pure
functions on the frame that `store.load_results` returns.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from attnbench.case import Status
from attnbench.curves import length_label, line_names
from attnbench.words import workload_title

_SIZES = ("batch", "heads", "seq_len", "head_dim", "value_dim", "kv_heads")
_SHAPE = [*_SIZES, "dtype", "causal", "device"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One mechanism over the shapes that it has a time for; means are geometric.

    share: of the bound that applies, as the column `roofline`; None where the ceilings are unknown. times: its time
    over the reference's, at the shapes that both have; None for a mechanism that shares none with it.
    """

    mechanism: str
    shapes: int
    fastest: int  # at so many of them
    share: float | None
    worst_share: float | None
    worst_at: str | None
    times: float | None
    least_times: float | None
    most_times: float | None


@dataclass(frozen=True, kw_only=True)
class Standings:
    """All mechanisms of one workload, the reference first: the one that is fastest at the most shapes."""

    workload: str
    shapes: int
    standings: tuple[Standing, ...]

    @property
    def reference(self) -> str:
        return self.standings[0].mechanism


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the bound in one workload: by shape, as a label and in the order of measurement, then by mechanism."""

    workload: str
    known: dict[str, dict[str, float]]


def lists_shapes(frame: pd.DataFrame) -> bool:
    """Were the shapes of all the runs listed one by one?"""
    records = [record for run, record in frame.attrs.get("runs", {}).items() if run in set(frame["run_id"])]
    axes = [(record.get("sweep") or {}).get("axes") or {} for record in records]
    return bool(axes) and all("shapes" in each for each in axes)


def labels_of_shapes(frame: pd.DataFrame) -> list[str | None]:
    """The shape of each row in short, `B4 H16 N8k D128`, in the order of the frame; None where it is unknown."""
    known = frame[list(_SIZES)].notna().all(axis=1)
    return [_label(row) if there else None for (_, row), there in zip(frame.iterrows(), known, strict=True)]


def standings(frame: pd.DataFrame) -> tuple[Standings, ...]:
    """The standings of every workload that has a time; several runs of one case count with their median."""
    timed = _timed(frame)
    return tuple(
        _standings(timed[timed["workload"] == workload], workload=str(workload))
        for workload in dict.fromkeys(timed["workload"])
    )


def shares(frame: pd.DataFrame) -> tuple[Shares, ...]:
    """The shares of every workload that has a time; several runs of one case count with their median."""
    timed = _timed(frame)
    found = []
    for workload in dict.fromkeys(timed["workload"]):
        table = _by_shape(timed[timed["workload"] == workload], "roofline")
        labels = [str(key[-1]) for key in table.index]
        rows = [
            {str(name): float(share) for name, share in row.dropna().items()} for _, row in table.iterrows()
        ]
        known = {label: row for label, row in zip(labels, rows, strict=True) if row}
        found.append(Shares(workload=str(workload), known=known))
    return tuple(found)


def share_sentences(found: Iterable[Shares]) -> list[str]:
    """How near each mechanism comes to its bound in each workload, the nearest first."""
    said = []
    for each in found:
        by_mechanism: dict[str, dict[str, float]] = {}
        for shape, reached in each.known.items():
            for mechanism, share in reached.items():
                by_mechanism.setdefault(mechanism, {})[shape] = share
        ranked = sorted(by_mechanism.items(), key=lambda item: -statistics.geometric_mean(item[1].values()))
        said += [f"{workload_title(each.workload)}: {_share_words(*item)}" for item in ranked]
    return said


def _share_words(mechanism: str, reached: dict[str, float]) -> str:
    least, most = min(reached, key=reached.__getitem__), max(reached, key=reached.__getitem__)
    if len(reached) == 1:
        return f"{mechanism} reaches {reached[most]:.0%} of its bound at {most}."
    return (
        f"{mechanism} reaches {statistics.geometric_mean(reached.values()):.0%} of its bound, the geometric mean of "
        f"{len(reached)} cases, {reached[least]:.0%} at {least} to {reached[most]:.0%} at {most}."
    )


def _timed(frame: pd.DataFrame) -> pd.DataFrame:
    timed = frame[(frame["status"] == Status.OK) & frame["median_ms"].notna()]
    return timed.assign(mechanism=line_names(timed))


def _by_shape(timed: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row a shape, one column a mechanism; the label, which says less than the shape, is the last of the keys."""
    keys = [timed[name].astype(str) for name in _SHAPE]
    label = timed.apply(_label, axis=1)
    for name in ("dtype", "causal", "device"):
        if timed[name].nunique() > 1:
            label += " " + timed[name].map(lambda value, of=name: _words(of, value))
    by = [*keys, label.rename("label"), timed["mechanism"]]
    wide = timed[column].astype(float).groupby(by, sort=False).median().unstack("mechanism")
    return wide.reindex(list(dict.fromkeys(zip(*by[:-1], strict=True))))  # unstacking sorts


def _standings(timed: pd.DataFrame, *, workload: str) -> Standings:
    times, bounds = _by_shape(timed, "median_ms"), _by_shape(timed, "roofline")
    wins = times.idxmin(axis=1).value_counts()
    order = sorted(times.columns, key=lambda name: (-int(wins.get(name, 0)), str(name)))
    reference = times[order[0]]
    found = [
        _standing(
            str(name),
            times=times[name],
            shares=bounds[name],
            reference=reference,
            fastest=int(wins.get(name, 0)),
        )
        for name in order
    ]
    first, *others = found
    others.sort(key=lambda each: (each.times is None, each.times, each.mechanism))
    return Standings(workload=workload, shapes=len(times), standings=(first, *others))


def _standing(
    mechanism: str,
    *,
    times: pd.Series[float],
    shares: pd.Series[float],
    reference: pd.Series[float],
    fastest: int,
) -> Standing:
    known = shares.dropna()
    ratios = (times / reference).dropna()
    return Standing(
        mechanism=mechanism,
        shapes=int(times.notna().sum()),
        fastest=fastest,
        share=_geometric(known),
        worst_share=float(known.min()) if len(known) else None,
        worst_at=str(known.index[int(known.to_numpy().argmin())][-1]) if len(known) else None,
        times=_geometric(ratios),
        least_times=float(ratios.min()) if len(ratios) else None,
        most_times=float(ratios.max()) if len(ratios) else None,
    )


def _geometric(values: Iterable[float]) -> float | None:
    logs = [float(np.log(value)) for value in values]
    return float(np.exp(np.mean(logs))) if logs else None


def _words(name: str, value: object) -> str:
    if name == "causal":
        return "causal" if value else "not causal"
    return str(value)


def _label(row: pd.Series[float]) -> str:
    """`B4 H16 N8k D128`; what is usual is left out, and dtype, causal and device are told where they differ."""
    value = f" E{row['value_dim']}" if row["value_dim"] != row["head_dim"] else ""
    kv = f" KV{row['kv_heads']}" if row["kv_heads"] != row["heads"] else ""
    size = length_label(int(row["seq_len"]))
    return f"B{row['batch']} H{row['heads']}{kv} N{size} D{row['head_dim']}{value}"
