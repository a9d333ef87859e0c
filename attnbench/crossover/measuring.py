"""The measuring of a crossover: a sweep over a few lengths, then ever nearer ones around each change of the order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from attnbench.case import Case, Workload
from attnbench.crossover.finding import Finding, findings
from attnbench.crossover.refining import batch_for, next_lengths, steps_left
from attnbench.curves import line_names
from attnbench.errors import UserError
from attnbench.sweeping import Further, Outcome, folder_of, run_sweep
from attnbench.sweeps.layers import Overrides
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Device, Sweep
from attnbench.sweeps.values import parse_mechanisms

if TYPE_CHECKING:
    from rich.console import Console

RESOLUTION = 0.03
PRESET = "crossover"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Two mechanisms, the sweep that their crossing is first looked for in, and how near lengths shall come to it."""

    a: str
    b: str
    sweep: Sweep
    resolution: float


def asked(
    a: str,
    b: str,
    *,
    preset: str = PRESET,
    device: Device,
    resolution: float = RESOLUTION,
    axes: Mapping[str, Any],
    protocol: Mapping[str, Any],
) -> Asked:
    """What the command line asks for. axes, protocol: what it says in place of the preset, as `Overrides` has it.

    Raises UserError for names that are unknown or equal, what `load` refuses, and a sweep that has nothing to cross.
    """
    names = [_one(name, place=place) for name, place in ((a, "A"), (b, "B"))]
    if names[0] == names[1]:
        raise UserError(f"A and B are both {names[0]}: expected two mechanisms")
    sweep = load(preset, device=device, overrides=Overrides(mechanism=names, **axes, protocol=protocol))
    sweep = dataclasses.replace(sweep, also=())
    if sweep.axes.shapes:
        raise UserError(f"--sweep: {preset} lists its shapes one by one; choose a sweep with lengths instead")
    if len(sweep.axes.seq_len) < 2:
        raise UserError(
            f"--seq-len: expected two lengths or more to look between, got {sweep.axes.seq_len[0]:,} alone"
        )
    widths = [{case.value_dim for case in sweep.cases() if case.mechanism == name} for name in names]
    if widths[0] != widths[1]:
        shown = [", ".join(map(str, sorted(each))) for each in widths]
        raise UserError(
            f"{names[0]} has values of {shown[0]} channels and {names[1]} of {shown[1]}, which is other work: "
            "give --value-dim"
        )
    return Asked(a=names[0], b=names[1], sweep=sweep, resolution=resolution)


def measure(
    what: Asked, *, out: Path | None, resume: bool, command: Sequence[str], console: Console
) -> Outcome:
    """Measure until every crossing is as near as it was asked for, into a run folder like a sweep's.

    Raises what `run_sweep` does.
    """
    return run_sweep(
        what.sweep,
        what.sweep.cases(),
        path=folder_of(what.sweep.name, out=out, resume=resume),
        resume=resume,
        command=command,
        console=console,
        refine=lambda frame: further(frame, what),
    )


def further(frame: pd.DataFrame, what: Asked) -> Further:
    """The cases that halve each stretch in which the two cross, both mechanisms side by side."""
    lines = _lines(frame)
    cases: dict[Case, None] = {}
    left = 0
    for found in findings(frame, what.a, what.b):
        cases |= dict.fromkeys(_cases(found, lines=lines, resolution=what.resolution))
        left += 2 * steps_left(found.points, resolution=what.resolution)
    return Further(cases=tuple(cases), left=left)


# ------------------------------------------------------------------------------------------------------------


def _one(name: str, *, place: str) -> str:
    names = parse_mechanisms(name, axis=place)
    if len(names) > 1:
        raise UserError(f"{place}: expected one mechanism, got '{name}'")
    return names[0]


def _lines(frame: pd.DataFrame) -> dict[str, tuple[str, int | None]]:
    """The mechanism and the window behind the name of each line."""
    return {
        str(line): (str(mechanism), None if pd.isna(window) else int(window))
        for line, mechanism, window in zip(
            line_names(frame), frame["mechanism"], frame["window"], strict=True
        )
    }


def _cases(
    found: Finding, *, lines: Mapping[str, tuple[str, int | None]], resolution: float
) -> Iterator[Case]:
    group = found.group
    tokens = group.tokens or group.context
    for seq_len in next_lengths(found.points, resolution=resolution, tokens=tokens):
        batch = group.batch if tokens is None else batch_for(seq_len, tokens=tokens)
        assert batch is not None, "a length without a whole batch is never asked for"
        for line in (found.a, found.b):
            mechanism, window = lines[line]
            yield Case(
                mechanism=mechanism,
                workload=Workload(found.workload),
                batch=batch,
                heads=group.heads,
                kv_heads=group.kv_heads,
                seq_len=seq_len,
                head_dim=group.head_dim,
                value_dim=group.value_dim,
                dtype=group.dtype,
                causal=group.causal,
                window=window,
            )
