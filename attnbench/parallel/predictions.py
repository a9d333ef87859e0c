"""What the model of scaling says of 8, 64 and 1,024 GPUs: as rows, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnbench.case import Status
from attnbench.curves import length_label
from attnbench.parallel.findings import same_line
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.scaling import PREDICTED_RANKS, Scaling
from attnbench.words import rate_text, time_text


def predict(rows: Sequence[ParallelCase], scaling: Scaling) -> list[dict[str, Any]]:
    """Of each mechanism, link and number of ranks: the longest measured sequence, and as many tokens a rank.

    scaling is "strong" (seq_len stays) or "weak" (tokens a rank stay); efficiency is to one rank at the same length
    by the same model, of weak scaling to the speed that one rank has at its share.
    """
    known = [row for row in rows if row.status == Status.OK]
    found = []
    for key, line in scaling.lines.items():
        own = [row for row in known if same_line(row) == key]
        longest = max(row.seq_len for row in own)
        per_rank = longest // max(row.ranks for row in own)
        for kind in ("strong", "weak"):
            for link in scaling.links:
                for ranks in PREDICTED_RANKS:
                    seq_len = longest if kind == "strong" else per_rank * ranks
                    if seq_len < 2 * ranks:
                        continue  # no rank would have tokens enough
                    alone = longest if kind == "strong" else per_rank
                    at: dict[str, Any] = {"seq_len": seq_len, "ranks": ranks, "link": link}
                    speed = line.tokens_per_s(**at)
                    single = line.tokens_per_s(ranks=1, seq_len=alone, link=link)
                    found.append(
                        {
                            "mechanism": key[0],
                            "workload": key[1],
                            "decay": key[6],
                            "scaling": kind,
                            "link": link.name,
                            "ranks": ranks,
                            "seq_len": seq_len,
                            "total_ms": line.total_ms(**at),
                            "exposed_ms": line.exposed_ms(**at),
                            "tokens_per_s": speed,
                            "efficiency": speed / (ranks * single),
                        }
                    )
    return found


def table(found: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row of each prediction."""
    heads = ("mechanism", "scaling", "link", "ranks", "tokens", "tokens/s", "a call", "exposed", "effic.")
    return heads, [
        (
            f"{each['mechanism']} {each['workload']}" + (" (no decay)" if each["decay"] is False else ""),
            each["scaling"],
            each["link"],
            f"{each['ranks']:,}",
            length_label(each["seq_len"]),
            rate_text(each["tokens_per_s"]).removesuffix(" tokens/s"),
            time_text(each["total_ms"]),
            time_text(each["exposed_ms"]),
            _share(each["efficiency"]),
        )
        for each in found
    ]


def _share(value: float) -> str:
    """A share in per cent, of which something is left when it is small."""
    return f"{value:.1%}" if value >= 0.01 else f"{100 * value:.2g}%"
