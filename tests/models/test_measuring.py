"""Measurements of tiny models on the CPU: every outcome is a record, and its numbers belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench.models.distributed import Ranks
from attnbench.models.inference import InferenceRequest, _Bench, measure_inference
from attnbench.models.kept import States
from attnbench.models.losses import LossRequest, measure_losses
from attnbench.models.model import LanguageModel
from attnbench.models.tasks import MARKOV_ENTROPY, TASKS, batches
from attnbench.models.training import TrainRequest, measure_train_step
from attnbench.models.worker import answer

CPU = torch.device("cpu")
STEP = TrainRequest(
    size="tiny", attention="lightning2", seq_len=32, tokens=128, checkpointing="selective", precision="fp32",
)  # fmt: skip
DECODE = InferenceRequest(
    size="tiny", attention="lightning2", cache="state", phase="decode", context=16, new_tokens=3, batch=2,
    precision="fp32",
)  # fmt: skip


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Bounds the sequences that fit the memory together."""
    forward = LanguageModel.forward

    def bound(sequences: int) -> None:
        def bounded(self: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if len(tokens) > sequences:
                raise torch.OutOfMemoryError("no room for more")
            return forward(self, tokens, targets)

        monkeypatch.setattr(LanguageModel, "forward", bounded)

    return bound


def test_a_training_step_is_recorded_whole() -> None:
    row = measure_train_step(STEP, device=CPU)
    assert (row.status, row.model, row.batch, row.micro_batches) == ("ok", "tnl", 4, 1)
    assert row.samples_ms is not None
    assert len(row.samples_ms) == 3
    assert row.median_ms is not None
    assert row.tokens_per_s == pytest.approx(128 / row.median_ms * 1e3)
    assert row.attention_share is not None
    assert 0 < row.attention_share < 1
    assert row.first_loss is not None
    assert row.last_loss is not None
    assert row.last_loss < row.first_loss  # the same tokens again: it learns them
    assert (row.peak_bytes, row.peak_flops, row.mfu) == (None, None, None)  # not known of a CPU


def test_memory_decides_the_batch_and_not_what_a_step_does(room_for: Callable[[int], None]) -> None:
    request = dataclasses.replace(STEP, warmup=1, steps=1)
    whole = measure_train_step(request, device=CPU)
    room_for(2)
    row = measure_train_step(request, device=CPU)
    assert (row.status, row.batch, row.micro_batches, row.tokens_per_step) == ("ok", 2, 2, 128)
    assert row.last_loss == pytest.approx(whole.last_loss, rel=1e-3)


def test_a_step_without_room_for_one_sequence_is_oom(room_for: Callable[[int], None]) -> None:
    room_for(0)
    row = measure_train_step(STEP, device=CPU)
    assert (row.status, row.reason) == ("oom", "one sequence at a time: no room for more")
    assert row.tokens_per_s is None


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"limit_s": 0.0}, "timeout", "left of the limit of 0 s"),
        ({"attention": "flash2"}, "unsupported", "no provider for cpu; it runs on cuda"),
    ],
    ids=["timeout", "unsupported"],
)
def test_what_cannot_be_measured_says_why(change: dict[str, Any], status: str, reason: str) -> None:
    row = measure_train_step(dataclasses.replace(STEP, **change), device=CPU)
    assert row.status == status
    assert row.reason is not None
    assert reason in row.reason


@pytest.mark.usefixtures("group_of_one")
def test_sharded_parameters_train_alike() -> None:
    """FSDP2 over a group of one, which takes the way of many."""
    request = dataclasses.replace(STEP, warmup=1, steps=2)
    sharded = measure_train_step(request, device=CPU, ranks=Ranks(rank=0, count=2, device=CPU))
    alone = measure_train_step(request, device=CPU)
    assert sharded.status == "ok", sharded.reason
    assert sharded.last_loss == pytest.approx(alone.last_loss, rel=1e-4)


@pytest.mark.parametrize("phase", ["prefill", "decode", "generate"])
@pytest.mark.parametrize(("attention", "cache"), [("lightning2", "state"), ("sdpa", "kv-streaming")])
def test_each_phase_is_recorded_whole(phase: Any, attention: str, cache: Any) -> None:
    request = dataclasses.replace(DECODE, phase=phase, attention=attention, cache=cache, samples=1)
    row = measure_inference(request, device=CPU)
    assert row.status == "ok", row.reason
    assert row.median_ms is not None
    tokens = {"prefill": 2 * 16, "decode": 2, "generate": 2 * 3}[phase]
    assert row.tokens_per_s == pytest.approx(tokens / row.median_ms * 1e3)


def test_a_generation_that_would_not_fit_the_limit_is_not_begun() -> None:
    request = dataclasses.replace(DECODE, phase="generate", new_tokens=10**6, limit_s=5.0)
    row = measure_inference(request, device=CPU)
    assert row.status == "timeout"
    assert row.reason is not None
    assert row.reason.startswith("a call takes about ")


def test_a_state_is_as_large_at_any_context_and_a_cache_is_not() -> None:
    def kept(**changes: Any) -> int | None:
        return measure_inference(dataclasses.replace(DECODE, **changes), device=CPU).kept_bytes

    assert kept(context=8) == kept(context=80) == 2 * 2 * (128 + 64) * 64 * 4
    small, large = (kept(attention="sdpa", cache="kv", context=n) for n in (8, 80))
    assert (small, large) == tuple(2 * 2 * 2 * (n + 32) * 128 * 4 for n in (8, 80))


@pytest.mark.parametrize("task", list(TASKS))
def test_lightning_1_and_2_train_alike(task: str) -> None:
    request = LossRequest(
        size="tiny", attention="lightning1", task=task, steps=4, seq_len=150, batch=1, precision="fp32"
    )
    one = measure_losses(request, device=CPU)
    two = measure_losses(dataclasses.replace(request, attention="lightning2"), device=CPU)
    assert [row.step for row in one] == list(range(4))
    assert one[-1].tokens == 3 * 150
    assert max(abs(a.loss - b.loss) for a, b in zip(one, two, strict=True)) < 1e-3
    assert one[-1].loss < one[0].loss


def test_the_synthetic_language_is_deterministic_and_has_the_entropy_it_states() -> None:
    first, again = (next(batches("markov", seed=5, batch=64, length=300)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next(batches("markov", seed=6, batch=64, length=300)))
    followers: dict[tuple[int, int], set[int]] = {}
    for row in first.tolist():
        for a, b, c in zip(row, row[1:], row[2:], strict=False):
            followers.setdefault((a, b), set()).add(c)
    assert max(map(len, followers.values())) == 4
    assert pytest.approx(1.386, abs=1e-3) == MARKOV_ENTROPY


def test_a_training_run_that_fails_is_a_reason_without_rows() -> None:
    request = LossRequest(
        size="tiny", attention="flash2", task="text", steps=1, seq_len=8, batch=1, precision="fp32"
    )
    found = answer({"kind": "losses", "request": dataclasses.asdict(request)}, CPU)
    assert found == {
        "rows": [], "reason": "no provider for cpu; it runs on cuda", "status": "unsupported", "lost_device": False,
    }  # fmt: skip


def test_the_values_behind_a_decode_are_random_when_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the step takes a token in and clears what was kept: what is filled before that is zeros."""
    seen: list[float] = []
    step = LanguageModel.step

    def watched(self: LanguageModel, tokens: torch.Tensor, kept: Any) -> torch.Tensor:
        seen.append(float(kept.layers[0].abs().mean()))
        return step(self, tokens, kept)

    monkeypatch.setattr(LanguageModel, "step", watched)
    made = _Bench._step

    def cleared(self: _Bench, token: torch.Tensor) -> Any:
        assert isinstance(self.kept, States)
        self.kept.clear()  # as on a GPU, before a capture
        return made(self, token)

    monkeypatch.setattr(_Bench, "_step", cleared)
    assert measure_inference(DECODE, device=CPU).status == "ok"
    assert min(seen) > 0.1
