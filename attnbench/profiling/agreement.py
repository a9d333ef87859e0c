"""Which profiler's kernel times agree with CUDA events: torch.profiler's (CUPTI by Kineto) or Triton's Proton?

    python -m attnbench.profiling.agreement ci -o results/h200/profilers.md

Each profiler has a process of its own, as two of them cannot share CUPTI. It times every case of a sweep by events
alone, and once it has done so, every case by events and the profiler at once, on the same calls with a cold cache,
launched as the sweep does; of a replayed CUDA graph both profilers tell the kernels one by one.
Proton gives sums over all calls, so means are compared. `attnbench.measure.agreement` compares sample by sample, with
one profiler.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from attnbench.case import Cache, Case, Launch
from attnbench.errors import UserError, unknown
from attnbench.executors.lock import Descriptors, device_lock
from attnbench.markdown import markdown_table
from attnbench.measure.clock import Call, CudaClock
from attnbench.measure.environment import device_name, pick_device
from attnbench.measure.inputs import prepare
from attnbench.measure.runner import first_sentence, launched
from attnbench.measure.timeline import recorded
from attnbench.profiling.process import run
from attnbench.registry import find, support
from attnbench.semantics import SEMANTICS
from attnbench.sweeps.loader import load

_WARM_UP = 20
_LONG_US = 50.0  # below it what lies between two launches weighs
_NEAR = 0.02
_LIMIT_S = 300.0

# Of a profiler: the microseconds that kernels took in all of some work, by name.
Totals = dict[str, float]
Record = Callable[[Callable[[], object]], Totals]
Row = Mapping[str, Any]  # of a case by a profiler: alone_us, events_us and kernels_us, or the reason


def by_torch(work: Callable[[], object]) -> Totals:
    """Times of all kernels by torch.profiler."""
    found: Totals = {}
    for span in recorded(work):
        found[span.name] = found.get(span.name, 0.0) + span.length_us
    return found


def by_proton(work: Callable[[], object]) -> Totals:
    """Times of all kernels by Triton's Proton. Raises ValueError when it wrote nothing."""
    import triton.profiler as proton

    with tempfile.TemporaryDirectory(prefix="attnbench-proton-") as folder:
        path = Path(folder) / "work"
        proton.start(str(path), backend="cupti")
        try:
            work()
            torch.cuda.synchronize()
        finally:
            proton.finalize()
        files = sorted(Path(folder).glob("work*"))
        if not files:
            raise ValueError("Proton wrote nothing")
        return hatchet_totals(json.loads(files[0].read_text(encoding="utf-8")))


def hatchet_totals(tree: Any) -> Totals:
    """Microseconds by kernel in Proton's tree (Hatchet's literal format): what has a time, with none below it.

    A scope's time is that of its kernels and no further one. A graph's that has nothing below it is that of all of its
    kernels, and stands for them.
    """
    found: Totals = {}
    for node in tree if isinstance(tree, list) else [tree]:
        if not isinstance(node, Mapping) or "frame" not in node:  # the last entry tells of the devices
            continue
        below = hatchet_totals(list(node.get("children") or []))
        own_ns = node.get("metrics", {}).get("time (ns)")
        if own_ns and not below:
            below = {str(node["frame"]["name"]): float(own_ns) / 1e3}
        for name, time_us in below.items():
            found[name] = found.get(name, 0.0) + time_us
    return found


PROFILERS: Mapping[str, Record] = {"torch.profiler": by_torch, "proton": by_proton}


def flush_names(*, record: Record, device: torch.device) -> set[str]:
    """The kernels that clear the cache before a call, by the names that a profiler gives them."""
    nothing: Call = lambda: None  # noqa: E731
    clock = CudaClock(device=device, cache=Cache.COLD)
    found = set(record(lambda: clock.batch(nothing, 3)))
    clock.close()
    return found


def alone(case: Case, *, device: torch.device, samples: int, launch: Launch) -> dict[str, float]:
    """The mean microseconds of a call by events, in a process where no profiler was yet.

    Raises ValueError for what has no provider.
    """
    with _timed(case, device=device, launch=launch) as (clock, call):
        return {"alone_us": 1e3 * statistics.mean(clock.batch(call, samples))}


def under(
    case: Case, *, record: Record, flush: Container[str], device: torch.device, samples: int, launch: Launch
) -> dict[str, float]:
    """Microseconds of a call by events and by a profiler at once: means.

    flush: names of kernels that are not the call's, as `flush_names` finds them.

    Raises ValueError when the profiler saw no kernel of the call.
    """
    events: list[float] = []
    with _timed(case, device=device, launch=launch) as (clock, call):

        def work() -> None:
            clock.batch(call, _WARM_UP)
            events[:] = clock.batch(call, samples)

        totals = record(work)
    kernels = [total for name, total in totals.items() if name not in flush]
    if not kernels:
        raise ValueError(f"the profiler saw no kernel of the call, only {sorted(totals)}")
    return {"events_us": 1e3 * statistics.mean(events), "kernels_us": sum(kernels) / (samples + _WARM_UP)}


@contextmanager
def _timed(case: Case, *, device: torch.device, launch: Launch) -> Iterator[tuple[CudaClock, Call]]:
    """A clock, and a call that is warm."""
    provider = support(case, device=device.type)
    if isinstance(provider, str):
        raise ValueError(provider)
    semantics = SEMANTICS[find(case.mechanism).semantics]
    calls = prepare(case, provider=provider, semantics=semantics, device=device, seed=0)
    call = launched(partial(calls.timed, case.workload), launch=launch)
    clock = CudaClock(device=device, cache=Cache.COLD)
    clock.batch(call, _WARM_UP)
    yield clock, call
    clock.close()


def table(
    found: Mapping[str, Mapping[str, Row]], *, cases: Sequence[str], device: str, launch: Launch
) -> str:
    """Markdown: each case by each profiler, and how many of the long ones agree; found: by profiler, then case."""
    headings = ["case", "events alone, µs"]
    for name in found:
        headings += [f"events under {name}, µs", f"kernels by {name}, µs", "ratio"]
    cells = []
    for case in cases:
        rows = [known.get(case, {}) for known in found.values()]
        alone = next((f"{row['alone_us']:.2f}" for row in rows if "alone_us" in row), "")
        cells.append([case, alone, *(cell for row in rows for cell in _cells(row))])
    sentences = [line for name, known in found.items() for line in _sentences(name, known)]
    title = f"# Profilers against CUDA events on {device}, launch {launch}"
    return f"{title}\n\n{chr(10).join(sentences)}\n\n{markdown_table(headings, cells)}\n"


def _cells(row: Row) -> tuple[str, str, str]:
    if "kernels_us" not in row:
        return "", "", ""
    events, kernels = row["events_us"], row["kernels_us"]
    return f"{events:.2f}", f"{kernels:.2f}", f"{kernels / events:.4f}"


def _sentences(name: str, known: Mapping[str, Row]) -> list[str]:
    """How a profiler did over all cases, and the reason of each that it did not manage."""
    told = [row for row in known.values() if "kernels_us" in row]
    long_ = [row for row in told if row["events_us"] >= _LONG_US]
    near = [row for row in long_ if abs(row["kernels_us"] / row["events_us"] - 1) <= _NEAR]
    said = f"{len(near)} of {len(long_)} cases over {_LONG_US:.0f} µs are within {_NEAR:.0%} of the events"
    if told:
        slower = statistics.median(row["events_us"] / row["alone_us"] for row in told)
        said += f"; in the median case events under it are {slower:.3f} times those without"
    reasons = [f"- {name}, {case}: {row['reason']}" for case, row in known.items() if "reason" in row]
    return [f"- {name}: {said}.", *reasons]


# ------------------------------------------------------------------------------------------------------------


def _child(profiler: str, request: Path, answers: Path) -> None:
    """All cases by one profiler; an answer is written as soon as it is known."""
    # To detach and attach CUPTI again takes seconds, and there are no later launches here that it could slow.
    os.environ["TEARDOWN_CUPTI"] = "0"
    asked = json.loads(request.read_text(encoding="utf-8"))
    device, record = pick_device("cuda"), PROFILERS[profiler]
    how: dict[str, Any] = {
        "device": device,
        "samples": asked["samples"],
        "launch": Launch(asked["launch"]),
    }
    cases = [Case(**fields) for fields in asked["cases"]]
    first = {case: _or_reason(partial(alone, case, **how)) for case in cases}
    flush = flush_names(record=record, device=device)
    with answers.open("w", encoding="utf-8") as file:
        for case, row in first.items():
            if "reason" not in row:
                seen = partial(under, case, record=record, flush=flush, **how)
                row = row | _or_reason(seen)
            file.write(json.dumps({"case": case.case_id, **row}) + "\n")
            file.flush()


def _or_reason(measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
    """What was measured; or why it could not be, whatever a profiler raises."""
    try:
        return dict(measure())
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {first_sentence(error)}"}


def _by(
    profiler: str, cases: Sequence[Case], *, samples: int, launch: Launch, lock: Descriptors
) -> dict[str, dict[str, Any]]:
    """All cases by one profiler, in a process of its own; those that it did not reach say so."""
    with tempfile.TemporaryDirectory(prefix="attnbench-agreement-") as folder:
        request, answers = Path(folder) / "request.json", Path(folder) / "answers.jsonl"
        request.write_text(
            json.dumps({"cases": [c.as_dict() for c in cases], "samples": samples, "launch": launch}),
            encoding="utf-8",
        )
        words = [sys.executable, "-m", "attnbench.profiling.agreement", "--child", profiler]
        ended = run(
            [*words, str(request), str(answers)], log=Path(folder) / "log", limit_s=_LIMIT_S, inherit=lock
        )
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.is_file() else []
    found = {row.pop("case"): row for row in map(json.loads, lines)}
    how = (
        "it was stopped after its time" if ended.code is None else f"its process ended with code {ended.code}"
    )
    missing = f"{how}; last output: {ended.last_line}"
    return {case.case_id: found.get(case.case_id, {"reason": missing}) for case in cases}


def main(
    sweep: Annotated[str, typer.Argument(help="A preset or the path of a TOML file.")] = "ci",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file for the table.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=3, help="Calls of each case.")] = 100,
    profiler: Annotated[
        list[str] | None, typer.Option("--profiler", help="torch.profiler or proton; default: both.")
    ] = None,
) -> None:
    """Time each case of a sweep by CUDA events and by each profiler, and set them side by side."""
    names = profiler or list(PROFILERS)
    for name in names:
        if name not in PROFILERS:
            raise unknown("profiler", name, PROFILERS)
    device = pick_device("cuda")
    asked = load(sweep, device="cuda")
    cases, launch = asked.cases(), asked.protocol.launch
    found = {}
    with device_lock(device.type) as lock:
        for name in names:
            print(f"{name}: {len(cases)} cases", file=sys.stderr, flush=True)
            found[name] = _by(name, cases, samples=samples, launch=launch, lock=lock)
    text = table(found, cases=[case.case_id for case in cases], device=device_name(device), launch=launch)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--child"]:
            _child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        else:
            typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
