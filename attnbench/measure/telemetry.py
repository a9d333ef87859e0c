"""Clocks, power, temperature and throttle reasons, as the device reports them. Read only: nothing is ever set."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import pynvml
import torch

from attnbench.case import Telemetry

# A sample taken below this share of the card's highest SM clock is not at the card's speed.
_CLOCK_SHARE = 0.75

_THROTTLE_REASONS = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power-cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware-slowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "sync-boost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "software-thermal",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hardware-thermal",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power-brake",
}


def nvml_handle(device: torch.device) -> Any | None:
    """NVML's handle of a CUDA device, or None where NVML does not answer."""
    if device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def _ask(function: Any, *arguments: Any) -> Any | None:
    """An NVML answer, or None where this card does not give it."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def max_sm_clock_mhz(handle: Any | None) -> float | None:
    """The highest SM clock that the card states, MHz."""
    return None if handle is None else _ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM)


@dataclass
class Recorder:
    """Readings between batches of samples, condensed into one `Telemetry`."""

    handle: Any | None
    sm: list[float] = field(default_factory=list)
    mem: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    reasons: int = 0
    reasons_known: bool = False

    def read(self) -> None:
        """Take one reading; the device has just finished a batch, so it still runs at its working clock."""
        if self.handle is None:
            return
        for values, answer in (
            (self.sm, _ask(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_SM)),
            (self.mem, _ask(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_MEM)),
            (self.power, _ask(pynvml.nvmlDeviceGetPowerUsage, self.handle)),
            (
                self.temperature,
                _ask(pynvml.nvmlDeviceGetTemperature, self.handle, pynvml.NVML_TEMPERATURE_GPU),
            ),
        ):
            if answer is not None:
                values.append(float(answer))
        reasons = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, self.handle)
        if reasons is not None:
            self.reasons_known = True
            self.reasons |= int(reasons)

    def condense(self, *, median_ms: float | None) -> Telemetry:
        """Medians of the readings; `energy_j` is the median power over one median call."""
        power_w = _median(self.power)
        power_w = None if power_w is None else power_w / 1e3
        return Telemetry(
            sm_clock_mhz=_median(self.sm),
            mem_clock_mhz=_median(self.mem),
            power_w=power_w,
            temperature_c=_median(self.temperature),
            throttle=self._throttle(),
            energy_j=None if power_w is None or median_ms is None else power_w * median_ms * 1e-3,
        )

    def _throttle(self) -> tuple[str, ...] | None:
        if not self.reasons_known:
            return None
        names = [name for bit, name in _THROTTLE_REASONS.items() if self.reasons & bit]
        highest = max_sm_clock_mhz(self.handle)
        if highest is not None and self.sm and min(self.sm) < _CLOCK_SHARE * highest:
            names.append("low-sm-clock")
        return tuple(names)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
