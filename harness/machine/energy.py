"""Energy by stage, where the machine has a counter: NVML, RAPL, or macOS's energy model; else nothing.

A counter moves in steps. How often is measured when it is opened; a stage shorter than a few steps has no figure.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from harness.clock import Clock, Monotonic

UPDATES_NEEDED = 5
"""Fewest counter updates within an interval: one update at either edge is then at most a fifth of it."""
LONGEST_LOOK_NS = 700_000_000
"""How long to wait for a counter to move; NVML's moves about every 20 to 100 ms, RAPL's every millisecond."""
UPDATES_WATCHED = 5
APPLE_PARTS = {"cpu_total_mj": "CPU", "gpu_mj": "GPU", "dram_mj": "memory", "ane_mj": "Neural Engine"}


class Meter(Protocol):
    """A cumulative energy counter."""

    @property
    def method(self) -> str:
        """What is counted, and by what."""
        ...

    @property
    def resolution(self) -> str:
        """The counter's step, and how often it moves."""
        ...

    @property
    def update_ns(self) -> int:
        """The longest time seen between two moves."""
        ...

    def read_mj(self) -> float | None:
        """Return millijoules since some origin; None when it could not be read."""
        ...


@dataclass(slots=True)
class Counter:
    """A counter behind a function that returns millijoules."""

    read: Callable[[], float | None]
    method: str
    step: str
    update_ns: int = 0

    @property
    def resolution(self) -> str:
        return f"{self.step}, updated every {self.update_ns / 1e6:.3g} ms (measured)"

    def read_mj(self) -> float | None:
        """Return millijoules since some origin; None when it could not be read."""
        return self.read()


def watched(counter: Counter | None, clock: Clock | None = None) -> Meter | None:
    """Return `counter` as a meter, or None where the machine does not tell.

    Takes up to 0.7 s: the counter is watched for how often it moves; one that stands still is no counter.
    """
    if counter is None:
        return None
    update_ns = watch(counter.read, clock or Monotonic())
    if update_ns is None:
        return None
    counter.update_ns = update_ns
    return counter


def spent_mj(meter: Meter, before_mj: float | None, after_mj: float | None, duration_ns: int) -> float | None:
    """Return the energy between two readings; None for too short an interval, or a reading that failed."""
    if before_mj is None or after_mj is None or duration_ns < UPDATES_NEEDED * meter.update_ns:
        return None
    spent = after_mj - before_mj
    return spent if spent > 0 else None


def watch(read: Callable[[], float | None], clock: Clock) -> int | None:
    """Watch a counter for some moves and return the longest time between two; None if it stands still."""
    start_ns = clock.now_ns()
    last, moves = read(), list[int]()
    while last is not None and len(moves) <= UPDATES_WATCHED and clock.now_ns() - start_ns < LONGEST_LOOK_NS:
        clock.sleep_ns(200_000)
        now = read()
        if now != last:
            moves.append(clock.now_ns())
            last = now
    gaps = [later - earlier for earlier, later in pairwise(moves)]
    return max(gaps) if gaps else None


class Rapl:
    """Intel's and AMD's package energy (cores, caches, memory controller) in /sys/class/powercap; for root alone."""

    def __init__(self, folder: Path) -> None:
        # `intel-rapl:0` is a package, `intel-rapl:0:0` a part of it that is counted there already.
        self._files = [path / "energy_uj" for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._range = [int((path.parent / "max_energy_range_uj").read_text()) for path in self._files]
        self._last = [int(path.read_text()) for path in self._files]
        self._total_uj = 0

    def __bool__(self) -> bool:
        return bool(self._files)

    def read_mj(self) -> float | None:
        """Add up what all packages used since the last reading; a counter that began again at 0 is carried over."""
        try:
            now = [int(path.read_text()) for path in self._files]
        except (OSError, ValueError):
            return None
        for index, value in enumerate(now):
            change = value - self._last[index]
            self._total_uj += change if change >= 0 else change + self._range[index]
        self._last = now
        return self._total_uj / 1000


def rapl_counter(folder: Path = Path("/sys/class/powercap")) -> Counter | None:
    """Open RAPL, if there is one that we may read."""
    try:
        rapl = Rapl(folder)
    except (OSError, ValueError):
        return None
    return Counter(rapl.read_mj, "RAPL package counter (whole CPU, all programs)", "1 mJ or finer") if rapl else None


def apple_counter(monitor: Any = None) -> Counter | None:
    """Open macOS's energy model through zeus-apple-silicon: what it tells of CPU, GPU, memory and Neural Engine.

    Without root. Believed to be estimated from use, frequency and voltage, not sensed (its authors' note). Which parts
    it tells differs by chip: they are named as found here, and a reading of other parts is no reading.
    """
    if monitor is None:
        if sys.platform != "darwin":
            return None
        try:
            from zeus_apple_silicon import AppleEnergyMonitor

            monitor = AppleEnergyMonitor()
        except Exception:  # noqa: BLE001 - not installed, or a chip that it does not know: no figure
            return None

    def told() -> dict[str, float]:
        try:
            now = monitor.get_cumulative_energy()
        except Exception:  # noqa: BLE001 - a private framework below: no figure rather than no run
            return {}
        parts = {part: getattr(now, name, None) for name, part in APPLE_PARTS.items()}
        return {part: float(value) for part, value in parts.items() if value is not None}

    def read() -> float | None:
        now = told()
        return sum(now.values()) if now.keys() == first.keys() else None

    first = told()
    if not first:
        return None
    silent = [part for part in APPLE_PARTS.values() if part not in first]
    without = f"; {' and '.join(silent)} not told" if silent else ""
    return Counter(read, f"macOS energy model ({' + '.join(first)}, estimated{without})", "1 mJ")
