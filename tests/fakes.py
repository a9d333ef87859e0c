"""Mechanisms that misbehave. `test_worker` installs this file as a package of its own, with entry points.

Not imported by tests: a worker process finds it through `attnbench.mechanisms`, as it would a third party's.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.linear_quadratic import linear_quadratic
from attnbench.registry import Mechanism, Provider


def exits(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    print("about to leave", file=sys.stderr, flush=True)
    os._exit(3)


def segfaults(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return v


def sleeps(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    time.sleep(3600)
    return v


def dawdles(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """Right, but 0.3 s a call."""
    time.sleep(0.3)
    return linear_quadratic(q, k, v, **given)


def raises(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    raise ValueError("no tile fits\nand a second line that nobody needs")


def refuses(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    raise NotImplementedError("not on this processor")


def greedy(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """Asks for as much memory as the worker allows itself in all, without touching it.

    Where the worker has set no limit, -1 bytes are asked for: an error, but no memory error.
    """
    torch.empty(resource.getrlimit(resource.RLIMIT_DATA)[0], dtype=torch.uint8)
    return v


def chatty(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """Right, and prints to stdout by Python and by file descriptor, as a C library does."""
    print('{"row": "not mine to send"}', flush=True)
    os.write(1, b"raw bytes to the descriptor of stdout\n")
    return linear_quadratic(q, k, v, **given)


def wrong(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    return 2 * linear_quadratic(q, k, v, **given)


TARGETS = (exits, segfaults, sleeps, dawdles, raises, refuses, greedy, chatty, wrong)

MECHANISMS = {
    target.__name__: Mechanism(
        name=target.__name__,
        semantics="decay-linear",
        summary="misbehaves",
        cost="N^2",
        providers=(
            Provider(
                target=f"{__name__}:{target.__name__}", distribution="attnbench-fakes", devices=("cpu",)
            ),
        ),
    )
    for target in TARGETS
}


def __getattr__(name: str) -> Mechanism:
    """`<name>_mechanism`: what an entry point names."""
    found = MECHANISMS.get(name.removesuffix("_mechanism"))
    if found is None or not name.endswith("_mechanism"):
        raise AttributeError(name)
    return found
