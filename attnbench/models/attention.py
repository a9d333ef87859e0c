"""Attention as the models call it: a mechanism of the registry, in the models' layout, over a sequence or a cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from attnbench.case import Workload
from attnbench.errors import UserError
from attnbench.kernels import lightning_attention_2
from attnbench.measure.spans import Spans
from attnbench.providers import Provider
from attnbench.registry import find
from attnbench.semantics import geometric_slopes


class UnsupportedError(Exception):
    """This machine has no provider of a mechanism; the text says why."""


class Attention:
    """A mechanism on a device: q, k, v [B, N, H, D or E] to o [B, N, H, E].

    `spans`, where it is set, counts the time of every call and of its backward.
    """

    def __init__(self, mechanism: str, *, device: torch.device) -> None:
        self.provider = provider_of(mechanism, device=device)
        self.spans: Spans | None = None
        self._function = self.provider.load()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor
            if self.provider.layout == "BNHD":
                out = self._function(q, k, v, slopes=slopes, scale=scale, causal=True)
                return out
            out = self._function(*map(_heads_first, (q, k, v)), slopes=slopes, scale=scale, causal=True)
            return _heads_first(out)

        if self.spans is not None and torch.is_grad_enabled():
            return self.spans.around(attend, q, k, v)
        return attend(q, k, v)


def provider_of(mechanism: str, *, device: torch.device) -> Provider:
    """The provider of a mechanism on a device.

    Raises UserError for a mechanism that no model here can use, UnsupportedError where nobody provides it.
    """
    row = find(mechanism)
    if row.semantics not in ("decay-linear", "softmax") or row.windowed:
        raise UserError(
            f"attention '{mechanism}' computes {row.semantics}; the models take decayed linear attention (lightning2, "
            "lightning1) and softmax over all tokens (flash2, sdpa)"
        )
    provider = row.provider_for(device.type)
    if isinstance(provider, str):
        raise UnsupportedError(provider)
    return provider


def layer_slopes(heads: int, *, layer: int, layers: int) -> Tensor:
    """Decay slopes of one layer, fp32 [heads], on the CPU: the geometric law times (1 - l / (L - 1) + 1e-5).

    Source: the public code of TransNormerLLM; deeper layers forget less, the last one next to nothing.
    """
    return geometric_slopes(heads) * (1 - layer / max(1, layers - 1) + 1e-5)


def advance(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor) -> Tensor:
    """o of tokens that come after a state, which moves on over them: prefill in pieces of any length.

    q, k: [B, N, H, D], v: [B, N, H, E], state: fp32 [B, H, D, E], updated in place; o [B, N, H, E]. Our kernel on
    CUDA; elsewhere the same recurrence in three matrix products, in fp32.
    """
    q, k, v = map(_heads_first, (q, k, v))
    if q.device.type == "cuda":
        out, after = lightning_attention_2(q, k, v, slopes, initial_state=state, return_state=True)
        state.copy_(after)
        return _heads_first(out)
    steps = torch.arange(q.shape[2], dtype=torch.float32, device=q.device)
    distance = steps[:, None] - steps
    mask = torch.exp(-slopes[:, None, None] * distance.clamp(min=0)) * (distance >= 0)  # [H, N, N]
    since = torch.exp(-slopes[:, None] * (steps + 1))[
        ..., None
    ]  # [H, N, 1]: the state's decay until each token
    until = torch.exp(-slopes[:, None] * (len(steps) - 1 - steps))[..., None]  # of each token until the end
    query, key, value = (x.float() for x in (q, k, v))
    out = (query @ key.mT * mask) @ value + (query * since) @ state
    state.mul_(since[:, -1:]).add_((key * until).mT @ value)
    return _heads_first(out.to(v.dtype))


def state_step(mechanism: str, *, device: torch.device) -> Callable[..., Tensor]:
    """One token of decayed linear attention by the registry's provider: step(q, k, v, state, slopes) -> o.

    q, k: [B, H, D], v, o: [B, H, E], state: fp32 [B, H, D, E], updated in place.

    Raises UnsupportedError for a mechanism that keeps no state.
    """
    provider = provider_of(mechanism, device=device)
    if provider.decode is None:
        raise UnsupportedError(f"{mechanism} has no decode; lightning2 has one, from the same state")
    decode = provider.serving(Workload.DECODE).load()

    def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor, slopes: Tensor) -> Tensor:
        out: Tensor = decode(q, k, v, state, slopes=slopes, scale=1.0)()[0]
        return out

    return step


def attend_cache(q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor, flash: bool) -> Tensor:
    """Softmax attention of one query over the first rows of a cache.

    q: [B, 1, H, D]; k, v: [B, capacity, H, D]; lengths: int32 [B] on the device, rows that are in use; o like q. By
    flash-attn's kernel (`flash`), which reads those rows alone, or by torch's attention under a mask, which reads all.
    """
    if flash:
        from flash_attn.flash_attn_interface import flash_attn_with_kvcache

        out: Tensor = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=False)
        return out
    used = torch.arange(k.shape[1], device=k.device) < lengths[:, None]  # [B, capacity]
    query, key, value = map(_heads_first, (q, k, v))
    return _heads_first(
        functional.scaled_dot_product_attention(query, key, value, attn_mask=used[:, None, None, :])
    )


def _heads_first(x: Tensor) -> Tensor:
    """[B, N, H, D] to [B, H, N, D] and back, as a view."""
    return x.transpose(1, 2)
