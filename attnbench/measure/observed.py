"""The base of what watches torch's operators from inside a call: which ones ran, which memory they took."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Observer(TorchDispatchMode):
    """A dispatch mode that leaves torch's compiler alone.

    torch wraps the handler of a mode so that its compiler does not look into it, for which the first call imports the
    compiler: 1.5 s of every worker on the CPU. Where something is compiled all the same, its operators are observed as
    before.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch 2.13 asks; earlier versions that do not ask have no use for the answer
