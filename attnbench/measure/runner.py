"""One case from inputs to Measurement: build, verify, warm up, time, memory pass, trace pass."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnbench.case import Cache, Case, Launch, Measurement, Protocol, Status, Timing, Workload
from attnbench.measure.accuracy import Verdict, expect_step, judge, judge_step, poison_outputs
from attnbench.measure.ceilings import Ceilings
from attnbench.measure.clock import Call, Clock, Phases, open_clock, timestamp
from attnbench.measure.environment import device_name, place
from attnbench.measure.inputs import AnyCalls, DecodeCalls, Inputs, prepare, refill
from attnbench.measure.memory import memory_pass
from attnbench.measure.sampling import CaseTimeoutError, collect, warm_up
from attnbench.measure.telemetry import Recorder, nvml_handle
from attnbench.measure.trace import missing_kernel, trace
from attnbench.registry import Mechanism, Provider, find, load_target, support
from attnbench.semantics import SEMANTICS, Semantics

# Of what raises no OutOfMemoryError: the host's allocator, and CUDA where it is not torch's allocator that asks.
_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def measure(
    case: Case,
    *,
    protocol: Protocol,
    device: torch.device,
    ceilings: Ceilings | None,
    verify_only: bool = False,
    timed_only: bool = False,
    proof_only: bool = False,
) -> Measurement:
    """Measure one case; whatever goes wrong becomes a status with a reason.

    A case whose output is wrong is `incorrect` and is not timed. With `verify_only` nothing is timed: an `ok`
    then says that the output is right. With `timed_only` the passes for memory and kernels are left out, with
    `proof_only` the timing is.
    """
    mechanism = find(case.mechanism)
    blank = Measurement(
        case=case,
        status=Status.ERROR,
        reason="not measured",
        semantics=mechanism.semantics,
        device=device_name(device),
        **place(device),
        started_at=timestamp(),
    )
    provider = support(case, device=device.type)
    if isinstance(provider, str):
        return replace(blank, status=Status.UNSUPPORTED, reason=provider)
    blank = replace(blank, provider=provider.label)
    phases = Phases()
    try:
        bench = _Bench(
            blank=blank,
            mechanism=mechanism,
            provider=provider,
            protocol=protocol,
            device=device,
            phases=phases,
            timed_only=timed_only,
            proof_only=proof_only,
        )
        done = bench.verified() if verify_only else bench.measured(ceilings=ceilings)
    except Exception as error:  # whatever it is: a row with a reason, and the sweep goes on
        status, reason = failure(error)
        done = replace(blank, status=status, reason=reason)
    if done.status is not Status.OK:
        gc.collect()  # an exception's frames may hold tensors in a cycle
    return replace(done, phases_s=phases.seconds)


def first_sentence(error: BaseException) -> str:
    """An error's text on one line, cut where it starts to ramble."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def failure(error: Exception) -> tuple[Status, str]:
    """How a measurement ended that raised, and why.

    An import that fails or a form that a library refuses is `unsupported`; what is not known is an `error`.
    """
    if isinstance(error, CaseTimeoutError):
        return Status.TIMEOUT, str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return Status.OOM, first_sentence(error)
    reason = f"{type(error).__name__}: {first_sentence(error)}"
    if any(words in str(error) for words in _OUT_OF_MEMORY):
        return Status.OOM, reason
    refused = isinstance(error, (ImportError, NotImplementedError)) or "No available kernel" in str(error)
    return Status.UNSUPPORTED if refused else Status.ERROR, reason


def _versions(inputs: Inputs) -> dict[str, int]:
    """How often torch has written into each tensor; what a kernel of one's own writes, it does not know."""
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "do": inputs.do}
    return {name: tensor._version for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A case with everything that measuring it needs."""

    blank: Measurement
    mechanism: Mechanism
    provider: Provider
    protocol: Protocol
    device: torch.device
    phases: Phases
    timed_only: bool = False
    proof_only: bool = False

    @property
    def case(self) -> Case:
        return self.blank.case

    @property
    def semantics(self) -> Semantics:
        return SEMANTICS[self.mechanism.semantics]

    def prepare(self) -> AnyCalls:
        return prepare(
            self.case,
            provider=self.provider,
            semantics=self.semantics,
            device=self.device,
            seed=self.protocol.seed,
        )

    def verified(self) -> Measurement:
        """Run once and judge: status `ok`, or `incorrect`, with the errors."""
        with self.phases("build"):
            calls = self.prepare()
        checked, _ = self._first_calls(calls, clock=open_clock(device=self.device, cache=Cache.HOT))
        return checked

    def _first_calls(self, calls: AnyCalls, *, clock: Clock) -> tuple[Measurement, float]:
        """The first call, timed by itself, and the verdicts on it and on one with other values in the same memory.

        Beside them the milliseconds of the last of these calls.
        """
        first_call_ms, verdict = self._checked(calls, clock=clock)
        fault, last_call_ms = verdict.fault, first_call_ms
        if fault is None:
            with self.phases("build"):
                refill(calls.inputs, case=self.case, semantics=self.semantics, seed=self.protocol.seed + 1)
            last_call_ms, again = self._checked(calls, clock=clock)
            if again.fault is not None:
                fault = f"right once, but a second call with other values is not: {again.fault}"
        checked = replace(
            self.blank,
            status=Status.OK if fault is None else Status.INCORRECT,
            reason=fault,
            first_call_ms=first_call_ms,
            accuracy=verdict.accuracy,
        )
        return checked, last_call_ms

    def _checked(self, calls: AnyCalls, *, clock: Clock) -> tuple[float, Verdict]:
        """One call from the start, in milliseconds, and the verdict on what it put out."""
        case, device, semantics = self.case, self.device, self.semantics
        with self.phases("verify"):
            if isinstance(calls, DecodeCalls):  # before the step, which changes its own inputs
                expected = expect_step(case, calls=calls, semantics=semantics, device=device)
        with self.phases("build"):
            poison_outputs(case, calls=calls, device=device)
        got: dict[str, Tensor] = {}
        before = _versions(calls.inputs)
        with self.phases("first-call"):
            call_ms = clock.once(lambda: got.update(calls.outputs()))
        with self.phases("verify"):
            if isinstance(calls, DecodeCalls):
                verdict = judge_step(case, got=got, calls=calls, expected=expected)
            else:
                verdict = judge(case, got=got, calls=calls, semantics=semantics, device=device)
        written = [name for name, count in _versions(calls.inputs).items() if count != before[name]]
        if verdict.fault is not None and written:
            left = f"the call wrote into {' and '.join(written)}, and is judged by what it left there"
            verdict = replace(verdict, fault=f"{verdict.fault}; {left}")
        return call_ms, verdict

    def measured(self, *, ceilings: Ceilings | None) -> Measurement:
        """The whole way: build, first call, verify, warm up, sample, trace, memory."""
        with self.phases("build"):
            calls = self.prepare()
        clock = open_clock(device=self.device, cache=self.protocol.cache)
        checked, checked_ms = self._first_calls(calls, clock=clock)
        if checked.status is not Status.OK:
            return checked
        make = partial(calls.timed, self.case.workload)
        call = launched(make, launch=self.protocol.launch)
        del make
        done = checked
        if not self.proof_only:
            done = self._timed(checked, call=call, checked_ms=checked_ms, clock=clock, ceilings=ceilings)
        if self.timed_only:
            clock.close()
            return done
        with self.phases("trace"):
            seen = trace(call, clock=clock, device=self.device)
        clock.close()
        del call, calls  # before the memory pass, which has inputs of its own
        pattern = self.provider.kernels if self.device.type == "cuda" else None
        stray = missing_kernel(seen.kernels, pattern=pattern)
        if stray is not None:
            return replace(checked, status=Status.INCORRECT, reason=stray, kernels=seen.kernels)
        with self.phases("memory"):
            memory = memory_pass(
                self.case, prepare=self.prepare, device=self.device, state_bytes=self._state_bytes()
            )
        return replace(done, memory=memory, kernels=seen.kernels, busy_ms=seen.busy_ms)

    def _timed(
        self,
        checked: Measurement,
        *,
        call: Call,
        checked_ms: float,
        clock: Clock,
        ceilings: Ceilings | None,
    ) -> Measurement:
        """Warm up and sample, with what the device says of itself meanwhile."""
        recorder = Recorder(handle=nvml_handle(self.device))
        with self.phases("warm-up"):
            estimate = warm_up(call, clock=clock, protocol=self.protocol, checked_ms=checked_ms)
        with self.phases("sample"):
            timing = collect(
                call, clock=clock, protocol=self.protocol, estimate_ms=estimate, after_batch=recorder.read
            )
        return replace(
            checked,
            timing=timing,
            **_rates(self.case, timing=timing, mechanism=self.mechanism, ceilings=ceilings),
            telemetry=recorder.condense(median_ms=timing.median_ms),
            config=self._config(),
        )

    def _config(self) -> str | None:
        config = self._asked(self.provider.describe)
        return None if config is None else json.dumps(config, sort_keys=True)

    def _state_bytes(self) -> int | None:
        """Where keys and values are kept there is no state, a decode's is an input; else only the provider knows."""
        if self.mechanism.cost != "N" or self.case.workload is Workload.DECODE:
            return 0
        states: int | None = self._asked(self.provider.state_bytes)
        return states

    def _asked(self, target: str | None) -> Any | None:
        return None if target is None else load_target(target)(self.case, self.device)


def launched(make: Callable[[], Call], *, launch: Launch) -> Call:
    """The call as it is timed: as it stands, or captured once and replayed as a CUDA graph."""
    if launch is Launch.EAGER:
        return make()
    # Autograd runs a backward on the stream of its forward. It is made on the one that captures, which cannot be the
    # default one, and capture wants a warm call there first.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call = make()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with _uncollected(), torch.cuda.graph(graph, stream=side):
        call()
    return partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, captured: Call) -> None:
    """captured: reads and writes memory that has to live as long as the graph, the saved tensors of a backward too."""
    graph.replay()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage goes before, and none is collected within: what it frees on the device may not be freed in a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _rates(case: Case, *, timing: Timing, mechanism: Mechanism, ceilings: Ceilings | None) -> dict[str, Any]:
    semantics = SEMANTICS[mechanism.semantics]
    flops, moved = semantics.flops(case, cost=mechanism.cost), semantics.moved_bytes(case)
    seconds = timing.median_ms * 1e-3
    bound = None if ceilings is None else ceilings.bound_ms(case, flops=flops, moved_bytes=moved)
    return {
        "tflops": flops / seconds / 1e12,
        "gbps": moved / seconds / 1e9,
        "roofline": None if bound is None else bound / timing.median_ms,
    }
