"""Every case of a sweep as a benchmark: `pytest benchmarks/`, or `pytest benchmarks/ --sweep kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from attnbench import importing
from attnbench.case import Measurement, Status

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.conftest import DeviceTime, Suite


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # by a case that yields no time
def test_case(case_id: str, suite: Suite, device_time: DeviceTime, benchmark: BenchmarkFixture) -> None:
    """Check the case's output, then time it; where benchmarks are disabled, check it only."""
    if benchmark.disabled:
        _settled(benchmark.pedantic(suite.measure, args=(case_id,), kwargs={"verify_only": True}), suite)
        return
    measurement = _settled(suite.measure(case_id, verify_only=False), suite)
    assert measurement.timing is not None
    samples = measurement.timing.samples_ms
    benchmark.group = str(measurement.case.workload)
    benchmark.extra_info |= importing.extra_info(suite.row(measurement))
    benchmark.pedantic(device_time.replay(samples), rounds=len(samples))


def _settled(measurement: Measurement, suite: Suite) -> Measurement:
    """The measurement if it is ok; otherwise the test ends as that deserves, and the row is kept."""
    if measurement.status is Status.OK:
        return measurement
    suite.untimed.append(suite.row(measurement))
    if measurement.status is Status.UNSUPPORTED:
        pytest.skip(str(measurement.reason))
    pytest.fail(f"{measurement.status}: {measurement.reason}", pytrace=False)
