"""Linear attention: our kernels, naive forms and the libraries of others."""

from __future__ import annotations

from typing import Any

from attnbench.providers import Decode, Mechanism, Provider

_HALF = ("bf16", "fp16")
_LONG_RANGE = ("bf16", "fp32")  # sums over a whole sequence, without decay, leave the range of fp16
_SCAN = r"^_?lightning2"  # our scan kernel, whatever is made of it


def _fla(*, target: str, **others: Any) -> Provider:
    return Provider(
        target=f"attnbench.baselines.fla_ops:{target}",
        distribution="fla-core",
        package="fla",
        tunes_each_width=True,
        install="pip install fla-core",
        dtypes=_HALF,  # fp32 is multiplied in TF32, which is not fp32
        layout="BNHD",
        head_dim_multiple=2,
        **others,
    )


def _feature_maps(target: str, *, max_head_dim: int = 256) -> tuple[Provider, ...]:
    """A feature map over our scan, and over the scan in PyTorch."""
    return (
        Provider(
            target=f"attnbench.baselines.feature_triton:{target}",
            distribution="triton",
            variant="attnbench",
            dtypes=_LONG_RANGE,
            max_head_dim=max_head_dim,
            head_dim_multiple=16,
            kernels=_SCAN,
        ),
        Provider(
            target=f"attnbench.baselines.feature_torch:{target}",
            distribution="torch",
            variant="chunked",
            devices=("cpu",),
            dtypes=_LONG_RANGE,
        ),
    )


def _ours(*, told_by: str) -> tuple[Provider, ...]:
    """Lightning Attention-2's kernels and its PyTorch form; `told_by` says under which decay a launch is described."""
    return (
        Provider(
            target="attnbench.baselines.lightning_triton:lightning2",
            distribution="triton",
            variant="attnbench",
            max_head_dim=256,
            head_dim_multiple=16,
            kernels=_SCAN,
            state_bytes=f"attnbench.baselines.lightning_triton:{told_by}_state_bytes",
            describe=f"attnbench.baselines.lightning_triton:{told_by}_config",
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
    )


def _official(*, target: str) -> Provider:
    """The authors' package."""
    return Provider(
        target=f"attnbench.baselines.lightning_attn:{target}",
        distribution="lightning-attn",
        package="lightning_attn",
        install="pip install lightning-attn",
        dtypes=_HALF,
        # Above 128 the package copies q and k 64 columns at a time and adds up rounded parts; it asserts
        # against 16, its kernels index a power of two, and v of another width is padded in every call.
        head_dims=(32, 64, 128),
        kernels=r"^_(fwd|bwd_intra|bwd_inter)_kernel",
    )


LINEAR: tuple[Mechanism, ...] = (
    Mechanism(
        name="lightning2",
        semantics="decay-linear",
        summary="Lightning Attention-2: left product inside a block, running state between blocks",
        cost="N",
        providers=_ours(told_by="lightning2"),
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
                kernels=_SCAN,
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
    # These libraries multiply fp32 inputs in TF32, which is not fp32: half precision only.
    Mechanism(
        name="lightning2-official",
        semantics="decay-linear",
        summary="Lightning Attention-2 by its authors' package, lightning-attn",
        cost="N",
        providers=(_official(target="lightning2_official"),),
    ),
    Mechanism(
        name="fla-simple-gla",
        semantics="decay-linear",
        summary="Flash Linear Attention's chunked Simple GLA with one decay per head",
        cost="N",
        providers=(
            _fla(
                target="simple_gla",
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
        name="lightning2-no-decay",
        semantics="linear",
        summary="Lightning Attention-2 without decay: no head forgets, so segments hand on their states",
        cost="N",
        providers=_ours(told_by="lightning2_no_decay"),
    ),
    Mechanism(
        name="official-no-decay",
        semantics="linear",
        summary="Lightning Attention-2 without decay by its authors' package, lightning-attn",
        cost="N",
        providers=(_official(target="lightning2_official_no_decay"),),
    ),
    Mechanism(
        name="fla-linear",
        semantics="linear",
        summary="Flash Linear Attention's chunked linear attention, without decay and denominator",
        cost="N",
        providers=(_fla(target="linear", kernels=r"^chunk_(fwd|bwd)_kernel"),),
    ),
    Mechanism(
        name="retnet",
        semantics="retention",
        summary="RetNet's retention by our Lightning Attention-2 kernel: RetNet's decay, values twice as wide",
        cost="N",
        value_ratio=2,
        providers=_ours(told_by="retnet"),
    ),
    Mechanism(
        name="fla-retention",
        semantics="retention",
        summary="Flash Linear Attention's chunked retention, with RetNet's decay",
        cost="N",
        value_ratio=2,
        providers=(_fla(target="retention", kernels=r"^chunk_(fwd|bwd)_kernel"),),
    ),
    Mechanism(
        name="gla",
        semantics="gated-linear",
        summary="Flash Linear Attention's chunked Gated Linear Attention, a forget gate for each channel",
        cost="N",
        providers=(_fla(target="gla", kernels=r"^chunk_gla_"),),
    ),
    Mechanism(
        name="linear-elu",
        semantics="elu-linear",
        summary="linear attention with 1 + elu and its denominator, two scans by our kernel",
        cost="N",
        providers=_feature_maps("linear_elu"),
    ),
    Mechanism(
        name="cosformer",
        semantics="cosformer",
        summary="cosFormer: relu with cosine weights and a denominator, two scans by our kernel over 2D channels",
        cost="N",
        providers=_feature_maps("cosformer", max_head_dim=128),
    ),
    Mechanism(
        name="performer",
        semantics="performer",
        summary="Performer: 256 positive orthogonal random features, two scans by our kernel",
        cost="N",
        providers=_feature_maps("performer"),
    ),
    Mechanism(
        name="rfa",
        semantics="random-feature",
        summary="Random Feature Attention: 128 random sines and cosines, two scans by our kernel",
        cost="N",
        providers=_feature_maps("rfa"),
    ),
)
