"""TransNormerLLM and LLaMA: trained through `forward`, used through `prefill` and `step`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from attnbench.models import loss
from attnbench.models.attention import Attention, state_step
from attnbench.models.blocks import Block, GatedLinearAttention, Kept, SoftmaxAttention, norm
from attnbench.models.kept import TRAINED_LENGTH, WINDOW, CacheKind, Caches, Position, States
from attnbench.models.layers import Angles, embedding, linear
from attnbench.models.shapes import SHAPES, Shape, family_of
from attnbench.semantics import SINKS

Checkpointing = Literal["none", "selective", "full"]
CHECKPOINTING: Final[tuple[Checkpointing, ...]] = ("none", "selective", "full")

# Operators whose results "selective" keeps: they cost the most to compute again for the bytes that they take.
_KEPT_OPERATORS: Final = frozenset(
    {
        "aten::mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "flash_attn::_flash_attn_forward",
        "attnbench::lightning2",
        "attnbench::lightning1",
        "attnbench::lightning2_torch",
        "attnbench::lightning1_torch",
    }
)


class LanguageModel(nn.Module):
    """A decoder of one of the two families. Weights are random; embedding and head are two matrices.

    TransNormerLLM's embedding is scaled by sqrt(width). `decodes`: `step` will be used.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        attention: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        checkpointing: Checkpointing = "none",
        loss_by: str = "chunked",
        decodes: bool = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.attention = Attention(attention, device=device)
        self._loss_by = loss_by
        self.embedding = embedding(shape.vocabulary, shape.width, dtype=dtype)
        tnl = shape.family == "tnl"
        # LRPE in TransNormerLLM's first layer has an angle of each channel, LLaMA's rotation one of two channels.
        self.angles = Angles(shape.head_dim if tnl else shape.head_dim // 2)
        step = state_step(attention, device=device) if decodes and tnl else None
        self.blocks = nn.ModuleList()
        for layer in range(shape.layers):
            mixer: GatedLinearAttention | SoftmaxAttention
            if tnl:
                mixer = GatedLinearAttention(
                    shape,
                    layer=layer,
                    attention=self.attention,
                    angles=self.angles if layer == 0 else None,
                    step=step,
                    dtype=dtype,
                )
            else:
                mixer = SoftmaxAttention(
                    shape, layer=layer, attention=self.attention, angles=self.angles, dtype=dtype
                )
            block = Block(shape, mixer, dtype=dtype)
            self.blocks.append(_checkpointed(block, checkpointing, glu=shape.glu))
        self.norm = norm(shape, dtype=dtype)
        self.head = linear(shape.width, shape.vocabulary, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of a token in nats; tokens, targets: int64 [B, N]."""
        hidden = self.hidden(tokens).flatten(0, 1)
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return loss.token_loss(hidden, self.head.weight, targets.flatten(), by=self._loss_by)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head is applied to, [B, N, width]."""
        x = self._embedded(tokens)
        dtype = (
            torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        )
        tables = self.angles.of_length(x.shape[1], device=x.device, dtype=dtype)
        for block in self.blocks:
            x = block(x, None if block.mixer.angles is None else tables)  # type: ignore[union-attr]
        out: Tensor = self.norm(x)
        return out

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the token after each one, [B, N, vocabulary]: all in memory."""
        out: Tensor = self.head(self.hidden(tokens))
        return out

    def keep(self, *, kind: CacheKind, batch: int, capacity: int, window: int = WINDOW) -> Kept:
        """Room for what decoding keeps of `batch` sequences of up to `capacity` tokens, none of them taken in yet.

        "state" keeps no more for more tokens; "kv-streaming" has rows for the sinks and the last `window` tokens.
        Positions of "kv-interpolated" are scaled so that `capacity` tokens span TRAINED_LENGTH.
        """
        device, heads, dim = self.head.weight.device, self.shape.heads, self.shape.head_dim
        position = Position(device=torch.zeros(1, dtype=torch.int64, device=device))
        if kind == "state":
            # .mixer through checkpoint wrappers, which pass attributes on
            dims = [int(block.mixer.key_dim) for block in self.blocks]  # type: ignore[union-attr, arg-type]
            return States([torch.zeros(batch, heads, d, dim, device=device) for d in dims], position)
        sinks = SINKS if kind == "kv-streaming" else 0
        rows = min(capacity, sinks + window) if sinks else capacity

        def cache(length: int) -> Tensor:
            return torch.zeros(batch, length, heads, dim, dtype=self.dtype, device=device)

        return Caches(
            layers=[(cache(rows), cache(rows)) for _ in self.blocks],
            position=position,
            factor=max(1.0, capacity / TRAINED_LENGTH) if kind == "kv-interpolated" else 1.0,
            sinks=sinks,
            raw_sinks=[cache(sinks) for _ in self.blocks] if sinks else (),
        )

    def prefill(self, tokens: Tensor, kept: Kept) -> Tensor:
        """Take the tokens in [B, N] that come next; the logits after the last one, [B, vocabulary].

        States take pieces of any length. Caches take the first tokens at once, and what a bounded cache has no room
        for one by one.
        """
        room = tokens.shape[1] if isinstance(kept, States) else max(0, kept.capacity - kept.position.host)
        room = room if kept.position.host == 0 or isinstance(kept, States) else 0
        first, rest = tokens[:, :room], tokens[:, room:]
        logits: Tensor | None = None
        if first.shape[1]:
            x = self._embedded(first)
            for block in self.blocks:
                x = block.advance(x, kept)  # type: ignore[operator]
            kept.position.move(first.shape[1])
            logits = self.head(self.norm(x[:, -1]))
        for token in rest.unbind(1):
            logits = self.step(token, kept)
        assert logits is not None, "there is at least one token"
        return logits

    def step(self, tokens: Tensor, kept: Kept) -> Tensor:
        """Take in one token of each sequence, [B]; the logits of the next, [B, vocabulary]. May be captured."""
        x = self._embedded(tokens[:, None])
        if isinstance(kept, Caches):
            kept.begin(self.angles)
        for block in self.blocks:
            x = block.step(x, kept)  # type: ignore[operator]
        kept.position.move(1)
        out: Tensor = self.head(self.norm(x[:, 0]))
        return out

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        return x * self.shape.width**0.5 if self.shape.family == "tnl" else x


def build(
    size: str,
    *,
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    **options: Any,
) -> LanguageModel:
    """The model of a size that an attention mechanism belongs to, its random weights on the device.

    Raises UserError for an attention that no model takes, UnsupportedError for one that is not available here.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        return LanguageModel(
            SHAPES[size][family_of(attention)], attention=attention, device=device, dtype=dtype, **options
        )


def _checkpointed(block: nn.Module, how: Checkpointing, *, glu: int) -> nn.Module:
    """A block that keeps less for its backward: its input alone, or the results of products and attention too."""
    if how == "none":
        return block
    if how == "full":
        return checkpoint_wrapper(block, preserve_rng_state=False)
    return checkpoint_wrapper(block, context_fn=_contexts(glu), preserve_rng_state=False)


@functools.cache
def _contexts(glu: int) -> Callable[[], Any]:
    """Makes the contexts of selective checkpointing.

    A plain function, and the same for all blocks: torch.compile takes it for part of their code.
    """

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(functools.partial(_policy, glu))

    return contexts


def _policy(glu: int, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Matrix products, and attention where torch sees it as an operator; what is left are passes over memory.

    Nothing needs the last product of a block, that of the gated unit of width `glu`, but what comes after the block.
    """
    name = getattr(getattr(operator, "_schema", None), "name", "")
    last = name == "aten::mm" and args[0].shape[-1] == glu
    kept = name in _KEPT_OPERATORS and not last
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
