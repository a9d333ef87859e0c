"""Slow-downs of known size, planted in source text, to put a gate to the test.

In a Triton kernel every program waits at its end for a share of the time that it took; in a Python function the caller
does. Either way a shape's time grows by that share, whatever the shape, without calibration. What is planted is text,
no part of this program: it goes into trees of any revision and so may call nothing of the project's, its clock neither.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError

_PARTS = 10_000  # a share is planted in parts of 1e-4: kernels count nanoseconds in whole numbers

_IN_KERNEL_BEFORE = "planted_start = planted_device.globaltimer()"
_IN_KERNEL_AFTER = """\
planted_now = planted_device.globaltimer()
planted_end = planted_now + (planted_now - planted_start) * {parts} // {of}
while planted_now < planted_end:
    planted_now = planted_device.globaltimer()"""

_AROUND_FUNCTION = '''

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


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a slow-down is planted, and the cases that it slows, as a pattern of case_ids."""

    file: str  # below the root of a checkout
    function: str
    cases: str

    def plant(self, root: Path, *, share: float) -> None:
        """Slow the function down by a share of its time, in the checkout at `root`.

        Raises UserError where the file or the function is not there.
        """
        path = root / self.file
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"there is no {self.file} in the tree to plant a slow-down in") from None
        path.write_text(planted(text, function=self.function, share=share), encoding="utf-8")


# By the kind of device: the kernel of Lightning-1, which alone serves both of its directions at every shape and on
# every architecture; the forward of Lightning-2's PyTorch form.
SITES = {
    "cuda": Site(
        file="attnbench/kernels/lightning1.py", function="lightning1_kernel", cases="lightning1.[fb]wd.*"
    ),
    "cpu": Site(
        file="attnbench/baselines/lightning_torch.py", function="lightning2", cases="lightning2.fwd.*"
    ),
}


def planted(source: str, *, function: str, share: float) -> str:
    """The source of a module in which a function, a Triton kernel or another, takes longer by that share.

    Raises UserError where there is no such function, and for a kernel that returns before its end.
    """
    found = next(
        (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function), None
    )
    if found is None:
        raise UserError(f"there is no function {function} to plant a slow-down in")
    parts = round(share * _PARTS)
    if not any("jit" in ast.unparse(decorator) for decorator in found.decorator_list):
        return source.rstrip("\n") + "\n" + _AROUND_FUNCTION.format(function=function, parts=parts, of=_PARTS)
    if any(isinstance(node, ast.Return) for node in ast.walk(found)):
        raise UserError(f"{function} returns before its end, so nothing can be planted there")
    lines = source.split("\n")
    first, last = found.body[1 if ast.get_docstring(found) else 0], found.body[-1]
    after = _indented(_IN_KERNEL_AFTER.format(parts=parts, of=_PARTS), first.col_offset)
    lines[last.end_lineno : last.end_lineno] = after
    lines[first.lineno - 1 : first.lineno - 1] = _indented(_IN_KERNEL_BEFORE, first.col_offset)
    # Behind the imports, where the first definition begins: what is above must not move.
    start = found.decorator_list[0].lineno - 1
    lines[start:start] = ["from triton.language.extra import cuda as planted_device  # noqa: E402", "", ""]
    return "\n".join(lines)


def _indented(text: str, columns: int) -> list[str]:
    return [" " * columns + line for line in text.split("\n")]
