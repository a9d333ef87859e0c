"""Recorded processes whose truth is known, and a command line to play them through."""

from __future__ import annotations

import datetime
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnbench import cli, store
from attnbench.case import Case, Measurement, Memory, Status
from attnbench.comparison import waivers
from attnbench.gate.noise import FOLDER_VARIABLE
from attnbench.stats import summarize
from attnbench.sweeps.loader import load

TODAY = datetime.date(2026, 11, 22)

SWEEP = """
mechanism = ["linear-quadratic", "sdpa"]
workload = ["fwd"]
dtype = ["fp32"]
seq_len = [16, 32]
batch = [1]
heads = [1]
head_dim = [16]
"""

ENVIRONMENT: Mapping[str, Any] = {
    "device": "a device",
    "device_type": "cpu",
    "gpu": {"name": "a device", "driver": "1.2", "uuid": "unit 1", "max_sm_clock_mhz": 1980.0},
    "versions": {"torch": "2.0"},
    "variables": {},
}


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Player:
    """Writes recordings into a folder and runs commands in it."""

    folder: Path
    cases: Sequence[Case]
    run: Callable[..., Done]
    environment: Mapping[str, Any] = field(default_factory=lambda: ENVIRONMENT)

    def record(
        self,
        name: str,
        *,
        sides: Sequence[str] = ("base", "new"),
        processes: int = 5,
        factors: Mapping[int, float] | None = None,
        ended: Mapping[int, str] | None = None,
        peaks: Mapping[int, int] | None = None,
        without: Sequence[int] = (),
        scatter: float = 0.002,
        seed: int = 0,
        environment: Mapping[str, Any] = ENVIRONMENT,
        launch: str = "eager",
        seconds: float | None = 10.0,
    ) -> str:
        """A file of processes, `processes` a side, as `check` keeps them. What is given by number of a case is new's.

        factors multiply its times, ended is another status than ok, peaks are its bytes; `without` are not measured.
        """
        rows, records = [], {}
        for place, side in enumerate(sides):
            new = side == "new"
            for number in range(1, processes + 1):
                run = f"{name}-{side}-{number}"
                random = np.random.default_rng([seed, place, number])
                for index, case in enumerate(self.cases):
                    times = 2.0 * np.exp(random.normal(0, scatter) + random.normal(0, 0.004, 40))
                    times *= (factors or {}).get(index, 1.0) if new else 1.0
                    status = (ended or {}).get(index, "ok") if new else "ok"
                    peak = (peaks or {}).get(index, 1000) if new else 1000
                    if new and index in without:
                        continue
                    measured = _measurement(case, times, status=status, peak=peak, environment=environment)
                    rows.append(store.row(measured, run_id=run))
                records[run] = {
                    "run_id": run,
                    "created_at": f"2026-11-22T10:{number:02d}:0{place}+00:00",
                    "environment": dict(environment),
                    "protocol": {"cache": "cold", "launch": launch},
                    "gate": {"side": side, "number": number, "tree": side},
                    "effort": {"wall_s": seconds, "phases_s": {"start": 2.0}},
                }
        path = self.folder / f"{name}.parquet"
        store.write(store.to_table(rows, records=records), path)
        return str(path)


def _measurement(
    case: Case, times: Any, *, status: str, peak: int, environment: Mapping[str, Any]
) -> Measurement:
    ok = status == "ok"
    return Measurement(
        case=case,
        status=Status(status),
        reason=None if ok else "planted",
        provider="a library 1.0",
        device=environment["device"],
        timing=summarize(times) if ok else None,
        memory=Memory(peak_bytes=peak if ok else None),
    )


@pytest.fixture
def player(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Player]:
    """A folder with a sweep of four cases, its own state, and a fixed day."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "state"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setattr(waivers, "today", lambda: TODAY)
    (tmp_path / "tiny.toml").write_text(SWEEP)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["attnbench", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert end.value.code is None or isinstance(end.value.code, int)
        return Done(code=end.value.code or 0, out=printed.out, err=printed.err)

    yield Player(folder=tmp_path, cases=load("tiny.toml", device="cpu").cases(), run=run)
    signal.signal(signal.SIGTERM, before)
