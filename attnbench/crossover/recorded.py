"""The rows of recorded runs that a crossover is asked of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from attnbench.case import DTYPES, Workload
from attnbench.comparison.sides import paths_of
from attnbench.errors import UserError
from attnbench.store import load_results
from attnbench.sweeps.values import parse_names, parse_sizes

_SIZES = ("seq_len", "batch", "heads", "head_dim", "value_dim", "kv_heads")
_NAMES = {"workload": [str(each) for each in Workload], "dtype": DTYPES}


def selected(run: str, options: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of runs, separated by commas, that have the values which the command line gives for some axes.

    Raises UserError as reading does, for an option that selects no rows, and where none is left.
    """
    frame = load_results(paths_of([run]))
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        wanted = _wanted(name, value, flag=flag)
        frame = frame[frame[name].isin(wanted)]
        if frame.empty:
            raise UserError(f"{flag}: the run has no row with {name} {', '.join(map(str, wanted))}")
    return frame


def _wanted(name: str, value: Any, *, flag: str) -> tuple[Any, ...]:
    if name in _NAMES:
        return parse_names(value, kind=name, choices=_NAMES[name], axis=flag)
    if name in _SIZES:
        return parse_sizes(value, axis=flag)
    if name == "causal":
        return (value,)
    raise UserError(f"{flag}: expected no such option beside --run, which measures nothing")
