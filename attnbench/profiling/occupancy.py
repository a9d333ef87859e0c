"""How many programs of a launch share a multiprocessor, and what keeps more of them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnbench.words import joined

_WARP = 32
_REGISTER_UNIT = 256  # registers are given to a warp in these portions
_SHARED_RESERVED = 1024  # bytes that every program takes beside its own, as of compute capability 8.0
_SHARED_UNIT = 128
# Resident thread blocks of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability". No property that torch shows has it.
_PROGRAMS = {"7.0": 32, "7.5": 16, "8.0": 32, "8.6": 16, "8.7": 16, "8.9": 24, "9.0": 32, "12.0": 24}
_USUAL_PROGRAMS = 32


@dataclass(frozen=True, kw_only=True)
class Multiprocessor:
    """What programs share, and how many multiprocessors there are."""

    count: int
    threads: int
    registers: int
    shared_bytes: int
    programs: int


def multiprocessor_of(properties: Any) -> Multiprocessor:
    """From what torch says of a CUDA device."""
    capability = f"{properties.major}.{properties.minor}"
    return Multiprocessor(
        count=properties.multi_processor_count,
        threads=properties.max_threads_per_multi_processor,
        registers=properties.regs_per_multiprocessor,
        shared_bytes=properties.shared_memory_per_multiprocessor,
        programs=_PROGRAMS.get(capability, _USUAL_PROGRAMS),
    )


def programs_of(where: Multiprocessor, *, threads: int, registers: int, shared_bytes: int) -> tuple[int, str]:
    """Programs that share a multiprocessor, and which resources let no more in.

    threads, shared_bytes: of a program; registers: of a thread.
    """
    warps = -(-threads // _WARP)
    of_a_warp = _rounded(max(registers, 1) * _WARP, _REGISTER_UNIT)
    limits = {
        "programs": where.programs,
        "threads": where.threads // (warps * _WARP),
        "registers": where.registers // (of_a_warp * warps),
        "shared memory": where.shared_bytes // (_rounded(shared_bytes, _SHARED_UNIT) + _SHARED_RESERVED),
    }
    least = min(limits.values())
    return least, joined([name for name, limit in limits.items() if limit == least])


def occupancy_of(where: Multiprocessor, *, programs: int, threads: int) -> float:
    """Warps of so many programs over those that a multiprocessor holds."""
    return programs * -(-threads // _WARP) / (where.threads // _WARP)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
