"""Our own Triton kernels, behind the call that all providers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.contract import Step, need_causal
from attnbench.case import Case, Workload
from attnbench.kernels import lightning_attention_1, lightning_attention_2, lightning_decode
from attnbench.kernels._host import limits
from attnbench.kernels._plan import Plan, plan, remembered_tokens, state_bytes
from attnbench.kernels._scan import REACH, can_specialise
from attnbench.kernels.lightning1 import tiles
from attnbench.semantics import TORCH_DTYPES, geometric_slopes, retention_slopes

_Law = Callable[[int], Tensor]  # from heads to their decay slopes


def lightning2(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-2.

    q, k: [B, H, N, D], v: [B, H, N, E], slopes: fp32 [H] or None; returns [B, H, N, E] in the input dtype.

    Raises ValueError for causal=False, ValueError or TypeError for what the kernel does not take.
    """
    need_causal(causal)
    o = lightning_attention_2(q, k, v, slopes, scale=scale)
    assert isinstance(o, Tensor)  # a pair only with return_state
    return o


def lightning2_decode(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, slopes: Tensor | None, scale: float
) -> Step:
    """One token by the recurrence of Lightning Attention-2, in one kernel; the state is updated in place.

    q, k: [B, H, D], v: [B, H, E], state: fp32 [B, H, D, E], slopes: fp32 [H] or None; the step returns o [B, H, E]
    and the state.

    The step raises ValueError or TypeError for what the kernel does not take.
    """

    def step() -> tuple[Tensor, ...]:
        return lightning_decode(q, k, v, state, slopes, scale=scale), state

    return step


def lightning2_paper(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-2 as the paper has it: each sequence walked from end to end. Shapes and errors as for
    `lightning2`.

    Source: arXiv 2401.04658, Algorithms 1 and 2.
    """
    need_causal(causal)
    o = lightning_attention_2(q, k, v, slopes, scale=scale, segments=1)
    assert isinstance(o, Tensor)
    return o


def lightning1(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-1. Shapes and errors as for `lightning2`."""
    need_causal(causal)
    return lightning_attention_1(q, k, v, slopes, scale=scale)


def lightning2_state_bytes(case: Case, device: torch.device) -> int:
    """Bytes of fp32 states in device memory: the most that one launch of the workload holds.

    0 while the states stay in registers: with one segment, or where all heads forget within two.
    """
    return _state_bytes(case, device, law=geometric_slopes)


def retnet_state_bytes(case: Case, device: torch.device) -> int:
    """As `lightning2_state_bytes`, with the decay of RetNet."""
    return _state_bytes(case, device, law=retention_slopes)


def lightning2_no_decay_state_bytes(case: Case, device: torch.device) -> int:
    """As `lightning2_state_bytes`, where no head forgets."""
    return _state_bytes(case, device, law=torch.zeros)


def _state_bytes(case: Case, device: torch.device, *, law: _Law) -> int:
    return max(
        state_bytes(
            scan,
            scans=scans,
            batch=case.batch,
            heads=case.heads,
            seq_len=case.seq_len,
            key_dim=key_dim,
            value_dim=value_dim,
            remembered=_remembered(case, law=law),
        )
        for (key_dim, value_dim, scans), scan in _launches(case, device, law=law).items()
    )


def lightning2_config(case: Case, device: torch.device) -> dict[str, Any]:
    """The launch configurations, as fields of `attnbench.kernels._plan.Plan`.

    That of the forward alone; of a workload with a backward those of its launches, under "o" and "dq_dk_dv", or,
    where D and E differ, "dv" and "dq_dk".
    """
    return _config(case, device, law=geometric_slopes)


def retnet_config(case: Case, device: torch.device) -> dict[str, Any]:
    """As `lightning2_config`, with the decay of RetNet."""
    return _config(case, device, law=retention_slopes)


def lightning2_no_decay_config(case: Case, device: torch.device) -> dict[str, Any]:
    """As `lightning2_config`, where no head forgets."""
    return _config(case, device, law=torch.zeros)


def _config(case: Case, device: torch.device, *, law: _Law) -> dict[str, Any]:
    plans = {
        scans: dataclasses.asdict(chosen) for (*_, scans), chosen in _launches(case, device, law=law).items()
    }
    if not case.workload.has_backward:
        return plans[1]
    gradients = {1: "dv", 2: "dq_dk", 3: "dq_dk_dv"}
    named: dict[str, Any] = {gradients[scans]: chosen for scans, chosen in plans.items()}
    if case.workload is Workload.FWD_BWD:
        named["o"] = _config(dataclasses.replace(case, workload=Workload.FWD), device, law=law)
    return named


def lightning1_config(case: Case, device: torch.device) -> dict[str, Any]:
    """The launch configuration, as fields of `attnbench.kernels.lightning1.Tiles`.

    "dq_dk" as for Lightning-2.
    """
    limit = limits(device)
    first, *others = (
        dataclasses.asdict(
            tiles(
                key_dim=key_dim,
                value_dim=value_dim,
                element_size=TORCH_DTYPES[case.dtype].itemsize,
                shared_memory=limit.shared_memory,
                architecture=limit.architecture,
            )
        )
        for key_dim, value_dim in _dims(case)
    )
    return {**first, "dq_dk": others[0]} if others else first


def _dims(case: Case) -> list[tuple[int, int]]:
    """Key and value dims of the kernels that a workload launches: o = F(q, k, v) and dv = R(k, q, do) first.

    dq = F(do, v, k) and dk = R(v, do, q) have them the other way round.
    """
    dims = [(case.head_dim, case.value_dim)]
    if case.workload.has_backward and case.value_dim != case.head_dim:
        dims.append((case.value_dim, case.head_dim))
    return dims


def _remembered(case: Case, *, law: _Law) -> tuple[float, ...]:
    """Tokens that each head remembers by the slopes of a measurement."""
    reach = REACH[TORCH_DTYPES[case.dtype]]
    return tuple(remembered_tokens(slope, reach=reach) for slope in law(case.heads).tolist())


def _launches(case: Case, device: torch.device, *, law: _Law) -> dict[tuple[int, int, int], Plan]:
    """The plans of Lightning-2's launches by key dim, value dim, and the number of scans together.

    o = F(q, k, v) alone; dq = F(do, v, k), dk = R(v, do, q) and dv = R(k, q, do) together where the dims allow.
    """
    D, E = case.head_dim, case.value_dim
    backward = [(D, E, 3)] if D == E else [(D, E, 1), (E, D, 2)]
    limit = limits(device)
    return {
        (key_dim, value_dim, scans): plan(
            scans=scans,
            batch=case.batch,
            heads=case.heads,
            seq_len=case.seq_len,
            key_dim=key_dim,
            value_dim=value_dim,
            element_size=TORCH_DTYPES[case.dtype].itemsize,
            remembered=_remembered(case, law=law),
            multiprocessors=limit.multiprocessors,
            shared_memory=limit.shared_memory,
            architecture=limit.architecture,
            specialised=can_specialise(),
        )
        for key_dim, value_dim, scans in (backward if case.workload.has_backward else [(D, E, 1)])
    }
