"""What a run was measured on: machine, device, driver, and the version of everything that could matter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from attnbench.measure.gpus import device_kind
from attnbench.measure.pretending import pretended
from attnbench.measure.telemetry import max_sm_clock_mhz, nvml_handle
from attnbench.registry import mechanisms
from attnbench.version import __version__

_ALWAYS = ("torch", "triton", "numpy", "pandas", "pyarrow")


def pick_device(wanted: str) -> torch.device:
    """The device of a run: "auto" is the first GPU if torch sees one, else the CPU.

    Raises UserError when a GPU is asked for and torch sees none.
    """
    return torch.device("cuda", 0) if device_kind(wanted) == "cuda" else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """`NVIDIA H200`, or the processor's name: the `device` column."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    node = pretended()
    if node is not None:
        return node.own()[1]
    return f"{_processor()} ({torch.get_num_threads()} threads)"


def place(device: torch.device) -> dict[str, Any]:
    """The columns `node` and `gpu_index`: where a row was measured. Of a CPU the latter is None."""
    fake = pretended() if device.type == "cpu" else None
    if fake is not None:
        return {"node": fake.node, "gpu_index": fake.own()[0]}
    return {"node": platform.node() or None, "gpu_index": _gpu_index(device)}


def collect(device: torch.device) -> dict[str, Any]:
    """The environment as a JSON-able record; what cannot be known is None."""
    return {
        "attnbench": __version__,
        "git": _git(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **place(device),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device_name(device),
        "device_type": device.type,
        "gpu": _gpu(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "versions": _versions(),
        "variables": {
            k: v
            for k, v in sorted(os.environ.items())
            if k.startswith(("CUDA_", "PYTORCH_", "TRITON_", "ATTNBENCH_CONFIGS"))
        },
    }


def _versions() -> dict[str, str | None]:
    names = {p.distribution for m in mechanisms().values() for p in m.providers} | set(_ALWAYS)
    return {name: _version(name) for name in sorted(names)}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from, and whether the package differs from it; None: no checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    status = git("status", "--porcelain", "--", "..")  # what else lies in the checkout is no code that runs
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    handle = nvml_handle(device)
    return {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _driver() if handle is not None else None,
        "max_sm_clock_mhz": max_sm_clock_mhz(handle),
        "clocks_locked": _clocks_locked(handle),
    }


def _gpu_index(device: torch.device) -> int | None:
    """The GPU's place in its node, whichever of them this process may see; None where nobody tells it."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    try:
        return int(pynvml.nvmlDeviceGetIndex(handle))
    except pynvml.NVMLError:
        return None


def _driver() -> str | None:
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _clocks_locked(handle: Any | None) -> bool | None:
    """Are application clocks pinned? None where the card does not say."""
    if handle is None:
        return None
    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except pynvml.NVMLError:
        return None
    return bool(reasons & pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting)
