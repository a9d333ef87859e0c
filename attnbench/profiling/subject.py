"""The process that profiles one case: times it by the project's clock, and only then lets profilers in.

    python -m attnbench.profiling.subject REQUEST.json FOLDER

REQUEST.json: {"case": {...}, "device": "cuda" or "cpu", "seed": 0, "command": [...]}. profile.json in FOLDER is written
anew after each part, so that a part that takes the process with it loses only itself; trace.json.gz lies beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnbench.case import Cache, Case, Protocol, Status, Workload
from attnbench.measure.ceilings import Ceilings, measure_ceilings
from attnbench.measure.clock import Call, CudaClock, host_times, timestamp
from attnbench.measure.environment import collect, device_name, pick_device
from attnbench.measure.inputs import AnyCalls, prepare
from attnbench.measure.memory import memory_pass
from attnbench.measure.runner import first_sentence, measure
from attnbench.measure.timeline import NO_KERNEL, by_call, flush_name, recorded
from attnbench.profiling import traces
from attnbench.profiling.found import FILE, TRACE, Profile, Timeline, Work, save
from attnbench.profiling.occupancy import multiprocessor_of
from attnbench.profiling.timelines import timeline
from attnbench.providers import Provider, load_target
from attnbench.registry import find, support
from attnbench.semantics import SEMANTICS, Semantics

_CAP_S = 2.0  # of sampling: a profile needs a good median, and no interval for a comparison
_LOAD_S = 0.4  # of calls before those that count: the clock under load is another than at rest
_RECORD_S = 0.2
_CALLS = (10, 300)
_MOST_RECORDS = 30_000
_FLUSH_MS = 0.1  # about what clearing the cache takes
_HOST_CALLS = 30
_TRACED_CALLS = 3
_OPERATOR_S = 1.0  # of calls under the profiler on the CPU
_MOST_OPERATOR_CALLS = 10  # a trace has each of their operators


@dataclass
class Subject:
    """One case on its way through the parts of a profile."""

    case: Case
    device: torch.device
    seed: int
    folder: Path
    profile: Profile
    ceilings: Ceilings | None = None
    _notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Every part in turn; what fails is a note."""
        with self._part("the ceilings"):
            self.ceilings = measure_ceilings(self.device)
        if not self._timed():
            return
        with self._part("the inputs"):
            calls = self._prepare()
            call = calls.timed(self.case.workload)
            with self._part("the host's time"):
                self._host(call)
            if self.device.type == "cuda":
                self._on_device(call)
            else:
                with self._part("the operators"):
                    self._on_host(call)
            del call, calls
        gc.collect()
        with self._part("the memory"):
            self._memory()

    def _timed(self) -> bool:
        """Check the output and take samples as a sweep does; False where the case does not get that far."""
        done = measure(
            self.case,
            protocol=Protocol(seed=self.seed, cap_s=_CAP_S),
            device=self.device,
            ceilings=self.ceilings,
            timed_only=True,
        )
        self._put(
            status=done.status,
            reason=done.reason,
            provider=done.provider,
            first_call_ms=done.first_call_ms,
            timing=done.timing,
            telemetry=done.telemetry,
            config=done.config,
        )
        if done.status is not Status.OK or done.timing is None:
            return False
        assert done.tflops is not None
        assert done.gbps is not None
        semantics = self._semantics
        self._put(
            work=Work(
                flops=semantics.flops(self.case, cost=find(self.case.mechanism).cost),
                moved_bytes=semantics.moved_bytes(self.case),
                tflops=done.tflops,
                gbps=done.gbps,
                copy_gbps=None if self.ceilings is None else self.ceilings.copy_gbps,
                matmul_tflops=None
                if self.ceilings is None
                else self.ceilings.matmul_tflops.get(self.case.dtype),
                bound_share=done.roofline,
            )
        )
        return True

    def _host(self, call: Call) -> None:
        host_times(call, 3, device=self.device)
        count = max(3, min(_HOST_CALLS, int(1e3 / max(self._median_ms, 1e-3))))
        samples = host_times(call, count, device=self.device)
        self._put(host_us=1e3 * statistics.median(samples))

    def _on_device(self, call: Call) -> None:
        clock = CudaClock(device=self.device, cache=Cache.COLD)
        with self._part("the timeline"):
            self._put(timeline=self._timeline(call, clock=clock))
        with self._part("the trace"):
            launched = traces.take(
                call,
                clock=clock,
                device=self.device,
                calls=_TRACED_CALLS,
                path=self.folder / TRACE,
            )
            self._resources(call, launched=launched)
        clock.close()

    def _timeline(self, call: Call, *, clock: CudaClock) -> Timeline:
        """Calls under load, as those that were timed; only the later ones count."""
        flush = flush_name(clock)
        records = len(recorded(lambda: clock.batch(call, 1)))
        each_ms = self._median_ms + _FLUSH_MS
        most = max(2, _MOST_RECORDS // max(1, records))
        count = min(max(_CALLS[0], min(_CALLS[1], math.ceil(_RECORD_S * 1e3 / each_ms))), most)
        load = min(math.ceil(_LOAD_S * 1e3 / each_ms), max(0, most - count))
        events: list[float] = []

        def work() -> None:
            clock.batch(call, load)
            events.extend(clock.batch(call, count))

        found = by_call(recorded(work), flush=flush, calls=load + count)
        return timeline(found[load:], events_ms=events)

    def _resources(self, call: Call, *, launched: list[traces.Launched]) -> None:
        from attnbench.profiling import resources  # Triton's own modules, where there is a GPU only

        binaries: list[resources.Binary] = []
        with self._part("what Triton knows of its kernels"):
            binaries = resources.triton_launches(call)
        where = multiprocessor_of(torch.cuda.get_device_properties(self.device))
        last = launched[len(launched) - self._launches(launched) :]
        self._put(resources=resources.resources(last, binaries, where=where))

    def _launches(self, launched: list[traces.Launched]) -> int:
        """Kernels of one call: as the timeline counted, or an equal part of those traced."""
        line = self.profile.timeline
        if line is None:
            return len(launched) // _TRACED_CALLS
        return min(len(launched), round(sum(k.launches for k in line.kernels if not NO_KERNEL.match(k.name))))

    def _on_host(self, call: Call) -> None:
        count = max(2, min(_MOST_OPERATOR_CALLS, int(_OPERATOR_S * 1e3 / max(self._median_ms, 1e-3))))
        self._put(operators=traces.take_operators(call, calls=count, path=self.folder / TRACE))

    def _memory(self) -> None:
        provider, state = self._provider, None
        if find(self.case.mechanism).cost != "N" or self.case.workload is Workload.DECODE:
            state = 0
        elif provider.state_bytes is not None:
            state = load_target(provider.state_bytes)(self.case, self.device)
        self._put(memory=memory_pass(self.case, prepare=self._prepare, device=self.device, state_bytes=state))

    # --------------------------------------------------------------------------------------------------------

    def _prepare(self) -> AnyCalls:
        return prepare(
            self.case,
            provider=self._provider,
            semantics=self._semantics,
            device=self.device,
            seed=self.seed,
        )

    @property
    def _semantics(self) -> Semantics:
        return SEMANTICS[find(self.case.mechanism).semantics]

    @property
    def _provider(self) -> Provider:
        found = support(self.case, device=self.device.type)
        assert not isinstance(found, str), found  # it has been timed
        return found

    @property
    def _median_ms(self) -> float:
        assert self.profile.timing is not None
        return self.profile.timing.median_ms

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """A part that may fail, whatever it raises: the note says how, and the others go on."""
        try:
            yield
        except Exception as error:
            self._notes.append(f"{name} could not be had: {type(error).__name__}: {first_sentence(error)}")
            self._put(notes=tuple(self._notes))

    def _put(self, **found: Any) -> None:
        self.profile = dataclasses.replace(self.profile, **found)
        save(self.profile, self.folder / FILE)


def main(request: Path, folder: Path, *, finish: Callable[[Subject], None] = Subject.run) -> None:
    """Profile what the request asks for, into the folder."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    device = pick_device(asked["device"])
    case = Case(**asked["case"])
    blank = Profile(
        case=case,
        status=Status.ERROR,
        reason="not measured",
        device=device_name(device),
        device_type=device.type,
        command=tuple(asked["command"]),
        started_at=timestamp(),
        environment=collect(device),
    )
    finish(Subject(case=case, device=device, seed=int(asked["seed"]), folder=folder, profile=blank))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
