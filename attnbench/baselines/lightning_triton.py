"""Our own Triton kernels, behind the call that all providers share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from attnbench.baselines.contract import need_causal
from attnbench.case import Case
from attnbench.kernels import lightning_attention_1, lightning_attention_2
from attnbench.kernels._host import limits
from attnbench.kernels.lightning1 import tiles
from attnbench.kernels.lightning2 import Plan, plan, state_bytes
from attnbench.semantics import TORCH_DTYPES


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


def lightning1(
    q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Lightning Attention-1. Shapes and errors as for `lightning2`."""
    need_causal(causal)
    return lightning_attention_1(q, k, v, slopes, scale=scale)


def lightning2_state_bytes(case: Case, device: torch.device) -> int:
    """Bytes of fp32 states in device memory: the most that one scan of the workload holds.

    0 while the states stay in registers, which is so for a scan of one segment.
    """
    return max(
        state_bytes(
            scan,
            batch=case.batch,
            heads=case.heads,
            seq_len=case.seq_len,
            key_dim=key_dim,
            value_dim=value_dim,
        )
        for (key_dim, value_dim), scan in _scans(case, device).items()
    )


def lightning2_config(case: Case, device: torch.device) -> dict[str, Any]:
    """The launch configuration, as fields of `attnbench.kernels.lightning2.Plan`.

    That of o and dv; where D and E differ, dq and dk have their own, under "dq_dk".
    """
    first, *others = (dataclasses.asdict(scan) for scan in _scans(case, device).values())
    return {**first, "dq_dk": others[0]} if others else first


def lightning1_config(case: Case, device: torch.device) -> dict[str, Any]:
    """The launch configuration, as fields of `attnbench.kernels.lightning1.Tiles`.

    "dq_dk" as for Lightning-2.
    """
    first, *others = (
        dataclasses.asdict(
            tiles(
                key_dim=key_dim,
                value_dim=value_dim,
                element_size=TORCH_DTYPES[case.dtype].itemsize,
                shared_memory=limits(device).shared_memory,
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


def _scans(case: Case, device: torch.device) -> dict[tuple[int, int], Plan]:
    """The plans of Lightning-2's scans by (key dim, value dim)."""
    limit = limits(device)
    return {
        (key_dim, value_dim): plan(
            batch=case.batch,
            heads=case.heads,
            seq_len=case.seq_len,
            key_dim=key_dim,
            value_dim=value_dim,
            element_size=TORCH_DTYPES[case.dtype].itemsize,
            decays=True,
            multiprocessors=limit.multiprocessors,
            shared_memory=limit.shared_memory,
        )
        for key_dim, value_dim in _dims(case)
    }
