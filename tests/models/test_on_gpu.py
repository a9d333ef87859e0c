"""What only a card can show: the kernels in the models, captured steps, bf16, the fused loss."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from torch.nn import functional

from attnbench.case import Launch
from attnbench.models import compiling, loss
from attnbench.models.inference import InferenceRequest, measure_inference
from attnbench.models.model import CHECKPOINTING, build
from attnbench.models.training import TrainRequest, measure_train_step

pytestmark = [
    pytest.mark.gpu,
    # Of torch's compiler: it looks at `.grad` of whatever it is given, and advises TF32.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]
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


@pytest.mark.parametrize("attention", ["lightning2", "lightning1", "flash2", "flash2@torch", "sdpa"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_compiled_step_is_that_which_is_written(attention: str, checkpointing: Any) -> None:
    request = dataclasses.replace(STEP, attention=attention, checkpointing=checkpointing, steps=2)
    written, compiled = (
        measure_train_step(dataclasses.replace(request, compiled=each), device=torch.device("cuda", 0))
        for each in (False, True)
    )
    assert written.status == "ok", written.reason
    assert (compiled.status, compiled.compiled) == ("ok", True), compiled.reason
    # bf16 keeps 8 bits of each weight; the second loss is that after an update.
    assert compiled.first_loss == pytest.approx(written.first_loss, rel=2**-8)
    assert compiled.last_loss == pytest.approx(written.last_loss, rel=2**-6)
    assert compiled.attention_share


@pytest.mark.parametrize("attention", ["lightning2", "flash2@torch"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_gradients_of_compiled_blocks_are_those_of_what_is_written(
    attention: str, checkpointing: Any
) -> None:
    device = torch.device("cuda", 0)
    tokens = torch.randint(256, (2, 1001), device=device)
    model = build(
        "tiny", attention=attention, device=device, dtype=torch.bfloat16, checkpointing=checkpointing
    )

    def gradients() -> list[torch.Tensor]:
        loss = model(tokens[:, :-1], tokens[:, 1:])
        return [g.float() for g in torch.autograd.grad(loss, list(model.parameters()))]

    written = gradients()
    with compiling.fresh():
        compiling.compile_blocks(model)
        for ours, expected in zip(gradients(), written, strict=True):
            assert (ours - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("by", ["fla", "chunked"])
def test_the_loss_and_its_gradients_in_bf16(by: str) -> None:
    """The gradient of the head is the sum over more than one chunk."""
    if by == "fla" and importlib.util.find_spec("fla") is None:
        pytest.skip("fla-core is not installed")
    device = torch.device("cuda", 0)
    hidden, weight = (torch.randn(n, 128, device=device) for n in (20_000, 1000))
    targets = torch.randint(1000, (20_000,), device=device)
    leaves = [x.mul(0.3).bfloat16().requires_grad_() for x in (hidden, weight)]
    found = loss.token_loss(leaves[0], leaves[1], targets, by=by)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    expected = functional.cross_entropy(wide[0] @ wide[1].T, targets)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, wide), strict=True):
        assert (a.double() - b).norm() <= 0.02 * b.norm()


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
