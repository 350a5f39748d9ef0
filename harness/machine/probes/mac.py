"""Macs: thermal pressure, CPU speed limit, power source and low power mode, all readable without root."""

import re
import subprocess
import time
from collections.abc import Callable

from harness.machine.probes import Readings, Span

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


def run_text(*command: str) -> str:
    """Return what a system command prints; empty when it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


class MacProbe:
    """Thermal pressure, CPU speed limit, power source and low power mode, all readable without root."""

    def __init__(self, run: Callable[..., str] = run_text, seconds: Callable[[], float] = time.monotonic) -> None:
        self._run, self._seconds = run, seconds
        self._settled: tuple[float, Readings] | None = None

    def read(self) -> Readings:
        level = parse_thermal_level(self._run("notifyutil", "-g", "com.apple.system.thermalpressurelevel"))
        return {"thermal_level": None if level is None else float(level), **self._settled_readings()}

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
        levels = [level for level in (before["thermal_level"], after["thermal_level"]) if isinstance(level, float)]
        limit = after["cpu_speed_limit_percent"]
        if max(levels, default=0) >= 1:
            reasons.append("thermal_pressure")
        if isinstance(limit, float) and limit < 100:
            reasons.append("throttled")
        if after["power"] == "battery":
            reasons.append("on_battery")
        if after["low_power_mode"] == "on":
            reasons.append("low_power_mode")
        pressure = PRESSURE_LEVELS.get(int(max(levels)), str(max(levels))) if levels else None
        told: Readings = {
            "thermal_pressure": pressure,
            "power": after["power"],
            "low_power_mode": after["low_power_mode"],
        }
        if limit is not None:
            told["cpu_speed_limit_percent"] = limit
        return reasons, {name: value for name, value in told.items() if value is not None}
