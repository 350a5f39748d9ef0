"""NVIDIA GPUs through NVML: the clock, what holds it down, and who else computes on the card."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, cast

from harness.machine.energy import Counter
from harness.machine.probes import Readings, Span, Value
from harness.machine.probes.clocks import SteadyClock

IDLE, CLOCKS_SET, POWER_CAP, DISPLAY_CLOCKS, SYNC_BOOST = 0x1, 0x2, 0x4, 0x100, 0x10
SW_THERMAL = 0x20
SLOWDOWNS = {0x8: "hw_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake"}
"""NVML's clock event reasons (nvml.h) that are no normal state: the hardware protects itself."""
REASON_NAMES = {
    IDLE: "idle",
    CLOCKS_SET: "application_clocks",
    POWER_CAP: "sw_power_cap",
    DISPLAY_CLOCKS: "display_clocks",
    SYNC_BOOST: "sync_boost",
    SW_THERMAL: "sw_thermal_slowdown",
} | SLOWDOWNS
NVML_CLOCK_SM = 1
NVML_TEMPERATURE_GPU = 0
BUSY_PERCENT = 5
"""Use of the multiprocessors by others from which on they are company; a notebook that only holds memory is none."""
MPS_SERVER = "nvidia-cuda-mps-server"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as NVML knows it. `handle` is the whole card, `part` the MIG instance that is used of it."""

    nvml: ModuleType
    handle: object
    uuid: str = ""
    part: object = None

    def ask(self, function: str, *arguments: object) -> Any:
        """Return NVML's answer about the whole card, or None: cards and drivers differ in what they tell."""
        return _told(getattr(self.nvml, function, None), self.handle, *arguments)

    @property
    def name(self) -> str | None:
        """The card's brand."""
        return _text(self.ask("nvmlDeviceGetName"))


def _told(function: Any, *arguments: object) -> Any:
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - NVML raises "not supported" per card and driver; None is the answer then
        return None


def _text(value: object) -> str | None:
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def library() -> ModuleType | None:
    """Return pynvml, initialised; None without the package or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no driver: a gate must never end a run
        return None
    return cast(ModuleType, pynvml)


def find(uuid: str, pci: str, mig_uuid: str = "") -> Card | None:
    """Return the card of this UUID (as CUDA tells it, without prefix) or PCI address; None where NVML has none such.

    CUDA's numbers are not NVML's: CUDA_VISIBLE_DEVICES, and its order (the fastest first) are its own. `mig_uuid` names
    the MIG instance where the environment does; newer versions of CUDA tell it as the device's own UUID.
    """
    nvml = library()
    if nvml is None:
        return None
    instances = [name for name in (mig_uuid, f"MIG-{uuid}" if uuid else "") if name]
    for name in instances:
        part = _told(nvml.nvmlDeviceGetHandleByUUID, name)
        whole = _told(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part) if part is not None else None
        if whole is not None:
            return Card(nvml, whole, name, part)
    handle = _told(nvml.nvmlDeviceGetHandleByUUID, f"GPU-{uuid}") if uuid else None
    if handle is None and pci:
        handle = _told(nvml.nvmlDeviceGetHandleByPciBusId, pci)
    if handle is None:
        return None
    return Card(nvml, handle, _text(_told(nvml.nvmlDeviceGetUUID, handle)) or f"GPU-{uuid}")


def cards() -> list[Card]:
    """Return every card of the machine in NVML's own order, whatever CUDA may see of them."""
    nvml = library()
    if nvml is None:
        return []
    handles = [_told(nvml.nvmlDeviceGetHandleByIndex, i) for i in range(_told(nvml.nvmlDeviceGetCount) or 0)]
    return [Card(nvml, handle) for handle in handles if handle is not None]


def counter(card: Card) -> Counter | None:
    """Return NVML's total energy counter, in mJ since the driver was loaded (Volta and newer).

    None for a MIG instance: the counter is the whole card's, whatever its other instances do.
    """
    read = partial(card.ask, "nvmlDeviceGetTotalEnergyConsumption")
    if card.part is not None or read() is None:
        return None

    def millijoules() -> float | None:
        now = read()
        return None if now is None else float(now)

    return Counter(millijoules, "NVML total energy counter (whole card)", "1 mJ")


def family() -> frozenset[int]:
    """Return the numbers of this process and of those that started it: a launcher that holds the card is no company."""
    import psutil

    found = _told(lambda: [each.pid for each in psutil.Process().parents()])
    return frozenset({os.getpid(), *(found or [])})


class NvmlProbe:
    """The clock and what holds it down, and other processes that compute.

    `computing` is False for who only looks (the doctor): then we are not among those that compute.
    """

    def __init__(self, card: Card, own: Callable[[], frozenset[int]] = family, computing: bool = True) -> None:
        self._card, self._own, self._computing = card, own(), computing
        maximum = card.ask("nvmlDeviceGetMaxClockInfo", NVML_CLOCK_SM)
        self._clock = SteadyClock(float(maximum) if maximum else None)
        self._seen_us = 0
        self._busy()  # what was before us is nobody's company

    def read(self) -> Readings:
        ask = self._card.ask
        mhz = ask("nvmlDeviceGetClockInfo", NVML_CLOCK_SM)  # first: all else takes milliseconds
        bits = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know the old name only
            bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power_mw = ask("nvmlDeviceGetPowerUsage")
        listed, company = self._company()
        return {
            "gpu_sm_mhz": mhz,
            "gpu_reason_bits": bits,
            "gpu_temperature_c": ask("nvmlDeviceGetTemperature", NVML_TEMPERATURE_GPU),
            "gpu_power_w": power_mw / 1000 if power_mw is not None else None,
            "gpu_listed_processes": listed,
            "gpu_foreign_processes": company,
        }

    def _company(self) -> tuple[float | None, float | None]:
        """Return how many other processes are listed, and how many of them compute.

        In a container NVML lists the host's numbers, which mean nothing here, even where the same number exists: our
        own is not among them. Then the use alone counts, and one of the users is we. Where NVML tells no use by
        process (MIG, old drivers), those listed count, if their numbers mean something.
        """
        processes = _told(self._card.nvml.nvmlDeviceGetComputeRunningProcesses, self._card.part or self._card.handle)
        listed = None if processes is None else self._strangers(int(each.pid) for each in processes)
        numbers_are_ours = processes is None or any(int(each.pid) in self._own for each in processes)
        numbers_are_ours = numbers_are_ours or not self._computing
        busy = self._busy()
        count = None if listed is None else float(len(listed))
        if busy is None:
            return count, (count if numbers_are_ours else None)
        strangers = self._strangers(busy)
        return count, float(len(strangers) if numbers_are_ours else max(0, len(strangers) - 1))

    def _strangers(self, pids: Iterable[int]) -> set[int]:
        name = getattr(self._card.nvml, "nvmlSystemGetProcessName", None)
        return {pid for pid in pids if pid not in self._own and MPS_SERVER not in (_text(_told(name, pid)) or "")}

    def _busy(self) -> set[int] | None:
        """Return the processes that used the multiprocessors since this was last asked; None where it is not told."""
        if self._card.part is not None:
            return None
        try:
            samples = self._card.nvml.nvmlDeviceGetProcessUtilization(self._card.handle, self._seen_us)
        except Exception as error:  # noqa: BLE001 - not supported by this card or driver
            return set() if type(error).__name__ == "NVMLError_NotFound" else None
        samples = [each for each in samples if int(each.timeStamp) > self._seen_us]
        self._seen_us = max((int(each.timeStamp) for each in samples), default=self._seen_us)
        return {int(each.pid) for each in samples if int(each.smUtil) >= BUSY_PERCENT}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        reasons = []
        bits = [int(r["gpu_reason_bits"]) for r in (before, after) if isinstance(r["gpu_reason_bits"], int | float)]
        either = 0
        for each in bits:
            either |= each
        mhz = after["gpu_sm_mhz"]
        # Right after the sample the clock still is the sample's; an idle bit means that it has already gone down.
        told_mhz = float(mhz) if isinstance(mhz, int | float) and not (bits and bits[-1] & IDLE) else None
        fell = told_mhz is not None and self._clock.fell(told_mhz, hot=bool(either & SW_THERMAL))
        if fell or any(either & bit for bit in SLOWDOWNS):
            reasons.append("throttled")
        company = [r["gpu_foreign_processes"] for r in (before, after)]
        most = max((each for each in company if isinstance(each, float)), default=None)
        if most:
            reasons.append("other_process_on_device")
        told: Readings = {
            "gpu_sm_mhz": mhz,
            "gpu_clock_share": None if told_mhz is None else self._clock.share(told_mhz),
            "gpu_clock": None if told_mhz is None else self._state(either, fell),
            "gpu_reasons": "+".join(name for bit, name in sorted(REASON_NAMES.items()) if either & bit)
            if bits
            else None,
            "gpu_temperature_c": after["gpu_temperature_c"],
            "gpu_power_w": after["gpu_power_w"],
            "gpu_listed_processes": after["gpu_listed_processes"],
            "gpu_foreign_processes": most,
        }
        return reasons, told

    def _state(self, bits: int, fell: bool) -> Value:
        if fell:
            return "falling"
        if bits & CLOCKS_SET or self._clock.locked():
            return "locked"
        return "steadily capped" if bits & (POWER_CAP | SW_THERMAL | SYNC_BOOST) else "free"
