"""How far processes of the same code differ on this machine, and what change a gate can see through that.

The noise of a case is the standard deviation between the log medians of processes, hence a share of its time. It is
kept in a file per device, outside of any checkout: it belongs to the machine.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

from attnbench.case import Status
from attnbench.comparison import ratios, sides
from attnbench.comparison.command import save
from attnbench.comparison.verdicts import SIGNIFICANCE, percent_text
from attnbench.errors import UserError
from attnbench.words import count_text

FOLDER_VARIABLE = "ATTNBENCH_STATE_DIR"
FEWEST = 3  # processes; fewer say next to nothing of a standard deviation
POWER = 0.8

# What noise depends on: after a change of these it is to be measured again.
_MACHINE = ("device", "GPU unit", "driver", "clocks locked", "highest SM clock", "cache", "launch")


class CaseNoise(BaseModel):
    """noise: a share of the time. detectable: the smallest slow-down, a share, that a gate of `gate_processes` a side
    finds in `POWER` of all trials."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    noise: float
    detectable: float
    median_ms: float
    processes: int


class NoiseRecord(BaseModel):
    """What one file holds. machine: the facts that the noise depends on, by name."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1]
    measured_at: str
    command: list[str]
    gate_processes: int
    machine: dict[str, str]
    cases: dict[str, CaseNoise]

    @property
    def by_case(self) -> dict[str, float]:
        return {name: each.noise for name, each in self.cases.items()}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a check knows of noise: by case_id, and what is wrong with it, in words without a full stop."""

    by_case: Mapping[str, float]
    notices: tuple[str, ...]


def machine_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a run's record that noise depends on."""
    facts = sides.stated(record)
    return {name: facts[name] for name in _MACHINE if name in facts}


def noise_of(frame: pd.DataFrame, *, gate_processes: int) -> dict[str, CaseNoise]:
    """The noise of each case that is ok in at least `FEWEST` runs of a frame of runs of the same code."""
    medians: dict[str, list[float]] = {}
    for name, status, samples in zip(frame["case_id"], frame["status"], frame["samples_ms"], strict=True):
        if status == Status.OK and isinstance(samples, np.ndarray) and len(samples):
            medians.setdefault(str(name), []).append(ratios.log_median(samples))
    enough = {name: np.array(found) for name, found in medians.items() if len(found) >= FEWEST}
    return {
        name: CaseNoise(
            noise=float(found.std(ddof=1)),
            detectable=detectable(float(found.std(ddof=1)), processes=gate_processes, cases=len(enough)),
            median_ms=float(math.exp(found.mean())),
            processes=len(found),
        )
        for name, found in enough.items()
    }


def detectable(noise: float, *, processes: int, cases: int, power: float = POWER) -> float:
    """The smallest slow-down, as a share, that is significant in a share `power` of all comparisons.

    Of Student's t for two sides of `processes` each: the quantiles of the significance and of the power, times the
    standard error (Lachin, Introduction to sample size determination and power analysis, Controlled Clinical Trials 2,
    1981, section 3). The significance is divided by the number of cases, as Benjamini and Hochberg's step does for a
    case that alone changed.
    """
    freedom = 2 * processes - 2
    quantiles = stats.t.ppf(1 - SIGNIFICANCE / cases / 2, freedom) + stats.t.ppf(power, freedom)
    return float(np.expm1(quantiles * noise * math.sqrt(2 / processes)))


def file_of(device: str) -> Path:
    """Where the noise of a device is kept: below ATTNBENCH_STATE_DIR, or the user's folder of states."""
    given = os.environ.get(FOLDER_VARIABLE)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return (Path(given) if given else Path(base) / "attnbench") / "noise" / f"{slug(device)}.json"


def slug(device: str) -> str:
    """A device's name as a file's: `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def read(path: Path) -> NoiseRecord | None:
    """The record in a file; None where there is no file.

    Raises UserError for one that cannot be read or is no such record.
    """
    try:
        return NoiseRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no record of noise: it is no text") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} is no record of noise as attnbench noise writes it ({place + ': ' if place else ''}{first['msg']})"
        ) from error


def write(record: NoiseRecord, path: Path) -> NoiseRecord:
    """Store a record; what is known of other cases on the same machine is kept. Returns what the file holds now."""
    before = read(path)
    kept = before.cases if before is not None and before.machine == record.machine else {}
    whole = record.model_copy(update={"cases": {**kept, **record.cases}})
    save(json.dumps(whole.model_dump(), indent=1, sort_keys=True) + "\n", path)
    return whole


def known(
    record: NoiseRecord | None, *, machine: Mapping[str, str], cases: Iterable[str], path: Path
) -> Known:
    """What of a record holds for these cases on this machine, with a notice of what is missing or stale.

    Stale noise is used all the same, as it widens thresholds, which is the careful side; that of another device is not.
    """
    wanted = list(cases)
    if record is None:
        return Known(
            by_case={},
            notices=(
                f"the noise of this machine is not known ({path} is missing): attnbench noise measures it",
            ),
        )
    changed = [
        f"{name} {record.machine.get(name, 'unknown')} then, {machine.get(name, 'unknown')} now"
        for name in _MACHINE
        if record.machine.get(name) != machine.get(name)
    ]
    notices = []
    if changed:
        notices.append(
            f"the noise in {path} is stale ({'; '.join(changed)}): attnbench noise measures it anew"
        )
    if record.machine.get("device") != machine.get("device"):
        return Known(by_case={}, notices=tuple(notices))
    by_case = {name: value for name, value in record.by_case.items() if name in wanted}
    absent = len(wanted) - len(by_case)
    if absent:
        notices.append(f"the noise of {count_text(absent, 'case')} of {len(wanted)} is not known")
    return Known(by_case=by_case, notices=tuple(notices))


def refuse_below(threshold: float, *, noise: Mapping[str, float], option: str) -> None:
    """Refuse a threshold that chance alone crosses.

    Raises UserError when it is below the noise of a case.
    """
    above = {name: value for name, value in noise.items() if value > threshold}
    if above:
        worst = max(above, key=above.__getitem__)
        raise UserError(
            f"{option} {percent_text(threshold)} is below this machine's noise in {count_text(len(above), 'case')} "
            f"(worst: {worst} {percent_text(above[worst])}): give at least {percent_text(above[worst])}, or leave "
            "those cases out"
        )


def widened(noise: Mapping[str, float], *, threshold: float) -> Sequence[str]:
    """Of the cases whose noise makes their threshold larger, a notice."""
    wide = {name: 2 * value for name, value in noise.items() if 2 * value > threshold}
    if not wide:
        return ()
    worst = max(wide, key=wide.__getitem__)
    verb = "is" if len(wide) == 1 else "are"
    return (
        f"{count_text(len(wide), 'case')} {verb} too noisy for {percent_text(threshold)}: there changes count from "
        f"twice the noise on (at most {percent_text(wide[worst])}, {worst})",
    )
