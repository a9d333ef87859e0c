"""From the words of a command to the requests that it means; what does not fit is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch

from attnbench.case import Launch
from attnbench.errors import UserError, unknown
from attnbench.measure.environment import pick_device
from attnbench.models import loss as losses_by
from attnbench.models.attention import UnsupportedError, provider_of
from attnbench.models.inference import PHASES, InferenceRequest
from attnbench.models.kept import SOFTMAX_CACHES, CacheKind
from attnbench.models.losses import LossRequest
from attnbench.models.model import CHECKPOINTING
from attnbench.models.shapes import SHAPES, family_of
from attnbench.models.tasks import TASKS, largest_length
from attnbench.models.training import (
    COMPILE_LIMIT_S,
    PRECISIONS,
    WEIGHTS,
    Precision,
    TrainRequest,
)
from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_size, parse_sizes
from attnbench.words import joined

Given = Sequence[str] | None  # the values of an option; None: it was not given
Kind = str  # "cuda" or "cpu"

_ATTENTIONS: Final = {
    "cuda": ("lightning2", "lightning1", "flash2"),
    "cpu": ("lightning2", "lightning1", "sdpa"),
}
_SEQ_LENS: Final = {"cuda": ("1k", "4k", "16k", "64k"), "cpu": ("128", "256", "512")}
_CONTEXTS: Final = {"cuda": ("1k", "8k", "64k", "256k", "1M"), "cpu": ("128", "1k", "4k")}
_TOKENS: Final = {"cuda": "64k", "cpu": "1k"}
_PREFILLED: Final = ("state", "kv")  # of the others, one costs the same and one takes tokens one by one


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What `train-step` was asked for."""

    sizes: Given
    attentions: Given
    seq_lens: Given
    tokens: str | None
    checkpointing: Given
    precision: str | None
    loss: str
    warmup: int
    steps: int
    limit_s: float
    seed: int
    compiled: bool | None = None  # None: on CUDA
    compile_limit_s: float = COMPILE_LIMIT_S

    def requests(self, *, kind: Kind, gpus: int) -> list[TrainRequest]:
        """In the order given, lengths from short to long. Raises UserError for what does not fit."""
        how = parse_names(
            self.checkpointing or ["selective"],
            kind="checkpointing",
            choices=CHECKPOINTING,
            axis="--checkpointing",
        )
        precision = _precision(self.precision, default="bf16")
        device = pick_device(kind)
        losses_by.choose(self.loss, device=device, dtype=WEIGHTS[precision])
        tokens = parse_size(self.tokens or _TOKENS[kind], axis="--tokens")
        return [
            TrainRequest(
                size=size,
                attention=attention,
                seq_len=seq_len,
                tokens=tokens,
                checkpointing=cast(Any, each),
                precision=precision,
                loss=self.loss,
                warmup=self.warmup,
                steps=self.steps,
                limit_s=self.limit_s,
                compile_limit_s=self.compile_limit_s,
                compiled=kind == "cuda" if self.compiled is None else self.compiled,
                gpus=gpus,
                seed=self.seed,
            )
            for size in _sizes(self.sizes, kind=kind)
            for each in how
            for attention in _attentions(self.attentions, kind=kind)
            for seq_len in sorted(parse_sizes(list(self.seq_lens or _SEQ_LENS[kind]), axis="--seq-len"))
        ]


def rounded(requests: Sequence[TrainRequest], *, asked: bool) -> str | None:
    """Where a step is not of the tokens that were meant, as it is of whole sequences; None where none is.

    asked: they were given; by default one sequence may be longer without a word.
    """
    apart = {
        request.seq_len: request.tokens_per_step
        for request in requests
        if request.tokens_per_step != request.tokens and (asked or request.seq_len < request.tokens)
    }
    if not apart:
        return None
    found = joined([f"{tokens:,} tokens at length {seq_len:,}" for seq_len, tokens in apart.items()])
    return f"A step is of whole sequences: {found}, in place of {requests[0].tokens:,}."


def train_series(request: TrainRequest) -> tuple[object, ...]:
    """What requests share that differ in length alone."""
    return (
        request.size,
        request.attention,
        request.checkpointing,
        request.precision,
        request.compiled,
        request.gpus,
    )


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What `inference` was asked for."""

    sizes: Given
    attentions: Given
    caches: Given
    phases: Given
    seq_lens: Given
    batch: str
    prompt: str
    new_tokens: str
    generate_batch: str
    launch: str
    samples: int | None
    precision: str | None
    limit_s: float
    seed: int

    def requests(self, *, kind: Kind) -> list[InferenceRequest]:
        """By phase, size, and what is kept, contexts from short to long. Raises UserError for what does not fit.

        A prefill is measured with a state and with a full cache: interpolated positions cost it nothing, and a
        bounded cache takes in what it has no room for token by token.
        """
        known: tuple[CacheKind, ...] = ("state", *SOFTMAX_CACHES)
        caches = parse_names(self.caches or known, kind="cache", choices=known, axis="--cache")
        phases = parse_names(self.phases or PHASES, kind="phase", choices=PHASES, axis="--phase")
        contexts = sorted(parse_sizes(list(self.seq_lens or _CONTEXTS[kind]), axis="--seq-len"))
        attentions = _attentions(self.attentions, kind=kind, but="lightning1")
        found = [
            self._request(kind, size=size, attention=attention, cache=cache, phase=phase, context=context)
            for phase in phases
            for size in _sizes(self.sizes, kind=kind)
            for attention in attentions
            for cache in caches
            if (cache == "state") == (family_of(attention) == "tnl")
            if phase != "prefill" or cache in _PREFILLED
            for context in (contexts if phase != "generate" else [parse_size(self.prompt, axis="--prompt")])
        ]
        if not found:
            raise UserError(
                f"no attention of {', '.join(attentions)} keeps {', '.join(caches)} in {', '.join(phases)}: a state is "
                "lightning2's, caches are those of flash2 and sdpa"
            )
        return found

    def _request(
        self, kind: Kind, *, size: str, attention: str, cache: str, phase: str, context: int
    ) -> InferenceRequest:
        batch = self.generate_batch if phase == "generate" else self.batch
        option = "--generate-batch" if phase == "generate" else "--batch"
        if self.launch not in list(Launch):
            raise unknown("launch", self.launch, list(Launch))
        return InferenceRequest(
            size=size,
            attention=attention,
            cache=cast(Any, cache),
            phase=cast(Any, phase),
            context=context,
            new_tokens=parse_size(self.new_tokens, axis="--new-tokens"),
            batch=_batch(batch, axis=option),
            precision=_precision(self.precision, default="bf16", among=("bf16", "fp32")),
            launch=Launch(self.launch) if kind == "cuda" else Launch.EAGER,
            samples=self.samples or (1 if phase == "generate" else 3),
            limit_s=self.limit_s,
            seed=self.seed,
        )


def inference_series(request: InferenceRequest) -> tuple[object, ...]:
    """What requests share that differ in context alone."""
    return request.phase, request.size, request.attention, request.cache, request.batch, request.precision


@dataclass(frozen=True, kw_only=True)
class LossPlan:
    """What `losses` was asked for."""

    sizes: Given
    attentions: Given
    tasks: Given
    steps: int
    seq_len: str
    batch: str
    precision: str | None
    limit_s: float
    seed: int

    def requests(self, *, kind: Kind) -> list[LossRequest]:
        """By task, size and attention. Raises UserError for what does not fit."""
        seq_len = parse_size(self.seq_len, axis="--seq-len")
        tasks = parse_names(self.tasks or list(TASKS), kind="task", choices=TASKS, axis="--task")
        for task in tasks:
            longest = largest_length(task)
            if longest is not None and seq_len > longest:
                raise UserError(
                    f"--seq-len: expected at most {longest:,} for the task '{task}', got {seq_len:,}"
                )
        return [
            LossRequest(
                size=size,
                attention=attention,
                task=task,
                steps=self.steps,
                seq_len=seq_len,
                batch=parse_size(self.batch, axis="--batch"),
                precision=_precision(self.precision, default="autocast" if kind == "cuda" else "fp32"),
                limit_s=self.limit_s,
                seed=self.seed,
            )
            for task in tasks
            for size in (_sizes(self.sizes, kind="cpu"))  # a small model on a GPU too
            for attention in _attentions(self.attentions, kind=kind)
        ]


def _sizes(given: Given, *, kind: Kind) -> tuple[str, ...]:
    return parse_names(
        given or ["0.4B" if kind == "cuda" else "tiny"], kind="size", choices=SHAPES, axis="--size"
    )


def _attentions(given: Given, *, kind: Kind, but: str | None = None) -> tuple[str, ...]:
    """Mechanisms that a model takes; one that is not available here is a row that says so."""
    usual = [name for name in _ATTENTIONS[kind] if name != but]
    names = parse_mechanisms(list(given or usual), axis="--attention")
    for name in names:
        try:
            provider_of(name, device=torch.device(kind))
        except UnsupportedError:
            continue
    return names


def _batch(given: str, *, axis: str) -> int | None:
    """So many sequences; None for `full`, of a generation."""
    if given == "full" and axis == "--generate-batch":
        return None
    try:
        return parse_size(given, axis=axis)
    except UserError:
        if axis != "--generate-batch":
            raise
        raise UserError(f"{axis}: expected full, or a whole number such as 64 or 1k, got '{given}'") from None


def _precision(
    given: str | None, *, default: Precision, among: Sequence[Precision] = PRECISIONS
) -> Precision:
    wanted = given or default
    if wanted not in among:
        raise UserError(f"--precision: {unknown('precision', wanted, among)}")
    return cast(Precision, wanted)
