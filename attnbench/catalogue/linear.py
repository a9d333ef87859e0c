"""Linear attention: our kernels, naive forms and the libraries of others."""

from __future__ import annotations

from attnbench.providers import Decode, Mechanism, Provider

_HALF = ("bf16", "fp16")

LINEAR: tuple[Mechanism, ...] = (
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
)
