"""What is checked of a mechanism on a device: dtypes, widths, lengths, and the axes that its provider takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.case import Case, Workload
from attnbench.registry import find

# Odd, even, and both sides of the tiles; 1 is the shortest sequence there is.
SEQ_LENS = {
    "cuda": (1, 2, 17, 63, 64, 65, 127, 255, 1000, 1537, 2048, 4096),
    "cpu": (1, 2, 17, 63, 64, 65, 127, 200),
}
HEAD_DIMS = {"cuda": ((64, 64), (128, 128), (64, 128)), "cpu": ((16, 16), (32, 48))}  # (head_dim, value_dim)
DTYPES = {"cuda": ("bf16", "fp16", "fp32"), "cpu": ("fp32",)}
FEW_SEQ_LENS = (65, 1000)  # where every shape is compiled first
WINDOW, OTHER_WINDOWS = 37, (1, 600)  # within a block of a mask, and over several
BATCH, HEADS = 2, 3


def cases(
    *,
    mechanisms: Iterable[str],
    dtypes: Iterable[str],
    seq_lens: Iterable[int],
    dims: Sequence[tuple[int, int]],
    device: str,
) -> list[Case]:
    """What is checked on `device`: each mechanism at each dtype, width and length, with gradients and as a decode.

    At one of the lengths also what else its provider takes: grouped heads, no mask, other windows.
    """
    return [
        Case(
            mechanism=mechanism, workload=workload, batch=BATCH, seq_len=seq_len,
            head_dim=head_dim, value_dim=value_dim, dtype=dtype, **{"heads": HEADS, **axes},
        )
        for mechanism in mechanisms
        for scope in [_scope(mechanism, device=device)]
        for dtype in dtypes
        for head_dim, value_dim in dims
        for seq_len, axes in _places(scope, seq_lens=sorted(seq_lens))
        for workload in (scope.workloads if axes == scope.usual else (Workload.FWD_BWD,))
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """How much of a mechanism is checked."""

    workloads: tuple[Workload, ...]
    usual: Mapping[str, Any]  # axes of a case beside its shape
    unusual: tuple[Mapping[str, Any], ...]
    few: bool  # as each shape takes seconds


def _scope(mechanism: str, *, device: str) -> _Scope:
    known = find(mechanism)
    provider = known.provider_for(device)
    usual = {"window": WINDOW} if known.windowed else {}
    if isinstance(provider, str):
        return _Scope(workloads=(Workload.FWD_BWD,), usual=usual, unusual=(), few=False)
    decode = () if provider.decode is None else (Workload.DECODE,)
    # With one key/value head both orders of the query heads are the same: two of them tell which shares which.
    grouped = (
        ({**usual, "kv_heads": 1}, {**usual, "heads": 4, "kv_heads": 2}) if provider.grouped_heads else ()
    )
    full = ({**usual, "causal": False},) if provider.non_causal else ()
    windows = tuple({"window": window} for window in OTHER_WINDOWS) if known.windowed else ()
    return _Scope(
        workloads=(Workload.FWD_BWD, *decode),
        usual=usual,
        unusual=(*grouped, *full, *windows),
        few=provider.compiles_each_shape,
    )


def _places(scope: _Scope, *, seq_lens: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lengths, each with the other axes of its cases."""
    lengths = [n for n in seq_lens if n in FEW_SEQ_LENS] or seq_lens if scope.few else seq_lens
    middle = max((n for n in lengths if n <= max(FEW_SEQ_LENS)), default=lengths[0])
    for length in lengths:
        yield length, scope.usual
        if length == middle:
            yield from ((length, axes) for axes in scope.unusual)
