"""A planted slow-down slows what it should, by what it should, and its kernels compile."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attnbench.case import Cache, Launch
from attnbench.errors import UserError
from attnbench.gate.planting import SITES, Site, planted
from attnbench.measure.clock import CudaClock
from attnbench.measure.runner import launched

ROOT = Path(__file__).parent.parent.parent

LAUNCHES = '''
"""A module that launches."""


def work(x):
    """Multiplies for half a millisecond or more."""
    return x @ x @ x
'''

# Compiled as for an H200, which needs no GPU; of each kernel the PTX.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
import planted_module
for name in ("planted_begin", "planted_deadline", "planted_end"):
    kernel = getattr(planted_module, name)
    signature = {"p_times": "*i64", "p_sums": "*fp32"}
    source = triton.compiler.ASTSource(fn=kernel, signature={k: signature[k] for k in kernel.arg_names}, constexprs={})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    with open(f"{name}.ptx", "w") as file:
        file.write(compiled.asm["ptx"])
"""


def _loops(ptx: str) -> list[str]:
    """The bodies of all loops: from a label to a jump back to it."""
    return [
        match[0]
        for match in re.finditer(r"^(\$L__BB\w+):(?:.*\n)+?.*\bbra(?:\.uni)?\s+\1;", ptx, re.MULTILINE)
    ]


def test_the_planted_kernels_compile_and_multiply_until_the_timer_says_so(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    text = planted(LAUNCHES, function="work", share=0.05, on_device=True)
    assert text.startswith(LAUNCHES.rstrip("\n"))
    assert "p_times + 1, now + spent * 500 // 10000)\n" in text
    (tmp_path / "planted_module.py").write_text(text)
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**variables, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    begin, deadline, end = (
        (tmp_path / f"planted_{name}.ptx").read_text() for name in ("begin", "deadline", "end")
    )
    assert begin.count("%globaltimer") == deadline.count("%globaltimer") == 1
    assert not _loops(begin + deadline)
    (work,) = (loop for loop in _loops(end) if "%globaltimer" in loop)
    assert "wgmma.mma_async" in work
    # All threads leave together: they compare what they read from shared memory, behind a barrier.
    assert work.rindex("ld.shared") > work.rindex("bar.sync") > work.index("%globaltimer")
    assert "st.global" in end[end.index(work) + len(work) :]


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("launch", Launch)
def test_a_planted_launch_takes_its_share_longer(tmp_path: Path, launch: Launch) -> None:
    """The device counts in steps of up to a microsecond, and three kernels begin and end beside: 3 % at the most."""
    device = torch.device("cuda", 0)
    x = torch.randn(4096, 4096, device=device, dtype=torch.float16)
    times = {}
    for share in (0.0, 0.5):
        path = tmp_path / f"planted_{share * 10:.0f}.py"
        path.write_text(planted(LAUNCHES, function="work", share=share, on_device=True))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        clock = CudaClock(device=device, cache=Cache.COLD)
        call = launched(functools.partial(functools.partial, module.work, x), launch=launch)
        clock.batch(call, 20)
        times[share] = statistics.median(clock.batch(call, 50))
    assert 1.47 <= times[0.5] / times[0.0] <= 1.53


def test_a_planted_function_takes_its_share_longer() -> None:
    source = "import time\n\n\ndef work(length):\n    time.sleep(length)\n    return length\n"
    names: dict[str, object] = {}
    exec(planted(source, function="work", share=0.5, on_device=False), names)
    work = names["work"]
    assert callable(work)
    start = time.monotonic()
    assert work(0.1) == 0.1
    assert 0.15 <= time.monotonic() - start < 1


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_the_sites_are_there(site: Site) -> None:
    source = (ROOT / site.file).read_text(encoding="utf-8")
    slower = planted(source, function=site.function, share=0.05, on_device=site.on_device)
    compile(slower, site.file, "exec")


def test_what_cannot_be_planted_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no function nothing"):
        planted("x = 1", function="nothing", share=0.05, on_device=False)
    kernel = "@triton.jit\ndef kernel(p_x):\n    pass\n"
    with pytest.raises(UserError, match="kernel is a kernel: a slow-down is planted in the function that"):
        planted(kernel, function="kernel", share=0.05, on_device=True)
    with pytest.raises(UserError, match="there is no attnbench/"):
        SITES["cpu"].plant(tmp_path, share=0.05)
