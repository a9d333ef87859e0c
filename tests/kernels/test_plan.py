"""The launch plan: what it promises for every shape and device."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.kernels.lightning2 import Plan, plan, segment_length, state_bytes

H200: dict[str, Any] = {"multiprocessors": 132, "shared_memory": 232_448}
RTX4090: dict[str, Any] = {"multiprocessors": 128, "shared_memory": 101_376}


def bf16_plan(
    batch: int, heads: int, seq_len: int, dim: int = 128, *, decays: bool = True, **device: Any
) -> Plan:
    return plan(
        batch=batch,
        heads=heads,
        seq_len=seq_len,
        key_dim=dim,
        value_dim=dim,
        element_size=2,
        decays=decays,
        **(device or H200),
    )


def test_the_measured_configuration() -> None:
    assert bf16_plan(8, 16, 8192) == Plan(block_c=32, block_e=64, segments=1, num_warps=4, num_stages=5)


@pytest.mark.parametrize(("batch", "heads"), [(8, 16), (64, 16)])
def test_one_segment_where_programs_fill_the_device(batch: int, heads: int) -> None:
    assert bf16_plan(batch, heads, 8192).segments == 1


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 8), (1, 16), (2, 16), (1, 12)])
def test_few_heads_are_cut_into_nearly_full_waves(batch: int, heads: int) -> None:
    for decays in (True, False):
        segments = bf16_plan(batch, heads, 131_072, decays=decays).segments
        programs = batch * heads * 2 * segments
        waves = -(-programs // 132)
        assert segments >= 32 or programs / (waves * 132) >= 0.85


@pytest.mark.parametrize(
    ("batch", "heads", "seq_len", "segments"),
    [(4, 16, 8192, 2), (16, 16, 2048, 1), (1, 16, 32_768, 8), (1, 16, 131_072, 8), (1, 8, 524_288, 16)],
)
def test_segments_are_those_that_won_on_h200(batch: int, heads: int, seq_len: int, segments: int) -> None:
    assert bf16_plan(batch, heads, seq_len).segments == segments


@pytest.mark.parametrize("seq_len", [1, 64, 65, 256, 511])
def test_short_sequences_stay_whole(seq_len: int) -> None:
    assert bf16_plan(1, 1, seq_len).segments == 1


def test_stages_shrink_to_a_small_shared_memory() -> None:
    assert bf16_plan(8, 16, 8192, **RTX4090).num_stages < bf16_plan(8, 16, 8192).num_stages


sizes = st.integers(1, 16).map(lambda n: 16 * n)


@given(
    batch=st.integers(1, 64),
    heads=st.integers(1, 64),
    seq_len=st.integers(1, 2**20),
    key_dim=sizes,
    value_dim=sizes,
    element_size=st.sampled_from([2, 4]),
    decays=st.booleans(),
    device=st.sampled_from([H200, RTX4090, {"multiprocessors": 1, "shared_memory": 65_536}]),
)
def test_every_plan_is_sound(
    batch: int,
    heads: int,
    seq_len: int,
    key_dim: int,
    value_dim: int,
    element_size: int,
    decays: bool,
    device: dict[str, int],
) -> None:
    chosen = plan(
        batch=batch,
        heads=heads,
        seq_len=seq_len,
        key_dim=key_dim,
        value_dim=value_dim,
        element_size=element_size,
        decays=decays,
        **device,
    )
    length = segment_length(chosen, seq_len)
    assert length % chosen.block_c == 0
    assert -(-seq_len // length) == chosen.segments
    assert chosen.segments == 1 or length >= 4 * chosen.block_c
    per_token = 2 * key_dim + min(chosen.block_e, value_dim)
    assert chosen.num_stages * chosen.block_c * per_token * element_size <= device["shared_memory"]
    states = {"batch": batch, "heads": heads, "seq_len": seq_len, "key_dim": key_dim, "value_dim": value_dim}
    assert state_bytes(chosen, **states) == (chosen.segments - 1) * batch * heads * key_dim * value_dim * 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_c", 48, "block_c must be a power of two of at least 16, got 48"),
        ("block_e", 8, "block_e must be a power of two of at least 16, got 8"),
        ("segments", 0, "segments must be from 1 to 64, got 0"),
    ],
)
def test_impossible_plans_are_refused(field: str, value: int, message: str) -> None:
    fields = {"block_c": 64, "block_e": 64, "segments": 1, "num_warps": 4, "num_stages": 3} | {field: value}
    with pytest.raises(ValueError, match=message):
        Plan(**fields)
