"""Macs: thermal and memory pressure, sleep, CPU speed limit, power source, low power mode; all readable without root.

What is read around every sample is asked of the system's library, in this process: a command would be started from a
process of several GB just before a timed pass.
"""

import ctypes
import re
import subprocess
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from harness.machine.probes import Readings, Span

THERMAL_LEVEL = "com.apple.system.thermalpressurelevel"
MEMORY_LEVEL = "kern.memorystatus_vm_pressure_level"
MEMORY_LEVELS = {1: "normal", 2: "warning", 4: "critical"}
PLACES = {
    "notifyutil": "/usr/bin/notifyutil",
    "pmset": "/usr/bin/pmset",
    "sysctl": "/usr/sbin/sysctl",
    "ioreg": "/usr/sbin/ioreg",
}
"""Where macOS has its commands: only a whole path is started without forking this process first (`posix_spawn`)."""
SLEPT_S = 0.05
"""Less is what two clocks that are read one after the other differ by."""

PRESSURE_LEVELS = {0: "nominal", 1: "moderate", 2: "heavy", 3: "trapping", 4: "sleeping"}
"""What thermald publishes as com.apple.system.thermalpressurelevel; finer than ProcessInfo.thermalState."""
SETTLED_S = 10.0
"""Power source and low power mode change by hand: they are asked again after so long, not around every sample."""


def parse_thermal_level(text: str) -> int | None:
    """Read `notifyutil -g com.apple.system.thermalpressurelevel`: the name and a number."""
    match = re.search(r"thermalpressurelevel\s+(\d+)", text)
    return int(match[1]) if match else None


def parse_speed_limit(text: str) -> float | None:
    """Read CPU_Speed_Limit (per cent) of `pmset -g therm`; None while none was recorded, as on Apple silicon."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    return float(match[1]) if match else None


def parse_power_source(text: str) -> str | None:
    """Read `pmset -g batt`: "mains", "battery" or None."""
    match = re.search(r"drawing from '([^']+)'", text)
    return {"AC Power": "mains", "Battery Power": "battery"}.get(match[1]) if match else None


def parse_low_power(text: str) -> bool | None:
    """Read lowpowermode of `pmset -g` (the settings in use), or powermode, where 1 is low."""
    match = re.search(r"^\s*(?:low)?powermode\s+(\d)", text, re.MULTILINE)
    return match[1] == "1" if match else None


def parse_gpu_cores(text: str) -> int | None:
    """Read gpu-core-count of `ioreg -rc AGXAccelerator -d1`: a chip of one name is sold with several."""
    match = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text)
    return int(match[1]) if match else None


def parse_gpu_use(text: str) -> int | None:
    """Read "Device Utilization %" of `ioreg -r -c IOAccelerator`: of all programs, over a time that is not told."""
    found = [int(value) for value in re.findall(r'"Device Utilization %"\s*=\s*(\d+)', text)]
    return max(found, default=None)


def run_text(name: str, *arguments: str) -> str:
    """Return what a system command prints; empty when it cannot be run."""
    command = [PLACES.get(name, name), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, close_fds=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def gpu_cores() -> int | None:
    """Return how many cores the GPU has."""
    return parse_gpu_cores(run_text("ioreg", "-rc", "AGXAccelerator", "-d1"))


@cache
def model_identifier() -> str | None:
    """Return which Mac this is ("MacBookAir10,1"): an Air has no fan."""
    return run_text("sysctl", "-n", "hw.model").strip() or None


class System:
    """The two questions that are asked around every sample, put to the system's library; None for no answer."""

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._tokens: dict[str, ctypes.c_int] = {}

    def notified(self, name: str) -> int | None:
        """Return the state that was last published under `name` (notify(3))."""
        try:
            library = self._opened()
            if name not in self._tokens:
                token = ctypes.c_int()
                if library.notify_register_check(name.encode(), ctypes.byref(token)):
                    return None
                self._tokens[name] = token
            state = ctypes.c_uint64()
            refused = library.notify_get_state(self._tokens[name], ctypes.byref(state))
        except (AttributeError, OSError):
            return None
        return None if refused else state.value

    def sysctl(self, name: str) -> int | None:
        """Return a number of 32 bits that the kernel publishes (sysctl(3))."""
        value, size = ctypes.c_int32(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int32))
        try:
            nothing = ctypes.c_size_t(0)
            found = self._opened().sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, nothing)
        except (AttributeError, OSError):
            return None
        return None if found else value.value

    def _opened(self) -> Any:
        self._library = self._library or ctypes.CDLL(None)
        return self._library


def asleep_s() -> float | None:
    """Return how long the machine has slept since it started; None where the clocks do not tell (all but macOS)."""
    awake = getattr(time, "CLOCK_UPTIME_RAW", None)
    if awake is None:
        return None
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime(awake)


class MacProbe:
    """Thermal and memory pressure, sleep, CPU speed limit, power source and low power mode."""

    def __init__(
        self,
        run: Callable[..., str] = run_text,
        seconds: Callable[[], float] = time.monotonic,
        system: System | None = None,
        asleep: Callable[[], float | None] = asleep_s,
    ) -> None:
        self._run, self._seconds, self._asleep = run, seconds, asleep
        self._system = system or System()
        self._settled: tuple[float, Readings] | None = None
        self._slept_s: float | None = None

    def read(self) -> Readings:
        thermal = self._system.notified(THERMAL_LEVEL)
        if thermal is None:
            thermal = parse_thermal_level(self._run("notifyutil", "-g", THERMAL_LEVEL))
        memory = self._system.sysctl(MEMORY_LEVEL)
        return {
            "thermal_level": None if thermal is None else float(thermal),
            "memory_level": None if memory is None else float(memory),
            "asleep_s": self._asleep(),
            **self._settled_readings(),
        }

    def _settled_readings(self) -> Readings:
        now_s = self._seconds()
        if self._settled is None or now_s - self._settled[0] > SETTLED_S:
            low = parse_low_power(self._run("pmset", "-g"))
            told: Readings = {
                "cpu_speed_limit_percent": parse_speed_limit(self._run("pmset", "-g", "therm")),
                "power": parse_power_source(self._run("pmset", "-g", "batt")),
                "low_power_mode": None if low is None else "on" if low else "off",
            }
            self._settled = (now_s, told)
        return self._settled[1]

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        reasons = []
        thermal, memory = _highest(before, after, "thermal_level"), _highest(before, after, "memory_level")
        limit = after["cpu_speed_limit_percent"]
        if thermal is not None and thermal >= 1:
            reasons.append("thermal_pressure")
        if memory is not None and memory > 1:
            reasons.append("memory_pressure")
        if self._slept(before, after):
            reasons.append("slept")
        if isinstance(limit, float) and limit < 100:
            reasons.append("throttled")
        if after["power"] == "battery":
            reasons.append("on_battery")
        if after["low_power_mode"] == "on":
            reasons.append("low_power_mode")
        told: Readings = {
            "thermal_pressure": _named(PRESSURE_LEVELS, thermal),
            "memory_pressure": _named(MEMORY_LEVELS, memory),
            "power": after["power"],
            "low_power_mode": after["low_power_mode"],
            "cpu_speed_limit_percent": limit,
        }
        return reasons, {name: value for name, value in told.items() if value is not None}

    def _slept(self, before: Readings, after: Readings) -> bool:
        """Return whether the machine slept since the last sample: macOS wakes halfway now and then, for a moment."""
        first, last = before["asleep_s"], after["asleep_s"]
        if not isinstance(first, float) or not isinstance(last, float):
            return False
        since, self._slept_s = first if self._slept_s is None else self._slept_s, last
        return last - since > SLEPT_S


def _highest(before: Readings, after: Readings, name: str) -> float | None:
    return max((value for value in (before[name], after[name]) if isinstance(value, float)), default=None)


def _named(levels: dict[int, str], level: float | None) -> str | None:
    return None if level is None else levels.get(int(level), f"{level:g}")
