"""The CPU: what others use of it, what the hypervisor takes, its frequency; and the power source."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.machine.probes import Readings, Span

FOREIGN_CORES = 0.25
"""CPU used by others, in cores, above which a sample is contended: an eighth of a machine with 2 cores."""
FOREIGN_SHARE = 0.05
"""The same as a share of all cores, for large machines: on 64 cores three busy ones of others leave ours alone."""
STEAL_CORES = 0.05
"""CPU time taken by the hypervisor, in cores: it comes straight out of our own wall time."""
TICK_FLOOR_S = 0.05
"""/proc/stat counts in ticks of 10 ms and books a whole tick on whoever runs: five of them are no accident."""
FREQUENCY_FLOOR = 0.75
"""Share of the highest frequency seen after this cell's samples; as for GPUs."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot, summed over all cores: used (by anyone), and taken by the hypervisor."""

    busy_s: float
    steal_s: float


def parse_stat(text: str, ticks_per_s: int = 100) -> CpuTimes:
    """Read the first line of /proc/stat; guest time is in user and nice already (proc(5))."""
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = (int(x) for x in text.split("\n", 1)[0].split()[1:9])
    return CpuTimes((user + nice + system + irq + softirq) / ticks_per_s, steal / ticks_per_s)


def cpu_times() -> CpuTimes | None:
    """Return the machine's CPU times: /proc/stat, or where there is none what psutil has (no steal there)."""
    try:
        return parse_stat(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        pass
    with suppress(Exception):  # psutil raises its own errors and the platform's; a gate must never end a run
        import psutil

        times = psutil.cpu_times()
        return CpuTimes(times.user + times.system + getattr(times, "nice", 0.0), 0.0)
    return None


def load_1min() -> float | None:
    """Return the load average of the last minute; for the log alone: it includes ourselves and lags behind."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def busiest_mhz() -> float | None:
    """Return the highest core frequency now (cpufreq); None in most virtual machines and on Macs."""
    kilohertz = []
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with suppress(OSError, ValueError):
            kilohertz.append(int(path.read_text()))
    return max(kilohertz) / 1000 if kilohertz else None


class CpuProbe:
    """Foreign CPU use (all use minus our own), steal, and the frequency of the busiest core."""

    def __init__(
        self,
        times: Callable[[], CpuTimes | None] = cpu_times,
        load: Callable[[], float | None] = load_1min,
        mhz: Callable[[], float | None] = busiest_mhz,
        cores: int | None = None,
    ) -> None:
        self._times, self._load, self._mhz = times, load, mhz
        self._cores = cores or os.cpu_count() or 1
        self._highest_mhz = 0.0

    def read(self) -> Readings:
        times = self._times()
        return {
            "busy_s": times.busy_s if times else None,
            "steal_s": times.steal_s if times else None,
            "load_1min": self._load(),
            "cpu_mhz": self._mhz(),
        }

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        reasons: list[str] = []
        told: Readings = {"load_1min": after["load_1min"]}
        wall_s = span.wall_ns / 1e9
        busy_s, steal_s = _change(before, after, "busy_s"), _change(before, after, "steal_s")
        if busy_s is not None and wall_s > 0:
            foreign_s = max(0.0, busy_s - span.cpu_ns / 1e9)
            told["foreign_cores"] = round(foreign_s / wall_s, 3)
            if foreign_s > TICK_FLOOR_S and foreign_s / wall_s > max(FOREIGN_CORES, FOREIGN_SHARE * self._cores):
                reasons.append("contended")
        if steal_s is not None and wall_s > 0:
            told["steal_cores"] = round(steal_s / wall_s, 3)
            if steal_s > TICK_FLOOR_S and steal_s / wall_s > STEAL_CORES and "contended" not in reasons:
                reasons.append("contended")
        mhz = after["cpu_mhz"]
        if isinstance(mhz, float):
            told["cpu_mhz"] = mhz
            self._highest_mhz = max(self._highest_mhz, mhz)
            if mhz < FREQUENCY_FLOOR * self._highest_mhz:
                reasons.append("frequency_drop")
        return reasons, told


def _change(before: Readings, after: Readings, name: str) -> float | None:
    first, second = before[name], after[name]
    return second - first if isinstance(first, float) and isinstance(second, float) else None


def plugged_in() -> bool | None:
    """Return whether the machine runs on mains power; None without a battery."""
    with suppress(Exception):  # psutil raises what the platform raises; a gate must never end a run
        import psutil

        battery = psutil.sensors_battery()
        return bool(battery.power_plugged) if battery and battery.power_plugged is not None else None
    return None


class BatteryProbe:
    """Refuses samples measured on battery."""

    def __init__(self, plugged: Callable[[], bool | None] = plugged_in) -> None:
        self._plugged = plugged

    def read(self) -> Readings:
        plugged = self._plugged()
        return {"power": None if plugged is None else "mains" if plugged else "battery"}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        on_battery = "battery" in (before["power"], after["power"])
        told: Readings = {"power": "battery" if on_battery else after["power"]}
        return (["on_battery"] if on_battery else []), (told if told["power"] else {})
