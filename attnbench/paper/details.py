"""What stands behind measured points: who computed them in which run, and of whole models a row for each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.case import Status
from attnbench.models.findings import batch_text
from attnbench.models.records import Inference, Record, TrainStep
from attnbench.models.shapes import SHAPES
from attnbench.paper.tables import Table
from attnbench.words import bytes_text, rate_text

if TYPE_CHECKING:
    import pandas as pd


def what_ran(frames: Sequence[pd.DataFrame], *, mechanisms: set[str]) -> tuple[Table, ...]:
    """Who computed what in which run, of the mechanisms of a figure; a row for each run and provider."""
    rows: dict[tuple[str, ...], None] = {}
    for frame in frames:
        records: Mapping[str, Mapping[str, object]] = frame.attrs.get("runs", {})
        ok = frame[(frame["status"] == Status.OK) & frame["mechanism"].isin(mechanisms)]
        seen = ok[["mechanism", "provider", "device", "run_id"]].drop_duplicates().itertuples(index=False)
        for mechanism, provider, device, run in seen:
            known = records.get(str(run), {})
            told = [mechanism, provider, device, run, known.get("created_at")]
            rows[tuple(str(each) if isinstance(each, str) else "" for each in told)] = None
    headings = ("mechanism", "provider", "device", "run", "begun")
    return (Table(title="**What ran**", headings=headings, rows=tuple(rows)),) if rows else ()


def details(rows: Sequence[Record]) -> tuple[Table, ...]:
    """Tables of the training steps and of the inference among some records; losses are all in their curves."""
    steps = [_step(row) for row in sorted((r for r in rows if isinstance(r, TrainStep)), key=_step_order)]
    phases = [_phase(row) for row in sorted((r for r in rows if isinstance(r, Inference)), key=_phase_order)]
    found = {
        "**Training steps** (MFU: model FLOPs over the data sheet's rate; attention: its share of the step)": steps,
        "**Inference**": phases,
    }
    return tuple(_table(title, cells) for title, cells in found.items() if cells)


def _step_order(row: TrainStep) -> tuple[Any, ...]:
    """By model, then by what else is chosen, and the lengths of each ascending."""
    return *_model_order(row), row.checkpointing, str(row.compiled), row.precision, row.gpus, row.seq_len


def _phase_order(row: Inference) -> tuple[Any, ...]:
    return *_model_order(row), row.cache, row.phase, row.precision, row.context, row.new_tokens or 0


def _model_order(row: TrainStep | Inference) -> tuple[Any, ...]:
    sizes = list(SHAPES)
    place = sizes.index(row.size) if row.size in sizes else len(sizes)
    return place, row.size, row.model, row.attention


def _step(row: TrainStep) -> Mapping[str, str]:
    return {
        "size": row.size,
        "model": row.model,
        "attention": row.attention,
        "tokens": f"{row.seq_len:,}",
        "status": _status(row.status, row.reason),
        "tokens/s per GPU": _rate(row.tokens_per_s),
        "10 to 90 % of the steps": _spread(row),
        "MFU": _share(row.mfu),
        "attention's share": _share(row.attention_share),
        "peak memory": _bytes(row.peak_bytes),
        "batch": batch_text(row),
        "checkpointing": row.checkpointing,
        "compiled": "" if row.compiled is None else "yes" if row.compiled else "no",
        "precision": row.precision,
        "GPUs": str(row.gpus),
    }


def _phase(row: Inference) -> Mapping[str, str]:
    return {
        "size": row.size,
        "model": row.model,
        "keeps": row.cache,
        "phase": row.phase,
        "context": f"{row.context:,}",
        "new tokens": "" if row.new_tokens is None else f"{row.new_tokens:,}",
        "status": _status(row.status, row.reason),
        "batch": "" if row.batch is None else f"{row.batch:,}",
        "tokens/s": _rate(row.tokens_per_s),
        "peak memory": _bytes(row.peak_bytes),
        "kept (with room for what is decoded)": _bytes(row.kept_bytes),
        "precision": row.precision,
    }


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    return Table(title=title, headings=tuple(rows[0]), rows=tuple(tuple(row.values()) for row in rows))


def _status(status: str, reason: str | None) -> str:
    """With the first sentence of the reason: what an allocator adds to it belongs to that moment."""
    return f"{status}: {reason.partition('. ')[0]}" if reason else status


def _rate(value: float | None) -> str:
    return "" if value is None else rate_text(value).removesuffix(" tokens/s")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _bytes(value: int | None) -> str:
    return "" if value is None else bytes_text(value)


def _spread(row: TrainStep) -> str:
    """How far the speed of single steps lies from that of the median."""
    if row.p10_ms is None or row.p90_ms is None or row.median_ms is None:
        return ""
    return f"{row.median_ms / row.p90_ms - 1:+.1%} to {row.median_ms / row.p10_ms - 1:+.1%}"
