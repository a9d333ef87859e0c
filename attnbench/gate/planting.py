"""Slow-downs of known size, planted in source text, to put a gate to the test.

What a function launches is followed on the device by a kernel that works for a share of the time that it took; behind
a Python function the caller waits. Either way a shape's time grows by that share, whatever the shape, without
calibration. A wait inside of the kernel would not do: other programs on the multiprocessor would use the time. Nor
would a device that only waits: where power limits the clock it cools meanwhile, and the planted kernel runs on a higher
clock than the one it is compared with. What is planted is text, no part of this program: it goes into trees of any
revision and so may call nothing of the project's, its clock neither.
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

# Three kernels, one after the other in the stream. The deadline is computed once, by a program of its own: one of many
# that begins late must not begin to count then. What they multiply looks random, since constant operands draw less
# power. The threads of a program leave the loop together, as a product takes all of them: hence the one time that they
# agree on. The store depends on every product, so that no compiler takes them for useless.
_ON_DEVICE = '''

import triton as planted_triton  # noqa: E402
import triton.language as planted_language  # noqa: E402
from triton.language.extra import cuda as planted_device  # noqa: E402


@planted_triton.jit
def planted_begin(p_times):  # type: ignore
    planted_language.store(p_times, planted_device.globaltimer())


@planted_triton.jit
def planted_deadline(p_times):  # type: ignore
    now = planted_device.globaltimer()
    spent = now - planted_language.load(p_times)
    planted_language.store(p_times + 1, now + spent * {parts} // {of})


@planted_triton.jit
def planted_now():  # type: ignore
    # Threads read the timer one after the other; the latest reading is the same for all of them.
    read = planted_language.inline_asm_elementwise(
        asm="mov.u64 $0, %globaltimer;",
        constraints="=l,r",
        args=[planted_language.arange(0, 128)],
        dtype=planted_language.int64,
        is_pure=False,
        pack=1,
    )
    return planted_language.max(read, axis=0)


@planted_triton.jit
def planted_tile(first):  # type: ignore
    o_row = planted_language.arange(0, 64)
    o_element = first + o_row[:, None] * 64 + o_row[None, :]
    mixed = (o_element * 40503) & 0xFFFF  # 2^16 over the golden ratio: Knuth's multiplicative hash
    return (mixed.to(planted_language.float32) / 32768 - 1).to(planted_language.float16)


@planted_triton.jit
def planted_end(p_times, p_sums):  # type: ignore
    end = planted_language.load(p_times + 1)
    b_a, b_b = planted_tile(0), planted_tile(4096)
    b_sum = planted_language.zeros([64, 64], dtype=planted_language.float32)
    now = planted_now()
    while now < end:
        for _ in planted_language.static_range(4):
            b_sum = planted_language.dot(b_a, b_b, b_sum)
        now = planted_now()
    planted_language.store(p_sums + planted_language.program_id(0), planted_language.sum(b_sum))


def _planted(of):  # type: ignore
    """A slow-down, planted to test the gate."""
    import functools

    import torch

    known = {{}}

    def made(device):  # type: ignore
        # Two programs for each multiprocessor. Made by the first call, which no graph captures.
        programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count
        times = torch.zeros(2, dtype=torch.int64, device=f"cuda:{{device}}")
        return times, torch.zeros(programs, dtype=torch.float32, device=times.device)

    @functools.wraps(of)
    def slower(*given, **named):  # type: ignore
        device = torch.cuda.current_device()
        if device not in known:
            known[device] = made(device)
        times, sums = known[device]
        planted_begin[(1,)](times, num_warps=1)
        result = of(*given, **named)
        planted_deadline[(1,)](times, num_warps=1)
        planted_end[(len(sums),)](times, sums, num_warps=4)
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
