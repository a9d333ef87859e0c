"""How a Lightning-2 scan is cut into programs: tile sizes from one table, segments from a cost model."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

# The table of launch configurations: (bytes per element, key dim rounded up to a power of two, at most)
# -> (chunk, value tile, warps, stages). The rows for 2 bytes serve fp16 and bf16; they won a search over 274
# checked configurations on an H200. fp32 products run on the CUDA cores, so tiles are smaller there.
_CONFIGS: dict[tuple[int, int], tuple[int, int, int, int]] = {
    (2, 64): (64, 64, 4, 4),
    (2, 128): (32, 64, 4, 5),
    (2, 256): (32, 128, 8, 5),
    (4, 64): (16, 32, 4, 2),
    (4, 128): (16, 32, 4, 2),
    (4, 256): (16, 32, 4, 1),
}

MAX_SEGMENTS = 64
MIN_CHUNKS_PER_SEGMENT = 4
# Registers, not shared memory, hold a multiprocessor to this many programs.
_MAX_PROGRAMS_PER_MULTIPROCESSOR = 2

# The cost model's constants, from timings on an H200 at D = 128, in units of the time that a chunk takes with two
# programs on each multiprocessor.
_CHUNK_ALONE = 0.73  # a chunk where a program has its multiprocessor for itself
_STATE_CHUNK = 0.45  # a chunk that only adds to the state: k and v alone
_EARLIER_STATE = 1.0  # reading one earlier segment's state back
_FIRST_PASS = 8.0  # starting the first of two passes, and filling its pipelines
# Tokens that the weakest head of the geometric slope law, 2^-8, remembers: 25 ln 2 / slope. Slopes lie on the device
# and are not read for a plan.
_REMEMBERED_TOKENS = 4437


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Launch configuration of one scan. Sizes in tokens (block_c) and columns of v (block_e)."""

    block_c: int
    block_e: int
    segments: int
    num_warps: int
    num_stages: int

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


def state_bytes(plan: Plan, *, batch: int, heads: int, seq_len: int, key_dim: int, value_dim: int) -> int:
    """Bytes of the fp32 workspace that one scan uses between its two passes; 0 for one segment.

    The last segment's state is nobody's input, so it is not kept.
    """
    segments = -(-seq_len // segment_length(plan, seq_len))
    return (segments - 1) * batch * heads * value_dim * key_dim * 4


def _shared_bytes(*, chunk: int, block_d: int, block_e: int, stages: int, element_size: int) -> int:
    """Shared memory of one program: the tiles of q, k and v in every stage, and the product k q^T."""
    return element_size * (stages * chunk * (2 * block_d + block_e) + chunk * chunk)


@functools.lru_cache(maxsize=1024)
def plan(
    *,
    batch: int,
    heads: int,
    seq_len: int,
    key_dim: int,
    value_dim: int,
    element_size: int,
    decays: bool,
    multiprocessors: int,
    shared_memory: int,
) -> Plan:
    """The launch configuration for one scan over [batch, heads, seq_len] with the given dims.

    element_size: bytes per element of q, k, v. decays: there are slopes. multiprocessors and shared_memory
    (bytes per thread block) describe the device. Pure; the results are remembered.

    Tiles come from the table, narrowed to a small value_dim; stages, then the chunk, shrink until a program
    fits the shared memory.

    Segments: a scan is sequential, so one program walks its whole sequence and batch * heads * ceil(value_dim
    / block_e) programs may leave multiprocessors idle. S segments make S times the programs of a S-th of the
    chunks, and each segment but the first must learn the state before it: a head that forgets walks the tokens
    that it remembers, if they lie within two segments; otherwise a first pass reduces every segment to a state,
    and the second adds up the earlier ones. In units of one chunk's time

        cost(S) = waves(S) * (chunks / S + 0.45 * walked) + (S - 1 + 8 with a first pass)

    where waves counts full rounds of programs, a last round of at most one program a multiprocessor as 0.73.
    The cheapest S of at most 64, with at least 4 chunks in each segment, wins; of equals the smallest.
    """
    block_d = next_power_of_two(key_dim)
    chunk, block_e, num_warps, stages = _CONFIGS[element_size, max(64, block_d)]
    block_e = min(block_e, next_power_of_two(value_dim))

    def shared() -> int:
        return _shared_bytes(
            chunk=chunk, block_d=block_d, block_e=block_e, stages=stages, element_size=element_size
        )

    while shared() > shared_memory and (stages > 1 or chunk > 16):
        if stages > 1:
            stages -= 1
        else:
            chunk //= 2

    resident = min(_MAX_PROGRAMS_PER_MULTIPROCESSOR, max(1, shared_memory // shared()))
    programs = batch * heads * -(-value_dim // block_e)
    chunks = -(-seq_len // chunk)
    remembered = _REMEMBERED_TOKENS / chunk if decays else math.inf

    def cost(segments: int) -> float:
        length = -(-chunks // segments)
        waves = _waves(programs * segments, multiprocessors=multiprocessors, resident=resident)
        if segments == 1:
            return waves * length
        if remembered <= 2 * length:
            walked = min(remembered, (segments - 1) * length)
            return waves * (length + _STATE_CHUNK * walked)
        states = _EARLIER_STATE * (segments - 1) + _FIRST_PASS
        return waves * (length + _STATE_CHUNK * length) + states

    most = max(1, min(MAX_SEGMENTS, chunks // MIN_CHUNKS_PER_SEGMENT))
    segments = min(range(1, most + 1), key=cost)
    # Whole chunks per segment may need fewer segments than were asked for.
    segments = -(-chunks // -(-chunks // segments))
    return Plan(block_c=chunk, block_e=block_e, segments=segments, num_warps=num_warps, num_stages=stages)


def _waves(programs: int, *, multiprocessors: int, resident: int) -> float:
    """Rounds that the programs take, `resident` of them on a multiprocessor at a time."""
    full, rest = divmod(programs, multiprocessors * resident)
    if rest == 0:
        return full
    return full + (_CHUNK_ALONE if resident > 1 and rest <= multiprocessors else 1.0)
