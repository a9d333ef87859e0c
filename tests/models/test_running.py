"""Runs of models: resumption, budgets, workers that die or hang, and the command line."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.cli import app
from attnbench.errors import UserError
from attnbench.executors.spared import Forecast
from attnbench.executors.worker_process import WorkerDiedError, WorkerHungError
from attnbench.models import findings, planning, records, running
from attnbench.models.folder import Folder
from attnbench.models.joining import join_records
from attnbench.models.losses import LossRequest
from attnbench.models.records import Inference, Loss, TrainStep
from attnbench.models.running import Outcome, Run
from attnbench.models.training import TrainRequest
from attnbench.providers import Cost

Reply = Callable[[dict[str, Any]], dict[str, Any]]
BASE = TrainRequest(
    size="tiny", attention="lightning2", seq_len=1, tokens=64, checkpointing="none", precision="fp32", limit_s=60,
)  # fmt: skip
REQUESTS = [dataclasses.replace(BASE, seq_len=n) for n in (16, 32, 64)]


class FakeWorker:
    """Answers as it is told; counts how many were started."""

    started = 0
    limits: list[float]
    reply: Reply
    device = "a card"

    def __init__(self, **_: Any) -> None:
        type(self).started += 1
        type(self).limits = []
        self.alive = True
        self.environment: dict[str, Any] = {"device": type(self).device}

    def ask(self, message: dict[str, Any], *, limit_s: float) -> dict[str, Any]:
        type(self).limits.append(limit_s)
        try:
            return type(self).reply(message)
        except (WorkerDiedError, WorkerHungError):
            self.alive = False
            raise

    def end(self) -> None: ...
    def kill(self) -> None: ...


def _fine(message: dict[str, Any], **values: Any) -> dict[str, Any]:
    row = TrainRequest(**message["request"]).blank()
    row = dataclasses.replace(row, **{"tokens_per_s": 1.0, "median_ms": 2.0, **values})
    return {"rows": [dataclasses.asdict(row)], "reason": None, "lost_device": False}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    class Own(FakeWorker):
        reply = staticmethod(_fine)

    monkeypatch.setattr(running, "WorkerProcess", Own)
    return Own


def _run(
    path: Path,
    requests: Sequence[TrainRequest] = REQUESTS,
    *,
    budget_s: float | None = None,
    **options: Any,
) -> Outcome[TrainStep]:
    run = Run(
        folder=Folder(path=path, kind=TrainStep),
        device="cpu",
        budget_s=budget_s,
        series=planning.train_series,
        blank=lambda request: request.blank(),
        describe=findings.train_line,
        **{"say": lambda line: None, **options},
    )
    return run.measure(requests)


def _statuses(outcome: Outcome[TrainStep]) -> list[str]:
    return [row.status for row in outcome.rows]


def test_a_run_goes_on_where_it_stopped_and_repeats_nothing(tmp_path: Path, worker: type[FakeWorker]) -> None:
    asked = []

    def reply(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(message["request"]["seq_len"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return _fine(message)

    worker.reply = staticmethod(reply)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, say=said.append)
    assert said[-1] == f"stopped: 1 of 3 cases are measured and safe in {tmp_path}; the same command goes on"
    assert [row.seq_len for row in records.read(tmp_path, kind=TrainStep)] == [16]
    assert _statuses(_run(tmp_path)) == ["ok"] * 3
    assert asked == [16, 32, 32, 64]
    count = worker.started
    assert len(_run(tmp_path).rows) == 3
    assert worker.started == count  # nothing to do: nothing starts
    assert records.read_environment(tmp_path, kind=TrainStep)["device"] == "a card"


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_folder_without_its_shards_is_gone_on_with_by_its_merged_file(
    tmp_path: Path, worker: type[FakeWorker], damaged: bool
) -> None:
    _run(tmp_path, REQUESTS[:2])
    shutil.rmtree(tmp_path / "shards")
    file = tmp_path / "train-step.parquet"
    before = records.read(file, kind=TrainStep)
    if damaged:
        file.write_bytes(content := file.read_bytes()[:-9])
        with pytest.raises(UserError, match=r"train-step\.parquet"):
            _run(tmp_path)
        assert file.read_bytes() == content
        return
    started = worker.started
    assert _run(tmp_path, REQUESTS[:2]).rows == before
    assert worker.started == started
    assert _run(tmp_path).rows[:2] == before
    assert worker.started == started + 1
    assert worker.limits[1:] == []  # the third alone was asked for


def test_records_of_two_devices_are_no_run_to_go_on_with(tmp_path: Path, worker: type[FakeWorker]) -> None:
    for device in ("a card", "another card"):
        worker.reply = staticmethod(functools.partial(_fine, device=device))
        _run(tmp_path / device, REQUESTS[:1])
    join_records([tmp_path / "a card", tmp_path / "another card"], out=tmp_path / "both", kinds=[TrainStep])
    content = (file := tmp_path / "both" / "train-step.parquet").read_bytes()
    with pytest.raises(
        UserError, match=r"holds records of a card and another card, and a run is of one device"
    ):
        _run(tmp_path / "both")
    assert file.read_bytes() == content


def test_a_worker_that_dies_costs_its_case(tmp_path: Path, worker: type[FakeWorker]) -> None:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        if message["request"]["seq_len"] == 32:
            raise WorkerDiedError("the worker process ended with signal SIGKILL")
        return _fine(message)

    worker.reply = staticmethod(reply)
    outcome = _run(tmp_path)
    assert _statuses(outcome) == ["ok", "crashed", "ok"]
    assert outcome.rows[1].reason == "the worker process ended with signal SIGKILL"
    assert worker.started == 2


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "says so"])
def test_what_is_longer_than_a_timeout_is_not_attempted(
    hangs: bool, tmp_path: Path, worker: type[FakeWorker]
) -> None:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        if message["request"]["seq_len"] == 16:
            return _fine(message)
        if hangs:
            raise WorkerHungError("no answer within 90 s")
        return _fine(message, status="timeout", reason="a step takes 70 s", tokens_per_s=None)

    worker.reply = staticmethod(reply)
    outcome = _run(tmp_path)
    assert _statuses(outcome) == ["ok", "timeout", "timeout"]
    assert outcome.rows[2].reason is not None
    assert outcome.rows[2].reason.startswith("not attempted: a shorter one took too long (")


def _quadratic() -> Forecast:
    return Forecast(series=planning.train_series, cost=lambda request: "N^2")


def _seconds(per_16_tokens: float, *, cost: int = 2) -> Reply:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        growth = (message["request"]["seq_len"] / 16) ** cost
        return _fine(message, median_ms=1e3 * per_16_tokens * growth)

    return reply


def test_what_must_take_too_long_by_a_shorter_one_is_not_attempted(
    tmp_path: Path, worker: type[FakeWorker]
) -> None:
    worker.reply = staticmethod(_seconds(2.0))
    outcome = _run(tmp_path, forecast=_quadratic())
    assert _statuses(outcome) == ["ok", "ok", "timeout"]
    assert outcome.rows[2].reason == (
        "not attempted: a call would take about 32.0 s, by the 8.00 s measured at seq_len 32 and a cost that grows as "
        "N^2; 2 do not fit the limit of 60 s"
    )
    assert len(worker.limits) == 2
    longer = [*REQUESTS, dataclasses.replace(BASE, seq_len=128)]
    resumed = _run(tmp_path, longer, forecast=_quadratic())
    assert "128 s, by the 8.00 s measured at seq_len 32" in (resumed.rows[3].reason or "")


@pytest.mark.parametrize(
    ("seconds", "cost"), [(0.009, "N^2"), (2.0, "N")], ids=["by launches alone", "linear"]
)
def test_what_may_fit_is_attempted(
    seconds: float, cost: Cost, tmp_path: Path, worker: type[FakeWorker]
) -> None:
    worker.reply = staticmethod(_seconds(seconds, cost=0))
    requests = [BASE, dataclasses.replace(BASE, seq_len=14 if cost == "N" else 2000)]
    outcome = _run(
        tmp_path, requests, forecast=Forecast(series=planning.train_series, cost=lambda request: cost)
    )
    assert _statuses(outcome) == ["ok", "ok"]


def test_what_exceeds_the_rest_of_a_budget_is_left_and_others_go_on(
    tmp_path: Path, worker: type[FakeWorker]
) -> None:
    worker.reply = staticmethod(_seconds(2.0))
    other = dataclasses.replace(BASE, seq_len=64, attention="flash2")
    outcome = _run(tmp_path, [*REQUESTS[:2], other], budget_s=10.0, forecast=_quadratic())
    assert outcome.left == 1  # two calls of 8 s
    assert [(row.attention, row.seq_len) for row in outcome.rows] == [("lightning2", 16), ("flash2", 64)]


def test_a_worker_that_knows_the_series_has_less_grace(tmp_path: Path, worker: type[FakeWorker]) -> None:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        if message["request"]["seq_len"] == 64:
            return _fine(message, status="error", reason="something else", tokens_per_s=None)
        return _fine(message)

    worker.reply = staticmethod(reply)
    more = [*REQUESTS, dataclasses.replace(BASE, seq_len=128)]
    _run(tmp_path, more, warm_grace_s=10.0)
    assert worker.limits == [90, 70, 70, 90]


def test_a_budget_stops_before_a_case_and_blames_no_case(tmp_path: Path, worker: type[FakeWorker]) -> None:
    assert _run(tmp_path, budget_s=1.0).left == 3
    limits = []

    def reply(message: dict[str, Any]) -> dict[str, Any]:
        limits.append(message["request"]["limit_s"])
        return _fine(message, status="timeout", reason="cut", tokens_per_s=None)

    worker.reply = staticmethod(reply)
    outcome = _run(tmp_path, budget_s=20.0)
    assert (outcome.left, list(outcome.rows)) == (3, [])
    assert limits == [pytest.approx(20, abs=5)]


def test_records_of_another_device_are_not_mixed(tmp_path: Path, worker: type[FakeWorker]) -> None:
    _run(tmp_path, REQUESTS[:1])
    worker.device = "another card"
    with pytest.raises(UserError, match="holds train-step records of a card, and this is another card"):
        _run(tmp_path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train-step", "--size", "2B"], "unknown size '2B'; "),
        (["train-step", "-a", "lightening2"], "did you mean 'lightning2'?"),
        (["train-step", "-a", "gla"], "attention 'gla' computes"),
        (["train-step", "--checkpointing", "ful"], "did you mean 'full'?"),
        (["train-step", "--loss", "fla"], "loss 'fla' is not available: it needs a CUDA device"),
        (["train-step", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["train-step", "--seq-len", "0"], "--seq-len: expected a positive whole number"),
        (["inference", "--cache", "kv", "-a", "lightning2"], "no attention of lightning2 keeps kv"),
        (["inference", "--batch", "many"], "--batch: expected a positive whole number"),
        (["losses", "--task", "texts"], "did you mean 'text'?"),
        (["losses", "--task", "text", "--seq-len", "1M"], "--seq-len: expected at most 10,"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["model", *words, "--device", "cpu", "-o", str(tmp_path / "out")])
    assert isinstance(found.exception, UserError)
    assert sentence in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = (
        "model losses --task text --steps 2 --seq-len 16 --batch 1 -a sdpa -a flash2 --device cpu --json -o"
    )
    found = CliRunner().invoke(app, [*words.split(), str(tmp_path)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert [row["step"] for row in told["rows"]] == [0, 1]
    assert told["findings"] == [
        "Not measured: losses.tiny.flash2.text.N16.B1.S2.fp32.seed0: no provider for cpu; it runs on cuda"
    ]
    assert [row.loss for row in records.read(tmp_path, kind=Loss)] == [row["loss"] for row in told["rows"]]


def test_findings_name_the_faster_one_at_the_longest_common_length() -> None:
    def line(attention: str, speeds: dict[int, float | None]) -> list[TrainStep]:
        blanks = [dataclasses.replace(BASE, attention=attention, seq_len=n).blank() for n in speeds]
        return [
            dataclasses.replace(b, tokens_per_s=s)
            if s
            else dataclasses.replace(b, status="oom", reason="full")
            for b, s in zip(blanks, speeds.values(), strict=True)
        ]

    rows = line("lightning2", {1024: 50e3, 4096: 49e3, 8192: 50e3}) + line(
        "sdpa", {1024: 60e3, 4096: 7e3, 8192: None}
    )
    assert findings.train_sentences(rows) == [
        "tiny, checkpointing none: lightning2 runs at 49.0 k tokens/s (4,096 tokens) to 50.0 k tokens/s (1,024), "
        "1.02× from end to end.",
        "tiny, checkpointing none: sdpa runs at 7.00 k tokens/s (4,096 tokens) to 60.0 k tokens/s (1,024), "
        "8.57× from end to end.",
        "tiny, checkpointing none: at 4,096 tokens lightning2 trains at 7.00× the speed of sdpa.",
        "Not measured: train.tiny.sdpa.N8192.T8192.none.fp32: oom: full",
    ]


def test_findings_tell_one_gpu_from_several() -> None:
    rows = [
        dataclasses.replace(BASE.blank(), attention="lightning2", gpus=gpus, tokens_per_s=rate)
        for gpus, rate in ((1, 31e3), (2, 30e3))
    ]
    where = f"at {BASE.seq_len:,} tokens."
    assert findings.train_sentences(rows) == [
        f"tiny, checkpointing none: lightning2 runs at 31.0 k tokens/s {where}",
        f"tiny, checkpointing none, each of 2 GPUs: lightning2 runs at 30.0 k tokens/s {where}",
    ]


def test_a_generation_is_told_by_its_new_tokens_and_beside_what_caches_put_out() -> None:
    def generation(cache: str, batch: int, new_tokens: int, rate: float) -> Inference:
        return Inference(
            case_id="x", model="x", size="1B", attention="x", cache=cache, phase="generate", context=512,
            precision="bf16", status="ok", batch=batch, new_tokens=new_tokens, tokens_per_s=rate,
        )  # fmt: skip

    rows = [
        generation("state", 4000, 128, 30e3), generation("kv", 900, 128, 15e3), generation("state", 4000, 1024, 50e3),
        generation("kv", 400, 1024, 10e3),
    ]  # fmt: skip
    assert findings.inference_sentences(rows) == [
        "generate, 1B, state, 128 new tokens: x runs at 30.0 k tokens/s at 512 tokens.",
        "generate, 1B, kv, 128 new tokens: x runs at 15.0 k tokens/s at 512 tokens.",
        "generate, 1B, state, 1,024 new tokens: x runs at 50.0 k tokens/s at 512 tokens.",
        "generate, 1B, kv, 1,024 new tokens: x runs at 10.0 k tokens/s at 512 tokens.",
        "generate, 1B, 128 new tokens: a state with 4,000 sequences puts out 2.00× the tokens of kv with 900.",
        "generate, 1B, 1,024 new tokens: a state with 4,000 sequences puts out 5.00× the tokens of kv with 400.",
    ]


def test_a_training_run_that_the_budget_cut_is_left(tmp_path: Path, worker: type[FakeWorker]) -> None:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        return {"rows": [], "reason": "100 of 300 steps", "status": "timeout", "lost_device": False}

    worker.reply = staticmethod(reply)
    request = LossRequest(
        size="tiny", attention="lightning2", task="text", steps=300, seq_len=8, batch=1, precision="fp32"
    )

    def outcome(budget_s: float | None) -> Outcome[Loss]:
        return Run(
            folder=Folder(path=tmp_path, kind=Loss), device="cpu", budget_s=budget_s,
            series=lambda each: (each.case_id,), blank=lambda each: pytest.fail("a loss has no blank"),
            say=lambda line: None, describe=findings.loss_line,
        ).measure([request])  # fmt: skip

    cut = outcome(10.0)
    assert (cut.left, list(cut.missing)) == (1, [])
    whole = outcome(None)
    assert (whole.left, list(whole.missing)) == (0, [f"{request.case_id}: 100 of 300 steps"])


def test_a_device_that_is_gone_ends_the_run_and_what_died_has_its_row(
    tmp_path: Path, worker: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(message: dict[str, Any]) -> dict[str, Any]:
        raise WorkerDiedError("the worker process ended with signal SIGKILL")

    worker.reply = staticmethod(reply)

    def start(**given: Any) -> FakeWorker:
        if worker.started:
            raise WorkerDiedError("the worker process ended with exit code 1")
        return worker(**given)

    monkeypatch.setattr(running, "WorkerProcess", start)
    with pytest.raises(
        UserError, match=r"no worker process can be started .*exit code 1.* goes on with the rest"
    ):
        _run(tmp_path)
    (row,) = records.read(tmp_path, kind=TrainStep)
    assert (row.seq_len, row.status) == (16, "crashed")


@pytest.mark.parametrize(
    ("tokens", "seq_lens", "asked", "note"),
    [
        (256, (64, 128), True, None),
        (256, (100,), True, "A step is of whole sequences: 300 tokens at length 100, in place of 256."),
        (256, (100,), False, "A step is of whole sequences: 300 tokens at length 100, in place of 256."),
        (64, (64, 100), True, "A step is of whole sequences: 100 tokens at length 100, in place of 64."),
        (64, (64, 100), False, None),
    ],
)
def test_tokens_that_are_no_whole_sequences_are_told(
    tokens: int, seq_lens: tuple[int, ...], asked: bool, note: str | None
) -> None:
    requests = [dataclasses.replace(BASE, tokens=tokens, seq_len=n) for n in seq_lens]
    assert planning.rounded(requests, asked=asked) == note


def test_another_loss_or_seed_is_another_case() -> None:
    names = {
        dataclasses.replace(BASE, **change).case_id
        for change in ({}, {"loss": "chunked"}, {"seed": 1}, {"loss": "chunked", "seed": 1})
    }
    assert len(names) == 4
    assert BASE.case_id == "train.tiny.lightning2.N1.T64.none.fp32"  # as in the folders that there are


@pytest.mark.parametrize(
    "words",
    [
        ["model", "train-step", "--size", "tiny", "--seq-len", "16"],
        ["model", "losses", "--steps", "1"],
        ["parallel", "run", "--ranks", "1", "--seq-len", "64"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_output_folder_that_is_a_file_is_a_sentence(
    words: list[str], run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    code, out, err = run(*words, "--device", "cpu", "-o", str(file))
    assert (code, out) == (2, "")
    assert f"error: cannot write the output folder {file}: Not a directory\n" in err
    assert file.read_text() == "mine"


def test_one_sample_has_no_spread() -> None:
    row = dataclasses.replace(
        BASE.blank(), tokens_per_s=1.0, median_ms=2.0, p10_ms=2.0, p90_ms=2.0, samples_ms=(2.0,)
    )
    place = findings.train_table([row])[0].index("spread")
    assert findings.train_table([row])[1][0][place] == ""
    several = dataclasses.replace(row, p10_ms=1.9, p90_ms=2.1, samples_ms=(1.9, 2.0, 2.1))
    assert findings.train_table([several])[1][0][place] == "10.0%"
