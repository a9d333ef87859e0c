"""Is the output right? Every speed is preceded by this check against the fp64 oracle, on the inputs that are timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.case import Accuracy, Case
from attnbench.measure.inputs import Calls
from attnbench.semantics import TOLERANCES, TORCH_DTYPES, Reference, Semantics

# fp64 elements per tensor that a check may use: bounds its memory and, next to the timing, its cost
_BUDGET = {"cuda": 2**26, "cpu": 2**21}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Errors of one check and, when it failed, the sentence that says how."""

    accuracy: Accuracy
    fault: str | None


def sampled_heads(case: Case, *, budget: int) -> Tensor:
    """Flat indices into batch x kv_heads that a check looks at: as many as the budget allows, spread evenly.

    The last head of the last sequence is always among them: it has the weakest decay, so the longest memory.
    """
    total = case.batch * case.kv_heads
    rows = min(case.seq_len, 256)  # score rows that the softmax oracle holds at once for a long case
    per_head = case.seq_len * max(case.head_dim, case.value_dim, rows) * (case.heads // case.kv_heads)
    count = max(1, min(total, budget // per_head))
    heads: Tensor = torch.linspace(total - 1, 0, count).round().long().unique()
    return heads


def poison(*, device: torch.device, like: list[tuple[torch.Size, torch.dtype]]) -> None:
    """Fill memory that the next outputs are likely to be given with NaN, so that an unwritten element shows."""
    blocks = [torch.full(shape, float("nan"), dtype=dtype, device=device) for shape, dtype in like]
    del blocks


def relative_error(value: Tensor, truth: Tensor, *, fallback: Tensor) -> float:
    """Norm of the difference over the norm of the truth, in fp64.

    Where the truth vanishes (softmax over one token has no gradient) the norm of `fallback` takes its place.
    """
    norm = torch.linalg.vector_norm(truth)
    floor = torch.linalg.vector_norm(fallback.double())
    scale = torch.where(norm > 1e-9 * floor, norm, floor)
    return float(torch.linalg.vector_norm(value.double() - truth) / scale)


def poison_outputs(case: Case, *, calls: Calls, device: torch.device) -> None:
    """Poison as much memory as the outputs of one call take."""
    i = calls.inputs
    outputs = [(torch.Size((case.batch, case.seq_len, case.heads, case.value_dim)), TORCH_DTYPES[case.dtype])]
    if i.do is not None:
        outputs += [(t.shape, t.dtype) for t in (i.q, i.k, i.v)]
    poison(device=device, like=outputs)


def judge(
    case: Case, *, got: dict[str, Tensor], calls: Calls, semantics: Semantics, device: torch.device
) -> Verdict:
    """Compare the outputs of one call, as `Calls.outputs` names them, with the oracle.

    All are checked for unwritten and non-finite elements and for shape and dtype; their values on
    `sampled_heads`.
    """
    fault = _malformed(got, case=case, calls=calls)
    if fault is not None:
        return Verdict(accuracy=Accuracy(), fault=fault)
    errors = _errors(case, got=got, calls=calls, semantics=semantics, budget=_BUDGET[device.type])
    limit = TOLERANCES[case.dtype]
    wrong = [f"{name} is off by {error:.2e}" for name, error in errors.items() if not error <= limit]
    infinite = [name for name, tensor in got.items() if not bool(torch.isfinite(tensor).all())]
    wrong += [f"{name} has unwritten or non-finite elements" for name in infinite]
    return Verdict(
        accuracy=Accuracy(**{f"rel_err_{n}": e for n, e in errors.items() if e == e and e != float("inf")}),
        fault=f"{', '.join(wrong)} (relative to the fp64 oracle; {case.dtype} allows {limit:g})"
        if wrong
        else None,
    )


def _malformed(got: dict[str, Tensor], *, case: Case, calls: Calls) -> str | None:
    """The first output whose shape or dtype is not what its input's is."""
    i = calls.inputs
    model = {"o": (*i.q.shape[:-1], case.value_dim), "dq": i.q.shape, "dk": i.k.shape, "dv": i.v.shape}
    for name, tensor in got.items():
        if tensor.shape != model[name]:
            return f"{name} has shape {list(tensor.shape)}, expected {list(model[name])}"
        if tensor.dtype != i.q.dtype:
            return f"{name} is {tensor.dtype}, expected {i.q.dtype}"
    return None


def _errors(
    case: Case, *, got: dict[str, Tensor], calls: Calls, semantics: Semantics, budget: int
) -> dict[str, float]:
    i = calls.inputs
    group = case.heads // case.kv_heads  # query heads that share one key/value head
    pairs = sampled_heads(case, budget=budget).to(i.q.device)
    batch, kv_head = pairs // case.kv_heads, pairs % case.kv_heads
    query_head = (kv_head[:, None] * group + torch.arange(group, device=pairs.device)).flatten()

    def of_queries(tensor: Tensor) -> Tensor:
        return i.by_heads(tensor.detach())[batch.repeat_interleave(group), query_head]

    def of_keys(tensor: Tensor) -> Tensor:
        return i.by_heads(tensor.detach())[batch, kv_head]

    reference: Reference = semantics.oracle(
        of_queries(i.q),
        of_keys(i.k).repeat_interleave(group, dim=0),
        of_keys(i.v).repeat_interleave(group, dim=0),
        None if i.do is None else of_queries(i.do),
        slopes=None if i.slopes is None else i.slopes[query_head],
        scale=i.scale,
        causal=i.causal,
    )
    errors: dict[str, float] = {}
    for name, tensor in got.items():
        truth: Tensor | None = getattr(reference, name)
        if truth is None:
            continue
        if name in ("o", "dq"):
            value = of_queries(tensor)[:, reference.rows]
        else:
            value = of_keys(tensor)[:, reference.first_key :]
            truth = truth.unflatten(0, (-1, group)).sum(1)  # a shared head gathers its query heads' gradients
        errors[name] = relative_error(
            value, truth, fallback=of_queries(i.q) if i.do is None else of_queries(i.do)
        )
    return errors
