"""The algebra of segment states, the cutting of sequences, and the two ways to compute a segment."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.parallel import local, states
from attnbench.parallel.lightning import LightningParallel
from attnbench.parallel.sharding import Sharding, contiguous, zigzag
from attnbench.parallel.states import Decay, add_decayed, advanced, border_distances, combine, summed_products
from attnbench.parallel.wire import CutWire
from attnbench.semantics import geometric_slopes

SLOPES = st.lists(st.sampled_from([0.0, 0.01, 0.3, 2.5]), min_size=1, max_size=3)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def _states(
    lengths: list[int], slopes: list[float] | None
) -> tuple[Decay, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """k and v of a whole sequence, and the state of each of its segments by the definition, fp64."""
    heads = len(slopes or [0.0])
    torch.manual_seed(sum(lengths))
    k, v = (torch.randn(2, heads, sum(lengths), 3, dtype=torch.float64) for _ in range(2))
    decay = Decay.of(None if slopes is None else torch.tensor(slopes), dtype=torch.float64)
    found, start = [], 0
    for n in lengths:
        weights = decay.token_weights(torch.arange(n).flip(0), dtype=torch.float64)
        here = slice(start, start + n)
        found.append(summed_products(k[:, :, here], v[:, :, here], weights=weights))
        start += n
    return decay, k, v, found


def _truth(k: torch.Tensor, v: torch.Tensor, slopes: list[float] | None, *, until: int) -> torch.Tensor:
    """sum_s exp(-slope (until - 1 - s)) k_s^T v_s over s < until, term by term."""
    rate = torch.tensor(slopes or [0.0], dtype=torch.float32).double()[:, None, None]
    total = torch.zeros(*k.shape[:2], 3, 3, dtype=torch.float64)
    for s in range(until):
        total += torch.exp(-rate * (until - 1 - s)) * k[:, :, s, :, None] * v[:, :, s, None, :]
    return total


@given(lengths=LENGTHS, slopes=st.none() | SLOPES)
@settings(max_examples=40)
def test_gathered_and_chained_states_are_that_of_what_comes_before(
    lengths: list[int], slopes: list[float] | None
) -> None:
    decay, k, v, states = _states(lengths, slopes)
    chained: torch.Tensor | None = None
    for rank in range(len(lengths)):
        truth = _truth(k, v, slopes, until=sum(lengths[:rank]))
        if rank:
            distances = border_distances(lengths, rank, reverse=False, reach=decay.reach)
            weights = decay.powers(torch.tensor(distances), dtype=torch.float64)
            gathered = combine(torch.stack(states[rank - len(distances) : rank]), weights)
            assert chained is not None
            torch.testing.assert_close(gathered, truth)
            torch.testing.assert_close(chained, truth)
        factor = decay.powers(torch.tensor(lengths[rank]), dtype=torch.float64)[:, None, None]
        chained = advanced(chained, states[rank], factor)


@given(lengths=LENGTHS)
def test_backwards_in_time_distances_are_those_of_the_mirror_image(lengths: list[int]) -> None:
    for rank in range(len(lengths)):
        mirrored = border_distances(lengths[::-1], len(lengths) - 1 - rank, reverse=False, reach=math.inf)
        assert border_distances(lengths, rank, reverse=True, reach=math.inf) == mirrored[::-1]


def test_segments_that_every_head_has_forgotten_are_not_asked_for() -> None:
    lengths = [5, 5, 5, 5, 5]
    assert border_distances(lengths, 3, reverse=False, reach=10) == [5, 0]  # of segments 1 and 2
    assert border_distances(lengths, 1, reverse=True, reach=5) == [0]  # of segment 2


@given(seq_len=st.integers(16, 200), ranks=st.integers(1, 8), layout=st.sampled_from([contiguous, zigzag]))
def test_every_token_is_on_one_rank_and_shards_are_even(seq_len: int, ranks: int, layout: object) -> None:
    sharding: Sharding = layout(seq_len, ranks)  # type: ignore[operator]
    x = torch.arange(seq_len).reshape(1, 1, seq_len, 1)
    shards = [sharding.take(x, rank) for rank in range(ranks)]
    assert torch.equal(sharding.join(shards), x)
    assert [shard.shape[2] for shard in shards] == list(sharding.lengths)
    assert max(sharding.lengths) - min(sharding.lengths) <= 2


@pytest.mark.parametrize(("layout", "least"), [(contiguous, 5), (zigzag, 10)], ids=["contiguous", "zigzag"])
def test_fewer_tokens_than_ranks_are_refused_by_name(layout: object, least: int) -> None:
    layout(least, 5)  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"seq_len must be at least .*, {least},.* got {least - 1}"):
        layout(least - 1, 5)  # type: ignore[operator]


def test_what_every_head_forgets_within_a_piece_is_left_out() -> None:
    assert Decay.of(torch.tensor([0.5, 2.0]), dtype=torch.float32).within(1000) == math.ceil(
        25 * math.log(2) / 0.5
    )
    assert Decay.of(torch.tensor([0.5, 2.0]), dtype=torch.bfloat16).within(1000) == math.ceil(
        32 * math.log(2)
    )
    assert Decay.of(torch.tensor([0.5, 0.0]), dtype=torch.float32).within(1000) == 1000
    assert Decay.of(None, dtype=torch.float32).within(1000) == 1000


def test_a_correction_reaches_a_view_of_a_longer_output() -> None:
    o, q, state = torch.zeros(2, 3, 9, 4), torch.randn(2, 3, 5, 6), torch.randn(2, 3, 6, 4)
    weights = torch.rand(3, 5, 1)
    add_decayed(o[:, :, :5], q, state, weights=weights, scale=0.5)
    torch.testing.assert_close(o[:, :, :5], 0.5 * (q * weights) @ state)
    assert not o[:, :, 5:].any()


@given(tokens=st.integers(1, 40), batch=st.integers(1, 2), heads=st.integers(1, 3), cut=st.booleans())
@settings(max_examples=60)
def test_a_sum_of_products_is_the_same_by_blocks(tokens: int, batch: int, heads: int, cut: bool) -> None:
    a, b = (torch.randn(batch, heads, tokens + 3, n, dtype=torch.float64) for n in (4, 5))
    if cut:
        a, b = a[:, :, 3:], b[:, :, 3:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_BLOCK", 4)
        patch.setattr(states, "_PRODUCTS", 9)
        torch.testing.assert_close(states.by_blocks(a, b), a.mT @ b)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [2840, 20_011, 2**17], ids=["border", "ragged", "long"])
def test_16_bit_products_are_summed_in_fp32_on_a_gpu(tokens: int) -> None:
    a, b = (torch.randn(1, 16, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found, truth = states.by_blocks(a, b), a.double().mT @ b.double()
    assert found.dtype == torch.float32
    assert float((found - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize(
    ("slopes", "rank", "forward", "backward"),
    [
        ("decay", 0, ["mul", "bmm"], ["mul", "bmm", "_to_copy", *["mul", "baddbmm_"] * 2]),
        ("decay", 1, ["mul", "bmm", "_to_copy", "mul", "baddbmm_"], ["mul", "bmm", "mul", "baddbmm_"]),
        ("plain", 0, ["bmm", "sum"], ["bmm", "sum", "mul_"]),
        ("plain", 1, ["bmm", "sum", "_to_copy", "baddbmm_", "addcmul"], ["bmm", "sum", "mul_"]),
    ],
)
@pytest.mark.parametrize("gathers", [False, True], ids=["lasp", "lasp2"])
def test_beside_its_kernels_a_rank_launches_little(
    slopes: str,
    rank: int,
    forward: list[str],
    backward: list[str],
    gathers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tensors without data, which take the way of a GPU; the kernels are left out."""
    monkeypatch.setattr(local, "attend_into", _no_kernel)
    monkeypatch.setattr(local, "gradients", lambda do, *x, **_: tuple(map(torch.empty_like, x)))
    monkeypatch.setattr(local, "key_value_gradients", lambda do, q, *x, **_: tuple(map(torch.empty_like, x)))
    nowhere = torch.device("meta")
    attend = LightningParallel(
        2**17,
        wire=CutWire(rank=rank, ranks=2),
        slopes=geometric_slopes(16) if slopes == "decay" else None,
        dtype=torch.bfloat16,
        device=nowhere,
        gathers=gathers,
    )
    q, k, v, do = (torch.empty(1, 16, 2**16, 128, dtype=torch.bfloat16, device=nowhere) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_(True)
    attend(q, k, v, scale=0.5).backward(do)  # makes what is made once for a scale
    with Launches() as found:
        o = attend(q, k, v, scale=0.5)
    assert found.names == forward
    with Launches() as found:
        torch.autograd.grad(o, (q, k, v), do)
    assert found.names == backward


def _no_kernel(out: torch.Tensor, q: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor | None:
    shape = (*q.shape[:2], q.shape[-1], out.shape[-1])
    return out.new_empty(shape, dtype=torch.float32) if options.get("return_state") else None


class Launches(TorchDispatchMode):
    """The names of the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("slopes", [None, [0.02, 0.4]], ids=["plain", "decay"])
def test_kernels_and_pytorch_compute_the_same_segment(slopes: list[float] | None) -> None:
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(1, 2, 70, 16) for _ in range(4))
    before, after = (torch.randn(1, 2, 16, 16) for _ in range(2))
    given_slopes = None if slopes is None else torch.tensor(slopes)
    found = []
    for by_kernel in (True, False):
        out = torch.full((1, 2, 90, 16), torch.nan)
        state = local.attend_into(
            out[:, :, 20:], q, k, v, slopes=given_slopes, scale=0.3, before=before.mT, return_state=True,
            by_kernel=by_kernel,
        )  # fmt: skip
        dk, dv = local.key_value_gradients(
            do, q, k, v, slopes=given_slopes, scale=0.3, after=after, by_kernel=by_kernel
        )
        assert out[:, :, :20].isnan().all()
        assert state is not None
        alone = local.gradients(do, q, k, v, slopes=given_slopes, scale=0.3, by_kernel=by_kernel)
        found.append((out[:, :, 20:], state, dk, dv, *alone))
    for kernel, torch_ in zip(*found, strict=True):
        torch.testing.assert_close(kernel, torch_, rtol=2e-5, atol=2e-4)
