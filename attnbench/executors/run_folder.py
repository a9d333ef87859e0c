"""The folder of a run: its record, its shards, its merged file; and what may go on in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.errors import UserError

_MOST_APART = 4  # differences of two sweeps that are told
_RECORD = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run on disk. `record` is what run.json says: run_id, sweep, protocol, environment, ceilings, ..."""

    path: Path
    record: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.record["run_id"])

    @property
    def merged(self) -> Path:
        return self.path / "results.parquet"

    def shard(self, case_id: str) -> Path:
        return self.path / "shards" / f"{case_id}.parquet"

    def done(self) -> set[str]:
        """The case_ids that have a shard."""
        return {file.name.removesuffix(".parquet") for file in (self.path / "shards").glob("*.parquet")}

    def merged_rows(self) -> list[dict[str, Any]]:
        """Of a folder that came here without its shards, the rows of its merged file; else none.

        Raises UserError for a merged file that is damaged or of another run.
        """
        if self.done() or not self.merged.is_file():
            return []
        rows: list[dict[str, Any]] = store.load_table(self.merged).to_pylist()
        if others := {row["run_id"] for row in rows} - {self.run_id}:
            raise UserError(f"{self.merged} is of {sorted(others)[0]}, and this is the run {self.run_id}")
        return rows

    def lay_out(self) -> None:
        """Of a folder that came here without its shards, the merged rows as shards: the run goes on behind them.

        Raises UserError as `merged_rows` does, as the file would be written over, and where it cannot write.
        """
        if rows := self.merged_rows():
            with whole_folder(self.path / "shards") as folder:
                for row in rows:
                    store.write(store.to_table([row], records={}), folder / f"{row['case_id']}.parquet")

    def keep(self, row: Mapping[str, Any]) -> None:
        """Write one finished case; it is safe once this returns."""
        store.write(store.to_table([row], records={}), self.shard(row["case_id"]))

    def with_record(self, **changes: Any) -> RunFolder:
        """The same folder with its record extended, on disk too."""
        record = {**self.record, **changes}
        write_json(self.path / _RECORD, record)
        return RunFolder(path=self.path, record=record)

    def merge(self) -> Path:
        """Join the shards into `results.parquet`, rows in the order of measurement, the record in the metadata."""
        table = store.load_table(self.path)
        rows = sorted(table.to_pylist(), key=lambda r: (r["started_at"] or "", r["case_id"]))
        store.write(store.to_table(rows, records={self.run_id: dict(self.record)}), self.merged)
        return self.merged


def open_run(path: Path, *, record: Mapping[str, Any], resume: bool) -> RunFolder:
    """A new run folder, or with `resume` the one that is there, if it is of the same sweep and device.

    Raises UserError when the folder holds another run, is no folder, or cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"the output folder {path} is a file")
    there = _read_record(path)
    if there is None:
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"the output folder {path} is not empty and holds no attnbench run; choose another"
            )
        try:
            (path / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the output folder {path}: {error.strerror or error}") from error
        write_json(path / _RECORD, record)
        return RunFolder(path=path, record=record)
    if not resume:
        raise UserError(
            f"the output folder {path} already holds the run {there.get('run_id')}; add --resume to go on with it, "
            "or choose another folder"
        )
    for what in ("sweep", "device"):
        if there.get(what) != record.get(what):
            apart = _apart_words(what, there.get(what), record.get(what))
            raise UserError(
                f"the run in {path} is of another {what} than this command's ({apart}), so it cannot be resumed; "
                "give the same axes and options, or choose another folder"
            )
    with contextlib.suppress(FileExistsError):
        (path / "shards").mkdir()
    folder = RunFolder(path=path, record=there)
    folder.lay_out()
    return folder


def read_run(path: Path) -> RunFolder:
    """The run in a folder, to look at.

    Raises UserError when there is none, or its record is damaged.
    """
    record = _read_record(path)
    if record is None:
        raise UserError(
            f"{path} is no folder of a run (it has no {_RECORD}): give the folder that sweep -o names"
        )
    return RunFolder(path=path, record=record)


def _apart_words(what: str, there: Any, here: Any) -> str:
    """What differs, in words; of another preset its name says all, and a few axes say enough."""
    differing = _apart(what, there, here)
    if differing[0].startswith("name "):
        return differing[0]
    more = len(differing) - _MOST_APART
    return "; ".join([*differing[:_MOST_APART], *([f"and {more} more"] if more > 0 else [])])


def _apart(name: str, there: Any, here: Any) -> list[str]:
    """What differs between two parts of a record: `seed 0, here 3`."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [f"{name} {_shown(there)}, here {_shown(here)}"]
    names = dict.fromkeys([*there, *here])
    return [
        said
        for each in names
        if there.get(each) != here.get(each)
        for said in _apart(each, there.get(each), here.get(each))
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        text = (path / _RECORD).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path / _RECORD}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path / _RECORD} is no readable run record (it is no text)") from error
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path / _RECORD} is no readable run record (line {error.lineno}: {error.msg})"
        ) from error
    if not isinstance(record, dict) or "run_id" not in record:
        raise UserError(f"{path / _RECORD} is no run record (it names no run_id)")
    return record


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; once it is whole it takes the place of `path`, which is empty or missing.

    Where somebody else was quicker, theirs stays. Raises UserError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    except OSError as error:
        if not any(path.glob("*.parquet")):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON, as `write_text` does.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
