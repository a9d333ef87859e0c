"""The figures of a run: tokens/s, time and peak memory against sequence length, one file per workload."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.curves import curves, line_names
from attnbench.errors import UserError
from attnbench.plots.canvas import drawing, save
from attnbench.plots.layout import draw_page
from attnbench.plots.page import pages_of
from attnbench.plots.quantities import QUANTITIES

if TYPE_CHECKING:
    import pandas as pd


def plot_run(
    frame: pd.DataFrame, out_dir: Path | str, *, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw a results frame: for each workload tokens/s, time (ms) and peak memory against sequence length.

    Files are named `tokens-per-s.fwd.png`, `time.bwd.svg`, `memory.fwd-bwd.png`; a figure of more than
    MAX_PANELS groups goes on in `tokens-per-s.fwd-2.png`. A figure without any value is left out.

    Returns the paths written, in order. Equal results give equal bytes, whatever the order of the rows.

    Raises UserError when no case came out ok, a format is unknown, or the folder cannot be written.
    """
    found = curves(frame)
    if not any(len(c) for c in found):
        raise UserError(f"there is nothing to draw: {_what_was_found(frame)}")
    folder = Path(out_dir)
    providers, protocol = _providers(frame), _protocol(frame)
    written = []
    with drawing(formats):
        for workload in dict.fromkeys(c.workload for c in found):
            same = [c for c in found if c.workload == workload]
            for quantity in QUANTITIES:
                pages = pages_of(same, quantity=quantity, providers=providers, protocol=protocol)
                for number, page in enumerate(pages, start=1):
                    figure = draw_page(page)
                    further = f"-{number}" if number > 1 else ""
                    stem = f"{quantity.stem}.{re.sub(r'[^A-Za-z0-9_-]', '_', workload)}{further}"
                    written += [save(figure, folder / f"{stem}.{name}") for name in formats]
    return written


def _providers(frame: pd.DataFrame) -> dict[str, str]:
    """Who computed each mechanism, without local version labels (+cu130); several are joined by a slash."""
    found: dict[str, set[str]] = {}
    for mechanism, provider in zip(line_names(frame), frame["provider"], strict=True):
        if isinstance(provider, str):
            found.setdefault(str(mechanism), set()).add(re.sub(r"\+\S+", "", provider))
    return {name: " / ".join(sorted(each)) for name, each in found.items()}


def _protocol(frame: pd.DataFrame) -> str:
    """How it was measured, as far as the records of all the runs agree: `cold L2`, `CUDA graphs`."""
    records = frame.attrs.get("runs", {})
    protocols = [
        record.get("protocol") or {} for run, record in records.items() if run in set(frame["run_id"])
    ]
    words = []
    for key, form in (("cache", "{} L2"), ("launch", "launch: {}")):
        values = {protocol.get(key) for protocol in protocols}
        value = values.pop() if len(values) == 1 else None
        if value is not None and value != "eager":
            words.append(form.format(value))
    return ", ".join(words)


def _what_was_found(frame: pd.DataFrame) -> str:
    if not len(frame):
        return "the results hold no row"
    counts = Counter(str(status) for status in frame["status"])
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    rows = "1 row" if len(frame) == 1 else f"{len(frame):,} rows"
    return f"no case has status ok and a time ({rows}: {by_status})"
