"""Inputs of a case, and the call that a workload times."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnbench.case import Case, Workload
from attnbench.registry import Layout, Provider
from attnbench.semantics import KEPT, TORCH_DTYPES, Parameter, Semantics, state_deviation

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a mechanism is given: q, k, v and do in its native layout, slopes fp32 [H] or None, the scale.

    `parameters` are what the semantics names besides: tensors along the tokens, in the same layout, or along the
    heads, [H, ...]; and whole numbers such as a window.

    Of a decode, q, k: [B, H, D] and v: [B, H, E] are the new token, and `kept` is what is kept of its context, as
    `attnbench.registry` describes it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor | None
    slopes: Tensor | None
    scale: float
    causal: bool
    layout: Layout
    kept: tuple[Tensor, ...] = ()
    parameters: Mapping[str, Tensor | int] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        given = (self.q, self.k, self.v, self.do, self.slopes, *self.kept, *self.parameters.values())
        return tuple(t for t in given if isinstance(t, Tensor))

    def by_heads(self, tensor: Tensor) -> Tensor:
        """A view as [B, H, N, ...], whatever the layout."""
        return tensor if self.layout == "BHND" else tensor.transpose(1, 2)


def build(case: Case, *, semantics: Semantics, layout: Layout, device: torch.device, seed: int) -> Inputs:
    """Random normal inputs of a case, allocated in the mechanism's own layout.

    q, k, v require gradients when the workload has a backward. The seed and the case's name fix the values.

    A decode finds its context as seq_len - 1 tokens would leave it: a state of random normal entries with the
    deviation that so many random tokens give (`semantics.state_deviation`), or caches of random normal rows. The
    caches' last row, the new token's, is NaN: a step that does not write it shows.
    """
    if case.workload.has_backward:
        _load_autograd()
    slopes = semantics.slopes(case.heads)
    drawing = _Drawing(
        case=case,
        semantics=semantics,
        layout=layout,
        slopes=None if slopes is None else slopes.to(device),
        generator=_generator(case, device=device, seed=seed),
    )
    return drawing.step() if case.workload is Workload.DECODE else drawing.sequences()


def refill(inputs: Inputs, *, case: Case, semantics: Semantics, seed: int) -> None:
    """Other values in the same memory, drawn as `build` draws them.

    A mechanism that answers with what it found for earlier values, by shape or by address, is wrong from then on.
    """
    drawing = _Drawing(
        case=case,
        semantics=semantics,
        layout=inputs.layout,
        slopes=inputs.slopes,
        generator=_generator(case, device=inputs.q.device, seed=seed),
    )
    with torch.no_grad():
        for tensor in (inputs.q, inputs.k, inputs.v, inputs.do):
            if tensor is not None:
                tensor.normal_(generator=drawing.generator)
        for parameter in semantics.parameters:
            old = inputs.parameters.get(parameter.name)
            if isinstance(old, Tensor):
                old.copy_(drawing.parameter(parameter))
        for tensor, name in zip(
            inputs.kept, KEPT[semantics.kept], strict=False
        ):  # nothing is kept but in a decode
            tensor.copy_(drawing.state() if name == "state" else drawing.cache(tensor.shape[-1]))


@functools.cache
def _load_autograd() -> None:
    """A process's first gradient, of nothing: what torch imports for it, seconds on some machines, is no part of any
    mechanism's first call."""
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(2 * x, x, torch.ones(1))


def _generator(case: Case, *, device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed + zlib.crc32(case.case_id.encode()))


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """Draws the inputs of one case, one tensor after the other from one generator."""

    case: Case
    semantics: Semantics
    layout: Layout
    slopes: Tensor | None
    generator: torch.Generator

    def sequences(self) -> Inputs:
        """Whole sequences, and their gradient where the workload has a backward."""
        case = self.case
        needs_grad = case.workload.has_backward
        return Inputs(
            q=self._sequence(case.heads, case.head_dim).requires_grad_(needs_grad),
            k=self._sequence(case.kv_heads, case.head_dim).requires_grad_(needs_grad),
            v=self._sequence(case.kv_heads, case.value_dim).requires_grad_(needs_grad),
            do=self._sequence(case.heads, case.value_dim) if needs_grad else None,
            slopes=self.slopes,
            scale=self.semantics.scale(case.head_dim),
            causal=case.causal,
            layout=self.layout,
            parameters={
                **{p.name: self.parameter(p) for p in self.semantics.parameters},
                **self.semantics.options(case),
            },
        )

    def step(self) -> Inputs:
        """The new token of each sequence, and what is kept of its context."""
        case = self.case
        return Inputs(
            q=self._normal(case.batch, case.heads, case.head_dim),
            k=self._normal(case.batch, case.kv_heads, case.head_dim),
            v=self._normal(case.batch, case.kv_heads, case.value_dim),
            do=None,
            slopes=self.slopes,
            scale=self.semantics.scale(case.head_dim),
            causal=case.causal,
            layout=self.layout,
            kept=(self.state(),)
            if self.semantics.kept == "state"
            else (self.cache(case.head_dim), self.cache(case.value_dim)),
        )

    def _normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        kind = TORCH_DTYPES[self.case.dtype] if dtype is None else dtype
        return torch.randn(shape, dtype=kind, device=self.generator.device, generator=self.generator)

    def _sequence(self, heads: int, *width: int) -> Tensor:
        rows = (heads, self.case.seq_len) if self.layout == "BHND" else (self.case.seq_len, heads)
        return self._normal(self.case.batch, *rows, *width)

    def parameter(self, parameter: Parameter) -> Tensor:
        """One tensor of `Inputs.parameters`."""
        shape = parameter.shape(self.case)
        if parameter.along == "tokens":
            return parameter.values(self._sequence(self.case.kv_heads, *shape))
        return parameter.values(self._normal(self.case.heads, *shape, dtype=torch.float32))

    def state(self) -> Tensor:
        """fp32 [B, H, D, E], as the tokens before the new one leave it."""
        case = self.case
        deviation = state_deviation(case.seq_len - 1, slopes=self.slopes, heads=case.heads)
        entries = self._normal(case.batch, case.heads, case.head_dim, case.value_dim, dtype=torch.float32)
        return entries.mul_(deviation.to(entries)[:, None, None])

    def cache(self, width: int) -> Tensor:
        """Keys or values of all tokens, the last row NaN."""
        rows = self._sequence(self.case.kv_heads, width)
        rows.select(2 if self.layout == "BHND" else 1, -1).fill_(float("nan"))
        return rows


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The steps of a mechanism on given inputs."""

    inputs: Inputs
    target: Callable[..., Tensor]

    def forward(self) -> Tensor:
        """o in the native layout, with a graph if the inputs require gradients."""
        i = self.inputs
        return self.target(i.q, i.k, i.v, slopes=i.slopes, scale=i.scale, causal=i.causal, **i.parameters)

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


@dataclass(frozen=True, kw_only=True)
class DecodeCalls:
    """A decode step of a mechanism on given inputs.

    A step that updates a state in place goes on from what the call before it left, with the same token: with decay
    the state stays bounded, without it grows with the number of calls, which is far from where fp32 ends. A step
    that returns a new state, or writes the token's row of a cache, does the same again.
    """

    inputs: Inputs
    step: Callable[[], tuple[Tensor, ...]]
    names: tuple[str, ...]  # of what is kept

    def inference(self) -> tuple[Tensor, ...]:
        """o [B, H, E], and what is kept of the context after the token."""
        with torch.no_grad():
            return self.step()

    def outputs(self) -> dict[str, Tensor]:
        """One step: o, and what is kept by its name."""
        return dict(zip(("o", *self.names), self.inference(), strict=True))

    def timed(self, workload: Workload) -> Callable[[], object]:
        """The step."""
        return self.inference


AnyCalls = Calls | DecodeCalls


def prepare(
    case: Case, *, provider: Provider, semantics: Semantics, device: torch.device, seed: int
) -> AnyCalls:
    """Import the provider, build a case's inputs and, for a decode, get its step ready.

    `provider` is as `registry.support` returns it for the case.
    """
    target = provider.load()
    inputs = build(case, semantics=semantics, layout=provider.layout, device=device, seed=seed)
    if case.workload is not Workload.DECODE:
        return Calls(inputs=inputs, target=target)
    step = target(inputs.q, inputs.k, inputs.v, *inputs.kept, slopes=inputs.slopes, scale=inputs.scale)
    return DecodeCalls(inputs=inputs, step=step, names=KEPT[semantics.kept])
