"""What each family computes: its oracle, its tolerances, its FLOPs and its bytes. Oracles compute in fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from attnbench.case import Case, Workload
from attnbench.providers import Cost
from attnbench.semantics.features import (
    LEAST_DENOMINATOR,
    RANDOM_FEATURES,
    cosine_features,
    elu_features,
    normalised_oracle,
    positive_features,
    trigonometric_features,
)
from attnbench.semantics.oracles import (
    Oracle,
    Reference,
    decay_linear_oracle,
    gated_linear_oracle,
    softmax_oracle,
)
from attnbench.semantics.parameters import (
    GATES,
    GAUSSIAN_PROJECTION,
    ORTHOGONAL_PROJECTION,
    SINKS,
    Parameter,
)
from attnbench.semantics.slopes import geometric_slopes, retention_slopes
from attnbench.semantics.steps import (
    KEPT,
    Kept,
    StepOracle,
    StepReference,
    cache_step_oracle,
    state_deviation,
    state_step_oracle,
)
from attnbench.semantics.work import TORCH_DTYPES, minimal_bytes, step_bytes, step_flops, useful_flops

__all__ = [
    "KEPT",
    "SEMANTICS",
    "SINKS",
    "TOLERANCES",
    "TORCH_DTYPES",
    "Kept",
    "Oracle",
    "Parameter",
    "Reference",
    "Semantics",
    "StepOracle",
    "StepReference",
    "cache_step_oracle",
    "decay_linear_oracle",
    "gated_linear_oracle",
    "geometric_slopes",
    "minimal_bytes",
    "normalised_oracle",
    "retention_slopes",
    "softmax_oracle",
    "state_deviation",
    "state_step_oracle",
    "step_bytes",
    "step_flops",
    "useful_flops",
]


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """A mathematical function and what is known of it."""

    name: str
    formula: str
    oracle: Oracle
    kept: Kept  # of the context of a decode step
    step_oracle: StepOracle | None = None  # None: no decode is defined
    slope_law: Callable[[int], Tensor] | None = None  # from heads to their decay slopes
    scaled: bool = False  # scores are scaled by 1/sqrt(head dim)
    parameters: tuple[Parameter, ...] = ()
    windowed: bool = False  # a query sees a window and the sinks before it
    features: Callable[[int], int] | None = None  # from head dim to the dim of mapped queries and keys
    projected: bool = False  # the map multiplies by a matrix

    def slopes(self, heads: int) -> Tensor | None:
        """The decay slopes of a measurement, fp32 [heads] on the CPU, or None."""
        return None if self.slope_law is None else self.slope_law(heads)

    def scale(self, head_dim: int) -> float:
        """The factor on the scores."""
        return head_dim**-0.5 if self.scaled else 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """What oracle and providers are given by name beside slopes, scale and causal."""
        return (*(p.name for p in self.parameters), *(("window", "sinks") if self.windowed else ()))

    def options(self, case: Case) -> dict[str, int]:
        """Those of them that are no tensors."""
        return {"window": case.window or case.seq_len, "sinks": SINKS} if self.windowed else {}

    def flops(self, case: Case, *, cost: Cost) -> float:
        """Useful floating-point operations of one call, whatever the workload."""
        if case.workload is Workload.DECODE:
            return step_flops(case, kept=self.kept)
        features = None if self.features is None else self.features(case.head_dim)
        return useful_flops(case, cost=cost, features=features, projected=self.projected)

    def moved_bytes(self, case: Case) -> int:
        """The least bytes that one call must move, whatever the workload."""
        if case.workload is Workload.DECODE:
            return step_bytes(case, kept=self.kept)
        return minimal_bytes(case, gates=GATES in self.parameters)


_NORMALISED = "o_t = sum_{s<=t} (phi(q_t) . phi(k_s)) v_s / sum_{s<=t} phi(q_t) . phi(k_s)"

SEMANTICS: Mapping[str, Semantics] = {
    s.name: s
    for s in (
        Semantics(
            name="decay-linear",
            formula="o_t = sum_{s<=t} exp(-slope (t-s)) (q_t . k_s) v_s",
            oracle=decay_linear_oracle,
            step_oracle=state_step_oracle,
            kept="state",
            slope_law=geometric_slopes,
        ),
        Semantics(
            name="linear",
            formula="o_t = sum_{s<=t} (q_t . k_s) v_s",
            oracle=decay_linear_oracle,
            step_oracle=state_step_oracle,
            kept="state",
        ),
        Semantics(
            name="retention",
            formula="o_t = sum_{s<=t} (1 - 2^(-5-head))^(t-s) (q_t . k_s / sqrt(D)) v_s",
            oracle=decay_linear_oracle,
            step_oracle=state_step_oracle,
            kept="state",
            slope_law=retention_slopes,
            scaled=True,
        ),
        Semantics(
            name="gated-linear",
            formula="o_t = sum_{s<=t} (q_t * prod_{s<r<=t} gate_r) . k_s / sqrt(D) v_s, a gate for each channel",
            oracle=gated_linear_oracle,
            kept="state",
            scaled=True,
            parameters=(GATES,),
        ),
        Semantics(
            name="elu-linear",
            formula=f"{_NORMALISED}, phi = 1 + elu",
            oracle=normalised_oracle(elu_features),
            kept="state",
            features=lambda head_dim: head_dim,
        ),
        Semantics(
            name="cosformer",
            formula=f"{_NORMALISED}, phi . phi = relu(q_t) . relu(k_s) cos(pi (t-s) / 2N)",
            oracle=normalised_oracle(cosine_features, least=LEAST_DENOMINATOR),
            kept="state",
            features=lambda head_dim: 2 * head_dim,
        ),
        Semantics(
            name="performer",
            formula=f"{_NORMALISED}, phi = positive random features of exp(q . k / sqrt(D))",
            oracle=normalised_oracle(positive_features),
            kept="state",
            scaled=True,
            parameters=(ORTHOGONAL_PROJECTION,),
            features=lambda head_dim: RANDOM_FEATURES,
            projected=True,
        ),
        Semantics(
            name="random-feature",
            formula=f"{_NORMALISED}, phi = random sines and cosines of q / |q|, k / |k|",
            oracle=normalised_oracle(trigonometric_features),
            kept="state",
            parameters=(GAUSSIAN_PROJECTION,),
            features=lambda head_dim: RANDOM_FEATURES,
            projected=True,
        ),
        Semantics(
            name="softmax",
            formula="o_t = sum_{s<=t} softmax_s(q_t . k_s / sqrt(D)) v_s",
            oracle=softmax_oracle,
            step_oracle=cache_step_oracle,
            kept="caches",
            scaled=True,
        ),
        Semantics(
            name="sink-window",
            formula=f"o_t = sum_s softmax_s(q_t . k_s / sqrt(D)) v_s over s<=t with t-s < window or s < {SINKS}",
            oracle=softmax_oracle,
            kept="caches",
            scaled=True,
            windowed=True,
        ),
    )
}

# Largest relative error (norm of the difference over norm of the fp64 oracle) that counts as correct. A plain
# fp32 implementation, in the case's dtype at its inputs and outputs, errs by about 5e-7 (fp32; 3.9e-7 to 5.5e-7
# by the instructions that a processor has for matrix products), 2e-4 (fp16) and 1.7e-3 (bf16);
# `tests/test_semantics.py` measures that and holds the table to 4 to 60 times it. For the 16-bit dtypes the limit
# is four units of rounding, 4 x 2^-11 and 4 x 2^-8: fast kernels round products on their way to the tensor cores,
# and softmax gradients over two tokens, computed exactly but for an o that was rounded to bf16, already err by up
# to 1.5e-2.
TOLERANCES: Mapping[str, float] = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 1.6e-2}
