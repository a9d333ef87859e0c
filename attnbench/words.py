"""Numbers and names as the summaries, the figures and the comparison say them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from attnbench.case import Status, Workload

_TITLES = {
    Workload.FWD: "Forward",
    Workload.BWD: "Backward",
    Workload.FWD_BWD: "Forward and backward",
    Workload.DECODE: "Decode",
}

_ENDS = {
    Status.OOM: "out of memory",
    Status.TIMEOUT: "timed out",
    Status.CRASHED: "crashed",
    Status.UNSUPPORTED: "unsupported",
    Status.ERROR: "error",
    Status.INCORRECT: "wrong output",
}


def workload_title(name: str) -> str:
    """`Forward` for `fwd`; a workload that is not known here keeps its name."""
    return _TITLES[Workload(name)] if name in list(Workload) else name


def workload_order(name: str) -> tuple[int, str]:
    """Sorting key: forward first, and what is not known here last."""
    usual = [str(known) for known in Workload]
    return (usual.index(name) if name in usual else len(usual), name)


def status_words(name: str) -> str:
    """How a case ended, in words; a status that is not known here keeps its name."""
    return _ENDS.get(Status(name), name) if name in list(Status) else name


def rate_text(tokens_per_s: float) -> str:
    """A rate to three digits: 12.3 M tokens/s."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if tokens_per_s >= unit * 0.9995:
            return f"{three(tokens_per_s / unit)}{name} tokens/s"
    return f"{three(tokens_per_s)} tokens/s"


def time_text(milliseconds: float) -> str:
    """A time to three digits: 0.412 ms, 1.25 s, 8.31 µs."""
    if milliseconds >= 999.5:
        return f"{three(milliseconds / 1e3)} s"
    return f"{three(milliseconds)} ms" if milliseconds >= 0.01 else f"{three(milliseconds * 1e3)} µs"


def bytes_text(count: float) -> str:
    """A count of bytes to three digits: 1.25 GiB."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{three(count / unit)} {name}"
    return f"{count:.0f} B"


def three(value: float) -> str:
    """Three significant digits without an exponent; whole numbers from 1,000 on."""
    if value <= 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(value)))
    rounded = round(value, decimals)  # 9.999 rounds to 10.00, one digit too many
    decimals = max(0, 2 - math.floor(math.log10(rounded))) if rounded else decimals
    return f"{value:,.{decimals}f}"


def within(ratio: float) -> str:
    """A factor that a ratio does not exceed, for "within 1.07": rounded up, as rounded down it would be exceeded."""
    return f"{math.ceil(ratio * 100 - 1e-9) / 100:.2f}" if ratio < 10 else f"{math.ceil(ratio - 1e-9):,}"


def factor(value: float) -> str:
    """A ratio to three digits: 1.05×, 12.3×."""
    return f"{value:.2f}×" if value < 9.995 else f"{three(value)}×"


def signed(value: float) -> str:
    """A slope to two decimals with its sign; what rounds to 0 is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def one_line(text: str) -> str:
    """On one line, without a full stop and without the rest of a traceback."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 160 else f"{line[:159].rstrip()}…"


def duration(seconds: float) -> str:
    """A span of time to a person: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count_text(number: int, noun: str) -> str:
    """`1 case`, `1,024 cases`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def without_folders(text: str) -> str:
    """A text for a page that is handed on: of a path from the root only its last name, as folders tell who measured."""
    return re.sub(r"(?<![^\s=:,\"'])/(?:[^\s/=:,]+/)+(?=[^\s/])", "…/", text)
