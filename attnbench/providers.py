"""What a row of the table of mechanisms says: who computes what, where, and within which limits.

A mechanism implements a semantics and lists its providers in order of preference; the first one that the
machine has, on the device asked for, is the one that runs. A provider's target is called as

    target(q, k, v, *, slopes, scale, causal, **parameters) -> o

with q: [B, H, N, D], k: [B, KV, N, D], v: [B, KV, N, E] (layout "BHND") or [B, N, H, D] and so on (layout "BNHD"),
slopes: fp32 [H] or None, and o in the layout of v with the heads of q. The parameters are those that the semantics
names (`attnbench.semantics.Semantics.names`): most have none.

A provider that decodes names a second function, which gets a step ready; the step alone is timed, again and again:

    decode(q, k, v, *kept, slopes, scale) -> step        step() -> (o, *kept)

q, k: [B, H, D], v: [B, H, E] are the new token, o: [B, H, E]; `kept` is what `attnbench.semantics.KEPT` names for
the semantics. A state is fp32 [B, H, D, E], of the tokens before the new one and without the scale. Caches are
[B, H, N, D] and [B, H, N, E], or [B, N, H, ...], by the layout; N counts the new token, whose row, the last, is
for the step to write. A step returns what is kept after it: the tensors that it was given, updated in place, or a
new state. It bears being repeated and being captured in a CUDA graph; what it needs besides (views, a length on
the device) is made before it. No gradient is recorded around it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.case import DTYPES, Case, Workload

Layout = Literal["BHND", "BNHD"]
Cost = Literal["N", "N W", "N^2"]  # W: a window of fixed length


@dataclass(frozen=True, kw_only=True)
class Decode:
    """How a provider takes one token more."""

    target: str  # "module:function", called as the module's docstring says
    variant: str | None = None  # which part of the distribution, where that is another than of the provider
    kernels: str | None = None  # regular expression: a kernel of this name must have run (CUDA)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Who really computes a mechanism, on which devices, and within which limits."""

    target: str  # "module:function"
    distribution: str  # whose version is recorded, e.g. "torch"
    variant: str = ""  # which part of it, e.g. "sdpa-flash"
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[str, ...] = DTYPES
    layout: Layout = "BHND"
    package: str | None = None  # import name that must be present, e.g. "flash_attn.flash_attn_interface"
    install: str | None = None  # how to get it, as a command
    kernels: str | None = None  # regular expression: a kernel of this name must have run (CUDA)
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    head_dims: tuple[int, ...] | None = None  # the only ones, where no rule describes them
    equal_value_dim: bool = False
    grouped_heads: bool = False
    non_causal: bool = False
    version: str | None = None  # recorded in place of the distribution's own
    state_bytes: str | None = (
        None  # "module:function" (case, device) -> bytes of recurrent state in device memory
    )
    describe: str | None = (
        None  # "module:function" (case, device) -> dict of tiles, warps, operator chosen, ...
    )
    decode: Decode | None = None
    compiles_each_shape: bool = False  # for seconds, in the first call
    tunes_each_width: bool = (
        False  # for tens of seconds, in the first calls: each dtype, heads and head dim anew
    )

    @property
    def available(self) -> bool:
        """Is the package here? Answered without importing it, except for its parents."""
        if self.package is None:
            return True
        try:
            return importlib.util.find_spec(self.package) is not None
        except (ImportError, ValueError):
            return False

    @property
    def label(self) -> str:
        """What ran, for the `provider` column: `torch 2.11.0 sdpa-flash`."""
        return " ".join(part for part in (self.distribution, self._version, self.variant) if part)

    @property
    def _version(self) -> str:
        if self.version is not None:
            return self.version
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "(not installed)"

    def serving(self, workload: Workload) -> Provider:
        """The provider as a workload sees it: itself or, for a decode, with the target, variant and kernels of that.

        Raises ValueError for a decode that it does not have.
        """
        if workload is not Workload.DECODE:
            return self
        if self.decode is None:
            raise ValueError(f"{self.label} has no decode")
        return dataclasses.replace(
            self,
            target=self.decode.target,
            variant=self.variant if self.decode.variant is None else self.decode.variant,
            kernels=self.decode.kernels,
            state_bytes=None,  # these two speak of whole sequences
            describe=None,
        )

    def load(self) -> Callable[..., Any]:
        """Import the target.

        Raises ImportError when the package is missing or broken.
        """
        return load_target(self.target)

    def why_not(self, case: Case) -> str | None:
        """Why this provider cannot take a case, or None when it can."""
        if case.dtype not in self.dtypes:
            return f"dtype {case.dtype} is not supported by {self.label} (it takes {', '.join(self.dtypes)})"
        if self.max_head_dim is not None and max(case.head_dim, case.value_dim) > self.max_head_dim:
            return (
                f"head dim {max(case.head_dim, case.value_dim)} is over the limit of {self.label} "
                f"({self.max_head_dim})"
            )
        for name, size in (("head dim", case.head_dim), ("value dim", case.value_dim)):
            if size % self.head_dim_multiple:
                return (
                    f"{name} {size} is not a multiple of {self.head_dim_multiple}, which {self.label} needs"
                )
            if self.head_dims is not None and size not in self.head_dims:
                taken = ", ".join(map(str, self.head_dims))
                return f"{name} {size} is not supported by {self.label} (it takes {taken})"
        if self.equal_value_dim and case.value_dim != case.head_dim:
            return f"value dim {case.value_dim} differs from head dim {case.head_dim}, which {self.label} needs equal"
        if case.kv_heads != case.heads and not self.grouped_heads:
            return f"grouped-query heads ({case.kv_heads} for {case.heads}) are not supported by {self.label}"
        if not case.causal and not self.non_causal:
            return f"{self.label} is causal only"
        return None


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A named implementation of a semantics."""

    name: str
    semantics: str
    summary: str
    cost: Cost  # work as a function of sequence length
    providers: tuple[Provider, ...]
    workloads: tuple[Workload, ...] = (Workload.FWD, Workload.BWD, Workload.FWD_BWD)  # over whole sequences
    value_ratio: int = 1  # channels of a value head over those of a key head, where a sweep does not say

    @property
    def windowed(self) -> bool:
        """Does a query see a window of tokens only?"""
        return self.cost == "N W"

    def workloads_of(self, provider: Provider) -> tuple[Workload, ...]:
        """The workloads that one of its providers has: those over whole sequences, and decode where it is given."""
        return self.workloads if provider.decode is None else (*self.workloads, Workload.DECODE)

    def provider_for(self, device: str) -> Provider | str:
        """The provider that runs on `device` ("cuda" or "cpu") here, or the reason why none does."""
        fitting = [provider for provider in self.providers if device in provider.devices]
        for provider in fitting:
            if provider.available:
                return provider
        if fitting:
            return f"{' or '.join(p.distribution for p in fitting)} is not installed: {_ways(fitting)}"
        devices = ", ".join(sorted({d for p in self.providers for d in p.devices}))
        needed = "" if any(p.available for p in self.providers) else f" and needs {_ways(self.providers)}"
        return f"no provider for {device}; it runs on {devices}{needed}"


def _ways(providers: Iterable[Provider]) -> str:
    """How to get what the providers need, as commands."""
    return " or ".join(p.install or f"pip install {p.distribution}" for p in providers)


def load_target(target: str) -> Callable[..., Any]:
    """Import the function that "module:function" names."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
