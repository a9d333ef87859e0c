"""One literal table of mechanisms. Nothing named here is imported before it is used.

A mechanism implements a semantics and lists its providers in order of preference; the first one that the
machine has, on the device asked for, is the one that runs. A provider's target is called as

    target(q, k, v, *, slopes, scale, causal) -> o

with q, k: [B, H, N, D], v: [B, H, N, E] (layout "BHND") or [B, N, H, D] (layout "BNHD"), slopes: fp32 [H] or
None, and o in the layout of v.

A provider that decodes names a second function, which gets a step ready; the step alone is timed, again and again:

    decode(q, k, v, *kept, slopes, scale) -> step        step() -> (o, *kept)

q, k: [B, H, D], v: [B, H, E] are the new token, o: [B, H, E]; `kept` is what `attnbench.semantics.KEPT` names for
the semantics. A state is fp32 [B, H, D, E], of the tokens before the new one and without the scale. Caches are
[B, H, N, D] and [B, H, N, E], or [B, N, H, ...], by the layout; N counts the new token, whose row, the last, is
for the step to write. A step returns what is kept after it: the tensors that it was given, updated in place, or a
new state. It bears being repeated and being captured in a CUDA graph; what it needs besides (views, a length on
the device) is made before it. No gradient is recorded around it.

Third parties join through the entry-point group `attnbench.mechanisms`: each entry point names a `Mechanism`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from attnbench.case import DTYPES, Case, Workload
from attnbench.errors import UserError, unknown

ENTRY_POINT_GROUP = "attnbench.mechanisms"

Layout = Literal["BHND", "BNHD"]
Cost = Literal["N", "N^2"]


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
    state_bytes: str | None = (
        None  # "module:function" (case, device) -> bytes of recurrent state in device memory
    )
    describe: str | None = (
        None  # "module:function" (case, device) -> dict of tiles, warps, operator chosen, ...
    )
    decode: Decode | None = None

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
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        return " ".join(part for part in (self.distribution, version, self.variant) if part)

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
            ways = " or ".join(p.install or f"pip install {p.distribution}" for p in fitting)
            return f"{' or '.join(p.distribution for p in fitting)} is not installed: {ways}"
        devices = sorted({d for p in self.providers for d in p.devices})
        return f"no provider for {device}; it runs on {', '.join(devices)}"


def load_target(target: str) -> Callable[..., Any]:
    """Import the function that "module:function" names."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _sdpa(*, variant: str, target: str, devices: tuple[str, ...] = ("cuda",), **limits: Any) -> Provider:
    return Provider(
        target=f"attnbench.baselines.sdpa:{target}",
        distribution="torch",
        variant=variant,
        devices=devices,
        **{"grouped_heads": True, "non_causal": True, **limits},
    )


_HALF = ("bf16", "fp16")

# The fallback of flash2 and a mechanism of its own, so that one sweep can hold both copies.
_SDPA_FLASH = _sdpa(
    variant="sdpa-flash",
    target="sdpa_flash",
    dtypes=_HALF,
    max_head_dim=256,
    head_dim_multiple=8,
    equal_value_dim=True,
    kernels=r"flash",
    decode=Decode(target="attnbench.baselines.sdpa:sdpa_flash_decode", kernels=r"flash"),
)

_BUILT_IN: tuple[Mechanism, ...] = (
    Mechanism(
        name="lightning2",
        semantics="decay-linear",
        summary="Lightning Attention-2: left product inside a block, running state between blocks",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.lightning_triton:lightning2",
                distribution="triton",
                variant="attnbench",
                max_head_dim=256,
                head_dim_multiple=16,
                kernels=r"^_?lightning2",
                state_bytes="attnbench.baselines.lightning_triton:lightning2_state_bytes",
                describe="attnbench.baselines.lightning_triton:lightning2_config",
                decode=Decode(
                    target="attnbench.baselines.lightning_triton:lightning2_decode",
                    kernels=r"^_?lightning_decode",
                ),
            ),
            Provider(
                target="attnbench.baselines.lightning_torch:lightning2",
                distribution="torch",
                variant="chunked",
                devices=("cpu",),
                state_bytes="attnbench.baselines.lightning_torch:lightning2_state_bytes",
                describe="attnbench.baselines.lightning_torch:lightning2_config",
                decode=Decode(
                    target="attnbench.baselines.lightning_torch:lightning2_decode", variant="recurrence"
                ),
            ),
        ),
    ),
    Mechanism(
        name="lightning2-paper",
        semantics="decay-linear",
        summary="Lightning Attention-2 as the paper has it: no parallelism along the sequence",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.lightning_triton:lightning2_paper",
                distribution="triton",
                variant="attnbench",
                max_head_dim=256,
                head_dim_multiple=16,
                kernels=r"^_?lightning2",
            ),
        ),
    ),
    Mechanism(
        name="lightning1",
        semantics="decay-linear",
        summary="Lightning Attention-1: FlashAttention-style tiling of the left product, no softmax",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.lightning_triton:lightning1",
                distribution="triton",
                variant="attnbench",
                max_head_dim=256,
                head_dim_multiple=16,
                kernels=r"^_?lightning1",
                describe="attnbench.baselines.lightning_triton:lightning1_config",
            ),
            Provider(
                target="attnbench.baselines.lightning_torch:lightning1",
                distribution="torch",
                variant="tiled",
                devices=("cpu",),
                describe="attnbench.baselines.lightning_torch:lightning1_config",
            ),
        ),
    ),
    # The three libraries below multiply fp32 inputs in TF32, which is not fp32: half precision only.
    Mechanism(
        name="lightning2-official",
        semantics="decay-linear",
        summary="Lightning Attention-2 by its authors' package, lightning-attn",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.lightning_attn:lightning2_official",
                distribution="lightning-attn",
                package="lightning_attn",
                install="pip install lightning-attn",
                dtypes=_HALF,
                # Above 128 the package copies q and k 64 columns at a time and adds up rounded parts; it asserts
                # against 16, its kernels index a power of two, and v of another width is padded in every call.
                head_dims=(32, 64, 128),
                kernels=r"^_(fwd|bwd_intra|bwd_inter)_kernel",
            ),
        ),
    ),
    Mechanism(
        name="fla-simple-gla",
        semantics="decay-linear",
        summary="Flash Linear Attention's chunked Simple GLA with one decay per head",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.fla_ops:simple_gla",
                distribution="fla-core",
                package="fla",
                install="pip install fla-core",
                dtypes=_HALF,
                layout="BNHD",
                head_dim_multiple=2,
                kernels=r"^chunk_(fwd|bwd)_kernel",
                decode=Decode(
                    target="attnbench.baselines.fla_decode:simple_gla_decode", kernels=r"^fused_recurrent"
                ),
            ),
        ),
    ),
    Mechanism(
        name="tfla",
        semantics="decay-linear",
        summary="Tiled Flash Linear Attention: NXAI's mLSTM with open input gates and no normaliser",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.mlstm:tfla",
                distribution="mlstm-kernels",
                package="mlstm_kernels",
                install="pip install mlstm-kernels",
                dtypes=_HALF,
                head_dim_multiple=16,
                kernels=r"^mlstm_siging_chunkwise__",
            ),
        ),
    ),
    Mechanism(
        name="linear-cumsum",
        semantics="linear",
        summary="naive linear attention: the prefix sum of k^T v, all N states materialised",
        cost="N",
        providers=(
            Provider(
                target="attnbench.baselines.linear_cumsum:linear_cumsum",
                distribution="torch",
                variant="cumsum",
                devices=("cuda", "cpu"),
            ),
        ),
    ),
    Mechanism(
        name="linear-quadratic",
        semantics="decay-linear",
        summary="the left product ((Q K^T) * M) V in PyTorch, the N x N matrix materialised",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.linear_quadratic:linear_quadratic",
                distribution="torch",
                variant="left-product",
                devices=("cuda", "cpu"),
            ),
        ),
    ),
    Mechanism(
        name="flash2",
        semantics="softmax",
        summary="FlashAttention-2: the flash-attn package, else the copy inside torch",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.flash_attn:flash2",
                distribution="flash-attn",
                package="flash_attn.flash_attn_interface",
                install="pip install flash-attn --no-build-isolation",
                dtypes=_HALF,
                layout="BNHD",
                max_head_dim=256,
                head_dim_multiple=8,
                equal_value_dim=True,
                grouped_heads=True,
                non_causal=True,
                kernels=r"flash",
                decode=Decode(target="attnbench.baselines.flash_attn:flash2_decode", kernels=r"flash"),
            ),
            _SDPA_FLASH,
        ),
    ),
    Mechanism(
        name="sdpa-flash",
        semantics="softmax",
        summary="torch's own copy of FlashAttention-2, whether flash-attn is installed or not",
        cost="N^2",
        providers=(_SDPA_FLASH,),
    ),
    Mechanism(
        name="sdpa",
        semantics="softmax",
        summary="torch's scaled_dot_product_attention, the backend it picks by itself",
        cost="N^2",
        providers=(
            _sdpa(
                variant="sdpa",
                target="sdpa",
                devices=("cuda", "cpu"),
                decode=Decode(target="attnbench.baselines.sdpa:sdpa_decode"),
            ),
        ),
    ),
    Mechanism(
        name="sdpa-cudnn",
        semantics="softmax",
        summary="torch's scaled_dot_product_attention on cuDNN's fused attention",
        cost="N^2",
        providers=(
            _sdpa(
                variant="sdpa-cudnn",
                target="sdpa_cudnn",
                dtypes=_HALF,
                max_head_dim=128,
                head_dim_multiple=8,
                kernels=r"cudnn",
            ),
        ),
    ),
    Mechanism(
        name="sdpa-efficient",
        semantics="softmax",
        summary="torch's scaled_dot_product_attention on its memory-efficient (CUTLASS) kernels",
        cost="N^2",
        providers=(
            _sdpa(variant="sdpa-efficient", target="sdpa_efficient", head_dim_multiple=8, kernels=r"fmha"),
        ),
    ),
    Mechanism(
        name="sdpa-math",
        semantics="softmax",
        summary="torch's scaled_dot_product_attention written out, the N x N matrix materialised",
        cost="N^2",
        providers=(_sdpa(variant="sdpa-math", target="sdpa_math", devices=("cuda", "cpu")),),
    ),
    Mechanism(
        name="xformers",
        semantics="softmax",
        summary="xFormers memory_efficient_attention, with the operator that it chose recorded",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.xformers_ops:xformers_attention",
                distribution="xformers",
                package="xformers.ops",
                install="pip install xformers",
                layout="BNHD",
                head_dim_multiple=8,
                non_causal=True,
                describe="attnbench.baselines.xformers_ops:xformers_operator",
            ),
        ),
    ),
)


@cache
def mechanisms() -> Mapping[str, Mechanism]:
    """All mechanisms by name: the table above, then what installed packages register.

    Raises UserError when an entry point cannot be loaded, yields no Mechanism, or takes a name already in use.
    """
    table = {mechanism.name: mechanism for mechanism in _BUILT_IN}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            mechanism = entry.load()
        except Exception as error:  # another package's code, whatever it raises: say whose it is
            raise UserError(
                f"entry point '{entry.name}' of {entry.value} cannot be loaded: {error}"
            ) from error
        if not isinstance(mechanism, Mechanism):
            raise UserError(f"entry point '{entry.name}' of {entry.value} is no attnbench Mechanism")
        if mechanism.name in table:
            raise UserError(
                f"entry point '{entry.name}' registers '{mechanism.name}', which is already registered"
            )
        table[mechanism.name] = mechanism
    return table


def find(name: str) -> Mechanism:
    """The mechanism of that name.

    Raises UserError with the nearest name when there is none.
    """
    table = mechanisms()
    if name not in table:
        raise unknown("mechanism", name, table)
    return table[name]


def support(case: Case, *, device: str) -> Provider | str:
    """The provider that takes a case on `device` ("cuda" or "cpu"), or the reason why none does."""
    mechanism = find(case.mechanism)
    provider = mechanism.provider_for(device)
    if isinstance(provider, str):
        return provider
    if case.workload not in mechanism.workloads_of(provider):
        return f"workload {case.workload} is not defined for {case.mechanism}"
    reason = provider.why_not(case)
    return reason if reason is not None else provider.serving(case.workload)
