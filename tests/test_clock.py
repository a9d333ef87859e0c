"""Both clocks keep one contract: what a sample holds, and what it does not."""

from __future__ import annotations

import time

import pytest
import torch

from attnbench.case import Cache
from attnbench.measure.clock import open_clock

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
_CYCLES = 20_000_000  # more than 5 ms of any GPU's clock


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("cache", list(Cache))
def test_a_meeting_comes_before_each_sample_and_is_no_part_of_it(kind: str, cache: Cache) -> None:
    order: list[str] = []

    def meet() -> None:
        order.append("meet")
        if kind == "cuda":
            torch.cuda._sleep(_CYCLES)
        else:
            time.sleep(0.005)

    clock = open_clock(device=torch.device(kind), cache=cache)
    samples = clock.batch(lambda: order.append("call"), 3, meet=meet)
    assert order == ["meet", "call"] * 3
    assert min(samples) < 2.0
    assert len(clock.batch(lambda: None, 2)) == 2
