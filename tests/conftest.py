"""Set the stage before kernels are imported: one thread, Triton's interpreter where there is no GPU, own locks."""

from __future__ import annotations

import os
from pathlib import Path

# Read when numpy and torch are imported. Tests run side by side, and their tensors are small: with a thread for every
# core in every process, most of the time goes to threads that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# torch remembers at the first use of a device as a context which functions make tensors. Some tests replace those.
with torch.device("meta"):
    torch.empty(0)

# No deadline for an example: on a busy machine any of them may be late, and that is no finding. Half as many as usual,
# as the suite runs before every commit.
settings.register_profile("attnbench", deadline=None, max_examples=50)
settings.load_profile("attnbench")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device; elsewhere they are skipped, visibly."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _own_device_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of parallel tests must not wait for each other's device lock."""
    from attnbench.executors.lock import LOCK_FOLDER_VARIABLE

    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))
