"""What `pytest benchmarks/` measures, on which clock, and what it tells pytest-benchmark of the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from attnbench import importing, store
from attnbench.case import Case, Measurement
from attnbench.comparison.sides import between_records
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.measure.ceilings import Ceilings, measure_ceilings
from attnbench.measure.environment import collect, pick_device
from attnbench.measure.runner import measure
from attnbench.sweeping import new_record
from attnbench.sweeps.loader import load
from attnbench.sweeps.sweep import Sweep


class DeviceTime:
    """A timer for pytest-benchmark on which time passes only while a sample is replayed, by that sample.

    pytest-benchmark reads its timer before and after a call. CUDA events cannot be read like that without waiting
    for the device after every call, which would put the host's launch into each sample. So the project's clock
    takes the samples by its own rules, and this timer replays them one to a round.
    """

    __name__ = "device_time"  # as the JSON names the timer

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """Seconds of device time since the beginning."""
        return self._now_s

    def replay(self, samples_ms: Sequence[float]) -> Callable[[], None]:
        """A call that takes as long as the next sample, on this timer."""
        left = iter(samples_ms)

        def play() -> None:
            sample_ms = next(left, None)
            if sample_ms is None:  # one call more than there are rounds: --benchmark-cprofile
                pytest.fail("samples are replayed, so that there is no call to profile here", pytrace=False)
            self._now_s += sample_ms * 1e-3

        return play


@dataclass
class Suite:
    """The sweep of this session, and what is known of the machine and of the cases so far."""

    sweep: Sweep
    device: torch.device
    environment: Mapping[str, Any]
    record: dict[str, Any]
    untimed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cases(self) -> dict[str, Case]:
        """The cases by their names."""
        return {case.case_id: case for case in self.sweep.cases()}

    def measure(self, case_id: str, *, verify_only: bool) -> Measurement:
        """Measure a case in this process; only check its output with `verify_only`."""
        ceilings = self.record["ceilings"]
        return measure(
            self.cases[case_id],
            protocol=self.sweep.protocol,
            device=self.device,
            ceilings=None if ceilings is None else Ceilings(**ceilings),
            verify_only=verify_only,
        )

    def row(self, measurement: Measurement) -> dict[str, Any]:
        """The row of a measurement, as a run folder would hold it."""
        return store.row(measurement, run_id=self.record["run_id"])


SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attnbench")
    group.addoption("--sweep", default="ci", help="preset or TOML file to measure (default: ci)")
    group.addoption("--device", default="auto", help="auto, cuda or cpu")
    group.addoption(
        "--allow-different-machine",
        action="store_true",
        help="compare with a saved run of another machine, driver, library or protocol all the same",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        device = pick_device(config.getoption("device"))
        sweep = load(config.getoption("sweep"), device="cuda" if device.type == "cuda" else "cpu")
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    record = new_record(sweep, command=["pytest", *sys.argv[1:]])
    environment = collect(device)
    config.stash[SUITE] = Suite(sweep=sweep, device=device, environment=environment, record=record)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_id" in metafunc.fixturenames:
        metafunc.parametrize("case_id", list(metafunc.config.stash[SUITE].cases))


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Iterator[Suite]:
    """The session's sweep, alone on the device while it times, its ceilings measured."""
    found = pytestconfig.stash[SUITE]
    timing = not pytestconfig._benchmarksession.disabled  # type: ignore[attr-defined]
    try:
        with device_lock(found.sweep.device) if timing else nullcontext():
            if timing:
                found.record["ceilings"] = measure_ceilings(found.device).as_dict()
            yield found
    except UserError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture
def device_time(request: pytest.FixtureRequest) -> DeviceTime:
    """The timer of one benchmark. Asked for before `benchmark`, which reads its node's markers once."""
    timer = DeviceTime()
    request.node.add_marker(pytest.mark.benchmark(timer=timer))
    return timer


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """The environment record, less git: the commit is not the machine, and stands in its own place."""
    return {name: value for name, value in config.stash[SUITE].environment.items() if name != "git"}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    found = config.stash[SUITE]
    output_json |= importing.document_part(found.record, git=found.environment["git"], untimed=found.untimed)


def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Refuse to compare with a run of another machine: its ratio would say nothing of the code."""
    if config.getoption("allow_different_machine"):
        return
    found = config.stash[SUITE]
    try:
        saved = importing.record_of(compared_benchmark, label="the saved run")
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    differ = between_records(saved, {**found.record, "environment": found.environment})
    if differ:
        facts = "; ".join(
            f"{each.name}: {' and '.join(each.base)} then, {' and '.join(each.new)} now" for each in differ
        )
        raise pytest.UsageError(
            f"the saved run is not of this machine as it is now ({facts}): measure it again here, or add "
            "--allow-different-machine"
        )
