"""When to stop sampling, and what the samples say. The rules are those of `Protocol`."""

from __future__ import annotations

import math
from collections.abc import Callable

from attnbench.case import Protocol, Timing
from attnbench.measure.clock import Call, Clock, now_s
from attnbench.stats import relative_half_width, summarize

_BATCH_MS = 60.0  # of work between two looks at the stopping rule and at the telemetry
_BATCH_MAX, _WARM_UP_BATCH_MAX = 200, 20
_LONG_MS = 300.0  # a check that took so long has warmed the device up, and another call would cost a sample


class CaseTimeoutError(Exception):
    """The floor of samples does not fit the case limit; the text says by how much."""


def warm_up(call: Call, *, clock: Clock, protocol: Protocol, checked_ms: float = 0.0) -> float:
    """Call until `warmup_s` have passed; the milliseconds that a sample takes, to plan batches by.

    What clears the cache is part of that: on a CPU it takes longer than a short call does by far.

    checked_ms: of the call that was checked last, a backward's forward included. One that took so long, and by which
    the floor of samples fits, is all the warming up and the estimate.

    Raises CaseTimeoutError when the floor of samples would not fit into `limit_s`.
    """
    if checked_ms >= _LONG_MS and _floor_s(checked_ms, protocol) <= protocol.limit_s:
        return checked_ms
    call_ms = clock.once(call)
    if _floor_s(call_ms, protocol) > protocol.limit_s:
        raise CaseTimeoutError(
            f"one call takes {call_ms / 1e3:.2f} s: {protocol.min_samples_floor} samples do not fit the case "
            f"limit of {protocol.limit_s:g} s"
        )
    least_ms = math.inf
    deadline = now_s() + protocol.warmup_s
    while (begun := now_s()) < deadline:
        count = _batch_size(min(least_ms, call_ms), at_most=_WARM_UP_BATCH_MAX)
        clock.batch(call, count)
        least_ms = min(least_ms, (now_s() - begun) * 1e3 / count)
    return least_ms if math.isfinite(least_ms) else call_ms


def _floor_s(call_ms: float, protocol: Protocol) -> float:
    """Seconds that the fewest samples of a case take."""
    return protocol.min_samples_floor * call_ms / 1e3


def collect(
    call: Call, *, clock: Clock, protocol: Protocol, estimate_ms: float, after_batch: Callable[[], None]
) -> Timing:
    """Sample until the rule of `protocol` is met; all samples are kept, in time order.

    The rule: at least `min_samples`, and `min_device_s` of sampling, until the 95 % interval of the median is within
    `ci_half_width`; at most `max_samples` and `cap_s`, though never fewer than `min_samples_floor`.

    Raises CaseTimeoutError when `limit_s` passes before the floor is reached.
    """
    samples: list[float] = []
    start = now_s()
    while True:
        room = protocol.max_samples - len(samples)
        samples += clock.batch(call, min(_batch_size(estimate_ms, at_most=_BATCH_MAX), room))
        after_batch()
        elapsed, count = now_s() - start, len(samples)
        settled = (
            count >= protocol.min_samples
            and elapsed >= protocol.min_device_s
            and relative_half_width(samples) <= protocol.ci_half_width
        )
        capped = elapsed >= min(protocol.cap_s, protocol.limit_s) and count >= protocol.min_samples_floor
        if settled or capped or count >= protocol.max_samples:
            return summarize(samples)
        if elapsed > protocol.limit_s:
            raise CaseTimeoutError(
                f"{count} samples in {elapsed:.1f} s, over the case limit of {protocol.limit_s:g} s"
            )


def _batch_size(estimate_ms: float, *, at_most: int) -> int:
    return max(1, min(at_most, int(_BATCH_MS / max(estimate_ms, 1e-3))))
