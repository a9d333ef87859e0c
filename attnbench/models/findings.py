"""What the records of models say: a table of each kind, and sentences."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any, TypeVar

from attnbench.case import Status
from attnbench.models.records import Inference, Loss, TrainStep
from attnbench.words import bytes_text, count_text, factor, rate_text, time_text

T = TypeVar("T")
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # headings, rows


def train_line(row: TrainStep) -> str:
    """One finished case on one line."""
    if row.status != Status.OK or row.median_ms is None or row.tokens_per_s is None:
        return f"{row.case_id}: {row.status}: {row.reason}"
    mfu = "" if row.mfu is None else f", MFU {row.mfu:.0%}"
    compiled = row.compiled and row.first_step_ms is not None
    first = f"; compiling and the first step {time_text(row.first_step_ms or 0.0)}" if compiled else ""
    return (
        f"{row.case_id}: {time_text(row.median_ms)} a step, {rate_text(row.tokens_per_s)} per GPU{mfu}{first}"
    )


def inference_line(row: Inference) -> str:
    """One finished case on one line."""
    if row.status != Status.OK or row.median_ms is None or row.tokens_per_s is None:
        return f"{row.case_id}: {row.status}: {row.reason}"
    return f"{row.case_id}: {time_text(row.median_ms)}, {rate_text(row.tokens_per_s)}, batch {row.batch}"


def loss_line(row: Loss) -> str:
    """The last step of a training run on one line."""
    return f"{row.case_id}: loss {row.loss:.3f} in step {row.step}"


def batch_text(row: TrainStep) -> str:
    """The sequences of a step that run together; where they do not all, after the number of such turns: `2 x 32`."""
    if row.batch is None:
        return ""
    return f"{row.batch:,}" if row.micro_batches in (None, 1) else f"{row.micro_batches:,} x {row.batch:,}"


def train_table(rows: Sequence[TrainStep]) -> Table:
    """A row of each case that was measured."""
    heads = (
        "model",
        "attention",
        "seq_len",
        "batch",
        "tokens/s/GPU",
        "spread",
        "MFU",
        "in attention",
        "memory",
    )
    return heads, [
        (
            f"{row.size} {row.checkpointing}" + (" compiled" if row.compiled else "") + _gpus(row),
            row.attention,
            f"{row.seq_len:,}",
            batch_text(row),
            f"{row.tokens_per_s:,.0f}",
            _spread(row),
            _share(row.mfu),
            _share(row.attention_share),
            "" if row.peak_bytes is None else bytes_text(row.peak_bytes),
        )
        for row in rows
        if row.status == Status.OK
    ]


def inference_table(rows: Sequence[Inference]) -> Table:
    """A row of each case that was measured."""
    heads = (
        "phase",
        "size",
        "attention",
        "keeps",
        "context",
        "batch",
        "tokens/s",
        "time",
        "kept",
        "peak memory",
    )
    return heads, [
        (
            row.phase,
            row.size,
            row.attention,
            row.cache,
            f"{row.context:,}",
            f"{row.batch:,}",
            f"{row.tokens_per_s:,.0f}",
            "" if row.median_ms is None else time_text(row.median_ms),
            "" if row.kept_bytes is None else bytes_text(row.kept_bytes),
            "" if row.peak_bytes is None else bytes_text(row.peak_bytes),
        )
        for row in rows
        if row.status == Status.OK
    ]


def loss_table(rows: Sequence[Loss]) -> Table:
    """A row of each training run."""
    heads = ("task", "size", "attention", "steps", "first loss", "last loss", "mean of the last tenth")
    found: list[tuple[str, ...]] = []
    for run in _grouped(rows, key=lambda row: row.case_id):
        tail = run[-max(1, len(run) // 10) :]
        mean = sum(row.loss for row in tail) / len(tail)
        first = run[0]
        values = (f"{len(run)}", f"{first.loss:.4f}", f"{run[-1].loss:.4f}", f"{mean:.4f}")
        found.append((first.task, first.size, first.attention, *values))
    return heads, found


def train_sentences(rows: Sequence[TrainStep]) -> list[str]:
    """How constant each speed is over the lengths, and how far apart two are at the longest length of both."""
    sentences = []
    for same in _grouped(rows, key=lambda r: (r.size, r.checkpointing, r.precision, r.gpus, r.compiled)):
        first = same[0]
        what = f"{first.size}, checkpointing {first.checkpointing}" + (", compiled" if first.compiled else "")
        if first.gpus > 1:
            what += f", each of {first.gpus} GPUs"
        lines = _grouped(same, key=lambda r: r.attention)
        sentences += [f"{what}: {s}" for line in lines if (s := _constancy(line, lambda r: r.seq_len))]
        for one, other in combinations(lines, 2):
            if sentence := _ratio(one, other):
                sentences.append(f"{what}: {sentence}")
    return sentences + _missing(rows)


def _ratio(one: Sequence[TrainStep], other: Sequence[TrainStep]) -> str | None:
    """Of two mechanisms: the speeds at the longest length that both were measured at."""
    speeds = [
        {r.seq_len: r.tokens_per_s for r in rows if r.tokens_per_s is not None} for rows in (one, other)
    ]
    common = speeds[0].keys() & speeds[1].keys()
    if not common:
        return None
    longest = max(common)
    ratio = speeds[0][longest] / speeds[1][longest]
    first, second = one[0].attention, other[0].attention
    if ratio < 1:
        first, second, ratio = second, first, 1 / ratio
    return f"at {longest:,} tokens {first} trains at {factor(ratio)} the speed of {second}."


def inference_sentences(rows: Sequence[Inference]) -> list[str]:
    """How constant speed and memory are over the contexts, by what is kept."""
    sentences = []
    for line in _grouped(
        rows, key=lambda r: (r.phase, r.size, r.attention, r.cache, r.precision, r.new_tokens)
    ):
        first = line[0]
        what = f"{first.phase}, {first.size}, {first.cache}"
        if first.phase == "generate":
            what += f", {first.new_tokens:,} new tokens"
        constancy = _constancy(line, lambda r: r.context)
        if constancy:
            sentences.append(f"{what}: {constancy}{_kept(line)}")
    return sentences + _generations(rows) + _missing(rows)


def _generations(rows: Sequence[Inference]) -> list[str]:
    """What a state puts out beside each cache, from the same prompt to as many new tokens."""
    sentences = []
    known = [row for row in rows if row.phase == "generate" and row.tokens_per_s]
    for same in _grouped(known, key=lambda r: (r.size, r.precision, r.context, r.new_tokens)):
        for state in (row for row in same if row.cache == "state"):
            sentences += [
                f"generate, {state.size}, {state.new_tokens:,} new tokens: a state with {state.batch:,} sequences puts "
                f"out {factor((state.tokens_per_s or 0.0) / row.tokens_per_s)} the tokens of {row.cache} with "
                f"{row.batch:,}."
                for row in same
                if row.cache != "state" and row.tokens_per_s
            ]
    return sentences


def _kept(line: Sequence[Inference]) -> str:
    """What decoding keeps at the shortest and at the longest context."""
    sizes = [row.kept_bytes for row in line if row.kept_bytes is not None]
    if line[0].phase != "decode" or not sizes:
        return ""
    if min(sizes) == max(sizes):
        return f" It keeps {bytes_text(sizes[0])}{' at each' if len(sizes) > 1 else ''}."
    return f" It keeps {bytes_text(min(sizes))} to {bytes_text(max(sizes))}."


def loss_sentences(rows: Sequence[Loss], missing: Sequence[str]) -> list[str]:
    """The largest difference between any two curves over the same tokens, and where it is."""
    sentences = []
    for same in _grouped(rows, key=lambda r: (r.task, r.size, r.seed, r.precision, r.seq_len, r.batch)):
        curves = _grouped(same, key=lambda r: r.attention)
        for one, other in combinations(curves, 2):
            pairs = list(zip(one, other, strict=False))  # of unequal lengths: as far as both go
            a, b = max(pairs, key=lambda pair: abs(pair[0].loss - pair[1].loss))
            names = f"{one[0].attention} and {other[0].attention}"
            if a.loss == b.loss:
                sentences.append(
                    f"{same[0].task}, {same[0].size}: the losses of {names} are the same in all "
                    f"{count_text(len(pairs), 'step')}."
                )
                continue
            sentences.append(
                f"{same[0].task}, {same[0].size}: the losses of {names} differ by at most {abs(a.loss - b.loss):.2g} "
                f"nats in {count_text(len(pairs), 'step')} (step {a.step}), and by "
                f"{abs(pairs[-1][0].loss - pairs[-1][1].loss):.2g} in the last."
            )
    return [*sentences, *(f"Not measured: {reason}" for reason in missing)]


def _constancy(line: Sequence[Any], length: Callable[[Any], int]) -> str | None:
    """Highest and lowest speed of one line, and over which lengths."""
    known = [row for row in line if row.tokens_per_s is not None]
    if not known:
        return None
    slowest, fastest = (pick(known, key=lambda row: row.tokens_per_s) for pick in (min, max))
    name = known[0].attention
    if len(set(map(length, known))) == 1:
        return f"{name} runs at {rate_text(known[0].tokens_per_s)} at {length(known[0]):,} tokens."
    return (
        f"{name} runs at {rate_text(slowest.tokens_per_s)} ({length(slowest):,} tokens) to "
        f"{rate_text(fastest.tokens_per_s)} ({length(fastest):,}), "
        f"{factor(fastest.tokens_per_s / slowest.tokens_per_s)} from end to end."
    )


def _missing(rows: Iterable[TrainStep | Inference]) -> list[str]:
    return [f"Not measured: {r.case_id}: {r.status}: {r.reason}" for r in rows if r.status != Status.OK]


def _spread(row: TrainStep) -> str:
    """p90 less p10 over the median; nothing of one sample, which has none."""
    if len(row.samples_ms or ()) < 2 or row.p10_ms is None or row.p90_ms is None or not row.median_ms:
        return ""
    return f"{(row.p90_ms - row.p10_ms) / row.median_ms:.1%}"


def _gpus(row: TrainStep) -> str:
    """That it ran on several; nothing of one."""
    return f" {row.gpus} GPUs" if row.gpus > 1 else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _grouped(rows: Iterable[T], *, key: Callable[[T], Hashable]) -> list[list[T]]:
    """Rows of one key together, groups and rows in the order of their appearance."""
    groups: dict[Hashable, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
