"""Processes for small jobs: every job has an answer or a reason, and nobody is left behind.

The functions come from the standard library, as a process of its own must be able to import them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from attnbench.executors.pool import Lost, Pool


def never() -> bool:
    return False


def run(perform: Callable[[Any], Any], *jobs: Any, size: int = 1, limit_s: float = 60.0) -> dict[Any, Any]:
    pool: Pool[Any, Any] = Pool(perform, size=size)
    with pool:
        return dict(pool.run(jobs, limit_s=limit_s, stop=never))


@pytest.fixture(autouse=True)
def nobody_is_left_behind() -> Any:
    yield
    children = psutil.Process().children(recursive=True)
    assert [c.cmdline() for c in children if any("spawn_main" in part for part in c.cmdline())] == []


def test_every_job_has_its_answer() -> None:
    assert run(math.sqrt, 4, 9, 16, size=2) == {4: 2.0, 9: 3.0, 16: 4.0}


def test_a_raising_job_is_lost_with_its_last_words_and_the_others_go_on() -> None:
    found = run(math.sqrt, 4, -1, 16)
    assert (found[4], found[16]) == (2.0, 4.0)
    assert isinstance(found[-1], Lost)
    assert found[-1].reason.startswith("its process ended with exit code 1; last output: ValueError: ")


def test_a_process_that_leaves_is_lost() -> None:
    assert run(os._exit, 3) == {3: Lost(reason="its process ended with exit code 3")}


def test_a_job_that_hangs_is_lost_in_time() -> None:
    # The first job's process may take its time to start; the second is held to the limit alone.
    begun = time.monotonic()
    found = run(time.sleep, 0, 3600, limit_s=0.5)
    assert found == {0: None, 3600: Lost(reason="took longer than 0.5 s and was ended")}
    assert time.monotonic() - begun < 100


def test_when_it_is_time_to_stop_no_job_is_told_of() -> None:
    pool: Pool[Any, Any] = Pool(time.sleep, size=1)
    begun = time.monotonic()
    with pool:
        assert list(pool.run([3600, 3600], limit_s=1e6, stop=lambda: time.monotonic() > begun + 1)) == []
    assert time.monotonic() - begun < 60
