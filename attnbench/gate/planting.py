"""Slow-downs of known size, planted in source text, to put a gate to the test.

What a function launches is followed on the device by a kernel that waits for a share of the time that it took; behind
a Python function the caller waits. Either way a shape's time grows by that share, whatever the shape, without
calibration. A wait inside of the kernel would not do: other programs on the multiprocessor would use the time. What
is planted is text, no part of this program: it goes into trees of any revision and so may call nothing of the
project's, its clock neither.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError

_PARTS = 10_000  # a share is planted in parts of 1e-4: the device counts nanoseconds in whole numbers

_ON_HOST = '''

def _planted(of):  # type: ignore
    """A slow-down, planted to test the gate."""
    import functools
    import time

    @functools.wraps(of)
    def slower(*given, **named):  # type: ignore
        start = time.perf_counter()
        result = of(*given, **named)
        now = time.perf_counter()
        end = now + (now - start) * {parts} / {of}
        while time.perf_counter() < end:
            pass
        return result

    return slower


{function} = _planted({function})
'''

# The wait ends with a store, so that no compiler takes it for useless.
_ON_DEVICE = '''

import triton as planted_triton  # noqa: E402
import triton.language as planted_language  # noqa: E402
from triton.language.extra import cuda as planted_device  # noqa: E402


@planted_triton.jit
def planted_begin(p_times):  # type: ignore
    planted_language.store(p_times, planted_device.globaltimer())


@planted_triton.jit
def planted_end(p_times):  # type: ignore
    start = planted_language.load(p_times)
    now = planted_device.globaltimer()
    end = now + (now - start) * {parts} // {of}
    while now < end:
        now = planted_device.globaltimer()
    planted_language.store(p_times + 1, now)


def _planted(of):  # type: ignore
    """A slow-down, planted to test the gate."""
    import functools

    import torch

    times = {{}}

    @functools.wraps(of)
    def slower(*given, **named):  # type: ignore
        device = torch.cuda.current_device()
        if device not in times:
            times[device] = torch.zeros(2, dtype=torch.int64, device=f"cuda:{{device}}")
        planted_begin[(1,)](times[device], num_warps=1)
        result = of(*given, **named)
        planted_end[(1,)](times[device], num_warps=1)
        return result

    return slower


{function} = _planted({function})
'''


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a slow-down is planted, and the cases that it slows, as a pattern of case_ids.

    on_device: the function launches kernels, whose time counts.
    """

    file: str  # below the root of a checkout
    function: str
    cases: str
    on_device: bool

    def plant(self, root: Path, *, share: float) -> None:
        """Slow the function down by a share of its time, in the checkout at `root`.

        Raises UserError where the file or the function is not there.
        """
        path = root / self.file
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"there is no {self.file} in the tree to plant a slow-down in") from None
        slower = planted(text, function=self.function, share=share, on_device=self.on_device)
        path.write_text(slower, encoding="utf-8")


# By the kind of device: the launch of Lightning-1's kernel, which alone serves both of its directions at every shape
# and on every architecture; the forward of Lightning-2's PyTorch form.
SITES = {
    "cuda": Site(
        file="attnbench/kernels/lightning1.py",
        function="left_product",
        cases="lightning1.[fb]wd.*",
        on_device=True,
    ),
    "cpu": Site(
        file="attnbench/baselines/lightning_torch.py",
        function="lightning2",
        cases="lightning2.fwd.*",
        on_device=False,
    ),
}


def planted(source: str, *, function: str, share: float, on_device: bool) -> str:
    """The source of a module in which a function, or what it launches on the device, takes longer by that share.

    Raises UserError where there is no such function, and for a kernel: the function that launches it is meant.
    """
    found = next(
        (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function), None
    )
    if found is None:
        raise UserError(f"there is no function {function} to plant a slow-down in")
    if any("jit" in ast.unparse(decorator) for decorator in found.decorator_list):
        raise UserError(f"{function} is a kernel: a slow-down is planted in the function that launches it")
    text = _ON_DEVICE if on_device else _ON_HOST
    return source.rstrip("\n") + "\n" + text.format(function=function, parts=round(share * _PARTS), of=_PARTS)
