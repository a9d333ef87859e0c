"""What to doubt in the times of a run: several devices, calls too short, a slow host, clocks, wide intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from attnbench.case import Launch, Status
from attnbench.curves import Curve
from attnbench.places import by_place, ceilings_by_device
from attnbench.words import count_text, joined, time_text

# Shares of the fastest SM clock seen on a device: below the first a case is flagged, below the second the
# clocks count as unsteady.
_CLOCK_FLAG, _CLOCK_STEADY = 0.75, 0.95
# A call in which the device is at work for less than this share of the time is mostly its host's; what is idle for less
# than this many milliseconds besides may be the events' own.
_AT_WORK, _IDLE_MS = 0.8, 0.005
_CLOCKS_SHARE = 0.05  # of a time that is the clock's own: more is worth a word
_WIDE = 0.05  # an interval that reaches farther than this from the median is worth a word
_NO_THROTTLE = ("", "none", "gpu_idle", "idle")


def warnings_of(frame: pd.DataFrame, found: Sequence[Curve]) -> tuple[str, ...]:
    """All of them, without full stops; `found`: the curves of the frame."""
    return (
        *_mixed(frame),
        *_changed(frame),
        *of_times(frame),
        *_unlocked(frame),
        *_throttled(frame),
        *_clocks(frame),
        *_wide(found),
    )


def of_times(frame: pd.DataFrame) -> tuple[str, ...]:
    """Those that say of times that they are not the device's alone."""
    return (*_short(frame), *_launched_late(frame))


def _mixed(frame: pd.DataFrame) -> list[str]:
    """Several devices: values of one are set against nothing of another."""
    counts = frame["device"].dropna().value_counts()
    if len(counts) < 2:
        return []
    parts = [f"{count_text(int(counts[name]), 'case')} on {name}" for name in sorted(counts.index)]
    return [
        f"these results are of {len(counts)} devices ({', '.join(parts)}): nothing of one is compared with another"
    ]


def _changed(frame: pd.DataFrame) -> list[str]:
    """Mechanisms whose rows in one run are of several versions: what is resumed after an edit is no one thing."""
    ok = frame[(frame["status"] == Status.OK) & frame["provider"].notna()]
    said = []
    for _, rows in ok.groupby(["run_id", "mechanism", "device"], sort=True):
        versions: dict[tuple[str, str], list[str]] = {}
        for name in sorted({str(name) for name in rows["provider"]}):
            package, _, rest = name.partition(" ")
            versions.setdefault((package, rest.partition(" ")[2]), []).append(name)
        said += [
            f"the rows of {rows['mechanism'].iloc[0]} are of {joined(names)}: it was changed between two sittings of "
            "one run"
            for names in versions.values()
            if len(names) > 1
        ]
    return said


def _short(frame: pd.DataFrame) -> list[str]:
    """Calls of which much is what lies between the clock's marks and the kernel."""
    empty_ms = {
        device: ceilings["empty_call_ms"]
        for run in frame.attrs.get("runs", {}).values()
        for device, ceilings in ceilings_by_device(run)
        if device and ceilings.get("empty_call_ms")
    }
    timed = frame[(frame["status"] == Status.OK) & frame["device"].isin(list(empty_ms))]
    shares = timed["device"].map(empty_ms).astype("float64") / timed["median_ms"]
    short = timed[shares > _CLOCKS_SHARE]
    if short.empty:
        return []
    worst = timed.iloc[int(shares.argmax())]
    return [
        f"in {len(short):,} of {count_text(len(timed), 'timed case')} more than {_CLOCKS_SHARE:.0%} of the time is the "
        f"clock's own: a call that does nothing takes {time_text(empty_ms[worst['device']])} by it (at worst of "
        f"{time_text(worst['median_ms'])}: {worst['case_id']})"
    ]


def _launched_late(frame: pd.DataFrame) -> list[str]:
    """Calls whose time is the host's: it launched them more slowly than the device ran them."""
    timed = frame[(frame["status"] == Status.OK) & frame["busy_ms"].notna()]
    idle_ms = timed["median_ms"] - timed["busy_ms"]
    late = timed[(idle_ms > (1 - _AT_WORK) * timed["median_ms"]) & (idle_ms > _IDLE_MS)]
    if late.empty:
        return []
    worst = late.iloc[int((late["busy_ms"] / late["median_ms"]).argmin())]
    launches = {run.get("protocol", {}).get("launch") for run in frame.attrs.get("runs", {}).values()}
    advice = "" if launches == {Launch.GRAPH} else "; with --launch graph times are the device's alone"
    return [
        f"in {len(late):,} of {count_text(len(timed), 'timed case')} the device waited for its host for more than "
        f"{1 - _AT_WORK:.0%} of the time (at worst it was at work for {time_text(worst['busy_ms'])} of "
        f"{time_text(worst['median_ms'])}: {worst['case_id']}){advice}"
    ]


def _unlocked(frame: pd.DataFrame) -> list[str]:
    """Devices that say of themselves that their clocks are free to move."""
    runs = frame.attrs.get("runs", {}).values()
    places = [place["environment"] for run in runs for place in by_place(run).values()]
    gpus = [gpu for environment in places if (gpu := environment.get("gpu"))]
    names = sorted({str(gpu["name"]) for gpu in gpus if gpu.get("clocks_locked") is False})
    return [f"the clocks of {name} are not locked: times follow its power and temperature" for name in names]


def _throttled(frame: pd.DataFrame) -> list[str]:
    timed = frame[frame["status"] == Status.OK]
    reasons: Counter[str] = Counter()
    cases = 0
    for given in timed["throttle"]:
        real = set() if given is None or isinstance(given, float) else {str(each) for each in given}
        real = {each for each in real if each.lower() not in _NO_THROTTLE}
        reasons.update(real)
        cases += bool(real)
    if not cases:
        return []
    why = ", ".join(reason for reason, _ in sorted(reasons.items(), key=lambda each: (-each[1], each[0])))
    return [f"the device held its clock back in {cases:,} of {count_text(len(timed), 'timed case')} ({why})"]


def _clocks(frame: pd.DataFrame) -> list[str]:
    said = []
    timed = frame[(frame["status"] == Status.OK) & frame["sm_clock_mhz"].notna()]
    for device, rows in timed.groupby(timed["device"].fillna("unknown device"), sort=True):
        clocks = rows["sm_clock_mhz"].astype("float64")
        low, high = float(clocks.min()), float(clocks.max())
        if low < _CLOCK_STEADY * high:
            slow = int((clocks < _CLOCK_FLAG * high).sum())
            flag = f"; {count_text(slow, 'case')} ran below {_CLOCK_FLAG:.0%} of the fastest" if slow else ""
            said.append(f"the SM clock of {device} ranged from {low:,.0f} to {high:,.0f} MHz{flag}")
    return said


def _wide(found: Sequence[Curve]) -> list[str]:
    far = [
        max(c.ci_high_ms[i] - c.median_ms[i], c.median_ms[i] - c.ci_low_ms[i]) / c.median_ms[i]
        for c in found
        for i in range(len(c))
    ]
    wide = [each for each in far if each > _WIDE]
    if not wide:
        return []
    verb = "has" if len(wide) == 1 else "have"
    return [
        f"{count_text(len(wide), 'case')} {verb} a 95 % interval of the median that reaches farther than "
        f"{_WIDE:.0%} from it (up to {max(wide):.0%})"
    ]
