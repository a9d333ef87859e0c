"""`attnbench verify`: every mechanism against its oracle, with gradients and as a decode, over dtypes and shapes."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.case import Case, Protocol, Status, Workload
from attnbench.executors.lock import device_lock
from attnbench.executors.supervised import Row, SupervisedWorker
from attnbench.registry import find
from attnbench.semantics import TOLERANCES

# Odd, even, and both sides of the tiles; 1 is the shortest sequence there is.
SEQ_LENS = {
    "cuda": (1, 2, 17, 63, 64, 65, 127, 255, 1000, 1537, 2048, 4096),
    "cpu": (1, 2, 17, 63, 64, 65, 127, 200),
}
HEAD_DIMS = {"cuda": ((64, 64), (128, 128), (64, 128)), "cpu": ((16, 16), (32, 48))}  # (head_dim, value_dim)
DTYPES = {"cuda": ("bf16", "fp16", "fp32"), "cpu": ("fp32",)}
FEW_SEQ_LENS = (65, 1000)  # where every shape is compiled first
WINDOW, OTHER_WINDOWS = 37, (1, 600)  # within a block of a mask, and over several
BATCH, HEADS = 2, 3
_MOST_JOBS = 8

_ERRORS = ("rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv")


def cases(
    *,
    mechanisms: Iterable[str],
    dtypes: Iterable[str],
    seq_lens: Iterable[int],
    dims: Sequence[tuple[int, int]],
    device: str,
) -> list[Case]:
    """What is checked on `device`: each mechanism at each dtype, width and length, with gradients and as a decode.

    At one of the lengths also what else its provider takes: grouped heads, no mask, other windows.
    """
    return [
        Case(
            mechanism=mechanism, workload=workload, batch=BATCH, heads=HEADS, seq_len=seq_len,
            head_dim=head_dim, value_dim=value_dim, dtype=dtype, **axes,
        )
        for mechanism in mechanisms
        for scope in [_scope(mechanism, device=device)]
        for dtype in dtypes
        for head_dim, value_dim in dims
        for seq_len, axes in _places(scope, seq_lens=sorted(seq_lens))
        for workload in (scope.workloads if axes == scope.usual else (Workload.FWD_BWD,))
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """How much of a mechanism is checked."""

    workloads: tuple[Workload, ...]
    usual: Mapping[str, Any]  # axes of a case beside its shape
    unusual: tuple[Mapping[str, Any], ...]
    few: bool  # as each shape takes seconds


def _scope(mechanism: str, *, device: str) -> _Scope:
    known = find(mechanism)
    provider = known.provider_for(device)
    usual = {"window": WINDOW} if known.windowed else {}
    if isinstance(provider, str):
        return _Scope(workloads=(Workload.FWD_BWD,), usual=usual, unusual=(), few=False)
    decode = () if provider.decode is None else (Workload.DECODE,)
    grouped = ({**usual, "kv_heads": 1},) if provider.grouped_heads else ()
    full = ({**usual, "causal": False},) if provider.non_causal else ()
    windows = tuple({"window": window} for window in OTHER_WINDOWS) if known.windowed else ()
    return _Scope(
        workloads=(Workload.FWD_BWD, *decode),
        usual=usual,
        unusual=(*grouped, *full, *windows),
        few=provider.compiles_each_shape,
    )


def _places(scope: _Scope, *, seq_lens: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lengths, each with the other axes of its cases."""
    lengths = [n for n in seq_lens if n in FEW_SEQ_LENS] or seq_lens if scope.few else seq_lens
    middle = max((n for n in lengths if n <= max(FEW_SEQ_LENS)), default=lengths[0])
    for length in lengths:
        yield length, scope.usual
        if length == middle:
            yield from ((length, axes) for axes in scope.unusual)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mechanism in one dtype: its worst errors over all shapes, and what went wrong."""

    mechanism: str
    dtype: str
    provider: str | None
    tolerance: float
    shapes: int  # checked; one counts again as a decode, and with each other axis
    unsupported: int
    worst: dict[str, float | None]  # by output: "o", "dq", "dk", "dv"
    faults: tuple[
        str, ...
    ]  # "[decode ]<shape>: <status>: <reason>", for every case neither ok nor unsupported
    why_unsupported: str | None  # the first reason, when nothing could be checked

    @property
    def status(self) -> Status:
        if self.faults:
            return Status.INCORRECT
        return Status.OK if self.shapes else Status.UNSUPPORTED


def jobs_on(device: str) -> int:
    """How many workers check at once where nobody says: kernels compile on the host, one at a time in each."""
    return 1 if device == "cpu" else max(1, min(_MOST_JOBS, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Cases that one worker checks, as they share what is compiled and tuned: their places among all."""

    name: str
    places: tuple[int, ...]


def _groups(wanted: Sequence[Case], *, device: str) -> list[_Group]:
    """Those first that take longest, so that no worker begins with one of them when the others have ended."""
    together: dict[tuple[str, str, int], list[int]] = {}
    for place, case in enumerate(wanted):
        together.setdefault((case.mechanism, case.dtype, case.head_dim), []).append(place)
    first_calls = {mechanism: _first_calls(mechanism, device=device) for mechanism, _, _ in together}
    longest = sorted(together.items(), key=lambda each: (first_calls[each[0][0]], len(each[1])), reverse=True)
    return [
        _Group(name=f"{mechanism} ({dtype}, head dim {head_dim})", places=tuple(places))
        for (mechanism, dtype, head_dim), places in longest
    ]


def _first_calls(mechanism: str, *, device: str) -> int:
    """How long the first calls of a mechanism take, as a rank: those that tune, that compile, others, those that end
    as unsupported."""
    provider = find(mechanism).provider_for(device)
    if isinstance(provider, str):
        return 0
    return 3 if provider.tunes_each_width else 2 if provider.compiles_each_shape else 1


def verify(
    wanted: Sequence[Case],
    *,
    device: str,
    seed: int,
    jobs: int,
    finished: Callable[[Row], None],
    waiting: Callable[[Sequence[str]], None] = lambda names: None,
) -> list[Finding]:
    """Check every case in one of `jobs` worker processes, which share the device.

    finished: hears of each row, in the order in which they come. waiting: of what is still under way, each time that a
    worker finds nothing more to begin.

    Raises UserError when another attnbench times on the device, or no worker starts.
    """
    left = deque(_groups(wanted, device=device))
    under_way: dict[int, str] = {}
    rows: dict[int, Row] = {}
    guard, stopped = threading.Lock(), threading.Event()

    def following(number: int) -> _Group | None:
        with guard:
            if stopped.is_set():
                return None
            under_way.pop(number, None)
            if left:
                under_way[number] = left[0].name
                return left.popleft()
            if under_way:
                waiting(tuple(under_way.values()))
            return None

    def check(number: int, worker: SupervisedWorker) -> None:
        with worker.running():
            while (group := following(number)) is not None:
                for place in group.places:
                    row = worker.row(wanted[place], verify_only=True)
                    if stopped.is_set():  # nobody waits for it, and its worker may have been ended
                        return
                    with guard:
                        rows[place] = row
                        finished(row)

    with (
        tempfile.TemporaryDirectory(prefix="attnbench-verify-") as folder,
        device_lock(device) as lock,
        ThreadPoolExecutor(max_workers=jobs) as threads,
    ):
        workers = [
            SupervisedWorker(
                device=device,
                protocol=Protocol(seed=seed),
                log=Path(folder) / f"worker-{number}.log",
                run_id="verify",
                lock=lock,
            )
            for number in range(min(jobs, len(left)))
        ]
        try:
            for done in as_completed([threads.submit(check, *each) for each in enumerate(workers)]):
                done.result()
        except BaseException:  # Ctrl-C too: threads cannot be ended, but what they wait for can
            stopped.set()
            for worker in workers:
                worker.stop()
            raise
    return findings(rows[place] for place in range(len(wanted)))


def findings(rows: Iterable[Row]) -> list[Finding]:
    """Rows condensed by mechanism and dtype, in order of first appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["mechanism"], row["dtype"]), []).append(row)
    return [_finding(mechanism, dtype, group) for (mechanism, dtype), group in groups.items()]


def _finding(mechanism: str, dtype: str, rows: Sequence[Row]) -> Finding:
    checked = [r for r in rows if r["status"] in (Status.OK, Status.INCORRECT)]
    unsupported = [r for r in rows if r["status"] == Status.UNSUPPORTED]
    bad = [r for r in rows if r["status"] not in (Status.OK, Status.UNSUPPORTED)]
    providers = [r["provider"] for r in rows if r["provider"]]
    return Finding(
        mechanism=mechanism,
        dtype=dtype,
        provider=providers[0] if providers else None,
        tolerance=TOLERANCES[dtype],
        shapes=len(checked),
        unsupported=len(unsupported),
        worst={
            name.removeprefix("rel_err_"): max(
                (r[name] for r in checked if r[name] is not None), default=None
            )
            for name in _ERRORS
        },
        faults=tuple(f"{_shape(r)}: {r['status']}: {r['reason']}" for r in bad),
        why_unsupported=unsupported[0]["reason"] if unsupported and not checked else None,
    )


def _shape(row: Row) -> str:
    shape = str(row["case_id"]).split(".")[2]
    return f"decode {shape}" if row["workload"] == Workload.DECODE else shape
