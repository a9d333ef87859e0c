"""The parts of a profile from records of known truth: timelines, traces, resources, counters, profilers' trees."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench.case import Launch
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.measure.timeline import Span, by_call
from attnbench.profiling import agreement, counters, traces
from attnbench.profiling.comparing import pair
from attnbench.profiling.found import as_dict, load, save
from attnbench.profiling.occupancy import Multiprocessor, occupancy_of, programs_of
from attnbench.profiling.process import run
from attnbench.profiling.resources import Binary, resources
from attnbench.profiling.timelines import gaps_of, timeline
from tests.profiling.samples import CASE, NCU_RAW, profile
from tests.profiling.samples import counters as counted

H200 = Multiprocessor(count=132, threads=2048, registers=65_536, shared_bytes=233_472, programs=32)


def _span(name: str, start: float, end: float) -> Span:
    return Span(name=name, start_us=start, end_us=end)


# ---------------------------------------------------------------- timelines


def test_kernels_gaps_and_sums_of_calls() -> None:
    """Two calls: a, a gap of 3, b; then the same with b beside a, which is no gap and less than the sum."""
    calls = [
        [_span("a", 0, 10), _span("b", 13, 18), _span("b", 18, 20)],
        [_span("a", 100, 110), _span("b", 105, 109), _span("b", 112, 115)],
    ]
    found = timeline(calls, events_ms=[0.021, 0.018])
    assert [(k.name, k.launches, k.time_us) for k in found.kernels] == [("a", 1, 10), ("b", 2, 7)]
    assert [k.share for k in found.kernels] == pytest.approx([10 / 17, 7 / 17])
    assert (found.launches, found.kernels_us, found.calls) == (3, 17, 2)
    assert found.span_us == 17.5
    assert (found.gap_us, found.gaps, found.longest_gap_us) == (2.5, 1, 2.5)
    assert found.busy_us == 15  # of 17 and 13
    assert found.events_us == pytest.approx(19.5)


def test_work_side_by_side_has_no_gap() -> None:
    assert gaps_of([_span("long", 0, 10), _span("short", 1, 2), _span("next", 12, 13)]) == [2]


def test_a_call_may_run_the_kernel_that_clears_the_cache() -> None:
    """Calls that launch the flush themselves are told apart by their number, not by its name."""
    one = [("fill", 0, 9), ("a", 10, 20), ("fill", 21, 22)]
    spans = [_span(name, start + 100 * i, end + 100 * i) for i in range(4) for name, start, end in one]
    assert [[s.name for s in call] for call in by_call(spans, flush="fill", calls=4)] == [["a", "fill"]] * 4


# ---------------------------------------------------------------- traces and resources


def _kernel(name: str, start: float, *, grid: int = 64, registers: int = 168) -> dict[str, Any]:
    told = {
        "grid": [grid, 1, 1],
        "block": [384, 1, 1],
        "registers per thread": registers,
        "shared memory": 225_280,
    }
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": 10, "args": told}


def test_launches_come_out_of_a_trace_in_their_order() -> None:
    events = [
        _kernel("b", 30),
        {"ph": "X", "cat": "cpu_op", "name": "aten::zero_", "ts": 1, "dur": 1},
        _kernel("a", 5),
    ]
    found = traces.launches(events)
    assert [each.name for each in found] == ["a", "b"]
    assert (found[0].grid, found[0].block, found[0].registers) == ((64, 1, 1), (384, 1, 1), 168)


def test_triton_tells_of_its_own_launches_only() -> None:
    """A kernel with two launches of different binaries, and one that Triton does not know."""
    launched = traces.launches([_kernel("scan", 1), _kernel("copy", 2, grid=264), _kernel("scan", 3)])
    binaries = [
        Binary(name="scan", spilled_bytes=b, num_warps=12, num_stages=s) for b, s in ((0, 4), (108, 3))
    ]
    found = resources(launched, binaries, where=H200)
    assert [(r.name, r.launches, r.spilled_bytes, r.num_stages) for r in found] == [
        ("scan", 1, 0, 4), ("copy", 1, None, None), ("scan", 1, 108, 3)
    ]  # fmt: skip
    assert (found[0].programs, found[0].limited_by) == (1, "registers and shared memory")
    assert found[1].waves == 2
    alike = resources(launched[::2], [], where=H200)
    assert [(r.launches, r.spilled_bytes) for r in alike] == [(2, None)]


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "programs", "limited_by", "occupancy"),
    [
        (128, 168, 0, 3, "registers", 12 / 64),  # as DESIGN says of three programs with at most 168
        (128, 252, 0, 2, "registers", 8 / 64),
        (256, 32, 0, 8, "threads and registers", 1.0),
        (1024, 16, 0, 2, "threads", 1.0),
        (128, 32, 100 * 1024, 2, "shared memory", 8 / 64),
        (128, 32, 227 * 1024, 1, "shared memory", 4 / 64),  # all that a block may have
        (32, 16, 0, 32, "programs", 0.5),
    ],
)  # fmt: skip
def test_occupancy_is_what_the_vendor_says(
    threads: int, registers: int, shared: int, programs: int, limited_by: str, occupancy: float
) -> None:
    found = programs_of(H200, threads=threads, registers=registers, shared_bytes=shared)
    assert found == (programs, limited_by)
    assert occupancy_of(H200, programs=programs, threads=threads) == occupancy


def test_operators_are_told_without_what_labels_the_calls() -> None:
    averages = [
        {"name": "aten::mul", "calls": 4, "own_us": 20.0, "total_us": 20.0, "bytes": 80},
        {"name": "attnbench call", "calls": 2, "own_us": 10.0, "total_us": 90.0, "bytes": 0},
        {"name": "aten::bmm", "calls": 2, "own_us": 60.0, "total_us": 60.0, "bytes": 40},
    ]
    found = traces.operators(averages, calls=2)
    assert [(o.name, o.calls, o.time_us, o.share, o.allocated_bytes) for o in found.operators] == [
        ("aten::bmm", 1, 30, 0.75, 20), ("aten::mul", 2, 10, 0.25, 40)
    ]  # fmt: skip
    assert (found.operators_us, found.call_us) == (40, 45)


# ---------------------------------------------------------------- counters


def test_counters_are_read_from_what_nsight_compute_writes() -> None:
    scan, copy = counters.parse(NCU_RAW)
    assert scan.name == "lightning2_scan_hopper_kernel"
    assert (scan.time_us, scan.read_bytes, scan.written_bytes) == (160, 402_653_184, 134_217_728)
    assert (scan.dram, scan.l2, scan.tensor, scan.occupancy) == pytest.approx((0.825, 0.88, 0.562, 0.187))
    assert scan.stalls == {"long_scoreboard": 3.5, "gmma": 1.25, "barrier": 0.5}  # no warp waits that issues
    assert (copy.read_bytes, copy.written_bytes, copy.dram, copy.l2_hits) == (1000, None, None, None)
    assert copy.time_us == 2


@pytest.mark.parametrize("unit", ["ns", "nsecond", "us", "usecond", "second"])
def test_times_are_told_in_any_unit(unit: str) -> None:
    factor = {"n": 1.0, "u": 1e-3, "s": 1e-9}[unit[0]]
    text = NCU_RAW.replace('"byte","byte","%","ns"', f'"byte","byte","%","{unit}"')
    text = text.replace('"160,000"', f'"{160_000 * factor}"')
    assert counters.parse(text)[0].time_us == pytest.approx(160)


def test_other_names_of_a_figure_count_where_the_first_is_missing() -> None:
    text = NCU_RAW.replace("dram__bytes_read.sum", "dram__bytes_op_read.sum")
    text = text.replace('"dram__throughput', '"gpu__dram_throughput')
    assert counters.parse(text)[0].read_bytes == 402_653_184
    assert counters.parse(text)[0].dram == pytest.approx(0.825)


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        (
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission",
            1,
            "NVreg_RestrictProfilingToAdminUsers=0",
        ),
        ("==WARNING== No kernels were profiled.", 0, "saw no kernel"),
        ("", None, "did not end within 7 s"),
        (
            "==PROF== Connected\n==ERROR== Failed to find metric no__such.sum",
            1,
            "Failed to find metric no__such.sum",
        ),
        ("Traceback\nValueError: nothing here", 1, "ValueError: nothing here"),
    ],
    ids=["permission", "nothing", "late", "error", "python"],
)
def test_why_there_are_no_counters(output: str, code: int | None, said: str) -> None:
    found = counters.why_none(output, code=code, limit_s=7)
    assert said in found
    assert "\n" not in found


FAKE = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --log-file) log="$2";; --metrics) metrics=yes;; esac
  shift
done
echo asked >> "$(dirname "$0")/asked"
{body}
"""
KNOWS_NO_METRIC = """if [ -n "$metrics" ]; then echo '==ERROR== Failed to find metric x' > "$log"; exit 1; fi
cat "$(dirname "$0")/raw.csv" > "$log"
"""


@pytest.mark.parametrize(
    ("body", "asked", "note"),
    [
        ('cat "$(dirname "$0")/raw.csv" > "$log"', 1, None),
        (KNOWS_NO_METRIC, 2, None),
        ("echo '==ERROR== ERR_NVGPUCTRPERM' > \"$log\"; exit 1", 1, "ERR_NVGPUCTRPERM"),
        ("sleep 30", 1, "did not end within 1 s"),
    ],
    ids=["all", "the sections alone", "no permission", "hangs"],
)
def test_nsight_compute_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, asked: int, note: str | None
) -> None:
    """A stand-in for ncu, which writes what it is told to into the file that the command names."""
    (tmp_path / "raw.csv").write_text(NCU_RAW)
    fake = tmp_path / "ncu"
    fake.write_text(FAKE.replace("{body}", body))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found, why = counters.count(tmp_path / "request.json", folder=tmp_path, limit_s=1)
    assert (tmp_path / "asked").read_text().count("asked") == asked
    assert len(found) == (0 if note else 2)
    assert (why is None) if note is None else (why is not None and note in why)


def test_without_nsight_compute_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    found, why = counters.count(tmp_path / "request.json", folder=tmp_path, limit_s=1)
    assert found == ()
    assert why == "Nsight Compute (ncu) is not installed here, so there are no hardware counters."


def test_a_process_beyond_its_limit_is_gone_with_what_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    ended = run(
        ["sh", "-c", f"echo begun; (sleep 1; touch {mark}) & wait"], log=tmp_path / "log", limit_s=0.3
    )
    assert (ended.code, ended.last_line) == (None, "begun")
    assert run(["sh", "-c", "sleep 1.2"], log=tmp_path / "wait", limit_s=9).code == 0
    assert not mark.exists()


# ---------------------------------------------------------------- files, sides, profilers


def test_a_profile_reads_back_as_it_was(tmp_path: Path) -> None:
    taken = profile(time_us=160, counters=(counted(time_us=160, dram=0.9, barrier=1.0),), notes=("a note",))
    save(taken, tmp_path / "profile.json")
    assert load(tmp_path) == taken
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no profile there"), ("{", "cannot be read"), ('{"version": 99}', "version 1, got 99"), ("[]", "got None"),
     ('{"version": 1, "case": 3}', "damaged")],
    ids=["missing", "cut", "newer", "another", "damaged"],
)  # fmt: skip
def test_what_is_no_profile_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "profile.json").write_text(text)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_sides_are_paired_by_case_or_else_by_shape() -> None:
    base, new = profile(time_us=200), profile(time_us=100, config='{"block_c": 64}')
    (found,) = pair([base], [new], names=("before", "after"))
    assert found.names == ("lightning2 (before)", "lightning2 (after)")
    assert found.ratio == 0.5
    assert found.sentences()[0] == "lightning2 (after) takes 0.50× the time of lightning2 (before)."
    code = {"git": {"commit": "0123456789abcdef", "dirty": False}}
    older = {"git": {"commit": "fedcba9876543210", "dirty": True}}
    (trees,) = pair(
        [profile(time_us=1, environment=older)], [profile(time_us=1, environment=code)], names=("a", "b")
    )
    assert "They are of different commits: fedcba9876, changed since and 0123456789." in trees.sentences()
    other = as_dict(new)
    other["case"]["mechanism"] = "flash2"
    kinds = pair([base], [profile(time_us=100, case=type(CASE)(**other["case"]))], names=("a", "b"))
    assert kinds[0].names == ("lightning2 fwd", "flash2 fwd")
    other["case"]["seq_len"] = 1024
    with pytest.raises(UserError, match="nothing to lay side by side"):
        pair([base], [profile(time_us=100, case=type(CASE)(**other["case"]))], names=("a", "b"))


def test_proton_tells_what_has_a_time_and_nothing_below() -> None:
    def node(name: str, ns: int | None, *children: Any) -> dict[str, Any]:
        metrics = {} if ns is None else {"time (ns)": ns, "count": 2}
        return {"frame": {"name": name, "type": "function"}, "metrics": metrics, "children": list(children)}

    tree = [
        node("ROOT", 9000, node("scope", None, node("scan", 4000)), node("fill", 3000), node("scan", 2000))
    ]
    assert agreement.hatchet_totals([*tree, {"CUDA": {"0": {"arch": "90"}}}]) == {"scan": 6.0, "fill": 3.0}
    replayed = node("<captured_at>", None, node("cuGraphLaunch", 0, node("scan", 5000), node("fill", 1000)))
    whole = node("cuGraphLaunch", 7000, node("metadata", None))
    assert agreement.hatchet_totals([node("ROOT", None, replayed, whole)]) == {
        "scan": 5.0,
        "fill": 1.0,
        "cuGraphLaunch": 7.0,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_profilers_are_compared_on_a_gpu_only() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        agreement.main()


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("launch", Launch)
@pytest.mark.parametrize("name", agreement.PROFILERS)
def test_a_profiler_tells_the_time_of_a_long_kernel(name: str, launch: Launch) -> None:
    """In a process of its own, as two profilers in one would quarrel over CUPTI.

    The kernel takes several hundred microseconds: the four that events add to each call are under 1 % of it.
    """
    long = dataclasses.replace(CASE, seq_len=4 * CASE.seq_len)
    with device_lock("cuda") as lock:
        (found,) = agreement._by(name, [long], samples=30, launch=launch, lock=lock).values()
    assert "reason" not in found
    assert found["kernels_us"] == pytest.approx(found["events_us"], rel=0.03)


def test_the_table_of_profilers_tells_who_agrees_and_who_failed() -> None:
    rows = {"alone_us": 100.0, "events_us": 101.0}
    found: dict[str, dict[str, agreement.Row]] = {
        "torch.profiler": {"x": {**rows, "kernels_us": 100.5}, "y": {**rows, "kernels_us": 90.0}},
        "proton": {"x": {**rows, "kernels_us": 100.0}, "y": {"reason": "RuntimeError: no CUPTI"}},
    }
    text = agreement.table(found, cases=["x", "y"], device="a GPU", launch=Launch.GRAPH)
    assert text.startswith("# Profilers against CUDA events on a GPU, launch graph\n")
    assert "- torch.profiler: 1 of 2 cases over 50 µs are within 2% of the events" in text
    assert "- proton: 1 of 1 cases" in text
    assert "- proton, y: RuntimeError: no CUPTI" in text
    assert "| x | 100.00 | 101.00 | 100.50 | 0.9950 | 101.00 | 100.00 | 0.9901 |" in text


def test_a_profile_to_hand_on_tells_no_folders(tmp_path: Path) -> None:
    taken = profile(
        time_us=100, environment={"variables": {"TRITON_CACHE_DIR": "/home/me/cache", "CUDA_X": "1"}}
    )
    save(taken, tmp_path / "profile.json")
    kept = load(tmp_path).environment
    assert kept is not None
    assert kept["variables"] == {"TRITON_CACHE_DIR": "…/cache", "CUDA_X": "1"}
