"""The device between two measurements: emptied, and how fast it could be."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from attnbench.measure.ceilings import measure_ceilings
from attnbench.measure.memory import open_meter
from attnbench.stats import summarize

# Dense bf16 FLOP/s of NVIDIA's data sheets, by how the device's name begins. MFU is reckoned from this rate by
# definition (PaLM, arXiv 2204.02311, appendix B); what the device reaches is measured beside it.
_DATA_SHEETS: Final[Mapping[str, float]] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The data sheet's dense bf16 FLOP/s, or None for a device that is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for begin, rate in _DATA_SHEETS.items() if name.startswith(begin)), None)


@functools.cache
def matmul_flops(device: torch.device) -> float | None:
    """bf16 FLOP/s of large matrix products, measured here once; None on the CPU."""
    if device.type != "cuda":
        return None
    return measure_ceilings(device).matmul_tflops["bf16"] * 1e12


@contextlib.contextmanager
def clean(device: torch.device) -> Iterator[None]:
    """Nothing of an earlier measurement is in the device's memory, and nothing of this one stays there."""
    _empty(device)
    try:
        yield
    finally:
        _empty(device)


@contextlib.contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Reads the most bytes allocated since here; None on the CPU, where following them slows what is timed."""
    if device.type != "cuda":
        yield lambda: None
        return
    with open_meter(device) as meter:
        yield meter.peak


def timing(samples_ms: Sequence[float]) -> dict[str, Any]:
    """What a record says of its samples: all of them, median, p10 and p90, in milliseconds."""
    found = summarize(samples_ms)
    return {name: getattr(found, name) for name in ("samples_ms", "median_ms", "p10_ms", "p90_ms")}


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
