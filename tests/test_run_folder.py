"""The folder of a run: nothing is overwritten, mixed up or measured twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from attnbench import store
from attnbench.case import Case, Measurement, Status, Workload
from attnbench.errors import UserError
from attnbench.executors.run_folder import RunFolder, open_run, whole_folder
from attnbench.sweeps.loader import load

RECORD = {"run_id": "quick-1", "sweep": {"axes": {"seq_len": [128]}}, "device": "cpu"}


def _row(mechanism: str, *, started_at: str | None) -> dict[str, Any]:
    case = Case(
        mechanism=mechanism, workload=Workload.FWD, batch=1, heads=1, seq_len=8, head_dim=16, dtype="fp32"
    )
    measurement = Measurement(case=case, status=Status.ERROR, reason="a test's own", started_at=started_at)
    return store.row(measurement, run_id="quick-1")


def _open(path: Path, *, resume: bool = False, **changes: Any) -> RunFolder:
    return open_run(path, record={**RECORD, **changes}, resume=resume)


# ---------------------------------------------------------------- opening


def test_a_new_run_has_its_record_and_room_for_shards(tmp_path: Path) -> None:
    folder = _open(tmp_path / "deep" / "run")
    assert json.loads((tmp_path / "deep" / "run" / "run.json").read_text()) == RECORD
    assert (tmp_path / "deep" / "run" / "shards").is_dir()
    assert folder.run_id == "quick-1"
    assert folder.done() == set()


def test_an_empty_folder_becomes_a_run(tmp_path: Path) -> None:
    assert _open(tmp_path).run_id == "quick-1"


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no attnbench run"):
        _open(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"the output folder .*run is a file"):
        _open(tmp_path / "run")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="cannot write the output folder"):
        _open(tmp_path / "file" / "run")


def test_a_run_that_is_there_asks_for_resume(tmp_path: Path) -> None:
    _open(tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds the run quick-1; add --resume"):
        _open(tmp_path / "run", run_id="quick-2")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run_id"] == "quick-1"


def test_resuming_keeps_the_first_record(tmp_path: Path) -> None:
    _open(tmp_path / "run").with_record(ceilings={"copy_gbps": 1.0})
    folder = _open(tmp_path / "run", resume=True, run_id="quick-2")
    assert folder.run_id == "quick-1"
    assert folder.record["ceilings"] == {"copy_gbps": 1.0}


def test_resume_of_a_run_that_is_not_there_starts_it(tmp_path: Path) -> None:
    assert _open(tmp_path / "run", resume=True).run_id == "quick-1"


@pytest.mark.parametrize("what", ["sweep", "device"])
def test_another_sweep_or_device_is_not_resumed(tmp_path: Path, what: str) -> None:
    _open(tmp_path / "run")
    with pytest.raises(UserError, match=f"is of another {what} than this command's"):
        _open(tmp_path / "run", resume=True, **{what: "other"})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"name": "grid", "description": "d", "seed": 1}, "(name quick, here grid), so"),
        ({"seed": 1, "axes": {"dtype": ["bf16"]}}, "(dtype fp32, here bf16; seed 0, here 1), so"),
        (
            {"axes": {name: [1] for name in "abcdef"}},
            "(dtype fp32, here none; a none, here 1; b none, here 1; c none, here 1; and 3 more), so",
        ),
    ],
    ids=["another preset", "two axes", "everything"],
)
def test_what_differs_is_told_as_far_as_it_helps(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    sweep = {"name": "quick", "description": "a first look", "axes": {"dtype": ["fp32"]}, "seed": 0}
    _open(tmp_path / "run", sweep=sweep)
    with pytest.raises(UserError, match=re.escape(said)):
        _open(tmp_path / "run", sweep={**sweep, **other}, resume=True)


def test_a_real_sweep_recognises_itself_after_json(tmp_path: Path) -> None:
    """Tuples become lists on disk, which must not make a sweep another one."""
    sweep = load("quick", device="cpu")
    _open(tmp_path / "run", sweep=sweep.as_dict())
    assert (
        _open(tmp_path / "run", sweep=load("quick", device="cpu").as_dict(), resume=True).run_id == "quick-1"
    )


DAMAGED = {
    "truncated": (b'{"run_id": "quick-1", ', "no readable run record"),
    "empty": (b"", "no readable run record"),
    "no-text": (b"\xff\xfe\x00", "no readable run record"),
    "a-list": (b"[1, 2]", "no run record"),
    "no-run-id": (b"{}", "no run record"),
}


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, damage: str, resume: bool) -> None:
    content, sentence = DAMAGED[damage]
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"run\.json is {sentence}"):
        _open(tmp_path, resume=resume)
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_run_without_its_shards_folder_is_resumed(tmp_path: Path) -> None:
    folder = _open(tmp_path / "run")
    (folder.path / "shards").rmdir()
    assert _open(tmp_path / "run", resume=True).done() == set()


def _without_shards(path: Path, *names: str) -> RunFolder:
    folder = _open(path)
    for name in names:
        folder.keep(_row(name, started_at="2030-01-01"))
    folder.merge()
    shutil.rmtree(path / "shards")
    return folder


def test_a_run_that_came_without_its_shards_has_those_of_its_merged_file(tmp_path: Path) -> None:
    before = _without_shards(tmp_path / "run", "sdpa", "flash2")
    content = before.merged.read_bytes()
    folder = _open(tmp_path / "run", resume=True)
    assert len(folder.done()) == 2
    assert sorted(file.name for file in folder.path.iterdir()) == ["results.parquet", "run.json", "shards"]
    assert folder.merge().read_bytes() == content


@pytest.mark.parametrize("writes", [0, 1])
def test_what_is_laid_out_in_part_is_not_there_at_all(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _without_shards(tmp_path / "run", "sdpa", "flash2", "lightning2")
    left, write = [writes], store.write

    def interrupted(*arguments: Any, **options: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _open(tmp_path / "run", resume=True)
    assert before.done() == set()
    assert len(_open(tmp_path / "run", resume=True).done()) == 3


def test_a_merged_file_of_another_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    before = _without_shards(tmp_path / "run", "sdpa")
    record = {**before.record, "run_id": "another"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    content = before.merged.read_bytes()
    with pytest.raises(UserError, match=r"results\.parquet is of .*, and this is the run another"):
        _open(tmp_path / "run", resume=True)
    assert before.merged.read_bytes() == content


def test_who_was_quicker_to_lay_it_out_stays(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with whole_folder(tmp_path / "shards") as folder:
        (folder / "ours.parquet").touch()
        (tmp_path / "shards" / "theirs.parquet").touch()
    assert [file.name for file in tmp_path.rglob("*.parquet")] == ["theirs.parquet"]


# ---------------------------------------------------------------- keeping


def test_what_is_kept_is_done(tmp_path: Path) -> None:
    folder = _open(tmp_path / "run")
    folder.keep(_row("sdpa", started_at="2030-01-01"))
    case_id = "sdpa.fwd.B1-H1-N8-D16.fp32"
    assert folder.done() == {case_id}
    assert store.read(folder.shard(case_id)).to_pylist()[0]["case_id"] == case_id
    assert _open(tmp_path / "run", resume=True).done() == {case_id}


def test_a_half_written_shard_is_not_done(tmp_path: Path) -> None:
    """A process killed while writing leaves its partial file behind."""
    folder = _open(tmp_path / "run")
    (folder.path / "shards" / ".sdpa.fwd.B1-H1-N8-D16.fp32.parquet.123.partial").write_bytes(b"PAR1")
    assert folder.done() == set()


def test_the_record_is_extended_on_disk_too(tmp_path: Path) -> None:
    folder = _open(tmp_path / "run")
    extended = folder.with_record(effort={"wall_s": 2.0})
    assert extended.record == {**RECORD, "effort": {"wall_s": 2.0}}
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == extended.record
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["run.json", "shards"]


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        RunFolder(path=tmp_path / "file", record=RECORD).with_record(effort=None)


def test_merged_rows_are_in_the_order_of_measurement_with_the_record(tmp_path: Path) -> None:
    folder = _open(tmp_path / "run")
    folder.keep(_row("sdpa", started_at="2030-01-01T00:00:03"))
    folder.keep(_row("lightning2", started_at="2030-01-01T00:00:01"))
    folder.keep(_row("flash2", started_at="2030-01-01T00:00:02"))
    folder = folder.with_record(environment={"torch": "2"})
    merged = folder.merge()
    assert merged == tmp_path / "run" / "results.parquet"
    table = store.read(merged)
    assert table.column("mechanism").to_pylist() == ["lightning2", "flash2", "sdpa"]
    assert store.records(table) == {"quick-1": {**RECORD, "environment": {"torch": "2"}}}


def test_merging_again_repeats_no_row(tmp_path: Path) -> None:
    folder = _open(tmp_path / "run")
    folder.keep(_row("sdpa", started_at=None))
    folder.merge()
    folder.keep(_row("flash2", started_at=None))
    assert store.read(folder.merge()).num_rows == 2
