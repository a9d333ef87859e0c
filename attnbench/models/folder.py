"""The folder of a run of models: a Parquet shard for each case that is done, and a file of each kind of record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from attnbench.errors import UserError
from attnbench.executors.run_folder import whole_folder
from attnbench.models import records
from attnbench.models.records import R
from attnbench.words import joined


@dataclass(frozen=True, kw_only=True)
class Folder(Generic[R]):
    """Where records of one kind go. The same folder goes on where it stopped, and holds other kinds beside them."""

    path: Path
    kind: type[R]

    @property
    def merged(self) -> Path:
        return self.path / records.file_name(self.kind)

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def _shards(self) -> Path:
        return self.path / "shards" / self.kind.KIND

    def open(self, *, device: str) -> None:
        """Make the folder.

        Raises UserError when it cannot be made, or holds records of another device.
        """
        self.make()
        self.lay_out()
        for file in sorted(self._shards.glob("*.parquet"))[:1]:
            there = records.read_environment(file, kind=self.kind).get("device")
            if there is not None and there != device:
                raise UserError(
                    f"{self.path} holds {self.kind.KIND} records of {there}, and this is {device}: choose another "
                    "folder"
                )

    def make(self) -> None:
        """Make it where it is missing. Raises UserError when it cannot be made."""
        try:
            self._shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the output folder {self.path}: {error.strerror or error}"
            ) from error

    def lay_out(self) -> None:
        """Of a folder that came here without its shards, the merged rows as shards: a run goes on behind them.

        Raises UserError for a merged file that is damaged or of several devices, as it would be written over.
        """
        if not self.merged.is_file() or self.done():
            return
        environment = records.read_environment(self.merged, kind=self.kind)
        cases: dict[str, list[R]] = {}
        for row in records.read(self.merged, kind=self.kind):
            cases.setdefault(row.case_id, []).append(row)
        known = (getattr(row, "device", None) for rows in cases.values() for row in rows)
        devices = {str(device) for device in known if device is not None}
        if len(devices) > 1:
            raise UserError(
                f"{self.merged} holds records of {joined(sorted(devices))}, and a run is of one device: choose another "
                "folder"
            )
        with whole_folder(self._shards) as folder:
            for case_id, rows in cases.items():
                records.write(rows, folder / f"{case_id}.parquet", kind=self.kind, environment=environment)

    def begin(self, case_id: str) -> None:
        """Leave a mark that a case has begun; if the process does not live to keep it, `unfinished` tells."""
        self._mark(case_id).touch()

    def unfinished(self, case_id: str) -> bool:
        """Did a process end while it was at this case?"""
        return self._mark(case_id).exists()

    def done(self) -> set[str]:
        """The case_ids that have a shard."""
        return {file.name.removesuffix(".parquet") for file in self._shards.glob("*.parquet")}

    def keep(self, case_id: str, rows: Sequence[R], *, environment: Mapping[str, Any]) -> None:
        """Write the rows of one finished case; they are safe once this returns."""
        records.write(rows, self._shards / f"{case_id}.parquet", kind=self.kind, environment=environment)
        self._mark(case_id).unlink(missing_ok=True)

    def rows(self, case_ids: Sequence[str] | None = None) -> list[R]:
        """Of those cases that are done, in their order; None: of all, by name."""
        done = self.done()
        wanted = sorted(done) if case_ids is None else [name for name in case_ids if name in done]
        return [
            row for name in wanted for row in records.read(self._shards / f"{name}.parquet", kind=self.kind)
        ]

    def merge(self) -> Path:
        """Join the shards into the file of the kind, with the environment of the last one."""
        newest = max(self._shards.glob("*.parquet"), key=lambda file: file.stat().st_mtime)
        environment = records.read_environment(newest, kind=self.kind)
        records.write(self.rows(), self.merged, kind=self.kind, environment=environment)
        return self.merged

    def _mark(self, case_id: str) -> Path:
        return self._shards / f".{case_id}.begun"
