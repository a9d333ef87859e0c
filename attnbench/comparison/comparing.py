"""From two frames of results to a verdict for each case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attnbench.case import Case, Status, Workload
from attnbench.comparison import picks, ratios, sides
from attnbench.comparison.found import Compared, Comparison, Mean, Ratio, worst_first
from attnbench.comparison.ratios import Effect
from attnbench.comparison.verdicts import (
    SIGNIFICANCE,
    Judged,
    Verdict,
    judge_errors,
    judge_memory,
    judge_status,
    judge_time,
    practical_threshold,
)
from attnbench.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

THRESHOLD = 0.03

# The relative standard deviation of process medians: of all cases, or of each by its case_id; None: unknown.
Noise = float | Mapping[str, float] | None

_ERRORS = ("rel_err_o", "rel_err_dq", "rel_err_dk", "rel_err_dv")
_SIZES = ("batch", "heads", "kv_heads", "seq_len", "head_dim", "value_dim")
_COLUMNS = (
    *("case_id", "run_id", "mechanism", "workload", *_SIZES, "dtype", "causal", "window"),
    *("status", "reason", "samples_ms", "median_ms", "peak_bytes", "kernels", "config", *_ERRORS),
)


def compare(
    base: pd.DataFrame,
    new: pd.DataFrame,
    *,
    threshold: float = THRESHOLD,
    noise: Noise = None,
    significance: float = SIGNIFICANCE,
    allow_different: bool = False,
    resamples: int = ratios.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two frames as `store.load_results` returns them; each run in them is a process.

    threshold: the change that counts, as a share; in a case whose noise is more than half of it, twice the noise.
    noise: of this machine; a side with a single process is judged by it. significance: the share of false alarms
    among the alarms that is put up with. allow_different: compare across devices, libraries and protocols too.

    Raises UserError when the sides share no case, base has none that is ok, a time is not above 0, or a device, driver,
    library that computed something, or protocol differs.
    """
    sides.check_sides(base, new)
    differences = sides.differences(base, new)
    decisive = [each.sentence() for each in differences if each.decisive]
    if decisive and not allow_different:
        raise UserError(
            f"the times are not comparable ({'; '.join(decisive)}); --allow-different compares them all the same"
        )
    told = sides.notices(base, new)
    rows = [_rows_by_case(frame) for frame in (base, new)]
    pairs = [_Pair.of(name, rows) for name in sorted({*rows[0], *rows[1]})]
    effects: dict[str, Effect] = {
        pair.name: pair.effect(noise=_noise_of(noise, pair.name), resamples=resamples, seed=seed)
        for pair in pairs
        if pair.timed
    }
    p = {name: value for name, each in effects.items() if (value := ratios.p_value(each)) is not None}
    q = dict(zip(p, ratios.adjusted(list(p.values())), strict=True))
    found = [
        _compared(
            pair,
            effects.get(pair.name),
            p=p.get(pair.name),
            q=q.get(pair.name),
            cases=len(p),
            limit=practical_threshold(threshold, _noise_of(noise, pair.name)),
            significance=significance,
        )
        for pair in pairs
    ]
    stated = noise if isinstance(noise, float) else None
    return Comparison(
        cases=tuple(sorted(found, key=worst_first)),
        means=tuple(_means(found, effects, confidence=1 - significance)),
        differences=tuple(differences),
        notices=tuple(told),
        threshold=practical_threshold(threshold, stated),
        noise=stated,
        runs=(tuple(sorted(set(base["run_id"]))), tuple(sorted(set(new["run_id"])))),
        significance=significance,
    )


# ------------------------------------------------------------------------------------------------------------

_Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The rows of one case: of base and of new, one for each process."""

    name: str
    case: Case
    base: Sequence[_Row]
    new: Sequence[_Row]

    @classmethod
    def of(cls, name: str, rows: Sequence[Mapping[str, Sequence[_Row]]]) -> _Pair:
        base, new = (side.get(name, ()) for side in rows)
        try:
            case = _case((*base, *new)[0])
        except (ValueError, TypeError) as error:
            raise UserError(f"the row of {name} describes no case: {error}") from error
        return cls(name=name, case=case, base=base, new=new)

    @property
    def judged(self) -> Judged | None:
        """By what is there and how it ended; None when times decide."""
        if not self.base or not self.new:
            side, other = ("base", "new") if self.base else ("new", "base")
            return Judged(
                verdict=Verdict.MISSING, reason=f"it is on the {side} side only; {other} did not measure it"
            )
        ended = [[Status(row["status"]) for row in rows] for rows in (self.base, self.new)]
        reasons = [_first_reason(self.new), _first_reason(self.base)]
        return judge_status(ended[0], ended[1], reason=reasons[0] or reasons[1])

    @property
    def timed(self) -> bool:
        return bool(self.judged is None and _samples(self.base) and _samples(self.new))

    def effect(self, *, noise: float | None, resamples: int, seed: int) -> Effect:
        try:
            return ratios.effect(
                _samples(self.base),
                _samples(self.new),
                name=self.name,
                noise=noise,
                resamples=resamples,
                seed=seed,
            )
        except ValueError as error:
            raise UserError(f"{self.name} has a time that is none: {error}") from error


def _rows_by_case(frame: pd.DataFrame) -> dict[str, list[_Row]]:
    """One row for each case and run, in order of run_id: what is given twice counts once."""
    once: dict[tuple[str, str], _Row] = {}
    for values in zip(*(frame[name].to_numpy(dtype=object) for name in _COLUMNS), strict=True):
        row = dict(zip(_COLUMNS, values, strict=True))
        once.setdefault((str(row["case_id"]), str(row["run_id"])), row)
    found: dict[str, list[_Row]] = {}
    for name, run in sorted(once):
        found.setdefault(name, []).append(once[name, run])
    return found


def _case(row: _Row) -> Case:
    return Case(
        mechanism=str(row["mechanism"]),
        workload=Workload(row["workload"]),
        dtype=str(row["dtype"]),
        causal=bool(row["causal"]),
        window=None if pd.isna(row["window"]) else int(row["window"]),
        **{name: int(row[name]) for name in _SIZES},
    )


def _samples(rows: Sequence[_Row]) -> dict[str, npt.ArrayLike]:
    """The samples of each process that is ok, by run_id; of one that kept none, its median."""
    found: dict[str, npt.ArrayLike] = {}
    for row in rows:
        kept = row["samples_ms"]
        if row["status"] != Status.OK:
            continue
        if isinstance(kept, np.ndarray) and len(kept):
            found[str(row["run_id"])] = kept
        elif (median := _number(row["median_ms"])) is not None:
            found[str(row["run_id"])] = [median]
    return found


def _first_reason(rows: Sequence[_Row]) -> str:
    given = [row["reason"] for row in rows if row["status"] != Status.OK and isinstance(row["reason"], str)]
    return " ".join(given[0].split()).rstrip(".") if given else ""


def _known(rows: Sequence[_Row], name: str) -> float | None:
    """The median of a column over the processes that are ok and know it."""
    values = [_number(row[name]) for row in rows if row["status"] == Status.OK]
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _number(value: Any) -> float | None:
    unknown = bool(pd.isna(value))  # None, NaN or pandas' own
    return None if unknown else float(value)


def _noise_of(noise: Noise, name: str) -> float | None:
    return noise.get(name) if isinstance(noise, Mapping) else noise


def _compared(
    pair: _Pair,
    effect: Effect | None,
    *,
    p: float | None,
    q: float | None,
    cases: int,
    limit: float,
    significance: float,
) -> Compared:
    counts = (len(_samples(pair.base)), len(_samples(pair.new)))
    judged = pair.judged
    if judged is None and effect is None:
        judged = Judged(verdict=Verdict.UNTIMED, reason="it is ok, but a side kept no time of it")
    if judged is None and effect is not None:
        judged = judge_time(
            log_ratio=effect.log_ratio,
            interval=ratios.interval(effect, 1 - significance),
            q=q,
            cases=cases,
            processes=counts,
            threshold=limit,
            significance=significance,
        )
    assert judged is not None
    errors = [{n: v for n in _ERRORS if (v := _known(rows, n)) is not None} for rows in (pair.base, pair.new)]
    return Compared(
        name=pair.name,
        case=pair.case,
        verdict=judged.verdict,
        reason=judged.reason,
        base_ms=_time(pair.base),
        new_ms=_time(pair.new),
        processes=counts,
        ratio=None if effect is None else _ratio(effect, confidence=1 - significance),
        p=p,
        q=q,
        memory=judge_memory(_known(pair.base, "peak_bytes"), _known(pair.new, "peak_bytes")),
        errors=judge_errors(errors[0], errors[1], dtype=pair.case.dtype),
        threshold=limit,
        pick=picks.difference(pair.base, pair.new),
    )


def _time(rows: Sequence[_Row]) -> float | None:
    samples = _samples(rows)
    return math.exp(np.mean([ratios.log_median(each) for each in samples.values()])) if samples else None


def _ratio(effect: Effect, *, confidence: float) -> Ratio:
    low, high = ratios.interval(effect, confidence) or (None, None)
    return Ratio(value=math.exp(effect.log_ratio), low=low, high=high)


def _means(found: Sequence[Compared], effects: Mapping[str, Effect], *, confidence: float) -> list[Mean]:
    groups: dict[tuple[str, str], list[Effect]] = {}
    for each in found:
        if each.name in effects:
            key = (each.case.mechanism, str(each.case.workload))
            groups.setdefault(key, []).append(effects[each.name])
    return [
        Mean(
            mechanism=mechanism,
            workload=workload,
            cases=len(same),
            ratio=_ratio(ratios.mean_effect(same), confidence=confidence),
        )
        for (mechanism, workload), same in sorted(groups.items())
    ]
