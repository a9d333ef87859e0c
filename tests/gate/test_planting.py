"""A planted slow-down slows what it should, by what it should, and kernels with one still compile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnbench.errors import UserError
from attnbench.gate.planting import SITES, planted

ROOT = Path(__file__).parent.parent.parent

KERNEL = '''
import triton
import triton.language as tl


@triton.jit
def kernel(p_x, n, BLOCK: tl.constexpr):
    """Adds up n tiles."""
    o = tl.arange(0, BLOCK)
    b_x = tl.zeros([BLOCK], tl.float32)
    for i in range(n):
        b_x += tl.load(p_x + o + i * BLOCK)
    tl.store(p_x + o, b_x)


def launch():
    return kernel
'''

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from planted_module import kernel
source = triton.compiler.ASTSource(
    fn=kernel, signature={"p_x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, constexprs={"BLOCK": 128}
)
print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"].count("%globaltimer"))
"""


def test_a_planted_kernel_compiles_and_reads_the_timer(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "planted_module.py").write_text(planted(KERNEL, function="kernel", share=0.05))
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**variables, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 3  # at the start, at the end, and while it waits


def test_a_planted_kernel_is_the_same_but_for_the_wait() -> None:
    lines = planted(KERNEL, function="kernel", share=0.05).split("\n")
    assert [line for line in lines if "planted" not in line and line] == [
        line for line in KERNEL.split("\n") if line
    ]
    assert "    planted_end = planted_now + (planted_now - planted_start) * 500 // 10000" in lines


def test_a_planted_function_takes_its_share_longer() -> None:
    source = "import time\n\n\ndef work(length):\n    time.sleep(length)\n    return length\n"
    names: dict[str, object] = {}
    exec(planted(source, function="work", share=0.5), names)
    work = names["work"]
    assert callable(work)
    start = time.monotonic()
    assert work(0.1) == 0.1
    assert 0.15 <= time.monotonic() - start < 1


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_the_sites_are_there(site: object) -> None:
    from attnbench.gate.planting import Site

    assert isinstance(site, Site)
    source = (ROOT / site.file).read_text(encoding="utf-8")
    compile(planted(source, function=site.function, share=0.05), site.file, "exec")


def test_what_cannot_be_planted_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no function nothing"):
        planted("x = 1", function="nothing", share=0.05)
    early = KERNEL.replace("    tl.store(p_x + o, b_x)", "    return")
    with pytest.raises(UserError, match="kernel returns before its end"):
        planted(early, function="kernel", share=0.05)
    with pytest.raises(UserError, match="there is no attnbench/"):
        SITES["cpu"].plant(tmp_path, share=0.05)
