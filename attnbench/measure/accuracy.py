"""Is the output right? Every speed is preceded by this check against the fp64 oracle, on the inputs that are timed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.case import Accuracy, Case
from attnbench.measure.inputs import AnyCalls, Calls, DecodeCalls
from attnbench.semantics import TOLERANCES, TORCH_DTYPES, Reference, Semantics, StepReference

# fp64 elements per tensor that a check may use: bounds its memory and, next to the timing, its cost
_BUDGET = {"cuda": 2**26, "cpu": 2**21}


# A norm over all tokens hides one that is wrong in a long sequence: at 1k tokens a softmax whose last output is zero is
# off by less than bf16 allows. So no row of o may be off by more than this share of its own size (in bf16 on a CPU no
# row of any mechanism is off by 1 %). Rows of less than a tenth of the usual size count as if they had that: in
# them everything may cancel. Gradients are held to their norm alone: of late tokens they are small sums of large terms,
# of which 16 bits leave what they will (dq of torch's own softmax is off by 25 % there).
ROW_LIMIT, _ROW_FLOOR = 0.25, 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Errors of one check and, when it failed, the sentence that says how."""

    accuracy: Accuracy
    fault: str | None


def sampled_heads(case: Case, *, budget: int) -> Tensor:
    """Flat indices into batch x kv_heads that a check looks at: as many as the budget allows, spread evenly.

    The last head of the last sequence is always among them: it has the weakest decay, so the longest memory.
    """
    rows = min(case.seq_len, 256)  # score rows that the softmax oracle holds at once for a long case
    per_head = case.seq_len * max(case.head_dim, case.value_dim, rows) * (case.heads // case.kv_heads)
    return _spread(case.batch * case.kv_heads, count=budget // per_head)


def _spread(total: int, *, count: int) -> Tensor:
    """`count` of `total` indices, at least one and at most all, the last one always among them."""
    chosen: Tensor = torch.linspace(total - 1, 0, max(1, min(total, count))).round().long().unique()
    return chosen


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


def worst_row(value: Tensor, truth: Tensor) -> float:
    """The largest error of a row (a token of a head, [..., D]) over the size of its truth, as `ROW_LIMIT` bounds it."""
    sizes = torch.linalg.vector_norm(truth, dim=-1)
    usual = sizes.square().mean().sqrt()
    off = torch.linalg.vector_norm(value.double() - truth, dim=-1)
    return float((off / sizes.clamp(min=_ROW_FLOOR * usual)).max()) if usual > 0 else 0.0


def poison_outputs(case: Case, *, calls: AnyCalls, device: torch.device) -> None:
    """Poison as much memory as the outputs of one call take."""
    i = calls.inputs
    if isinstance(calls, DecodeCalls):
        o = torch.Size((case.batch, case.heads, case.value_dim))
        states = [(t.shape, t.dtype) for t, name in zip(i.kept, calls.names, strict=True) if name == "state"]
        poison(device=device, like=[(o, TORCH_DTYPES[case.dtype]), *states])  # a step may return a new state
        return
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
    errors, row = _errors(case, got=got, calls=calls, semantics=semantics, budget=_BUDGET[device.type])
    limit = TOLERANCES[case.dtype]
    wrong = [f"{name} is off by {error:.2e}" for name, error in errors.items() if not error <= limit]
    if errors["o"] <= limit and not row <= ROW_LIMIT:
        wrong.append(f"a row of o is off by {row:.0%} of its size, and {ROW_LIMIT:.0%} is allowed")
    infinite = [name for name, tensor in got.items() if not bool(torch.isfinite(tensor).all())]
    wrong += [f"{name} has unwritten or non-finite elements" for name in infinite]
    return Verdict(
        accuracy=Accuracy(**{f"rel_err_{n}": e for n, e in errors.items() if e == e and e != float("inf")}),
        fault=f"{', '.join(wrong)} (relative to the fp64 oracle; {case.dtype} allows {limit:g})"
        if wrong
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a decode step should leave behind, for some heads: indices into batch and into key/value heads."""

    batch: Tensor
    kv_head: Tensor
    reference: StepReference


def expect_step(case: Case, *, calls: DecodeCalls, semantics: Semantics, device: torch.device) -> Expected:
    """The truth of the step that comes next, on as many heads as fit the budget, the last one among them.

    To be asked for before the step: that changes its own inputs.
    """
    i = calls.inputs
    per_head = sum(t.numel() for t in i.kept) // (case.batch * case.kv_heads)
    pairs = _spread(case.batch * case.kv_heads, count=_BUDGET[device.type] // per_head).to(device)
    batch, kv_head = pairs // case.kv_heads, pairs % case.kv_heads
    if semantics.step_oracle is None:
        raise NotImplementedError(f"no decode is defined for {semantics.name}")
    reference = semantics.step_oracle(
        _grouped(i.q, case=case)[batch, kv_head],
        i.k[batch, kv_head],
        i.v[batch, kv_head],
        *(_by_heads(name, t, calls=calls)[batch, kv_head] for name, t in _kept(calls)),
        slopes=None if i.slopes is None else i.slopes[kv_head],
        scale=i.scale,
    )
    return Expected(batch=batch, kv_head=kv_head, reference=reference)


def judge_step(case: Case, *, got: dict[str, Tensor], calls: DecodeCalls, expected: Expected) -> Verdict:
    """Compare what one decode step left behind, as `DecodeCalls.outputs` names it, with what was expected.

    What is kept of the context is held to the tolerance of fp32, whatever the case's dtype: a state is fp32, a
    cache holds copies, and in a long context a token that got lost is less than 16-bit rounding. It has no column
    of its own, as rel_err_o is of o alone: when it is off, the sentence says by how much. o and a state are searched
    for unwritten elements everywhere, caches on the heads that are compared.
    """
    i = calls.inputs
    o_shape = (*i.q.shape[:-1], case.value_dim)
    model = {"o": (o_shape, i.q.dtype), **{name: (t.shape, t.dtype) for name, t in _kept(calls)}}
    fault = next((f for name, t in got.items() if (f := _unlike(name, t, *model[name])) is not None), None)
    if fault is not None:
        return Verdict(accuracy=Accuracy(), fault=fault)
    o = _grouped(got["o"], case=case)[expected.batch, expected.kv_head]
    error = relative_error(o, expected.reference.o, fallback=i.v)
    wrong = []
    if not error <= TOLERANCES[case.dtype]:
        wrong.append(f"o is off by {error:.2e} ({case.dtype} allows {TOLERANCES[case.dtype]:g})")
    for name, truth in zip(calls.names, expected.reference.kept, strict=True):
        value = _by_heads(name, got[name], calls=calls)[expected.batch, expected.kv_head]
        off = relative_error(value, truth, fallback=i.k)
        if not off <= TOLERANCES["fp32"]:
            wrong.append(f"{name} is off by {off:.2e} (fp32 allows {TOLERANCES['fp32']:g})")
    wrong += [
        f"{name} has unwritten or non-finite elements"
        for name in got
        if name in ("o", "state") and not bool(torch.isfinite(got[name]).all())
    ]
    return Verdict(
        accuracy=Accuracy(rel_err_o=error if math.isfinite(error) else None),
        fault=f"{', '.join(wrong)}, relative to the fp64 oracle" if wrong else None,
    )


def _kept(calls: DecodeCalls) -> Iterable[tuple[str, Tensor]]:
    return zip(calls.names, calls.inputs.kept, strict=True)


def _by_heads(name: str, tensor: Tensor, *, calls: DecodeCalls) -> Tensor:
    """A view as [B, H, ...]: caches have the layout, a state has always its heads there."""
    return tensor if name == "state" else calls.inputs.by_heads(tensor)


def _grouped(token: Tensor, *, case: Case) -> Tensor:
    """q or o, [B, H, ...], as [B, KV, H / KV, ...]: the query heads that share a key/value head beside each other."""
    return token.reshape(case.batch, case.kv_heads, -1, token.shape[-1])


def _malformed(got: dict[str, Tensor], *, case: Case, calls: Calls) -> str | None:
    """The first output whose shape or dtype is not what its input's is."""
    i = calls.inputs
    model = {"o": (*i.q.shape[:-1], case.value_dim), "dq": i.q.shape, "dk": i.k.shape, "dv": i.v.shape}
    faults = (_unlike(name, tensor, model[name], i.q.dtype) for name, tensor in got.items())
    return next((fault for fault in faults if fault is not None), None)


def _unlike(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """How a tensor differs from the shape and dtype that it should have."""
    if tensor.shape != shape:
        return f"{name} has shape {list(tensor.shape)}, expected {list(shape)}"
    if tensor.dtype != dtype:
        return f"{name} is {tensor.dtype}, expected {dtype}"
    return None


def _errors(
    case: Case, *, got: dict[str, Tensor], calls: Calls, semantics: Semantics, budget: int
) -> tuple[dict[str, float], float]:
    """The error of each output, and that of the worst row of o."""
    i = calls.inputs
    group = case.heads // case.kv_heads  # query heads that share one key/value head
    pairs = sampled_heads(case, budget=budget).to(i.q.device)
    batch, kv_head = pairs // case.kv_heads, pairs % case.kv_heads
    query_head = (kv_head[:, None] * group + torch.arange(group, device=pairs.device)).flatten()

    def of_queries(tensor: Tensor) -> Tensor:
        return i.by_heads(tensor.detach())[batch.repeat_interleave(group), query_head]

    def of_keys(tensor: Tensor) -> Tensor:
        return i.by_heads(tensor.detach())[batch, kv_head]

    def of_parameter(value: Tensor | int, *, along: str) -> Tensor | int:
        if not isinstance(value, Tensor):
            return value
        return value[query_head] if along == "heads" else of_keys(value).repeat_interleave(group, dim=0)

    places = {p.name: p.along for p in semantics.parameters}
    reference: Reference = semantics.oracle(
        of_queries(i.q),
        of_keys(i.k).repeat_interleave(group, dim=0),
        of_keys(i.v).repeat_interleave(group, dim=0),
        None if i.do is None else of_queries(i.do),
        slopes=None if i.slopes is None else i.slopes[query_head],
        scale=i.scale,
        causal=i.causal,
        **{name: of_parameter(value, along=places.get(name, "")) for name, value in i.parameters.items()},
    )
    errors: dict[str, float] = {}
    row = 0.0
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
        if name == "o":
            row = worst_row(value, truth)
    return errors, row
