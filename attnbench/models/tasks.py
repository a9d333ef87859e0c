"""What small models are trained on: a synthetic language and a public-domain text, the same on every machine."""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

_SYMBOLS: Final = 64  # of the synthetic language
_SUCCESSORS: Final = 4  # that may follow a pair of symbols, all equally often
_LANGUAGE_SEED: Final = 2401  # the language is the same for every seed of a training

# Nats below which no model of the synthetic language can go, once its first two symbols are known.
MARKOV_ENTROPY: Final = math.log(_SUCCESSORS)


def markov(generator: torch.Generator, *, batch: int, length: int) -> Tensor:
    """Sequences of a second-order Markov chain over 64 symbols, int64 [batch, length].

    Each pair of symbols has four possible successors, drawn once for all; which one comes is drawn by `generator`.
    """
    table = _successors()
    choices = torch.randint(_SUCCESSORS, (batch, length), generator=generator)
    sequence = torch.randint(_SYMBOLS, (batch, length), generator=generator)
    for t in range(2, length):
        sequence[:, t] = table[sequence[:, t - 2], sequence[:, t - 1], choices[:, t]]
    return sequence


@functools.cache
def _successors() -> Tensor:
    """int64 [64, 64, 4]; at most eight last symbols behave differently, so that a small model learns it in minutes."""
    generator = torch.Generator().manual_seed(_LANGUAGE_SEED)
    classes = torch.arange(_SYMBOLS) % 8
    table = torch.randint(_SYMBOLS, (8, _SYMBOLS, _SUCCESSORS), generator=generator)
    return table[classes]


def text(generator: torch.Generator, *, batch: int, length: int) -> Tensor:
    """Pieces of the bundled text at random places, as bytes: int64 [batch, length]."""
    whole = _text()
    starts = torch.randint(len(whole) - length + 1, (batch, 1), generator=generator)
    return whole[starts + torch.arange(length)].long()


@functools.cache
def _text() -> Tensor:
    folder = importlib.resources.files("attnbench.models") / "text"
    return torch.frombuffer(bytearray((folder / "genesis.txt").read_bytes()), dtype=torch.uint8)


TASKS: Final[Mapping[str, Callable[..., Tensor]]] = {"markov": markov, "text": text}


def largest_length(task: str) -> int | None:
    """The longest sequence that a task has, less the one token that is only a target; None: no bound."""
    return len(_text()) - 1 if task == "text" else None


def batches(task: str, *, seed: int, batch: int, length: int) -> Iterator[Tensor]:
    """Batches of a task without end, on the CPU: the same ones for the same seed, on every machine."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield TASKS[task](generator, batch=batch, length=length)
