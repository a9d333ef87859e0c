"""`attnbench merge` over records of models: each case once for each device, the failed ones last, nothing forgotten."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.models import records
from attnbench.models.records import Loss, TrainStep
from attnbench.parallel.records import ParallelCase

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


def _step(case_id: str, **changes: Any) -> TrainStep:
    known: dict[str, Any] = {
        "model": "tnl", "size": "1B", "attention": "lightning2", "seq_len": 8, "tokens_per_step": 8,
        "checkpointing": "none", "precision": "bf16", "gpus": 1, "status": "ok", "device": "H200", "median_ms": 1.0,
    }  # fmt: skip
    return TrainStep(case_id=case_id, **{**known, **changes})


def _loss(case_id: str, step: int, loss: float) -> Loss:
    return Loss(
        case_id=case_id, model="tnl", size="tiny", attention="lightning2", task="text", seed=0, step=step,
        tokens=step, loss=loss, seq_len=8, batch=1, learning_rate=1e-3, precision="fp32", parameters=1, device="H200",
        provider="p",
    )  # fmt: skip


def _file(path: Path, *rows: Any, commit: str = "a") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(rows, path, kind=type(rows[0]), environment={"device": "H200", "git": {"commit": commit}})
    return path


def test_of_one_case_on_one_device_the_first_that_is_ok_stays(run: Run, tmp_path: Path) -> None:
    first = _file(
        tmp_path / "a.parquet",
        _step("x", status="oom", median_ms=None, reason="full"),
        _step("y", median_ms=2.0),
        _step("z", status="oom", median_ms=None, reason="first"),
    )
    second = _file(
        tmp_path / "b.parquet",
        _step("x", median_ms=3.0),
        _step("y", median_ms=4.0),
        _step("y", device="A100", median_ms=5.0),
        _step("z", status="oom", median_ms=None, reason="second"),
        commit="b",
    )
    out = tmp_path / "all.parquet"
    code, text, _ = run("merge", str(first), str(second), "-o", str(out))
    assert (code, text.splitlines()) == (
        0,
        [
            f"{out}: 4 cases (1 on A100, 3 on H200)",
            "3 cases left out, measured before on the same device.",
        ],
    )
    found = {
        (row.case_id, row.device): (row.median_ms, row.reason) for row in records.read(out, kind=TrainStep)
    }
    assert found == {
        ("x", "H200"): (3.0, None),
        ("y", "H200"): (2.0, None),
        ("y", "A100"): (5.0, None),
        ("z", "H200"): (None, "first"),
    }
    environment = records.read_environment(out, kind=TrainStep)
    assert environment["git"] == {"commit": "b"}
    assert [each["git"] for each in environment["others"]] == [{"commit": "a"}]
    # What was joined is joined again, and no environment is forgotten or told twice.
    again = tmp_path / "again"
    run("merge", str(out), str(second), str(first), "-o", str(again))
    environment = records.read_environment(again / "train-step.parquet", kind=TrainStep)
    assert environment["git"] == {"commit": "a"}
    assert [each["git"] for each in environment["others"]] == [{"commit": "b"}]


def test_folders_are_joined_into_a_file_of_each_kind_and_a_training_stays_whole(
    run: Run, tmp_path: Path
) -> None:
    for name, loss in (("a", 2.0), ("b", 3.0)):
        _file(tmp_path / name / "losses.parquet", *(_loss("one", step, loss) for step in range(3)))
    _file(tmp_path / "b" / "train-step.parquet", _step("x"))
    out = tmp_path / "out"
    code, text, _ = run("merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(out), "--json")
    told = {each["kind"]: (each["cases"], each["duplicates"]) for each in json.loads(text)}
    assert (code, told) == (0, {"losses": (1, 1), "train-step": (1, 0)})
    losses = records.read(out / "losses.parquet", kind=Loss)
    assert [(row.step, row.loss) for row in losses] == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_a_training_stays_whole_where_those_of_two_devices_lie_between_each_other(
    run: Run, tmp_path: Path
) -> None:
    rows = [
        dataclasses.replace(_loss("one", step, loss), device=device)
        for step in range(3)
        for device, loss in (("H200", 2.0), ("A100", 3.0))
    ]
    file, out = _file(tmp_path / "losses.parquet", *rows), tmp_path / "out"
    assert run("merge", str(file), str(file), "-o", str(out))[0] == 0
    found = records.read(out / "losses.parquet", kind=Loss)
    assert [(row.device, row.step) for row in found] == [
        (name, n) for name in ("A100", "H200") for n in range(3)
    ]


def test_what_was_recorded_on_two_gpus_can_be_joined(run: Run, tmp_path: Path) -> None:
    recorded = ROOT / "results/h200x2/parallel.parquet"
    assert run("merge", str(recorded), str(recorded), "-o", str(tmp_path))[0] == 0
    rows = records.read(tmp_path / "parallel.parquet", kind=ParallelCase)
    assert sorted(map(repr, rows)) == sorted(map(repr, records.read(recorded, kind=ParallelCase)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("models", "nowhere", "-o", "out"), r"nowhere does not exist"),
        (
            ("models", "grid.parquet", "-o", "out"),
            r"grid.parquet holds no records of models, as the others do",
        ),
        (
            ("models", "-o", "one.parquet"),
            r"one.parquet is one file, and there are records of losses, train-step",
        ),
        (("models", "-o", "out", "--every-process"), r"--every-process keeps the runs of sweeps apart"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_what_cannot_be_joined_is_a_sentence(
    arguments: tuple[str, ...], sentence: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _file(tmp_path / "models" / "train-step.parquet", _step("x"))
    _file(tmp_path / "models" / "losses.parquet", _loss("one", 0, 1.0))
    shutil.copy(ROOT / "results/h200/quick.parquet", "grid.parquet")
    code, _, err = run("merge", *arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
