"""From figures to what bounds a call. Every threshold of a diagnosis stands at the head of this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attnbench.profiling.found import Bound, Counters, Diagnosis, Operators, Profile
from attnbench.words import time_text

# The device is idle in so much of a call's time: then what keeps it waiting bounds the call, not its kernels.
IDLE_SHARE = 0.15
# The host takes so much of a call's time over enqueueing it: then it is the host that the idle device waits for.
HOST_SHARE = 0.8
# The host takes so many times a call's time: then any loop of such calls runs at the host's pace, even where the
# clearing of the cache between samples gave the host the time to run ahead.
HOST_FACTOR = 1.5
# A unit at this share of its ceiling bounds the call; below it on all units, waiting does. It is where Nsight Compute's
# own rules draw the line between a busy unit and latency.
BUSY_SHARE = 0.6
# And from here on it is close to what it can do at all.
FULL_SHARE = 0.8
# Kernel times are to sum to the time by CUDA events within this, where the device bounds the call.
SUM_TOLERANCE = 0.03
# A CPU's operator that takes less is mostly dispatch; operators like that bound a call whose time is theirs by so much.
OPERATOR_US, DISPATCH_SHARE = 20.0, 0.5

_DRAM, _LEAST = "DRAM, bytes counted", "DRAM, least bytes by formula"
_MEMORY = {
    _DRAM: "DRAM",
    _LEAST: "DRAM",
    "L2": "the L2",
    "shared memory's pipe": "the shared memory's data pipe",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a diagnosis looks at. Times in microseconds of a call; shares of a unit's ceiling by what was counted."""

    time_us: float
    busy_us: float | None = None  # the device at work; None: a CPU, which is its own host
    launches: float | None = None
    gap_us: float | None = None
    host_us: float | None = None
    # Shares of a CPU's call, under the profiler: in operators that take less than OPERATOR_US each, and in none.
    dispatch: float | None = None
    outside: float | None = None
    longest: tuple[str, float] | None = None  # the kernel or operator that takes most, and its share
    memory: Mapping[str, float] = field(default_factory=dict)
    tensor: Mapping[str, float] = field(default_factory=dict)
    arithmetic: float | None = None
    occupancy: float | None = None
    waves: float | None = None  # of the longest kernel: its programs over those that run at once
    stalls: Mapping[str, float] = field(default_factory=dict)
    counted: bool = False

    @property
    def idle(self) -> float:
        """Share of the call's time in which the device does nothing."""
        return 0.0 if self.busy_us is None else max(0.0, 1 - self.busy_us / self.time_us)


def diagnose(profile: Profile) -> Diagnosis | None:
    """What bounds a profile's call; None where it was not timed."""
    found = evidence(profile)
    return None if found is None else judge(found)


def evidence(profile: Profile) -> Evidence | None:
    """The figures of a profile that a diagnosis looks at."""
    work, line, time_us = profile.work, profile.timeline, profile.time_us
    if time_us is None:
        return None
    memory: dict[str, float] = {}
    tensor: dict[str, float] = {}
    if work is not None and work.memory_share is not None:
        memory[_LEAST] = work.memory_share
    if work is not None and work.matrix_share is not None:
        tensor["FLOPs by formula"] = work.matrix_share
    counters = profile.counters
    kernels_us = None if line is None else line.kernels_us
    moved = traffic(counters)
    if moved is not None and kernels_us and work is not None and work.copy_gbps:
        memory[_DRAM] = moved / (kernels_us * 1e-6) / (work.copy_gbps * 1e9)
    for name, share in (
        ("L2", mean(counters, "l2")),
        ("shared memory's pipe", mean(counters, "shared_pipe")),
    ):
        if share is not None:
            memory[name] = share
    counted_tensor = mean(counters, "tensor")
    if counted_tensor is not None:
        tensor["tensor pipes"] = counted_tensor
    return Evidence(
        time_us=time_us,
        busy_us=None if line is None else line.busy_us,
        launches=None if line is None else line.launches,
        gap_us=None if line is None else line.gap_us,
        host_us=profile.host_us,
        dispatch=None if profile.operators is None else _dispatched(profile.operators),
        outside=None if profile.operators is None else _outside(profile.operators),
        longest=_longest(profile),
        memory=memory,
        tensor=tensor,
        arithmetic=mean(counters, "multiprocessor"),
        occupancy=mean(counters, "occupancy"),
        waves=_waves(profile),
        stalls=stalls(counters),
        counted=bool(counters),
    )


def _longest(profile: Profile) -> tuple[str, float] | None:
    if profile.timeline is not None and profile.timeline.kernels:
        return profile.timeline.kernels[0].name, profile.timeline.kernels[0].share
    if profile.operators is not None and profile.operators.operators:
        return profile.operators.operators[0].name, profile.operators.operators[0].share
    return None


def _dispatched(told: Operators) -> float:
    short = sum(each.time_us for each in told.operators if each.time_us < OPERATOR_US * each.calls)
    return short / told.call_us if told.call_us else 0.0


def _outside(told: Operators) -> float:
    return max(0.0, 1 - told.operators_us / told.call_us) if told.call_us else 0.0


def _waves(profile: Profile) -> float | None:
    if profile.timeline is None or not profile.timeline.kernels:
        return None
    longest = profile.timeline.kernels[0].name
    return max((each.waves for each in profile.resources if each.name == longest), default=None)


def judge(found: Evidence) -> Diagnosis:
    """What bounds a call, in words.

    In turn: a device that is idle (the host, or launches), a unit near its ceiling, and what is left is waiting.
    """
    bound, sentence = _idle(found) or _dispatch(found) or _busy(found) or _waiting(found)
    return Diagnosis(bound=bound, sentence=sentence, figures=tuple(_figures(found)))


def traffic(counters: Sequence[Counters]) -> float | None:
    """Bytes that all launches together moved from and to DRAM; None where one of them was not counted."""
    moved = [
        each.read_bytes + each.written_bytes
        for each in counters
        if each.read_bytes is not None and each.written_bytes is not None
    ]
    return sum(moved) if moved and len(moved) == len(counters) else None


def mean(counters: Sequence[Counters], name: str) -> float | None:
    """A figure over all launches, each weighted with its time."""
    known = [(getattr(each, name), each.time_us) for each in counters if getattr(each, name) is not None]
    weights = sum(time or 0.0 for _, time in known)
    if not known or not weights:
        return None
    return float(sum(value * (time or 0.0) for value, time in known) / weights)


def stalls(counters: Sequence[Counters]) -> dict[str, float]:
    """Warps that wait by reason, over all launches by their time, the most frequent first."""
    weights = sum(each.time_us or 0.0 for each in counters)
    found: dict[str, float] = {}
    for each in counters:
        for reason, value in each.stalls.items():
            found[reason] = found.get(reason, 0.0) + value * (each.time_us or 0.0) / (weights or 1.0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


# ------------------------------------------------------------------------------------------------------------

_Answer = tuple[Bound, str] | None


def _idle(found: Evidence) -> _Answer:
    host, busy = found.host_us, found.busy_us
    if busy is None:
        return None
    if host is not None and host >= HOST_FACTOR * found.time_us:
        return Bound.HOST, (
            f"bound by the host: it takes {_us(host)} to enqueue a call in which the device works for {_us(busy)}"
        )
    if found.idle < IDLE_SHARE:
        return None
    idle = f"the device is idle for {found.idle:.0%} of the {_us(found.time_us)}"
    if host is not None and host >= HOST_SHARE * found.time_us:
        return Bound.HOST, f"bound by the host: {idle}, and the host takes {_us(host)} to enqueue them"
    number = found.launches or 0.0
    kernels = f"{number:.0f} kernels" if round(number) != 1 else "one kernel"
    each = f", {_us(busy / number)} each" if number > 1.5 else ""
    return Bound.LAUNCHES, f"bound by launches: {idle}, over {kernels} that take {_us(busy)} in all{each}"


def _dispatch(found: Evidence) -> _Answer:
    if found.outside is not None and found.outside >= DISPATCH_SHARE:
        return Bound.HOST, (
            f"bound by the host: {found.outside:.0%} of the time is outside of torch's operators, in Python or in what "
            "torch does not see"
        )
    if found.dispatch is None or found.dispatch < DISPATCH_SHARE:
        return None
    return Bound.HOST, (
        f"bound by the host: {found.dispatch:.0%} of the time goes to operators of less than {OPERATOR_US:.0f} µs "
        "each, most of which is dispatch"
    )


def _busy(found: Evidence) -> _Answer:
    (what, memory), tensor = _most(found.memory), _most(found.tensor)[1]
    if max(memory, tensor) >= BUSY_SHARE:
        near = "close to its limit" if max(memory, tensor) >= FULL_SHARE else "the busiest part"
        if memory >= tensor:
            return Bound.MEMORY, (
                f"bound by memory: {_MEMORY[what]} is at {memory:.0%} of its ceiling, {near}; matrix products are at "
                f"{tensor:.0%}"
            )
        unit = "the tensor cores" if found.busy_us is not None else "matrix products"
        return Bound.TENSOR, (
            f"bound by {unit}: at {tensor:.0%} of the ceiling, {near}; memory is at {memory:.0%}"
        )
    if found.arithmetic is not None and found.arithmetic >= BUSY_SHARE:
        return Bound.ARITHMETIC, (
            f"bound by instructions: the busiest part of the multiprocessors is at {found.arithmetic:.0%} of its peak; "
            f"memory is at {memory:.0%} and matrix products at {tensor:.0%}"
        )
    return None


def _most(shares: Mapping[str, float]) -> tuple[str, float]:
    return max(shares.items(), key=lambda item: item[1], default=("", 0.0))


def _waiting(found: Evidence) -> tuple[Bound, str]:
    memory, tensor = _most(found.memory)[1], _most(found.tensor)[1]
    if not found.counted:
        most = (
            f"; most of the time goes to {found.longest[0]} ({found.longest[1]:.0%})" if found.longest else ""
        )
        return Bound.UNCLEAR, (
            f"unclear: by formula memory is at {memory:.0%} of its ceiling and matrix products at {tensor:.0%}, and "
            f"without hardware counters it cannot be told what else is moved, computed or waited for{most}"
        )
    why = ""
    if found.stalls:
        (reason, waiting), total = next(iter(found.stalls.items())), sum(found.stalls.values())
        why = f"; warps wait most for {stall_name(reason)} ({waiting / total:.0%} of what they wait for)"
    if found.waves is not None and found.waves < 1:
        why += f"; the longest kernel's programs fill {found.waves:.0%} of the device"
    return Bound.LATENCY, (
        f"bound by latency: no unit is at {BUSY_SHARE:.0%} of its ceiling, memory at {memory:.0%} and matrix products "
        f"at {tensor:.0%}{why}"
    )


def _figures(found: Evidence) -> list[str]:
    lines = []
    if found.busy_us is not None:
        lines.append(f"device at work {_us(found.busy_us)} of {_us(found.time_us)}, idle {found.idle:.1%}")
    if found.gap_us is not None:
        lines.append(f"gaps between launches {_us(found.gap_us)} a call")
    if found.host_us is not None and found.busy_us is not None:
        lines.append(f"the host takes {_us(found.host_us)} over a call")
    lines += [
        f"{name}: {share:.0%} of the ceiling" for name, share in {**found.memory, **found.tensor}.items()
    ]
    if found.arithmetic is not None:
        lines.append(f"busiest part of the multiprocessors: {found.arithmetic:.0%} of its peak")
    if found.occupancy is not None:
        lines.append(f"achieved occupancy {found.occupancy:.0%}")
    if found.waves is not None:
        lines.append(f"the longest kernel's programs fill the device {found.waves:.2f} times")
    total = sum(found.stalls.values())
    if total:
        shown = list(found.stalls.items())[:3]
        lines.append(
            "warps wait for: " + ", ".join(f"{stall_name(name)} {value / total:.0%}" for name, value in shown)
        )
    return lines


_STALLS = {
    "long_scoreboard": "global memory",
    "short_scoreboard": "shared memory or special functions",
    "barrier": "a barrier",
    "wait": "the fixed latency of instructions",
    "gmma": "the tensor cores (wgmma)",
    "math_pipe_throttle": "an arithmetic pipe",
    "mio_throttle": "the queue to shared memory",
    "lg_throttle": "the queue to global memory",
    "not_selected": "their turn to issue",
    "membar": "a memory fence",
    "no_instruction": "instructions",
    "no_instructions": "instructions",
    "sleeping": "sleeping",
    "branch_resolving": "branches",
    "dispatch_stall": "dispatch",
    "tex_throttle": "the texture queue",
    "drain": "stores at their end",
    "imc_miss": "constants",
}


def stall_name(reason: str) -> str:
    """Nsight Compute's name of a stall reason in plain words."""
    return _STALLS.get(reason, reason.replace("_", " "))


def _us(microseconds: float) -> str:
    return time_text(microseconds / 1e3)
