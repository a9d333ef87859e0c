"""The process that Nsight Compute watches: warm calls, then one between the marks of the CUDA profiler interface.

    ncu --profile-from-start off ... python -m attnbench.profiling.replay REQUEST.json

The request is that of `attnbench.profiling.subject`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from attnbench.case import Case
from attnbench.measure.environment import pick_device
from attnbench.measure.inputs import prepare
from attnbench.registry import find, support
from attnbench.semantics import SEMANTICS

_WARM_UP = 3  # compiled, tuned, and on the shorter way of a launch


def main(request: Path) -> None:
    """One call of a case, after some that do not count.

    Raises ValueError for a case that has no provider here.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    device = pick_device(asked["device"])
    case = Case(**asked["case"])
    provider = support(case, device=device.type)
    if isinstance(provider, str):
        raise ValueError(provider)
    calls = prepare(
        case,
        provider=provider,
        semantics=SEMANTICS[find(case.mechanism).semantics],
        device=device,
        seed=asked["seed"],
    )
    call = calls.timed(case.workload)
    for _ in range(_WARM_UP):
        call()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
