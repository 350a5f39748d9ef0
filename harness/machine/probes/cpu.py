"""The CPU: what others use of it, what the hypervisor takes, its frequency; and the power source."""

import os
from collections.abc import Callable, Collection
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
    """Seconds since boot, summed over our cores: used (by anyone), and taken by the hypervisor."""

    busy_s: float
    steal_s: float
    neighbour_s: float | None = None
    """Used on the other cores of the machine, where a pool has given us some of them."""


def parse_stat(text: str, ticks_per_s: int = 100, cores: Collection[int] = ()) -> CpuTimes:
    """Read the first line of /proc/stat, or those of `cores`; guest time is in user and nice already (proc(5))."""
    wanted = {f"cpu{core}" for core in cores} or {"cpu"}
    busy = stolen = everybody = 0
    for line in text.splitlines():
        name, *numbers = line.split()
        if name in wanted:
            user, nice, system, _idle, _wait, irq, softirq, steal = (int(number) for number in numbers[:8])
            busy, stolen = busy + user + nice + system + irq + softirq, stolen + steal
        elif name == "cpu":
            everybody = sum(int(number) for number in numbers[:8]) - int(numbers[3]) - int(numbers[4]) - int(numbers[7])
        elif not name.startswith("cpu"):
            break
    return CpuTimes(busy / ticks_per_s, stolen / ticks_per_s, (everybody - busy) / ticks_per_s if cores else None)


def own_cores() -> frozenset[int]:
    """Return the cores that a pool has bound this process to; empty where there is none: all cores are watched."""
    if "HARNESS_POOL" not in os.environ or not hasattr(os, "sched_getaffinity"):
        return frozenset()
    mine = os.sched_getaffinity(0)
    return frozenset(mine) if len(mine) < (os.cpu_count() or 1) else frozenset()


def cpu_times() -> CpuTimes | None:
    """Return the CPU times of the cores that we may use: /proc/stat, or where there is none psutil's (no steal there).

    What neighbours do on cores of their own is theirs; what they take from ours shows here.
    """
    try:
        return parse_stat(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"), own_cores())
    except (OSError, ValueError, AttributeError):
        pass
    with suppress(Exception):  # psutil raises its own errors and the platform's; a gate must never end a run
        import psutil

        # By core: macOS answers the question about all of them at once from a cache, to all but its own programs.
        each = psutil.cpu_times(percpu=True)
        return CpuTimes(sum(core.user + core.system + getattr(core, "nice", 0.0) for core in each), 0.0)
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
        self._cores = cores or len(own_cores()) or os.cpu_count() or 1
        self._highest_mhz = 0.0

    def read(self) -> Readings:
        times = self._times()
        return {
            "busy_s": times.busy_s if times else None,
            "steal_s": times.steal_s if times else None,
            "neighbour_s": times.neighbour_s if times else None,
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
        neighbour_s = _change(before, after, "neighbour_s")
        if neighbour_s is not None and wall_s > 0:  # told, not judged: it may take memory's bandwidth, and the power
            told["neighbour_cores"] = round(neighbour_s / wall_s, 3)
        mhz = after["cpu_mhz"]
        if isinstance(mhz, float):
            told["cpu_mhz"] = mhz
            self._highest_mhz = max(self._highest_mhz, mhz)
            if mhz < FREQUENCY_FLOOR * self._highest_mhz:
                reasons.append("frequency_drop")
        return reasons, told


def _change(before: Readings, after: Readings, name: str) -> float | None:
    first, second = before.get(name), after.get(name)
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
