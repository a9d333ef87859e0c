"""How Lightning-2's scans are cut into programs: tile sizes from a table, segments from a cost model."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnbench.kernels._configs import GROUP_COLUMNS, ScanConfig, scan_configs

_BARRIERS = 512  # bytes of shared memory for them, with their alignment
_FACTORS = (
    2 * 4 * GROUP_COLUMNS
)  # bytes of shared memory for the decays within a chunk, for each group of columns
_RESERVED = 1024  # bytes of shared memory that the hardware keeps for itself in every program
MAX_SEGMENTS = 256
MIN_TOKENS_PER_SEGMENT = 256

# The cost model's constants, fitted with the times of the table's rows to timings on an H200
# (results/h200/design-search.csv).
_STATE_CHUNK = 0.5  # a chunk that only adds to the state, k and v alone, in chunks
_EARLIER_STATE = 0.54  # reading one earlier segment's state back, in chunks
_LAST_WALK = 0.9  # what of the longest walk is left when all other programs have ended
_BROKEN_ROUND = 0.27  # the least that a last, incomplete round of programs costs, in rounds
_SEGMENTED_US = 3.0  # starting more programs, that look for where they are
_FIRST_PASS_US = 8.0  # a first of two passes: starting it, and filling its pipelines
# Of the kernel whose warps specialise:
_DESCRIBED_US = 20.0  # describing tensors to the copy engine, and its longer start, in each launch
_SHARED_READS = (
    0.82  # scans of one launch read some of their tiles from the L2, and it is bound by the memory
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Launch configuration of one launch. Sizes in tokens (block_c) and columns of v (block_e).

    max_registers: the most that a thread may use, so that more programs share a multiprocessor; None: no limit.
    specialised: by the kernel whose warps specialise, in groups of num_warps.
    """

    block_c: int
    block_e: int
    segments: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    specialised: bool = False

    def __post_init__(self) -> None:
        for name in ("block_c", "block_e"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"{name} must be a power of two of at least 16, got {size}")
        if not 1 <= self.segments <= MAX_SEGMENTS:
            raise ValueError(f"segments must be from 1 to {MAX_SEGMENTS}, got {self.segments}")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def segment_length(plan: Plan, seq_len: int) -> int:
    """Tokens per segment: the same for all but the last, and a multiple of the chunk.

    Rounding up to whole chunks may leave fewer segments than the plan asks for: they are ceil(seq_len /
    length).
    """
    chunks = -(-seq_len // plan.block_c)
    return -(-chunks // plan.segments) * plan.block_c


def remembered_tokens(slope: float, *, reach: float) -> float:
    """Tokens after which e^-reach is all that the decay leaves of one; infinite without decay."""
    return reach / slope if slope else math.inf


def walks(remembered: float, *, length: int) -> bool:
    """Whether a head that remembers so many tokens walks them again, instead of receiving a state."""
    return remembered <= 2 * length


def passes_states(plan: Plan, *, seq_len: int, remembered: Sequence[float] | None) -> bool:
    """Whether a first pass has to reduce segments to states for some head. remembered: tokens for each head, or
    None if unknown."""
    length = segment_length(plan, seq_len)
    if length >= seq_len:
        return False
    return remembered is None or not all(walks(tokens, length=length) for tokens in remembered)


def state_bytes(
    plan: Plan,
    *,
    scans: int,
    batch: int,
    heads: int,
    seq_len: int,
    key_dim: int,
    value_dim: int,
    remembered: Sequence[float] | None,
) -> int:
    """Bytes of the fp32 workspace that a launch of `scans` scans uses between its two passes; 0 for one pass.

    The last segment's state is nobody's input, so it is not kept.
    """
    if not passes_states(plan, seq_len=seq_len, remembered=remembered):
        return 0
    segments = -(-seq_len // segment_length(plan, seq_len))
    return (segments - 1) * scans * batch * heads * value_dim * key_dim * 4


def _shared_bytes(config: ScanConfig, *, block_d: int, element_size: int) -> int:
    """Shared memory of one program: the tiles of q, k and v in every stage, and the product k q^T; where warps
    specialise the output's tile, a second product, decays and barriers as well."""
    tiles = config.num_stages * config.block_c * (2 * block_d + config.block_e)
    product = config.block_c * config.block_c
    if not config.specialised:
        return element_size * (tiles + product)
    factors = config.block_e // GROUP_COLUMNS * _FACTORS
    return element_size * (tiles + 2 * product + config.block_c * config.block_e) + factors + _BARRIERS


def padded_key_dim(key_dim: int, *, specialised: bool) -> int:
    """The columns of a tile of q or k."""
    return max(GROUP_COLUMNS if specialised else 1, next_power_of_two(key_dim))


def fitted(
    config: ScanConfig, *, key_dim: int, value_dim: int, element_size: int, shared_memory: int
) -> ScanConfig:
    """The configuration with no wider a tile than the values, and with fewer stages, then smaller chunks, until its
    programs fit the shared memory of a multiprocessor. Warps that specialise need two stages and whole chunks."""
    narrowest = GROUP_COLUMNS if config.specialised else 1
    width = max(narrowest, next_power_of_two(value_dim))
    config = replace(config, block_e=min(config.block_e, width))
    block_d = padded_key_dim(key_dim, specialised=config.specialised)
    room = (shared_memory + _RESERVED) // config.programs - _RESERVED
    while _shared_bytes(config, block_d=block_d, element_size=element_size) > room:
        if config.num_stages > (2 if config.specialised else 1):
            config = replace(config, num_stages=config.num_stages - 1)
        elif config.block_c > 16 and not config.specialised:
            config = replace(config, block_c=config.block_c // 2)
        else:
            break
    return config


@functools.lru_cache(maxsize=1024)
def plan(
    *,
    scans: int = 1,
    batch: int,
    heads: int,
    seq_len: int,
    key_dim: int,
    value_dim: int,
    element_size: int,
    remembered: tuple[float, ...],
    multiprocessors: int,
    shared_memory: int,
    architecture: str,
    specialised: bool = False,
    config: ScanConfig | None = None,
) -> Plan:
    """The launch configuration for `scans` scans together over [batch, heads, seq_len] with the given dims.

    element_size: bytes per element of q, k, v. remembered: tokens that each head remembers, infinite without
    decay. multiprocessors and shared_memory (bytes that one thread block may use, almost all that a
    multiprocessor has) describe the device; architecture names its table. specialised: whether the inputs suit rows
    whose warps specialise; else those are passed over. config: in the place of the table's rows. Pure; the results
    are remembered.

    A scan is sequential, so one program walks its whole sequence, and scans * batch * heads * ceil(value_dim /
    block_e) programs may leave multiprocessors idle. S segments make S times the programs of an S-th of the
    chunks, L each; but every segment except the first must learn the state before it. A head whose memory lies
    within two segments walks what it remembers; for the others a first pass reduces every segment to a state, and
    the second adds up the earlier ones that are remembered. With w the extra chunks of a program that this means,
    m programs on each multiprocessor and t_m the time of a chunk, one round of programs takes

        t_m * (L + mean w), at least t_m * L + 0.9 * t_1 * max w

    and several take t_m * (L + mean w) * (full rounds + a part for the last), m being all that fit. Over the table's
    rows for these dims and over S, with at least 256 tokens a segment, the cheapest wins.
    """
    best: tuple[float, Plan] | None = None
    rows = scan_configs(architecture, element_size=element_size, key_dim=key_dim)
    for row in [row for row in rows if specialised or not row.specialised] if config is None else [config]:
        chosen = fitted(
            row,
            key_dim=key_dim,
            value_dim=value_dim,
            element_size=element_size,
            shared_memory=shared_memory,
        )
        sharing = _SHARED_READS if chosen.specialised and scans > 1 else 1.0
        chunk_us = tuple(us * sharing for us in chosen.chunk_us or (1.0,) * chosen.programs)
        start = _DESCRIBED_US if chosen.specialised else 0.0
        programs = scans * batch * heads * -(-value_dim // chosen.block_e)
        chunks = -(-seq_len // chosen.block_c)
        most = max(1, min(MAX_SEGMENTS, seq_len // MIN_TOKENS_PER_SEGMENT))
        counts = _counts(programs, slots=chosen.programs * multiprocessors, most=most)
        for length in sorted({-(-chunks // count) for count in counts}, reverse=True):
            segments = -(-chunks // length)
            us = _cost_us(
                programs=programs * segments,
                multiprocessors=multiprocessors,
                chunk_us=chunk_us,
                length=length,
                extra=[
                    _extra_chunks(tokens / chosen.block_c, length=length, segments=segments)
                    for tokens in remembered
                ],
            )
            us += start
            if segments > 1:
                us += _SEGMENTED_US
                if not all(walks(tokens, length=length * chosen.block_c) for tokens in remembered):
                    us += _FIRST_PASS_US + start
            if best is None or us < best[0]:
                found = Plan(
                    block_c=chosen.block_c,
                    block_e=chosen.block_e,
                    segments=segments,
                    num_warps=chosen.num_warps,
                    num_stages=chosen.num_stages,
                    max_registers=chosen.max_registers,
                    specialised=chosen.specialised,
                )
                best = us, found
    assert best is not None
    return best[1]


def _counts(programs: int, *, slots: int, most: int) -> set[int]:
    """Segments that are worth a look: few, or so many that they just fill some rounds of programs, or half a one."""
    full = {max(1, halves * slots // (2 * programs)) for halves in (1, 2, 4, 6, 8)}
    return {min(count, most) for count in {*range(1, 9), *full}}


def _extra_chunks(remembered: float, *, length: int, segments: int) -> tuple[float, float]:
    """Chunks' worth of work that one head's segments need for their incoming states: the mean and the most."""
    later = segments - 1
    if not later:
        return 0.0, 0.0
    if walks(remembered, length=length):
        # It lies within two segments, so only the first of the later ones has less than all of it before it.
        total = _STATE_CHUNK * (min(remembered, length) + (later - 1) * remembered)
        return total / segments, _STATE_CHUNK * min(remembered, later * length)
    back = later if math.isinf(remembered) else min(later, math.ceil(remembered / length))
    states = back * (back + 1) / 2 + (later - back) * back
    total = later * _STATE_CHUNK * length + _EARLIER_STATE * states
    return total / segments, _STATE_CHUNK * length + _EARLIER_STATE * back


def _cost_us(
    *,
    programs: int,
    multiprocessors: int,
    chunk_us: tuple[float, ...],
    length: int,
    extra: Sequence[tuple[float, float]],
) -> float:
    """Microseconds that so many programs of `length` chunks take; extra: the mean and the most for each head."""
    mean = sum(average for average, _ in extra) / len(extra)
    most = max(longest for _, longest in extra)
    rounds = programs / (len(chunk_us) * multiprocessors)
    if rounds <= 1:
        each = chunk_us[-(-programs // multiprocessors) - 1]
        return max(each * (length + mean), each * length + _LAST_WALK * chunk_us[0] * most)
    full, rest = divmod(rounds, 1)
    last = _BROKEN_ROUND + (1 - _BROKEN_ROUND) * rest if rest else 0.0
    return chunk_us[-1] * max((length + mean) * (full + last), length + most)
