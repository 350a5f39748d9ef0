"""NVIDIA GPUs through NVML: SM clock, throttle reasons, other processes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.machine.probes import Readings, Span

CLOCK_FLOOR = 0.75
"""Share of the reference SM clock below which a GPU sample is throttled; nvbench's own threshold."""
POWER_CAP_FLOOR = 0.90
"""The power cap alone shaves a few per cent off on any busy GPU; with the clock below this share it costs real time."""
IDLE, APPLICATION_CLOCKS, POWER_CAP, DISPLAY_CLOCKS = 0x1, 0x2, 0x4, 0x100
SLOWDOWNS = {
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
"""NVML's clock event reasons that slow a GPU down (nvml.h); idle and chosen application clocks do not count."""
REASON_NAMES = {
    IDLE: "idle",
    APPLICATION_CLOCKS: "application_clocks",
    POWER_CAP: "sw_power_cap",
    DISPLAY_CLOCKS: "display_clocks",
} | SLOWDOWNS
NVML_CLOCK_SM = 1
NVML_TEMPERATURE_GPU = 0


def open_nvml(device: str) -> tuple[Any, Any] | None:
    """Return pynvml and the handle of the CUDA device ("cuda:1"), or None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(nvml_index(device, os.environ.get("CUDA_VISIBLE_DEVICES")))
    except Exception:  # noqa: BLE001 - no package, no driver, no such device: a gate must never end a run
        return None


def nvml_index(device: str, visible: str | None) -> int:
    """Return NVML's index of a torch device: NVML knows nothing of CUDA_VISIBLE_DEVICES (numbers alone are read)."""
    index = int(device.partition(":")[2] or 0)
    listed = [part.strip() for part in visible.split(",")] if visible else []
    return int(listed[index]) if index < len(listed) and listed[index].isdigit() else index


class NvmlProbe:
    """SM clock, throttle reasons and other processes, through NVML."""

    def __init__(
        self, nvml: Any, handle: Any, own_pid: int | None = None, alive: Callable[[int], bool] | None = None
    ) -> None:
        self._nvml, self._handle = nvml, handle
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._alive = alive or (lambda pid: Path(f"/proc/{pid}").exists())
        # The default application clock, as nvbench takes it; GPUs without one are compared with their maximum.
        self._default_mhz = self._ask("nvmlDeviceGetDefaultApplicationsClock", NVML_CLOCK_SM)
        self._maximum_mhz = self._ask("nvmlDeviceGetMaxClockInfo", NVML_CLOCK_SM)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except Exception:  # noqa: BLE001 - NVML raises "not supported" per card and driver; None is the answer then
            return None

    def read(self) -> Readings:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know the old name only
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        chosen_mhz = self._ask("nvmlDeviceGetApplicationsClock", NVML_CLOCK_SM)
        return {
            "gpu_sm_mhz": self._ask("nvmlDeviceGetClockInfo", NVML_CLOCK_SM),
            "gpu_chosen_mhz": chosen_mhz,
            "gpu_reason_bits": bits,
            "gpu_temperature_c": self._ask("nvmlDeviceGetTemperature", NVML_TEMPERATURE_GPU),
            "gpu_power_w": power_mw / 1000 if power_mw is not None else None,
            "gpu_foreign_processes": self._foreign(),
        }

    def _foreign(self) -> float | None:
        """Count other compute processes.

        In a container NVML lists the host's process numbers: one that is not visible here, while our own is not listed,
        is taken for ourselves.
        """
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if processes is None:
            return None
        others = [int(process.pid) for process in processes if process.pid != self._own_pid]
        if len(others) == len(processes) and any(not self._alive(pid) for pid in others):
            return float(len(others) - 1)
        return float(len(others))

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        reasons = []
        bits = [int(r["gpu_reason_bits"]) for r in (before, after) if isinstance(r["gpu_reason_bits"], int | float)]
        either = 0
        for each in bits:
            either |= each
        mhz = after["gpu_sm_mhz"]
        share = self._clock_share(after, either)
        # Right after the sample the clock still is the sample's; an idle bit means that it has already gone down.
        idle = bool(bits and bits[-1] & IDLE)
        slow = share is not None and not idle and share < CLOCK_FLOOR
        capped = bool(either & POWER_CAP) and share is not None and not idle and share < POWER_CAP_FLOOR
        if slow or capped or any(either & bit for bit in SLOWDOWNS):
            reasons.append("throttled")
        foreign = after["gpu_foreign_processes"]
        if isinstance(foreign, float) and foreign > 0:
            reasons.append("other_process_on_device")
        told: Readings = {
            "gpu_sm_mhz": mhz,
            "gpu_clock_share": round(share, 3) if share is not None else None,
            "gpu_reasons": "+".join(name for bit, name in sorted(REASON_NAMES.items()) if either & bit)
            if bits
            else None,
            "gpu_temperature_c": after["gpu_temperature_c"],
            "gpu_power_w": after["gpu_power_w"],
            "gpu_foreign_processes": foreign,
        }
        return reasons, told

    def _clock_share(self, after: Readings, bits: int) -> float | None:
        mhz, chosen = after["gpu_sm_mhz"], after["gpu_chosen_mhz"]
        reference = self._default_mhz or self._maximum_mhz
        if bits & APPLICATION_CLOCKS and isinstance(chosen, int | float):
            reference = chosen  # locked on purpose: below the default is then no throttling
        return float(mhz) / float(reference) if isinstance(mhz, int | float) and reference else None
