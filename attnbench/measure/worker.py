"""The worker process: takes cases one by one as JSON lines on stdin and answers each with a row on stdout.

It is a process of its own so that a hang, an abort inside a compiler or a corrupted CUDA context costs one case.
Messages in: {"measure": {case fields}, "protocol", "ceilings", "run_id", and options that are true} or
{"ceilings": true}.
Messages out: {"hello": {environment}}, {"ceilings": {...}}, {"row": {...}, "phases_s": {...}, "lost_device": bool}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

import psutil
import torch

from attnbench import store
from attnbench.case import Case, Protocol, Status
from attnbench.measure.ceilings import Ceilings, measure_ceilings
from attnbench.measure.environment import collect, pick_device
from attnbench.measure.runner import measure

# What a message may ask for, as `runner.measure` has it; the worker of another revision may know fewer.
OPTIONS = ("verify_only", "timed_only", "proof_only")

_HOST_MEMORY_SHARE = 0.85


def main() -> None:
    """Measure cases."""
    serve(_answer)


def serve(answer_to: Callable[[dict[str, Any], torch.device], dict[str, Any]]) -> None:
    """Answer each message until stdin closes: it does when the parent ends, however it ends.

    The process's first argument is the device. It ends by itself after an answer with a true "lost_device".
    """
    messages, answers = _private_stdin(), _private_stdout()
    device = pick_device(sys.argv[1])
    if device.type == "cpu":
        _bound_host_memory()
    else:
        torch.cuda.init()
    _send(answers, {"hello": collect(device)})
    for line in messages:
        message = json.loads(line)
        answer = answer_to(message, device)
        _send(answers, answer)
        if answer.get("lost_device"):
            sys.exit(0)  # the parent starts a fresh worker


def _answer(message: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if "ceilings" in message and "measure" not in message:
        return {"ceilings": measure_ceilings(device).as_dict()}
    ceilings = message["ceilings"]
    measurement = measure(
        Case(**message["measure"]),
        protocol=Protocol(**message["protocol"]),
        device=device,
        ceilings=None if ceilings is None else Ceilings(**ceilings),
        **{option: bool(message.get(option, False)) for option in OPTIONS},
    )
    lost = measurement.status is Status.ERROR and device_is_lost(device)
    row = store.row(measurement, run_id=message["run_id"])
    return {"row": row, "phases_s": dict(measurement.phases_s), "lost_device": lost}


def device_is_lost(device: torch.device) -> bool:
    """After an illegal access nothing on the device works any more."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return True
    return False


def _private_stdout() -> TextIO:
    """Keep stdout for answers alone: whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _private_stdin() -> TextIO:
    """Keep stdin for messages alone: a library that reads it finds nothing."""
    messages = os.fdopen(os.dup(0), "r")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return messages


def _bound_host_memory() -> None:
    """Make a CPU case that is too large fail as out of memory instead of taking the machine with it."""
    own = psutil.Process().memory_info()
    limit = own.data + int(_HOST_MEMORY_SHARE * psutil.virtual_memory().available)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
