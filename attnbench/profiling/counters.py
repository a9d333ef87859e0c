"""Hardware counters through Nsight Compute, in a process of its own: the command, its CSV, and why there is none."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attnbench.executors.lock import Descriptors
from attnbench.profiling.found import Counters
from attnbench.profiling.process import Ended, run

FILE = "counters.csv"
LOG = "counters.log"

_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")
_MOST_LAUNCHES = 60
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)_per_issue_active(\.ratio)?")
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")

# What is asked for by name, beside the sections; where two are named for one figure, the first that came back counts.
# Shares are percentages of a unit's peak.
_METRICS: Mapping[str, tuple[str, ...]] = {
    "time_us": ("gpu__time_duration.sum", "gpu__time_duration.avg"),
    "read_bytes": ("dram__bytes_read.sum", "dram__bytes_op_read.sum"),
    "written_bytes": ("dram__bytes_write.sum", "dram__bytes_op_write.sum"),
    "dram": (
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "l2": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "l2_hits": ("lts__t_sector_hit_rate.pct",),
    "shared_pipe": ("l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",),
    "tensor": (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    ),
    "multiprocessor": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "issue": (
        "smsp__issue_active.avg.pct_of_peak_sustained_active",
        "smsp__issue_active.avg.pct_of_peak_sustained_elapsed",
    ),
    "occupancy": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "registers": ("launch__registers_per_thread",),
}
_SHARES = ("dram", "l2", "l2_hits", "shared_pipe", "tensor", "multiprocessor", "issue", "occupancy")
# Asked for by name: those that sections do not always bring.
_ASKED = tuple(_METRICS[name][0] for name in _METRICS if name != "registers")
_FACTORS = {
    "nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3, "second": 1e6, "s": 1e6,
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12,
}  # fmt: skip


def find_ncu() -> str | None:
    """Nsight Compute's command, or None where it is not installed."""
    return shutil.which("ncu") or next((place for place in _PLACES if Path(place).is_file()), None)


def count(
    request: Path, *, folder: Path, limit_s: float, inherit: Descriptors = ()
) -> tuple[tuple[Counters, ...], str | None]:
    """Counters of each launch of one call, in their order; or none and one sentence that says why.

    request: as `attnbench.profiling.replay` reads it. What Nsight Compute wrote stays in `folder`.
    """
    ncu = find_ncu()
    if ncu is None:
        return (), "Nsight Compute (ncu) is not installed here, so there are no hardware counters."
    note = ""
    for metrics in (_ASKED, ()):
        try:
            ended = _replayed(ncu, request, folder=folder, metrics=metrics, limit_s=limit_s, inherit=inherit)
        except OSError as error:
            return (), f"Nsight Compute ({ncu}) does not start, so there are no hardware counters: {error}."
        text = _text(folder / FILE)
        found = parse(text)
        if found:
            return found, None
        said = f"{text}\n{ended.output}"
        note = why_none(said, code=ended.code, limit_s=limit_s)
        # Another Nsight Compute may not know one of the names: then the sections alone.
        if ended.code is None or "metric" not in said.lower():
            break
    return (), note


def parse(text: str) -> tuple[Counters, ...]:
    """Counters from `ncu --csv --page raw`: a row for each launch, its lines of progress passed over."""
    rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    header = next((row for row in rows if "Kernel Name" in row and "ID" in row), None)
    if header is None:
        return ()
    after = rows[rows.index(header) + 1 :]
    units: Sequence[str] = ()
    found = []
    for row in after:
        if len(row) != len(header):
            continue
        cells = dict(zip(header, row, strict=True))
        if not cells["ID"].isdigit():
            units = row
            continue
        found.append(_counters(cells, dict(zip(header, units, strict=False))))
    return tuple(found)


def why_none(output: str, *, code: int | None, limit_s: float) -> str:
    """Why there are no counters, in one sentence, from what Nsight Compute said."""
    if code is None:
        return f"Nsight Compute did not end within {limit_s:.0f} s, so there are no hardware counters."
    if "ERR_NVGPUCTRPERM" in output:
        return (
            "The driver does not let this user read hardware counters (ERR_NVGPUCTRPERM): an administrator allows it "
            "by the module option NVreg_RestrictProfilingToAdminUsers=0, or run as root."
        )
    if "No kernels were profiled" in output:
        return "Nsight Compute saw no kernel of the call, so there are no hardware counters."
    errors = [line for line in output.splitlines() if line.startswith("==ERROR==")]
    said = errors[0].removeprefix("==ERROR==").strip() if errors else _last(output)
    return f"Nsight Compute gave no counters (exit code {code}){f': {said}' if said else ''}."


# ------------------------------------------------------------------------------------------------------------


def _replayed(
    ncu: str, request: Path, *, folder: Path, metrics: Sequence[str], limit_s: float, inherit: Descriptors
) -> Ended:
    """Run a call under Nsight Compute. Raises OSError where it does not start."""
    (folder / FILE).unlink(missing_ok=True)
    command = [
        ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(folder / FILE),
        "--profile-from-start", "off", "--target-processes", "all", "--launch-count", str(_MOST_LAUNCHES),
        # The tool reads the device's state and never changes it; ncu would hold the clock at its base.
        "--clock-control", "none",
        *(word for section in _SECTIONS for word in ("--section", section)),
        *(("--metrics", ",".join(metrics)) if metrics else ()),
        sys.executable, "-m", "attnbench.profiling.replay", str(request),
    ]  # fmt: skip
    return run(command, log=folder / LOG, limit_s=limit_s, inherit=inherit)


def _counters(cells: Mapping[str, str], units: Mapping[str, str]) -> Counters:
    values: dict[str, float | None] = {}
    for name, metrics in _METRICS.items():
        values[name] = next(
            (v for v in (_value(cells.get(m), units.get(m, "")) for m in metrics) if v is not None), None
        )
    for name in _SHARES:
        share = values[name]
        values[name] = None if share is None else share / 100
    stalls = {}
    for column, cell in cells.items():
        match = _STALL.fullmatch(column)
        value = _value(cell, "") if match else None
        if match and value and match[1] != "selected":  # a warp that issues does not wait
            stalls[match[1]] = value
    longest_first = dict(sorted(stalls.items(), key=lambda item: -item[1]))
    return Counters(name=cells["Kernel Name"], stalls=longest_first, **values)


def _value(cell: str | None, unit: str) -> float | None:
    """A number in base units (times in microseconds), or None for an empty cell and n/a."""
    try:
        return float((cell or "").replace(",", "")) * _FACTORS.get(unit, 1.0)
    except ValueError:
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith('"')]
    return lines[-1][:200] if lines else ""
