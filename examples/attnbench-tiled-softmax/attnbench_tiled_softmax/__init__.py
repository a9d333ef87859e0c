"""Softmax attention over tiles of keys, in plain PyTorch: an example of a mechanism from outside attnbench."""

from attnbench.registry import Mechanism, Provider

MECHANISM = Mechanism(
    name="tiled-softmax",
    semantics="softmax",
    summary="softmax over tiles of keys with a running maximum, in PyTorch",
    cost="N^2",
    providers=(
        Provider(
            target="attnbench_tiled_softmax.attention:tiled_softmax",
            distribution="attnbench-tiled-softmax",
            devices=("cuda", "cpu"),
            non_causal=True,
        ),
    ),
)
