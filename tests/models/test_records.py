"""Records of models: what is written is what is read, and what is not right is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from attnbench.errors import UserError
from attnbench.models import records
from attnbench.models.records import Inference, Loss, Record, TrainStep

STEP = TrainStep(
    case_id="tnl-1B.lightning2.N8192",
    model="tnl",
    size="1B",
    attention="lightning2",
    seq_len=8192,
    tokens_per_step=98304,
    checkpointing="selective",
    precision="bf16",
    gpus=1,
    status="ok",
    samples_ms=(1.5, 2.5),
    mfu=0.5,
)
OOM = dataclasses.replace(STEP, case_id="large", status="oom", reason="3 GiB", samples_ms=None, mfu=None)
PREFILL = Inference(
    case_id="p", model="tnl", size="1B", attention="lightning2", cache="state", phase="prefill", context=1024,
    precision="bf16", status="ok",
)  # fmt: skip
LOSS = Loss(
    case_id="l", model="tnl", size="tiny", attention="lightning1", task="markov", seed=1, step=0, tokens=0, loss=4.5,
    seq_len=64, batch=2, learning_rate=1e-3, precision="fp32", parameters=10, device="cpu", provider="torch",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(TrainStep, [STEP, OOM]), (Inference, [PREFILL]), (Loss, [LOSS])],
    ids=["train-step", "inference", "losses"],
)
def test_records_come_back_as_they_were(kind: type[TrainStep], rows: list[TrainStep], tmp_path: Path) -> None:
    records.write(rows, tmp_path / records.file_name(kind), kind=kind, environment={"device": "a card"})
    assert records.read(tmp_path, kind=kind) == rows
    assert records.read_environment(tmp_path, kind=kind) == {"device": "a card"}


def test_what_an_older_file_does_not_have_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "train-step.parquet"
    records.write([dataclasses.replace(STEP, compiled=True)], file, kind=TrainStep, environment={})
    table = pq.read_table(file).drop_columns(["compiled", "first_step_ms"])  # version 1 had neither
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, records.VERSION_KEY: b"1"}), file)
    assert records.read(tmp_path, kind=TrainStep) == [STEP]


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    row = dataclasses.replace(STEP, mfu=float("nan"))
    with pytest.raises(ValueError, match="mfu is nan"):
        records.write([row], tmp_path / "x.parquet", kind=TrainStep, environment={})


def test_records_of_another_kind_are_refused(tmp_path: Path) -> None:
    records.write([STEP], tmp_path / "x.parquet", kind=TrainStep, environment={})
    with pytest.raises(UserError, match="holds train-step records, expected losses"):
        records.read(tmp_path / "x.parquet", kind=Loss)


def test_a_file_tells_its_kind_and_another_one_that_it_has_none(tmp_path: Path) -> None:
    records.write([STEP], tmp_path / "x.parquet", kind=TrainStep, environment={})
    assert records.kind_of(tmp_path / "x.parquet") == "train-step"
    pq.write_table(
        pq.read_table(tmp_path / "x.parquet").replace_schema_metadata(None), tmp_path / "y.parquet"
    )
    assert records.kind_of(tmp_path / "y.parquet") is None
    with pytest.raises(UserError, match="there is no file"):
        records.kind_of(tmp_path / "z.parquet")


@pytest.mark.parametrize("content", [None, b"no parquet"], ids=["missing", "damaged"])
def test_a_file_that_is_not_there_or_damaged_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "train-step.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"no train-step records|no readable Parquet"):
        records.read(path, kind=TrainStep)


@pytest.mark.parametrize("kind", list(records.KINDS), ids=lambda k: k.__name__)
def test_a_field_that_may_be_unknown_is_nullable(kind: type[Record]) -> None:
    schema = records.schema(kind)
    for field in dataclasses.fields(kind):
        assert schema.field(field.name).nullable == ("None" in str(field.type))
