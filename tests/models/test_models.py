"""The models: counts of parameters, gradients, and that decoding goes on where the full forward would."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attnbench.errors import UserError
from attnbench.kernels import lightning_attention_2
from attnbench.models import layers, loss
from attnbench.models.attention import advance, layer_slopes
from attnbench.models.blocks import SoftmaxAttention
from attnbench.models.kept import TRAINED_LENGTH
from attnbench.models.model import CHECKPOINTING, Checkpointing, LanguageModel, build
from attnbench.models.shapes import PUBLISHED_MILLIONS, SHAPES, Family
from attnbench.semantics import SINKS

CPU = torch.device("cpu")


def _tiny(attention: str, **options: Any) -> LanguageModel:
    return build("tiny", attention=attention, device=CPU, dtype=torch.float32, **options)


def _tokens(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("size", "family"), list(PUBLISHED_MILLIONS), ids="-".join)
def test_parameters_are_those_of_the_source(size: str, family: Family) -> None:
    shape = SHAPES[size][family]
    with torch.device("meta"):
        model = LanguageModel(shape, attention="lightning2" if family == "tnl" else "sdpa", device=CPU)
    assert all(p.is_meta for p in model.parameters())  # nothing is allocated
    counted = sum(p.numel() for p in model.parameters())
    assert counted == shape.parameters
    body = counted - model.embedding.weight.numel() - model.head.weight.numel()
    assert body / 1e6 == pytest.approx(PUBLISHED_MILLIONS[size, family], rel=0.001)
    assert shape.head_dim == 128


@pytest.mark.parametrize("attention", ["lightning2", "lightning1", "sdpa"])
@pytest.mark.parametrize("checkpointing", [how for how in CHECKPOINTING if how != "none"])
def test_checkpointing_changes_no_gradient(attention: str, checkpointing: Checkpointing) -> None:
    tokens = _tokens(2, 151)
    gradients = []
    for how in ("none", checkpointing):
        model = _tiny(attention, checkpointing=how)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.norm() > 0
        torch.testing.assert_close(plain, checkpointed)


def test_lightning_1_and_2_are_one_model() -> None:
    tokens = _tokens(2, 300)
    one, two = (_tiny(name).logits(tokens) for name in ("lightning1", "lightning2"))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "kind", "pieces"),
    [("lightning2", "state", (7, 1, 20)), ("sdpa", "kv", (28,)), ("sdpa", "kv-streaming", (28,))],
    ids=["state", "kv", "kv-streaming"],
)
def test_prefill_and_decode_equal_the_full_forward(
    attention: str, kind: Any, pieces: tuple[int, ...]
) -> None:
    model, tokens = _tiny(attention, decodes=True), _tokens(3, 40)
    with torch.inference_mode():
        expected = model.logits(tokens)
        kept = model.keep(kind=kind, batch=3, capacity=40)
        before, done = kept.bytes, 0
        for piece in pieces:
            found = model.prefill(tokens[:, done : done + piece], kept)
            done += piece
        torch.testing.assert_close(found, expected[:, done - 1], rtol=1e-4, atol=1e-5)
        for t in range(done, 40):
            torch.testing.assert_close(model.step(tokens[:, t], kept), expected[:, t], rtol=1e-4, atol=1e-5)
    assert kept.bytes == before


def test_a_prefill_on_the_cpu_is_that_of_the_kernel() -> None:
    """The kernel, in Triton's interpreter, and the matrix products that stand in for it, from the same state."""
    q, k = (torch.randn(2, 37, 2, 32) for _ in range(2))
    v, state = torch.randn(2, 37, 2, 16), torch.randn(2, 2, 32, 16)
    slopes = layer_slopes(2, layer=0, layers=2)
    o, after = lightning_attention_2(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        slopes,
        initial_state=state,
        return_state=True,
    )
    found = advance(q, k, v, state, slopes=slopes)
    torch.testing.assert_close(found, o.transpose(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, after, rtol=1e-4, atol=1e-4)


def test_the_first_layer_has_keys_of_twice_the_value_dim() -> None:
    model = _tiny("lightning2")
    states = model.keep(kind="state", batch=1, capacity=10**6).layers
    assert [tuple(state.shape) for state in states] == [(1, 2, 128, 64), (1, 2, 64, 64)]


def test_interpolated_positions_are_scaled_to_the_trained_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = _tiny("sdpa"), _tokens(1, 30)
    with torch.inference_mode():
        kept = model.keep(kind="kv-interpolated", batch=1, capacity=4 * TRAINED_LENGTH)
        model.prefill(tokens[:, :20], kept)
        steps = [model.step(token, kept) for token in tokens[:, 20:].unbind(1)]
        quarter = model.angles.at(torch.arange(30) / 4, dtype=torch.float32)
        monkeypatch.setattr(model.angles, "of_length", lambda *_, **__: quarter)
        expected = model.logits(tokens)[:, 20:]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_bounded_cache_attends_as_streaming_llm_defines_it() -> None:
    """Sinks and the last tokens, at their positions within the cache: written out for one layer, query by query."""
    shape = dataclasses.replace(SHAPES["tiny"]["llama"], layers=1)
    torch.manual_seed(0)
    model, tokens, window = LanguageModel(shape, attention="sdpa", device=CPU), _tokens(2, 37), 9
    with torch.inference_mode():
        kept = model.keep(kind="kv-streaming", batch=2, capacity=37, window=window)
        found = [model.prefill(tokens[:, :5], kept)]
        found += [model.step(token, kept) for token in tokens[:, 5:].unbind(1)]
        assert kept.capacity == SINKS + window

        (block,) = model.blocks
        mixer: SoftmaxAttention = block.mixer  # type: ignore[assignment]
        x = model.embedding(tokens)
        qk, v = mixer._projected(block.before_mixer(x))  # type: ignore[operator]
        q, k = qk.chunk(2, dim=2)
        for t in range(4, 37):
            seen = [s for s in range(t + 1) if s < SINKS or s > t - window]
            places = model.angles.at(torch.arange(len(seen)), dtype=torch.float32)
            last = tuple(table[-1:] for table in places)
            query = layers.rotated(q[:, t : t + 1], (last[0], last[1]))[:, 0]  # [B, H, D]
            keys = layers.rotated(k[:, seen], places)  # [B, S, H, D]
            weights = torch.einsum("bhd,bshd->bhs", query, keys).mul(shape.head_dim**-0.5).softmax(-1)
            o = torch.einsum("bhs,bshd->bhd", weights, v[:, seen]).flatten(1)
            y = x[:, t] + mixer.out(o)
            y = y + block.unit(block.before_unit(y))  # type: ignore[operator]
            torch.testing.assert_close(found[t - 4], model.head(model.norm(y)), rtol=1e-4, atol=1e-5)


def test_lrpe_depends_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 6)
    angles = layers.Angles(6)
    at = [angles.at(torch.tensor([p]), dtype=torch.float32) for p in (3, 10, 5, 12)]
    products = [
        (layers.linearised(q, at[t]) * layers.linearised(k, at[s])).sum() for t, s in ((1, 0), (3, 2))
    ]
    frequencies = 10000.0 ** (-torch.arange(6) / 6)
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], (q * k * torch.cos(7 * frequencies)).sum())


def test_slopes_fall_with_the_layer_to_next_to_nothing() -> None:
    first, last = (layer_slopes(8, layer=layer, layers=4) for layer in (0, 3))
    torch.testing.assert_close(first, 2.0 ** -torch.arange(1.0, 9.0) * (1 + 1e-5))
    torch.testing.assert_close(last, 2.0 ** -torch.arange(1.0, 9.0) * 1e-5)


def test_srms_norm_divides_by_the_root_of_the_mean_square() -> None:
    x = torch.randn(4, 7, 32) * 5
    torch.testing.assert_close(layers.srms_norm(x), x / (x.norm(dim=-1, keepdim=True) / math.sqrt(32)))


@pytest.mark.filterwarnings("ignore:Triton is not supported on current platform")  # fla without a GPU
@pytest.mark.filterwarnings("ignore:Flash Attention is not installed:ImportWarning")
@pytest.mark.parametrize("by", ["fla", "torch", "chunked"])
def test_the_loss_is_the_mean_cross_entropy(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fla's in Triton's interpreter, where there is no GPU."""
    if by == "torch" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("torch before 2.13 has none")
    if by == "fla" and torch.cuda.is_available():
        pytest.skip("on a card it takes no tensors of the CPU")
    monkeypatch.setattr(loss, "_CHUNK", 5)
    weight, targets = torch.randn(11, 8, requires_grad=True), torch.randint(11, (17,))
    hidden = torch.randn(17, 8, requires_grad=True)
    expected = functional.cross_entropy(hidden @ weight.T, targets)
    found = loss.token_loss(hidden, weight, targets, by=by)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_flops_of_a_step_are_six_a_weight_and_the_attention() -> None:
    shape = SHAPES["1B"]["tnl"]
    weights = shape.body_parameters + shape.vocabulary * shape.width  # all of the body is multiplied with
    attention = 33 * 12 * 14 * 128 * 128  # a token; LRPE makes the first of 32 layers count twice
    assert shape.step_flops(sequences=3, seq_len=1000) == pytest.approx(3000 * (6 * weights + attention))


def test_an_attention_without_a_model_is_refused() -> None:
    with pytest.raises(UserError, match="attention 'gla' computes gated-linear; the models take"):
        _tiny("gla")
