"""Softmax attention: torch's backends and the libraries of others."""

from __future__ import annotations

from typing import Any

from attnbench.providers import Decode, Mechanism, Provider

_HALF = ("bf16", "fp16")

_FLASH: dict[str, Any] = {  # the limits of flash-attn, which the later versions are held to as well
    "dtypes": _HALF,
    "layout": "BNHD",
    "max_head_dim": 256,
    "head_dim_multiple": 8,
    "equal_value_dim": True,
    "grouped_heads": True,
    "non_causal": True,
}


def _sdpa(*, variant: str, target: str, devices: tuple[str, ...] = ("cuda",), **limits: Any) -> Provider:
    return Provider(
        target=f"attnbench.baselines.sdpa:{target}",
        distribution="torch",
        variant=variant,
        devices=devices,
        **{"grouped_heads": True, "non_causal": True, **limits},
    )


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

SOFTMAX: tuple[Mechanism, ...] = (
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
                kernels=r"flash",
                decode=Decode(target="attnbench.baselines.flash_attn:flash2_decode", kernels=r"flash"),
                **_FLASH,
            ),
            _SDPA_FLASH,
        ),
    ),
    Mechanism(
        name="flash3",
        semantics="softmax",
        summary="FlashAttention-3 for Hopper, by its authors' package",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.flash3:flash3",
                distribution="flash-attn-3",
                package="flash_attn_interface",  # what PyPI has under the distribution's name is empty
                install="pip install --no-build-isolation "
                "'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'",
                kernels=r"flash",
                **_FLASH,
            ),
        ),
    ),
    Mechanism(
        name="flash4",
        semantics="softmax",
        summary="FlashAttention-4 for Hopper and Blackwell, by its authors' package",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.flash4:flash4",
                distribution="flash-attn-4",
                package="flash_attn.cute.interface",
                install="pip install flash-attn-4, in an environment without flash-attn and xformers",
                kernels=r"(?i)flash",
                **_FLASH,
            ),
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
    Mechanism(
        name="flex",
        semantics="softmax",
        summary="torch's FlexAttention, compiled for each shape, with a causal block mask",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.flex:flex",
                distribution="torch",
                variant="flex-attention",
                dtypes=_HALF,
                head_dim_multiple=16,
                grouped_heads=True,
                non_causal=True,
                kernels=r"triton_tem|flex",  # torch's name for a kernel from a template
                compiles_each_shape=True,
            ),
        ),
    ),
    Mechanism(
        name="streaming-llm",
        semantics="sink-window",
        summary="attention sinks and a sliding window by torch's FlexAttention; the window is an axis",
        cost="N W",
        providers=(
            Provider(
                target="attnbench.baselines.flex:streaming_llm",
                distribution="torch",
                variant="flex-attention",
                dtypes=_HALF,
                head_dim_multiple=16,
                grouped_heads=True,
                kernels=r"triton_tem|flex",  # torch's name for a kernel from a template
                compiles_each_shape=True,
            ),
            Provider(
                target="attnbench.baselines.sink_window:sink_window",
                distribution="torch",
                variant="sdpa-masked",
                devices=("cpu",),
                grouped_heads=True,
            ),
        ),
    ),
)
