"""What only a card can show: the kernels in the models, captured steps, bf16, the fused loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from attnbench.case import Launch
from attnbench.models.inference import InferenceRequest, measure_inference
from attnbench.models.model import CHECKPOINTING, build
from attnbench.models.training import TrainRequest, measure_train_step

pytestmark = pytest.mark.gpu
STEP = TrainRequest(
    size="tiny", attention="lightning2", seq_len=2000, tokens=8000, checkpointing="selective", precision="bf16",
)  # fmt: skip
DECODE = InferenceRequest(
    size="tiny", attention="lightning2", cache="state", phase="decode", context=3000, new_tokens=5, batch=3,
    precision="bf16", launch=Launch.GRAPH,
)  # fmt: skip
KINDS = [("lightning2", "state"), *(("flash2", kind) for kind in ("kv", "kv-interpolated", "kv-streaming"))]


@pytest.mark.parametrize("attention", ["lightning2", "lightning1", "flash2", "flash2@torch"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_step_trains(attention: str, checkpointing: Any) -> None:
    request = dataclasses.replace(STEP, attention=attention, checkpointing=checkpointing)
    row = measure_train_step(request, device=torch.device("cuda", 0))
    assert row.status == "ok", row.reason
    assert row.first_loss is not None
    assert row.last_loss is not None
    assert row.last_loss < row.first_loss
    assert row.peak_bytes is not None


def test_checkpointing_takes_less_memory() -> None:
    peaks = [
        measure_train_step(
            dataclasses.replace(STEP, checkpointing=how), device=torch.device("cuda", 0)
        ).peak_bytes
        for how in CHECKPOINTING
    ]
    assert all(peaks)
    assert peaks == sorted(peaks, key=lambda peak: -(peak or 0))


@pytest.mark.parametrize(("attention", "cache"), KINDS)
@pytest.mark.parametrize("phase", ["decode", "generate"])
def test_a_captured_step_runs(attention: str, cache: Any, phase: Any) -> None:
    request = dataclasses.replace(DECODE, attention=attention, cache=cache, phase=phase)
    row = measure_inference(request, device=torch.device("cuda", 0))
    assert (row.status, row.launch) == ("ok", "graph"), row.reason


@pytest.mark.parametrize(("attention", "cache"), [KINDS[0], KINDS[1], KINDS[3]])
def test_decode_goes_on_where_the_full_forward_would(attention: str, cache: Any) -> None:
    device = torch.device("cuda", 0)
    model = build("tiny", attention=attention, device=device, dtype=torch.bfloat16, decodes=True)
    tokens = torch.randint(256, (2, 300), device=device)
    with torch.inference_mode():
        expected = model.logits(tokens)[:, 199:].float()
        kept = model.keep(kind=cache, batch=2, capacity=300)
        found = [model.prefill(tokens[:, :200], kept)]
        found += [model.step(token, kept) for token in tokens[:, 200:].unbind(1)]
    difference = (torch.stack(found, dim=1).float() - expected).norm() / expected.norm()
    assert difference < 0.03
