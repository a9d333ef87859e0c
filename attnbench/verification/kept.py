"""Rows of earlier sittings: a folder's `verify.jsonl`, and whether what it says still holds.

A line is `{"row": ...}`, by the schema of results, or `{"run": ...}`, which says what the rows of that `run_id` rest
on: libraries, device, the seed, and the sources of what checks and of what is checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attnbench
from attnbench.case import Protocol
from attnbench.errors import UserError
from attnbench.executors.lock import run_lock
from attnbench.executors.supervised import Row
from attnbench.mechanism_files import sources
from attnbench.places import name_of, shared
from attnbench.registry import find

FILE = "verify.jsonl"

# Modules and folders of the package that bear on a row: the worker, what is checked, and all that these import.
BEARING = (
    "baselines",
    "case.py",
    "catalogue",
    "errors.py",
    "kernels",
    "measure",
    "mechanism_files.py",
    "providers.py",
    "registry.py",
    "semantics",
    "stats.py",
    "store.py",
    "version.py",
)
_CONFIGS = "ATTNBENCH_CONFIGS"  # names a file that replaces one of the package's
# Of an environment, what no row of `verify` rests on. The sources are looked at themselves, whatever their commit.
_NO_MATTER = ("attnbench", "git", "processor", "cores")


@contextmanager
def keeping(folder: Path) -> Iterator[Kept]:
    """What a folder holds, and the place for more, to this process alone.

    Raises UserError when the folder cannot be written, holds something else by that name, or another process is at it.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UserError(f"cannot write the output folder {folder}: {error.strerror or error}") from error
    try:
        with run_lock(f"verify-{_digest([str(path.resolve()).encode()])}"):
            yield Kept(path, descriptor)
    finally:
        os.close(descriptor)


class Kept:
    """The rows in a file of `keeping`; from several threads, if each keeps its own."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._rows: dict[tuple[str, str], Row] = {}
        self._runs: set[str] = set()
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(descriptor, len(whole))  # of a line that was not written to its end nothing is known
        for number, line in enumerate(whole.splitlines(), start=1):
            self._read(line, number=number)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, case_id: str, *, runs: Iterable[str]) -> Row | None:
        """The row of a case by one of these run_ids."""
        return next((self._rows[run, case_id] for run in sorted(runs) if (run, case_id) in self._rows), None)

    def keep(self, row: Row, *, record: Mapping[str, Any]) -> None:
        """Write a row; it is safe once this returns. record: of its run, as `Records` has it.

        Raises UserError when the disk is full.
        """
        lines = [] if record["run_id"] in self._runs else [{"run": record}]
        self._runs.add(record["run_id"])
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*lines, {"row": dict(row)}])
        try:
            written = os.write(self._descriptor, text.encode())  # at once: lines of threads must not mix
            os.fsync(self._descriptor)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error
        if written < len(text):  # of ASCII
            raise UserError(f"cannot write {self._path}: no space left on device")

    def _read(self, line: bytes, *, number: int) -> None:
        try:
            known = json.loads(line)
            if "run" in known:
                self._runs.add(known["run"]["run_id"])
            else:
                row = known["row"]
                self._rows[row["run_id"], row["case_id"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path}, line {number}, is no row of attnbench verify: choose another folder"
            ) from error


class Records:
    """What rows rest on, by mechanism and environment. The package's sources are read when this is made."""

    def __init__(self, protocol: Protocol) -> None:
        package = Path(attnbench.__file__).parent
        own = [Path(table)] if (table := os.environ.get(_CONFIGS)) else []
        self._protocol = protocol
        self._sources = sources_digest([*(package / name for name in BEARING), *own])
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, mechanism: str, *, environment: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a mechanism's rows in an environment, with the `run_id` that stands for it."""
        key = mechanism, name_of(environment)
        if key not in self._known:
            self._known[key] = self._new(mechanism, environment)
        return self._known[key]

    def _new(self, mechanism: str, environment: Mapping[str, Any]) -> dict[str, Any]:
        provider = find(mechanism).provider_for(str(environment["device_type"]))
        own = [] if isinstance(provider, str) else _elsewhere(provider.target)
        record = {
            "environment": {
                name: value for name, value in shared(environment).items() if name not in _NO_MATTER
            },
            "sources": self._sources,
            "own_sources": sources_digest(own) if own else None,
            "protocol": self._protocol.as_dict(),
        }
        return {"run_id": f"verify-{_digest([json.dumps(record, sort_keys=True).encode()])}", **record}


# ------------------------------------------------------------------------------------------------------------


def _elsewhere(target: str) -> list[Path]:
    """The package of a target "module:function", or its file with those beside it that it imports.

    None where it is attnbench's own.
    """
    top = target.partition(":")[0].partition(".")[0]
    spec = None if top == attnbench.__name__ else importlib.util.find_spec(top)
    if spec is None:
        return []
    folders = spec.submodule_search_locations
    if folders:
        return [Path(folder) for folder in folders]
    return sources(Path(spec.origin)) if spec.origin else []


def sources_digest(paths: Iterable[Path]) -> str:
    """A digest of files, and of Python's and TOML files in folders: of their names there and what they say."""
    parts = []
    for path in paths:
        files = [path] if not path.is_dir() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and (file == path or file.suffix in (".py", ".toml")):
                parts += [str(file.relative_to(path.parent)).encode(), file.read_bytes()]
    return _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}:".encode() + part)
    return found.hexdigest()[:12]
