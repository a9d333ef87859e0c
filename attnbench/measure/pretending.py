"""GPUs that are not there, so that whatever hands work to GPUs can be tried on a machine without any.

`ATTNBENCH_PRETEND_GPUS="node-a:H200,H200"` makes this machine a node of that name with two GPUs of that model. Sweeps
for the CPU then run one worker for each; what they measure is the processor, and their rows say `H200 (pretended)`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from attnbench.errors import UserError

VARIABLE = "ATTNBENCH_PRETEND_GPUS"
VISIBLE = "CUDA_VISIBLE_DEVICES"  # here too it says which of them a process has


@dataclass(frozen=True, kw_only=True)
class Pretended:
    """A node with GPUs, by name and by the model of each."""

    node: str
    models: tuple[str, ...]

    def seen(self) -> tuple[int, ...]:
        """The indices of the GPUs that this process may see, one at least.

        Raises UserError where it names one that is not there.
        """
        given = os.environ.get(VISIBLE)
        if given is None:
            return tuple(range(len(self.models)))
        for name in given.split(","):
            if not name.isdigit() or int(name) >= len(self.models):
                raise UserError(
                    f"{VISIBLE} names '{name}', and {VARIABLE} pretends {len(self.models)} GPUs, from 0 on"
                )
        return tuple(int(name) for name in given.split(","))

    def own(self) -> tuple[int, str]:
        """The index and the device name of the first GPU that this process may see.

        Raises UserError as `seen` does.
        """
        first = self.seen()[0]
        return first, f"{self.models[first]} (pretended)"


def pretended() -> Pretended | None:
    """The node that the environment makes of this machine; None where it says nothing.

    Raises UserError for a text that is no `node:model,model`.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    node, _, given = text.partition(":")
    models = tuple(model.strip() for model in given.split(","))
    if not node or not all(models):
        raise UserError(f"{VARIABLE} is '{text}'; expected a node and its GPUs, as in node-a:H200,H200")
    return Pretended(node=node, models=models)
