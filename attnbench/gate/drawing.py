"""Gates drawn from pools of recorded processes: how often they alarm, and what they find."""

from __future__ import annotations

import importlib.resources
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attnbench import store
from attnbench.comparison.comparing import compare
from attnbench.comparison.found import Comparison
from attnbench.comparison.verdicts import Verdict, percent_text
from attnbench.errors import UserError
from attnbench.gate import noise
from attnbench.gate.against_itself import found_from
from attnbench.markdown import markdown_table
from attnbench.sweeps.sweep import Sweep
from attnbench.words import count_text, joined

_UNIT = 8  # characters of a card's UUID that tell it apart from a few others


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Gates of one kind: their verdicts by case, one for each gate, and the ratio between the whole pools."""

    pool: str
    gates: int
    a_side: int
    verdicts: Mapping[str, tuple[Verdict, ...]]
    ratios: Mapping[str, float | None]

    def counts(self, pattern: str = "*", *, but: bool = False) -> Counter[Verdict]:
        """Verdicts over all gates, of the cases that a pattern names, or of all `but` them."""
        return Counter(
            verdict
            for name, found in self.verdicts.items()
            if fnmatchcase(name, pattern) is not but
            for verdict in found
        )


def judge(
    pools: Mapping[str, Sequence[pa.Table]], *, unchanged: str, gates: int, a_side: int, seed: int = 0
) -> list[Drawn]:
    """Draw gates for each pool: base from unchanged code, new from the pool, both without replacement.

    Of the unchanged pool new is drawn from what base leaves.
    """
    return [
        _drawn(name, pools[unchanged], pool, same=name == unchanged, gates=gates, a_side=a_side, seed=seed)
        for name, pool in pools.items()
    ]


def keep_sweep(name: str, path: Path) -> None:
    """Copy the sweep to a file, so that another tree measures the same whatever its presets say."""
    given = Path(name)
    if given.suffix == ".toml":
        text = given.read_text(encoding="utf-8")
    else:
        text = (importlib.resources.files("attnbench.sweeps") / "presets" / f"{name}.toml").read_text(
            encoding="utf-8"
        )
    path.write_text(text, encoding="utf-8")


def header(sweep: Sweep, pools: Mapping[str, Sequence[pa.Table]]) -> str:
    """Markdown: what was measured, on what, and how far processes of the same code differ."""
    everything = store.to_frame(store.merge(table for pool in pools.values() for table in pool))
    devices = " and ".join(sorted({str(device) for device in everything["device"].dropna()}))
    counts = ", ".join(f"{len(pool)} of {name}" for name, pool in pools.items())
    unchanged = store.to_frame(store.merge(next(iter(pools.values()))))
    cases = noise.noise_of(unchanged, gate_processes=5)
    quiet = sum(each.noise <= 0.01 for each in cases.values())
    lines = [
        f"# Evidence for the gate: `{sweep.name}` on {devices}",
        f"{count_text(everything['case_id'].nunique(), 'case')}; fresh processes, a run each: {counts}.",
        f"Noise, the standard deviation of process medians of the same code: within 1 % in {quiet} of "
        f"{count_text(len(cases), 'case')}.",
        markdown_table(
            ("case", "noise", "found from, 5 processes a side"),
            [(n, percent_text(c.noise), found_from(c.detectable)) for n, c in sorted(cases.items())],
        ),
    ]
    return "\n\n".join(lines)


def cards(pools: Mapping[str, Sequence[pa.Table]], branch: Mapping[str, Any]) -> list[str]:
    """A sentence about the cards that measured, where they are not one and the same; else none.

    branch: the report of the check on a branch.

    Raises UserError where that is of another GPU model than the processes.
    """
    records = [
        record for pool in pools.values() for table in pool for record in store.records(table).values()
    ]
    of_pools = [noise.machine_of(record) for record in records]
    of_branch = branch.get("machine", {})
    models = {each["device"] for each in of_pools if "device" in each}
    if "device" in of_branch and models and of_branch["device"] not in models:
        raise UserError(
            f"the check on a branch was measured on {of_branch['device']} and the processes on "
            f"{joined(sorted(models))}: evidence is of one GPU model"
        )
    ours, theirs = (
        sorted({each["GPU unit"][:_UNIT] for each in found if "GPU unit" in each})
        for found in (of_pools, [of_branch])
    )
    if len({*ours, *theirs}) < 2:
        return []
    said = f"Cards: the processes are of {joined(ours) or 'unknown ones'}"
    return [f"{said}, the check on a branch is of {joined(theirs) or 'an unknown one'}."]


def markdown(drawn: Drawn, *, planted: str) -> str:
    """Markdown: the gates of one pool."""
    title = f"## {drawn.gates} gates, unchanged against {drawn.pool}, {drawn.a_side} processes a side"
    rows = [
        (
            name,
            "" if drawn.ratios[name] is None else f"{drawn.ratios[name]:.4f}",
            *(
                str(found.count(verdict))
                for verdict in (Verdict.SLOWER, Verdict.UNCLEAR, Verdict.SAME, Verdict.FASTER)
            ),
        )
        for name, found in sorted(drawn.verdicts.items())
    ]
    headings = ("case", "ratio of all processes", "slower", "unclear", "same", "faster")
    alarms = drawn.counts()
    said = f"All cases together: {alarms[Verdict.SLOWER]} slower, {alarms[Verdict.FASTER]} faster."
    if drawn.pool.startswith("planted"):
        meant, others = drawn.counts(planted), drawn.counts(planted, but=True)
        said = (
            f"Planted in {planted}: {meant[Verdict.SLOWER]} of {meant.total()} slower, {meant[Verdict.FASTER]} faster. "
            f"All others: {others[Verdict.SLOWER]} of {others.total()} slower, {others[Verdict.FASTER]} faster."
        )
    return "\n\n".join([title, said, markdown_table(headings, rows)])


def branch_markdown(report: Mapping[str, Any], *, planted: str) -> str:
    """Markdown: what `attnbench check --against` said of a commit with a planted slow-down."""
    slower = {each["case_id"] for each in report["cases"] if each["verdict"] == Verdict.SLOWER}
    meant = {each["case_id"] for each in report["cases"] if fnmatchcase(each["case_id"], planted)}
    exactly = (
        "exactly the planted cases"
        if slower == meant
        else f"{len(slower & meant)} of {len(meant)} planted cases"
    )
    wrong = sorted(slower - meant)
    return "\n\n".join(
        [
            f"## Planted in the source on a commit, `attnbench check --against`, {report['seconds']:.0f} s in all",
            f"Exit code {report['exit_code']}; slower: {exactly}{' and ' + ', '.join(wrong) if wrong else ''}.",
            markdown_table(
                ("case", "ratio", "verdict"),
                [
                    (
                        each["case_id"],
                        "" if each["ratio"] is None else f"{each['ratio']['value']:.4f}",
                        each["verdict"],
                    )
                    for each in report["cases"]
                ],
            ),
        ]
    )


def as_json(drawn: Drawn) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "pool": drawn.pool,
        "gates": drawn.gates,
        "processes_a_side": drawn.a_side,
        "cases": {
            name: {"ratio": drawn.ratios[name], "verdicts": [str(verdict) for verdict in found]}
            for name, found in drawn.verdicts.items()
        },
    }


# ------------------------------------------------------------------------------------------------------------


def _drawn(
    name: str,
    unchanged: Sequence[pa.Table],
    pool: Sequence[pa.Table],
    *,
    same: bool,
    gates: int,
    a_side: int,
    seed: int,
) -> Drawn:
    random = np.random.default_rng([seed, *name.encode()])
    verdicts: dict[str, list[Verdict]] = {}
    for _ in range(gates):
        places = random.permutation(len(unchanged))
        base = [unchanged[place] for place in places[:a_side]]
        rest = [unchanged[place] for place in places[a_side:]]
        chosen = rest if same else [pool[place] for place in random.permutation(len(pool))]
        for each in _compared(base, chosen[:a_side]).cases:
            verdicts.setdefault(each.name, []).append(each.verdict)
    whole = None if same else _compared(unchanged, pool)
    ratios = {} if whole is None else {e.name: e.ratio.value for e in whole.cases if e.ratio is not None}
    return Drawn(
        pool=name,
        gates=gates,
        a_side=a_side,
        verdicts={case: tuple(found) for case, found in verdicts.items()},
        ratios={case: ratios.get(case) for case in verdicts},
    )


def _compared(base: Sequence[pa.Table], new: Sequence[pa.Table]) -> Comparison:
    return compare(store.to_frame(store.merge(base)), store.to_frame(store.merge(new)))
