"""Blocks compiled one by one: torch.compile makes one kernel of what lies between two matrix products.

Blocks that differ in their weights alone share their code, so that a model costs as much compiling as one block of each
kind: TransNormerLLM's first, with its positions, and its others; LLaMA's are all alike. Each is one graph from end to
end, its checkpointing included; what cannot be traced whole is an error here, and never a block that runs uncompiled
and is called compiled.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from attnbench.measure.runner import first_sentence
from attnbench.models.model import LanguageModel


class CompilationError(Exception):
    """torch.compile could not compile a block; the text says why, and what to do."""


def compile_blocks(model: LanguageModel, *, backend: str = "inductor") -> None:
    """Compile each block's forward and backward when it is first called, for each shape anew.

    After checkpointing, which becomes part of the graph, and before FSDP2, whose hooks stay outside of it: both as
    torchtitan does it.
    """
    for block in model.blocks:
        # The method and not the module, as hooks around it must not be traced.
        forward: Any = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=False)
        block.forward = forward


def forget() -> None:
    """Drop compiled code, of other shapes and models: torch refuses to compile a function again and again."""
    torch.compiler.reset()


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """Nothing compiled before is in the way, and nothing compiled inside of this stays."""
    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled blocks run as they are written, inside of this."""
    stance: Any = torch.compiler.set_stance
    with stance("force_eager"):
        yield


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Raises CompilationError for whatever error of torch's compiler comes from inside."""
    # Imported here alone: it is the compiler, seconds to load, and eager steps have no use for it.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        with _unwarned():
            yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        what = f"{type(error).__name__}: {first_sentence(error)}".rstrip(".")
        raise CompilationError(
            f"torch.compile fails on a block ({what}); --no-compile runs it as it is written"
        ) from error


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without torch's warning that selective checkpointing must not hold operators that write in place: ours has none,
    and under torchrun every rank would tell it between the lines of progress."""
    logger = logging.getLogger("torch._higher_order_ops.wrap")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
