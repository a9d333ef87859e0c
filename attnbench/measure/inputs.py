"""Inputs of a case, and the call that a workload times."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.case import Case, Workload
from attnbench.registry import Layout, Provider
from attnbench.semantics import TORCH_DTYPES, Semantics

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a mechanism is given: q, k, v and do in its native layout, slopes fp32 [H] or None, the scale."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor | None
    slopes: Tensor | None
    scale: float
    causal: bool
    layout: Layout

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.q, self.k, self.v, self.do, self.slopes) if t is not None)

    def by_heads(self, tensor: Tensor) -> Tensor:
        """A view as [B, H, N, ...], whatever the layout."""
        return tensor if self.layout == "BHND" else tensor.transpose(1, 2)


def build(case: Case, *, semantics: Semantics, layout: Layout, device: torch.device, seed: int) -> Inputs:
    """Random normal inputs of a case, allocated in the mechanism's own layout.

    q, k, v require gradients when the workload has a backward. The seed and the case's name fix the values.
    """
    generator = torch.Generator(device=device).manual_seed(seed + zlib.crc32(case.case_id.encode()))
    dtype = TORCH_DTYPES[case.dtype]
    needs_grad = case.workload.has_backward

    def normal(heads: int, width: int, *, requires_grad: bool) -> Tensor:
        shape = (
            (case.batch, heads, case.seq_len, width)
            if layout == "BHND"
            else (case.batch, case.seq_len, heads, width)
        )
        tensor = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return tensor.requires_grad_(requires_grad)

    slopes = semantics.slopes(case.heads)
    return Inputs(
        q=normal(case.heads, case.head_dim, requires_grad=needs_grad),
        k=normal(case.kv_heads, case.head_dim, requires_grad=needs_grad),
        v=normal(case.kv_heads, case.value_dim, requires_grad=needs_grad),
        do=normal(case.heads, case.value_dim, requires_grad=False) if needs_grad else None,
        slopes=None if slopes is None else slopes.to(device),
        scale=semantics.scale(case.head_dim),
        causal=case.causal,
        layout=layout,
    )


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The steps of a mechanism on given inputs."""

    inputs: Inputs
    target: Callable[..., Tensor]

    def forward(self) -> Tensor:
        """o in the native layout, with a graph if the inputs require gradients."""
        i = self.inputs
        return self.target(i.q, i.k, i.v, slopes=i.slopes, scale=i.scale, causal=i.causal)

    def inference(self) -> Tensor:
        """o, nothing kept for a backward."""
        with torch.no_grad():
            return self.forward()

    def gradients(self, o: Tensor, *, keep: bool) -> Gradients:
        """Fresh dq, dk, dv: nothing is accumulated into `.grad`."""
        i = self.inputs
        return torch.autograd.grad(o, (i.q, i.k, i.v), i.do, retain_graph=keep)  # type: ignore[return-value]

    def outputs(self) -> dict[str, Tensor]:
        """One call from the start: o and, when the inputs require gradients, dq, dk and dv."""
        if self.inputs.do is None:
            return {"o": self.inference()}
        o = self.forward()
        dq, dk, dv = self.gradients(o, keep=False)
        return {"o": o.detach(), "dq": dq, "dk": dk, "dv": dv}

    def timed(self, workload: Workload) -> Callable[[], object]:
        """The call that a workload times; a `bwd` runs its forward here, once, outside the timed call."""
        if workload is Workload.FWD:
            return self.inference
        if workload is Workload.BWD:
            o = self.forward()
            return lambda: self.gradients(o, keep=True)
        return lambda: self.gradients(self.forward(), keep=False)


def prepare(
    case: Case, *, provider: Provider, semantics: Semantics, device: torch.device, seed: int
) -> Calls:
    """Import the provider and build a case's inputs."""
    target = provider.load()
    inputs = build(case, semantics=semantics, layout=provider.layout, device=device, seed=seed)
    return Calls(inputs=inputs, target=target)
