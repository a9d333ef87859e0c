"""What a tuning leaves behind: the table, every candidate with its times or its reason, and sentences."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.kernels._configs import Config, Row, ScanConfig, Table, write
from attnbench.tuning.choosing import WORTH, Choice, Entry, Standing, gain

_CONFIG_FIELDS = ("block_c", "block_m", "block_n", "block_e", "num_warps", "num_stages")
_POINT_FIELDS = ("dtype", "head_dim", "batch", "heads", "seq_len")
CSV_COLUMNS = (
    "kernel", "element_size", "key_dim", "programs", "specialised", *_CONFIG_FIELDS, "current", "standing", "reason",
    *_POINT_FIELDS, "samples", "median_ms",
)  # fmt: skip


def row_in_words(row: Row) -> str:
    """`lightning2, 2 bytes, D up to 128, 3 programs`; one program is not mentioned."""
    return f"{row.kernel}, {row.element_size} bytes, D up to {row.key_dim}{kind_in_words(row)}"


def entry_in_words(entry: Entry) -> str:
    """`lightning2, 2 bytes, D up to 64: chunk 32, value tile 64, 4 warps, 4 stages (the table)`."""
    current = " (the table)" if entry.current else ""
    return f"{row_in_words(entry.row)}: {config_in_words(entry.config)}{current}"


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """A candidate for scripts: its row, its configuration, and whether it is the table's own."""
    return {
        "row": dataclasses.asdict(entry.row),
        "config": dataclasses.asdict(entry.config),
        "current": entry.current,
    }


def kind_in_words(row: Row) -> str:
    """What tells the rows for the same inputs apart: `, warps that specialise, 2 programs`."""
    specialised = ", warps that specialise" if row.specialised else ""
    return specialised + (f", {row.programs} programs" if row.programs > 1 else "")


def config_in_words(config: Config) -> str:
    """`chunk 64, value tile 64, 4 warps, 3 stages`."""
    sizes = (
        f"chunk {config.block_c}"
        if isinstance(config, ScanConfig)
        else f"queries {config.block_m}, keys {config.block_n}"
    )
    stages = "1 stage" if config.num_stages == 1 else f"{config.num_stages} stages"
    return f"{sizes}, value tile {config.block_e}, {config.num_warps} warps, {stages}"


def sentences(choices: Sequence[Choice]) -> list[str]:
    """One for each row's outcome, and if there are any one for chunk times that are missing and one for refusals."""
    return [
        text
        for choice in choices
        for text in (_outcome(choice), _chunk_times(choice), _refusals(choice))
        if text
    ]


def table_text(
    choices: Sequence[Choice], *, table: Table, command: str, date: str, environment: Mapping[str, Any]
) -> str:
    """The TOML of `table` with the winners in their rows; its header says where they come from.

    date: UTC, ISO 8601. environment: as `attnbench.measure.environment.collect` records it.
    """
    winners = {c.row: _written(c, table=table) for c in choices if c.winner is not None}
    notes = {c.row: _note(c) for c in choices if c.winner is not None}
    versions = {"attnbench": environment["attnbench"], **environment["versions"]}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("attnbench", "torch", "triton"))
    header = (
        f"Launch configurations for the architecture {table.architecture}, written by\n  {command}\n"
        f"on {environment['device']}, {date}, {shown}.\n"
        "A row with a note passed the fp64 check in that run, and its chunk_us were measured there unless it says\n"
        "otherwise; the others were carried over from the table in use."
    )
    return write(dataclasses.replace(table, rows={**table.rows, **winners}), header=header, notes=notes)


def _written(choice: Choice, *, table: Table) -> Config:
    """What the table says of a winner: a row that stays is not shrunk to the device; chunk times as measured.

    Those of a new row that were not measured are guessed so that plans expect of it what it showed in the race: the
    times of the row before, by the work of a chunk, and by how much faster it was.
    """
    winner = choice.winner
    assert winner is not None
    config = table.rows[winner.row] if winner.current else winner.config
    if not isinstance(config, ScanConfig):
        return config
    if winner.chunk_us:
        return dataclasses.replace(config, chunk_us=winner.chunk_us)
    faster = _gain(winner, choice.current)
    if winner.current or faster is None:
        return config
    guess = tuple(float(f"{us / (1 + faster):.3g}") for us in config.chunk_us)
    return dataclasses.replace(config, chunk_us=guess)


def candidates_csv(choices: Sequence[Choice]) -> str:
    """A line for each candidate and point; one without times for a candidate that has none."""
    text = io.StringIO()
    out = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    out.writeheader()
    for entry in (e for c in choices for e in c.entries):
        out.writerows(_lines(entry))
    return text.getvalue()


def as_json(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """One object for each row: its winner, the margins, where its chunk times are from, and how many were refused."""
    return [
        {
            **dataclasses.asdict(c.row),
            "config": None if c.winner is None else _fields(c.winner),
            "current": None if c.winner is None else c.winner.current,
            "chunk_us_are": _chunk_origin(c),
            "gain_over_table": _gain(c.winner, c.current),
            "gain_over_runner_up": _gain(c.winner, c.runner_up),
            "candidates": len(c.entries),
            "wrong": c.count(Standing.WRONG),
            "failed": c.count(Standing.FAILED),
            "not_tried": c.count(Standing.UNTRIED),
        }
        for c in choices
    ]


def _fields(entry: Entry) -> dict[str, Any]:
    """A configuration's fields; chunk times only where they were measured."""
    fields = dataclasses.asdict(entry.config)
    if "chunk_us" in fields:
        fields["chunk_us"] = list(entry.chunk_us) or None
    return fields


def _lines(entry: Entry) -> list[dict[str, Any]]:
    line = {
        **dataclasses.asdict(entry.row),
        **{name: value for name, value in _fields(entry).items() if name != "chunk_us"},
        "current": entry.current,
        "standing": str(entry.standing),
        "reason": entry.reason,
    }
    times = [
        {
            **dataclasses.asdict(point),
            "samples": len(samples),
            "median_ms": round(statistics.median(samples), 6),
        }
        for point, samples in entry.samples_ms.items()
    ]
    return [{**line, **time} for time in times] or [line]


def _outcome(choice: Choice) -> str:
    where, winner, current = row_in_words(choice.row), choice.winner, choice.current
    if winner is None:
        return f"{where}: no configuration was admitted; the table's row stays as it was, unchecked"
    words = config_in_words(winner.config)
    if winner.current:
        return f"{where}: the table's row stays: {words}{_against(choice)}"
    faster = _gain(winner, current)
    if faster is None or current is None:
        return f"{where}: {words} takes the place of the table's row, which was refused{_against(choice)}"
    return (
        f"{where}: {words} is {faster:.1%} faster than the table's row ({config_in_words(current.config)})"
        f"{_against(choice)}"
    )


def _against(choice: Choice) -> str:
    margin = _gain(choice.winner, choice.runner_up)
    if choice.runner_up is None or margin is None:
        return ""
    if choice.runner_up is choice.current:
        return ""  # it is in the sentence already
    words = config_in_words(choice.runner_up.config)
    if margin < 0:
        faster = f"{_gain(choice.runner_up, choice.winner):.1%} faster"
        return f"; {words} is {faster}, too little for a change, which takes {WORTH:.0%}"
    return f"; the runner-up, {words}, is {margin:.1%} behind"


def _chunk_origin(choice: Choice) -> str | None:
    """Where the chunk times of a winner's row are from; None where there is none, or it has none."""
    winner = choice.winner
    if winner is None or not isinstance(winner.config, ScanConfig):
        return None
    if winner.chunk_us:
        return "measured"
    return "as before" if winner.current else "guessed from the row before"


def _chunk_times(choice: Choice) -> str:
    origin = _chunk_origin(choice)
    if origin in (None, "measured"):
        return ""
    assert choice.winner is not None
    return (
        f"{row_in_words(choice.row)}: chunk times, by which plans choose among rows, were not measured "
        f"({choice.winner.chunk_reason}); those in the table are {origin}"
    )


def _refusals(choice: Choice) -> str:
    total = len(choice.entries)
    counts = (
        (choice.count(Standing.WRONG), "returned wrong numbers and were refused"),
        (choice.count(Standing.FAILED), "did not compile, launch or end and were refused"),
        (choice.count(Standing.UNTRIED), "were not tried: the time was over"),
    )
    parts = [f"{count} {what}" for count, what in counts if count]
    refused = [e for e in choice.entries if e.reason is not None]
    refused.sort(key=lambda e: e.standing is not Standing.WRONG)
    one = f"; one reason: {config_in_words(refused[0].config)}: {refused[0].reason}" if refused else ""
    return f"{row_in_words(choice.row)}: of {total} configurations {', '.join(parts)}{one}" if parts else ""


def _note(choice: Choice) -> str:
    winner = choice.winner
    assert winner is not None
    faster = None if winner.current else _gain(winner, choice.current)
    told = "as before" if winner.current else "new" if faster is None else f"{faster:+.1%} speed"
    text = f"{told}; {winner.score_ms:.4g} ms over {_points(winner)}"
    origin = _chunk_origin(choice)
    return text if origin in (None, "measured") else f"{text}; chunk_us {origin}"


def _points(entry: Entry) -> str:
    return ", ".join(f"{p.dtype} B{p.batch} H{p.heads} N{p.seq_len} D{p.head_dim}" for p in entry.samples_ms)


def _gain(entry: Entry | None, over: Entry | None) -> float | None:
    if entry is None or over is None or entry.score_ms is None or over.score_ms is None:
        return None
    return gain(entry, over=over)
