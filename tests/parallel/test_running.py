"""The processes of ranks, the plan of a run, its records, and the command line."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

from attnbench.case import Status
from attnbench.cli import app
from attnbench.errors import UserError
from attnbench.executors.lock import device_lock
from attnbench.executors.worker_process import WorkerDiedError
from attnbench.measure.environment import collect
from attnbench.models.distributed import Ranks
from attnbench.models.folder import Folder
from attnbench.parallel import findings, measuring
from attnbench.parallel.group import NCCL_VARIABLES, RankGroups, variables
from attnbench.parallel.lightning import LightningParallel
from attnbench.parallel.measuring import checked_length, measure_parallel
from attnbench.parallel.planning import ParallelPlan
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.requests import ParallelRequest
from attnbench.parallel.wire import CutWire
from attnbench.semantics import TORCH_DTYPES, geometric_slopes

SMALL = ParallelRequest(
    mechanism="lightning2-lasp2", ranks=2, seq_len=201, batch=1, heads=2, head_dim=16, dtype="fp32", workload="fwd-bwd",
    samples=2,
)  # fmt: skip
PLAN = ParallelPlan(
    ranks=["2"], mechanisms=None, seq_lens=["1k"], seq_lens_per_rank=None, workloads=None, batch="1", heads=None,
    head_dim=None, dtype=None, decay=True, samples=1, limit_s=60, seed=0,
)  # fmt: skip


@pytest.fixture
def group(tmp_path: Path) -> Iterator[RankGroups]:
    with device_lock("cpu") as lock:
        ranks = RankGroups(
            device="cpu", log=tmp_path / "log", inherit=lock, environment=collect(torch.device("cpu"))
        )
        yield ranks
        ranks.kill()


def _ask(group: RankGroups, request: ParallelRequest) -> ParallelCase:
    reply = group.ask({"request": dataclasses.asdict(request)}, limit_s=60)
    (row,) = reply["rows"]
    return ParallelCase(**row)


def test_ranks_measure_together_and_end_when_one_of_them_dies(group: RankGroups) -> None:
    row = _ask(group, SMALL)
    assert (row.status, row.reason) == (Status.OK, None)
    assert row.sent_bytes == row.sent_bytes_formula == 2 * 2 * (2 * 16 * 16 * 4)
    assert len(row.samples_ms or ()) == 2
    assert row.backend == "gloo"
    assert min(row.compute_ms or 0, row.communication_ms or 0, row.peak_bytes or 0, row.tokens_per_s or 0) > 0
    long = dataclasses.replace(SMALL, mechanism="ring-attention", seq_len=2**15, samples=1000)
    threading.Timer(1.0, group.of(2).processes[1].strike).start()
    begun = time.monotonic()
    with pytest.raises(WorkerDiedError, match=r"rank 1 of 2: .*signal SIGKILL"):
        _ask(group, long)
    assert time.monotonic() - begun < 30
    assert group.of(2).processes == ()


def test_one_process_measures_one_rank_with_nothing_to_send() -> None:
    alone = Ranks.alone(torch.device("cpu"))
    for mechanism in ("lightning2-lasp", "ring-attention"):
        row = measure_parallel(dataclasses.replace(SMALL, mechanism=mechanism, ranks=1), ranks=alone)
        assert (row.status, row.reason) == (Status.OK, None)
        assert (row.sent_bytes, row.communication_ms, row.exposed_ms, row.backend) == (0, 0.0, 0.0, None)


def test_a_wrong_output_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench.parallel import local

    right = local.attend_into

    def wrong(out: torch.Tensor, *tensors: torch.Tensor, **options: Any) -> torch.Tensor | None:
        state = right(out, *tensors, **options)
        out[:, :, -1] *= 1.1
        return state

    monkeypatch.setattr(local, "attend_into", wrong)
    row = measure_parallel(dataclasses.replace(SMALL, ranks=1), ranks=Ranks.alone(torch.device("cpu")))
    assert row.status == Status.INCORRECT
    assert row.samples_ms is None
    assert "of 201 tokens: o by " in (row.reason or "")


def test_a_length_that_cannot_be_timed_within_the_limit_says_so() -> None:
    request = dataclasses.replace(SMALL, ranks=1, limit_s=1e-6)
    row = measure_parallel(request, ranks=Ranks.alone(torch.device("cpu")))
    assert row.status == Status.TIMEOUT
    assert "none fits what the calls before it left of the limit" in (row.reason or "")


def test_multicast_is_off_and_transfers_come_first_for_every_rank() -> None:
    own = variables(rank=1, ranks=2, device="cuda")
    assert own["NCCL_NVLS_ENABLE"] == "0"
    assert own["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
    assert own["TORCH_NCCL_HIGH_PRIORITY"] == "1"
    assert NCCL_VARIABLES.items() <= own.items()
    assert (own["RANK"], own["LOCAL_RANK"], own["WORLD_SIZE"]) == ("1", "1", "2")


class SilentWire(CutWire):
    """Stands in for a group of two."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(rank=0, ranks=2)


def test_samples_begin_together_and_are_agreed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed: list[int] = []
    met: list[str] = []
    monkeypatch.setattr(measuring, "GroupWire", SilentWire)
    monkeypatch.setattr(measuring._Case, "_checked", lambda self, row: row)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.all_reduce", lambda shared, op: agreed.append(shared.numel()))
    monkeypatch.setattr("torch.distributed.barrier", lambda: met.append("here"))
    request = dataclasses.replace(SMALL, samples=7)
    row = measure_parallel(request, ranks=Ranks(rank=0, count=2, device=torch.device("cpu")))
    assert (row.status, row.reason) == (Status.OK, None)
    assert len(row.samples_ms or ()) == 7
    assert agreed.count(7) == 1
    # Two calls warm up, six are without transfers, and in six more each of two transfers is met for.
    assert len(met) == 2 + 7 + 6 + 6 * 2


def test_a_plan_has_strong_and_weak_lengths_from_short_to_long() -> None:
    plan = dataclasses.replace(
        PLAN, ranks=["1,3"], seq_lens=["1000"], seq_lens_per_rank=["400"], mechanisms=["lightning2-lasp"]
    )
    found = [(r.ranks, r.seq_len) for r in plan.requests(kind="cpu", gpus=0)]
    assert found == [(1, 400), (1, 1000), (3, 1000), (3, 1200)]


def test_a_budget_buys_pairs_first_and_the_quadratic_rival_last() -> None:
    plan = dataclasses.replace(PLAN, ranks=["2,1"], seq_lens=["1k,2k"])
    found = [(r.mechanism, r.seq_len, r.ranks) for r in plan.requests(kind="cpu", gpus=0)]
    linear = [
        (mechanism, seq_len, ranks)
        for seq_len in (1024, 2048)
        for mechanism in ("lightning2-lasp", "lightning2-lasp2")
        for ranks in (1, 2)
    ]
    rival = [("ring-attention", seq_len, ranks) for seq_len in (1024, 2048) for ranks in (1, 2)]
    assert found == linear + rival


class StillGroup:
    """A group without processes: it runs out of memory as long as others are there."""

    there: ClassVar[set[int]] = set()

    def __init__(self, count: int, **_: Any) -> None:
        self.count = count

    @property
    def processes(self) -> tuple[str, ...]:
        return ("a process",) * (self.count in self.there)

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        self.there.add(self.count)
        status = Status.OOM if message["full"] and len(self.there) > 1 else Status.OK
        return {"rows": [{"status": str(status)}]}

    def end(self) -> None:
        self.there.discard(self.count)


def test_idle_groups_stay_until_another_one_needs_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnbench.parallel.group.RankGroup", StillGroup)
    groups = RankGroups(device="cuda", log=tmp_path / "log", inherit=(), environment={})
    for ranks in (1, 2, 1):
        assert groups.ask({"request": {"ranks": ranks}, "full": False}, limit_s=1)["rows"] == [
            {"status": "ok"}
        ]
    assert StillGroup.there == {1, 2}
    assert groups.ask({"request": {"ranks": 2}, "full": True}, limit_s=1)["rows"] == [{"status": "ok"}]
    assert StillGroup.there == {2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ranks": ["4"]}, "--ranks: 4 ranks need 4 GPUs, and torch sees 2 here"),
        ({"ranks": ["2"], "seq_lens": ["3"]}, "expected at least 2 tokens for each of 2 ranks, 4, got 3"),
        ({"mechanisms": ["ring-atention"]}, "did you mean 'ring-attention'"),
        ({"workloads": ["decode"]}, "unknown workload 'decode'"),
        ({"head_dim": "100"}, "--head-dim: expected a multiple of 16 up to 256, got 100"),
        ({"dtype": "fp64"}, "--dtype: unknown dtype 'fp64'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(PLAN, **change).requests(kind="cuda", gpus=2)


def test_under_torchrun_its_ranks_are_the_only_choice() -> None:
    plan = dataclasses.replace(PLAN, ranks=None)
    assert {r.ranks for r in plan.requests(kind="cuda", gpus=2, launched=8)} == {8}
    with pytest.raises(UserError, match="torchrun started 8 ranks"):
        PLAN.requests(kind="cuda", gpus=2, launched=8)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path, kind=ParallelCase)
    row = dataclasses.replace(SMALL.blank(), samples_ms=(1.0, 2.0), exposed_ms=0.5)
    folder.open(device="a card")
    folder.keep(row.case_id, [row], environment={"device": "a card"})
    assert folder.merge().name == "parallel.parquet"
    assert folder.rows() == [row]


def test_efficiency_is_to_one_rank_at_the_same_length() -> None:
    rows = [
        dataclasses.replace(
            dataclasses.replace(SMALL, ranks=ranks).blank(), tokens_per_s=speed, median_ms=1.0
        )
        for ranks, speed in ((1, 100.0), (2, 190.0))
    ]
    assert findings.efficiencies(rows) == {rows[1].case_id: pytest.approx(0.95)}
    assert "on 2 ranks reaches 95.0% of 2 times one rank's speed at 201 tokens" in findings.sentences(rows)[0]
    heads, table = findings.table(rows)
    assert {len(line) for line in table} == {len(heads)}


class InProcess:
    """A group of one rank without a process of its own."""

    alive = True

    def __init__(self, *, environment: dict[str, Any], **_: Any) -> None:
        self.environment = environment

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        row = measure_parallel(ParallelRequest(**message["request"]), ranks=Ranks.alone(torch.device("cpu")))
        return {"rows": [dataclasses.asdict(row)], "reason": None, "lost_device": False}

    def end(self) -> None: ...
    def kill(self) -> None: ...


def test_the_command_measures_and_then_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.parallel.group.RankGroups", InProcess)
    options = [
        "--gpus-per-case",
        "1",
        "--seq-len",
        "64,128",
        "--heads",
        "1",
        "--head-dim",
        "16",
        "--samples",
        "1",
    ]
    folder = ["-o", str(tmp_path), "--device", "cpu", "-m", "lightning2-lasp"]
    done = CliRunner().invoke(app, ["parallel", "run", *options, *folder])
    assert done.exit_code == 0, done.output
    assert "lightning2-lasp" in done.output
    drawn = CliRunner().invoke(app, ["parallel", "scaling", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "figures" / "scaling.fwd-bwd.B1-H1-D16.fp32.png").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("decay", [True, False], ids=["decay", "plain"])
@pytest.mark.parametrize("mechanism", ["lightning2-lasp", "lightning2-lasp2", "ring-attention"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_on_gpus(mechanism: str, ranks: int, decay: bool, tmp_path: Path) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    request = dataclasses.replace(
        SMALL,
        mechanism=mechanism,
        ranks=ranks,
        seq_len=20_001,
        heads=4,
        head_dim=64,
        dtype="bf16",
        decay=decay,
    )
    with device_lock("cuda") as lock:
        group = RankGroups(device="cuda", log=tmp_path / "log", inherit=lock, environment={})
        try:
            row = _ask(group, request)
        finally:
            group.kill()
    assert (row.status, row.reason) == (Status.OK, None)
    assert row.sent_bytes == row.sent_bytes_formula


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_what_is_checked_takes_the_way_of_what_is_timed(ranks: int, dtype: str) -> None:
    """Pieces in which every head forgets are computed in another way than shorter ones."""
    request = dataclasses.replace(SMALL, ranks=ranks, seq_len=2**20, heads=16, dtype=dtype)
    slopes = geometric_slopes(16)
    checked = checked_length(request, on_gpu=True, slopes=slopes)
    ways = [
        LightningParallel(
            seq_len, wire=CutWire(rank=rank, ranks=ranks), slopes=slopes, dtype=TORCH_DTYPES[dtype],
            device=torch.device("cpu"), gathers=True,
        ).forgets
        for seq_len in (checked, request.seq_len)
        for rank in range(ranks)
    ]  # fmt: skip
    assert all(ways)
    assert checked < 50_000
    short = dataclasses.replace(request, seq_len=5_000)
    assert checked_length(short, on_gpu=True, slopes=slopes) == 5_000
    assert checked_length(request, on_gpu=True, slopes=None) == 8_191
