"""From the device's records to kernels, gaps and sums: pure functions over spans."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from attnbench.measure.timeline import Span
from attnbench.profiling.found import Kernel, Timeline


def timeline(calls: Sequence[Sequence[Span]], *, events_ms: Sequence[float]) -> Timeline:
    """What the device did in each of these calls, condensed; events_ms: the same calls by CUDA events.

    Raises ValueError where there is no call.
    """
    if not calls:
        raise ValueError("no calls were recorded")
    gaps = [gaps_of(call) for call in calls]
    kernels = kernels_of(calls)
    return Timeline(
        calls=len(calls),
        kernels=kernels,
        launches=sum(kernel.launches for kernel in kernels),
        kernels_us=statistics.median(sum(span.length_us for span in call) for call in calls),
        busy_us=statistics.median(
            _span_us(call) - sum(lengths) for call, lengths in zip(calls, gaps, strict=True)
        ),
        span_us=statistics.median(map(_span_us, calls)),
        gaps=statistics.mean(map(len, gaps)),
        gap_us=statistics.median(map(sum, gaps)),
        longest_gap_us=statistics.median(max(lengths, default=0.0) for lengths in gaps),
        events_us=1e3 * statistics.median(events_ms),
    )


def gaps_of(call: Sequence[Span]) -> list[float]:
    """Microseconds between the end of all that ran so far and the next begin, where there are any."""
    found = []
    end: float | None = None
    for span in sorted(call, key=lambda each: each.start_us):
        if end is not None and span.start_us > end:
            found.append(span.start_us - end)
        end = span.end_us if end is None else max(end, span.end_us)
    return found


def kernels_of(calls: Sequence[Sequence[Span]]) -> tuple[Kernel, ...]:
    """Each kernel's launches and time in a call, longest first."""
    times: dict[str, list[float]] = {}
    launches: dict[str, int] = {}
    for call in calls:
        for name, lengths in _by_name(call).items():
            times.setdefault(name, []).append(sum(lengths))
            launches[name] = launches.get(name, 0) + len(lengths)
    # A kernel that some calls do not launch takes no time in them.
    medians = {
        name: statistics.median([*lengths, *[0.0] * (len(calls) - len(lengths))])
        for name, lengths in times.items()
    }
    total = sum(medians.values())
    return tuple(
        Kernel(
            name=name,
            launches=launches[name] / len(calls),
            time_us=medians[name],
            share=medians[name] / total if total else 0.0,
        )
        for name in sorted(medians, key=lambda name: -medians[name])
    )


def _by_name(call: Sequence[Span]) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for span in call:
        found.setdefault(span.name, []).append(span.length_us)
    return found


def _span_us(call: Sequence[Span]) -> float:
    return max(s.end_us for s in call) - min(s.start_us for s in call)
