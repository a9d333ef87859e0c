"""Set the stage before kernels are imported: one thread, Triton's interpreter where there is no GPU, own locks."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.interpreter import remember_builtins

# Read when numpy and torch are imported. Tests run side by side, and their tensors are small: with a thread for every
# core in every process, most of the time goes to threads that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many containers tell Python to write no bytecode. Then each of the processes that the tests start compiles the package
# anew, and each run of the tests rewrites all of their assertions, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No deadline for an example: on a busy machine any of them may be late, and that is no finding. Half as many as usual,
# as the suite runs before every commit.
settings.register_profile("attnbench", deadline=None, max_examples=50)
settings.load_profile("attnbench")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported. Who only hands tests to others (pytest-xdist) does not wait for torch."""
    if config.getoption("dist", "no") != "no":
        return
    import torch

    # torch remembers at the first use of a device as a context which functions make tensors. Some tests replace those.
    with torch.device("meta"):
        torch.empty(0)
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated
        remember_builtins()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where nothing else is asked for, a process that has ended its half takes over from the other's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device, and those marked `alone` besides no other test on it; elsewhere they are
    skipped, visibly.
    """
    import torch

    here = torch.cuda.is_available()
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1
    for item in items:
        if item.get_closest_marker("gpu") and not here:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif item.get_closest_marker("alone") and beside:
            item.add_marker(pytest.mark.skip(reason="times the GPU: run it without -n"))


def pytest_collection_finish() -> None:
    """What is there by now stays: libraries, and thousands of tests. Who measures memory collects garbage first, for
    which all of that would be looked through each time, most of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_device_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of parallel tests must not wait for each other's device lock."""
    from attnbench.executors.lock import LOCK_FOLDER_VARIABLE

    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, stdout, stderr."""

    from attnbench import cli

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attnbench", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
