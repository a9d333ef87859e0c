"""A sweep on a cluster of two nodes with pretended GPUs, one of which is killed half-way."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import attnbench
from attnbench.errors import UserError
from attnbench.executors.batch import Event
from attnbench.executors.batches import Batches, Flight
from attnbench.executors.engines import Engine
from attnbench.measure.pretending import VARIABLE
from tests.executors.sweeps import identities, record, run, tiny

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'attnbench[ray]'")
cluster_utils: Any = importlib.import_module("ray.cluster_utils")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one pretended GPU each, and a driver that is connected to them."""
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its warning of a change to come
    monkeypatch.setenv(VARIABLE, "node-a:H200")
    monkeypatch.setenv("PYTHONPATH", str(Path(attnbench.__file__).parents[1]), prepend=os.pathsep)
    node = {
        "num_cpus": 1,
        "num_gpus": 1,
        "object_store_memory": 80 * 2**20,
        "resources": {"accelerator_type:H200": 1},
    }
    quick = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": quick}
    )
    second = made.add_node(**node, env_vars={VARIABLE: "node-b:H200"})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    made.second = second
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_killed_node_costs_the_case_in_flight_which_is_measured_elsewhere(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny(tmp_path, case_s=1.0)  # so that a node dies before its case is done
    told: list[str] = []
    lost: list[str] = []
    tell = Batches.tell

    def killing(batches: Batches, flight: Flight, event: Event, **words: Any) -> None:
        """The second node dies as soon as it has begun a case."""
        tell(batches, flight, event, **words)
        if "row" in event:
            told.append(event["row"]["case_id"])
        on_second = flight.environment is not None and flight.environment["node"] == "node-b"
        if on_second and "begun" in event and not lost:
            lost.append(event["begun"])
            cluster.remove_node(cluster.second, allow_graceful=False)

    monkeypatch.setattr(Batches, "tell", killing)
    outcome = run(sweep, tmp_path / "ray", engine=Engine(name="ray"))

    assert outcome.left == 0
    assert sorted(told) == sorted(case.case_id for case in sweep.cases())  # nothing lost, nothing twice
    (note,) = outcome.notes
    case, rest = note.split(" ", 1)
    assert rest.startswith("was lost with its worker and tried once more")
    frame = attnbench.load_results(tmp_path / "ray" / "results.parquet").set_index("case_id")
    assert (frame["status"] == "ok").all()
    assert frame.loc[case, "node"] == "node-a"
    assert set(record(tmp_path / "ray")["places"]) == {"node-a/0", "node-b/0"}
    assert frame["gpu_index"].tolist() == [0] * len(frame)

    run(tiny(tmp_path), tmp_path / "local")
    pd.testing.assert_frame_equal(identities(tmp_path / "ray"), identities(tmp_path / "local"))

    told.clear()
    assert run(sweep, tmp_path / "ray", engine=Engine(name="ray"), resume=True).left == 0
    assert not told  # whoever resumes has nothing to do
    with pytest.raises(UserError, match="has 1 GPU, and --gpus asks for 3"):
        run(sweep, tmp_path / "many", engine=Engine(name="ray", gpus=3))
    assert not (tmp_path / "many").exists()
