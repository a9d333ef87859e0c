"""Does the clock agree with an independent profiler? The same calls, timed by both.

    python -m attnbench.measure.agreement ci -o results/h200/gate/agreement.md

CUDA events are read by the clock as always, with the cache cleared before each sample and calls launched as the sweep
does, while CUPTI (through torch.profiler) records when each kernel began and ended on the device. Of each sample the
table sets the event's time beside the span from the first kernel's begin to the last one's end. Between the two marks
and a kernel lies a time that does not depend on the kernel: a kernel that does next to nothing, measured in the same
way, shows how long it is. A CPU has no such second clock.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from attnbench.case import Cache, Case, Launch
from attnbench.errors import UserError
from attnbench.markdown import markdown_table
from attnbench.measure.clock import Call, CudaClock
from attnbench.measure.environment import device_name, pick_device
from attnbench.measure.inputs import prepare
from attnbench.measure.runner import launched
from attnbench.measure.timeline import Span, by_call, flush_name, recorded
from attnbench.registry import find, support
from attnbench.semantics import SEMANTICS
from attnbench.sweeps.loader import load

_WARM_UP = 10
_LONG_US = 50.0  # below it the distance between two launches weighs
_NEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One call by both clocks: medians over its samples, in microseconds.

    kernels: of a call. beyond_us: what events take in beyond the span. ratio: of events to the span, sample by sample.
    """

    samples: int
    kernels: int
    events_us: float
    profiler_us: float
    beyond_us: float
    ratio: float

    @property
    def is_long(self) -> bool:
        return self.profiler_us >= _LONG_US

    @property
    def near(self) -> bool:
        return abs(self.ratio - 1) <= _NEAR

    def ratio_less(self, constant_us: float) -> float:
        """The ratio when the events' time is shorter by a constant."""
        return (self.events_us - constant_us) / self.profiler_us


def agreement(*, events_ms: Sequence[float], calls: Sequence[Sequence[Span]]) -> Agreement:
    """Both clocks on the same samples."""
    spans = [max(s.end_us for s in call) - min(s.start_us for s in call) for call in calls]
    events = [1e3 * sample for sample in events_ms]
    return Agreement(
        samples=len(events),
        kernels=round(statistics.median(len(call) for call in calls)),
        events_us=statistics.median(events),
        profiler_us=statistics.median(spans),
        beyond_us=statistics.median(event - span for event, span in zip(events, spans, strict=True)),
        ratio=statistics.median(event / span for event, span in zip(events, spans, strict=True)),
    )


def measure(case: Case, *, device: torch.device, samples: int, launch: Launch) -> Agreement:
    """Time a case by both clocks.

    Raises ValueError when the profiler's records do not tell the calls apart, and UserError for a case that has no
    provider here.
    """
    provider = support(case, device=device.type)
    if isinstance(provider, str):
        raise UserError(f"{case.case_id}: {provider}")
    semantics = SEMANTICS[find(case.mechanism).semantics]
    calls = prepare(case, provider=provider, semantics=semantics, device=device, seed=0)
    return _by_both(partial(calls.timed, case.workload), device=device, samples=samples, launch=launch)


def measure_nothing(*, device: torch.device, samples: int, launch: Launch) -> Agreement:
    """Time a call by both clocks whose kernel writes one element: its `beyond_us` is of the clocks and not of it.

    Raises ValueError as `measure` does.
    """
    element = torch.empty(1, device=device)
    return _by_both(lambda: element.zero_, device=device, samples=samples, launch=launch)


def _by_both(make: Callable[[], Call], *, device: torch.device, samples: int, launch: Launch) -> Agreement:
    call = launched(make, launch=launch)
    clock = CudaClock(device=device, cache=Cache.COLD)
    clock.batch(call, _WARM_UP)
    flush = flush_name(clock)
    events: list[float] = []

    def work() -> None:
        events[:] = clock.batch(call, samples)

    spans = recorded(work)
    clock.close()
    return agreement(events_ms=events, calls=by_call(spans, flush=flush, calls=samples))


def table(found: Mapping[Case, Agreement], *, nothing: Agreement, device: str, launch: Launch) -> str:
    """Markdown: the cases in the order given, how many of the long ones agree, and what the others differ by."""
    less = {case: each.ratio_less(nothing.beyond_us) for case, each in found.items()}
    long_ = [case for case, each in found.items() if each.is_long]
    near = sum(found[case].near for case in long_)
    near_less = sum(abs(less[case] - 1) <= _NEAR for case in long_)
    beyond_us = statistics.median(each.beyond_us for each in found.values())
    rows = [
        (
            case.case_id,
            f"{each.samples}",
            f"{each.kernels}",
            f"{each.events_us:.2f}",
            f"{each.profiler_us:.2f}",
            f"{each.beyond_us:.2f}",
            f"{each.ratio:.4f}",
            f"{less[case]:.4f}",
        )
        for case, each in found.items()
    ]
    constant = f"{nothing.beyond_us:.2f} µs"
    headings = (
        "case",
        "calls",
        "kernels",
        "events, µs",
        "CUPTI, µs",
        "beyond, µs",
        "ratio",
        f"less {constant}",
    )
    return "\n".join(
        [
            f"# CUDA events against CUPTI on {device}, launch {launch}",
            "",
            "Each row: the same calls by both clocks, with a cold L2; the span by CUPTI is from the first kernel's "
            "begin to the last one's end, and what events take in beyond it is the median over the calls.",
            "",
            markdown_table(headings, rows),
            "",
            f"{near} of {len(long_)} cases over {_LONG_US:.0f} µs agree within {_NEAR:.0%}. Events take in "
            f"{beyond_us:.2f} µs beyond the span in the median case, and {constant} where a kernel only writes one "
            f"element: with {constant} taken off {near_less} of {len(long_)} agree within {_NEAR:.0%}.",
            "",
        ]
    )


def main(
    sweep: Annotated[str, typer.Argument(help="A preset or the path of a TOML file.")] = "ci",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file for the table.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=3, help="Calls of each case.")] = 50,
) -> None:
    """Time each case of a sweep by the clock and by CUPTI at once, and set the two side by side.

    Exit code 1 when a case over 50 µs differs by more than 2 %.
    """
    device = pick_device("cuda")
    asked = load(sweep, device="cuda")
    timed = partial(measure, device=device, samples=samples, launch=asked.protocol.launch)
    nothing = measure_nothing(device=device, samples=samples, launch=asked.protocol.launch)
    found = {}
    for case in asked.cases():
        found[case] = timed(case)
        print(f"{case.case_id}: {found[case].ratio:.4f}", file=sys.stderr)
    text = table(found, nothing=nothing, device=device_name(device), launch=asked.protocol.launch)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(text, end="")
    if any(each.is_long and not each.near for each in found.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
