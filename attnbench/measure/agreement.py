"""Does the clock agree with an independent profiler? The same calls, timed by both.

    python -m attnbench.measure.agreement ci -o results/h200/gate/agreement.md

CUDA events are read by the clock as always, with the cache cleared before each sample, while CUPTI (through
torch.profiler) records when each kernel began and ended on the device. Of each sample the table sets the event's time
beside the span from the first kernel's begin to the last one's end. A CPU has no such second clock.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from attnbench.case import Cache, Case
from attnbench.errors import UserError
from attnbench.measure.clock import CudaClock
from attnbench.measure.environment import device_name, pick_device
from attnbench.measure.inputs import prepare
from attnbench.measure.timeline import Span, by_call, flush_name, recorded
from attnbench.registry import find, support
from attnbench.semantics import SEMANTICS
from attnbench.sweeps.loader import load

_WARM_UP = 10
_LONG_US = 50.0  # below it the distance between two launches weighs


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One case by both clocks: medians over its samples, in microseconds, and the median of the samples' ratios."""

    case: Case
    samples: int
    kernels: int  # of a call
    events_us: float
    profiler_us: float
    ratio: float


def agreement(case: Case, *, events_ms: Sequence[float], calls: Sequence[Sequence[Span]]) -> Agreement:
    """Both clocks on the same samples."""
    spans = [max(s.end_us for s in call) - min(s.start_us for s in call) for call in calls]
    events = [1e3 * sample for sample in events_ms]
    return Agreement(
        case=case,
        samples=len(events),
        kernels=round(statistics.median(len(call) for call in calls)),
        events_us=statistics.median(events),
        profiler_us=statistics.median(spans),
        ratio=statistics.median(event / span for event, span in zip(events, spans, strict=True)),
    )


def measure(case: Case, *, device: torch.device, samples: int) -> Agreement:
    """Time a case by both clocks.

    Raises ValueError when the profiler's records do not tell the calls apart, and UserError for a case that has no
    provider here.
    """
    provider = support(case, device=device.type)
    if isinstance(provider, str):
        raise UserError(f"{case.case_id}: {provider}")
    calls = prepare(
        case, provider=provider, semantics=SEMANTICS[find(case.mechanism).semantics], device=device, seed=0
    )
    call = calls.timed(case.workload)
    clock = CudaClock(device=device, cache=Cache.COLD)
    clock.batch(call, _WARM_UP)
    flush = flush_name(clock)
    events: list[float] = []
    spans = recorded(lambda: events.extend(clock.batch(call, samples)))
    clock.close()
    return agreement(case, events_ms=events, calls=by_call(spans, flush=flush, calls=samples))


def table(found: Sequence[Agreement], *, device: str) -> str:
    """Markdown, the cases in the order given, and how many of the long ones agree within 2 %."""
    long_ = [each for each in found if each.profiler_us >= _LONG_US]
    near = [each for each in long_ if abs(each.ratio - 1) <= 0.02]
    lines = [
        f"# CUDA events against CUPTI on {device}",
        "",
        f"{len(near)} of {len(long_)} cases over {_LONG_US:.0f} µs agree within 2 %. Each row: the same calls by both "
        "clocks, with a cold L2; the span is from the first kernel's begin to the last one's end.",
        "",
        "| case | calls | kernels | events, µs | CUPTI, µs | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {e.case.case_id} | {e.samples} | {e.kernels} | {e.events_us:.2f} | {e.profiler_us:.2f} | {e.ratio:.4f} |"
        for e in found
    ]
    return "\n".join(lines) + "\n"


def main(
    sweep: Annotated[str, typer.Argument(help="A preset or the path of a TOML file.")] = "ci",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file for the table.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=3, help="Calls of each case.")] = 50,
) -> None:
    """Time each case of a sweep by the clock and by CUPTI at once, and set the two side by side.

    Exit code 1 when a case over 50 µs differs by more than 2 %.
    """
    device = pick_device("cuda")
    found = []
    for case in load(sweep, device="cuda").cases():
        found.append(measure(case, device=device, samples=samples))
        print(f"{case.case_id}: {found[-1].ratio:.4f}", file=sys.stderr)
    text = table(found, device=device_name(device))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(text, end="")
    if any(each.profiler_us >= _LONG_US and abs(each.ratio - 1) > 0.02 for each in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
