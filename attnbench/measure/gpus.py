"""The GPUs that this process may see.

torch takes seconds to import, so that nobody waits for it who does not ask for a GPU.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from dataclasses import dataclass
from typing import Literal

from attnbench.errors import UserError
from attnbench.measure.pretending import VISIBLE, pretended

_DRIVER = "libcuda.so.1"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or an instance of one that MIG has divided.

    name: what `CUDA_VISIBLE_DEVICES` may say to give a process this one alone. identity: of all the machine's GPUs, the
    same to every process, whatever that one may see.
    """

    name: str
    identity: str

    @property
    def label(self) -> str:
        """`GPU 1`, or `GPU-8f3c...` of one that is named by its UUID."""
        return f"GPU {self.name}" if self.name.isdigit() else self.name


def device_kind(wanted: str) -> Literal["cuda", "cpu"]:
    """The kind of a run's device: "auto" is a GPU if torch sees one, else the CPU.

    Raises UserError when a GPU is asked for and torch sees none.
    """
    if wanted not in ("auto", "cuda", "cpu"):
        raise UserError(f"unknown device '{wanted}'; choose from: auto, cuda, cpu")
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "auto":
        return "cpu"
    raise UserError(
        "no CUDA device: torch sees no GPU here (torch.cuda.is_available() is False); try --device cpu"
    )


def visible_gpus(kind: str) -> tuple[Gpu, ...]:
    """The GPUs that this process may see, in its order; of "cpu" the pretended ones.

    Raises UserError where `CUDA_VISIBLE_DEVICES` names one that is not pretended.
    """
    if kind == "cpu":
        node = pretended()
        seen = () if node is None else node.seen()
        return tuple(Gpu(name=str(index), identity=f"{node.node}-{index}") for index in seen if node)
    uuids = _uuids()
    count = len(uuids) or _count()
    given = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    names = given[:count] if given else list(map(str, range(count)))
    return tuple(
        Gpu(name=name, identity=f"GPU-{known}") for name, known in zip(names, uuids or names, strict=True)
    )


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def _uuids() -> tuple[str, ...]:
    """The UUIDs of what the driver lets this process see; empty where there is no driver.

    The driver alone knows what `CUDA_VISIBLE_DEVICES` means: numbers count in CUDA's order, which need not be NVML's;
    names of GPUs and of MIG instances may be abbreviated; and nothing counts behind the first that is unknown. To ask
    it makes no context, which would take memory from what is measured.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = []
    for ordinal in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if driver.cuDeviceGet(ctypes.byref(device), ordinal) or driver.cuDeviceGetUuid_v2(raw, device):
            return ()
        found.append(str(uuid.UUID(bytes=bytes(raw))))
    return tuple(found)
