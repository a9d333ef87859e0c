"""Measure what a figure needs of whole models: by `attnbench model`, in what is left of a budget."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError
from attnbench.options import Exit

LEAST_S = 20.0  # of budget, below which none is begun: a model takes so long to be made

Runner = Callable[[Sequence[str]], tuple[int, str]]  # a command line -> its exit code and stdout


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """How one command ended: cases that its time did not reach (None: it was not begun), or why it failed."""

    left: int | None
    failure: str = ""


def record(command: str, *, folder: Path, remaining_s: float | None, run: Runner | None = None) -> Recorded:
    """Run `attnbench <command>` into a folder. What is there already is not measured again.

    command: as a figure's data has it, `model train-step --size 1B`. remaining_s: of the budget; None: as long as it
    takes. run: calls it; default: in this process, its progress on stderr.
    """
    if remaining_s is not None and remaining_s < LEAST_S:
        return Recorded(left=None)
    words = [*shlex.split(command), "--out", str(folder), "--json"]
    if remaining_s is not None:
        words += ["--minutes", f"{remaining_s / 60:.2f}"]
    code, output = (run or _run)(words)
    try:
        left = int(json.loads(output)["left"])
    except (ValueError, KeyError, TypeError):
        return Recorded(left=0, failure=f"attnbench {command} ended with exit code {code}")
    return Recorded(left=left)


def _run(words: Sequence[str]) -> tuple[int, str]:
    """In this process, which has torch loaded and a worker that may wait. Its faults cost one figure, and no other one.

    Raises KeyboardInterrupt when that is how the command ended.
    """
    from attnbench.models.command import app

    output = io.StringIO()
    with contextlib.redirect_stdout(output), _called(words):
        code = _ended(app, words[1:])
    if code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    return code, output.getvalue()


def _ended(app: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """The exit code of a command; what went wrong is told on stderr."""
    try:
        app(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USAGE
    except Exception:
        traceback.print_exc()
        return 1
    return Exit.FINE


@contextlib.contextmanager
def _called(words: Sequence[str]) -> Iterator[None]:
    """The records say by which command they were made: not by the one that calls it."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before
