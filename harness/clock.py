"""Clocks: the real one, and one that tests drive by hand. Nanoseconds are `int` everywhere."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a measurement reads the time."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        ...

    def now_ns(self) -> int:
        """Return monotonic nanoseconds from an arbitrary origin."""
        ...

    def cpu_ns(self) -> int:
        """Return the CPU time of this process, all threads, in nanoseconds."""
        ...

    def sleep_ns(self, duration_ns: int) -> None:
        """Wait; a scripted clock only moves forward."""
        ...


class Monotonic:
    """The host's monotonic clock."""

    name = "perf_counter_ns"

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        return time.process_time_ns()

    def sleep_ns(self, duration_ns: int) -> None:
        time.sleep(duration_ns / 1e9)


class Scripted:
    """Virtual time: it passes only when told to, so a whole run takes no time and gives exact numbers."""

    name = "scripted"

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._cpu_ns = 0

    def now_ns(self) -> int:
        return self._now_ns

    def cpu_ns(self) -> int:
        return self._cpu_ns

    def sleep_ns(self, duration_ns: int) -> None:
        self.advance(duration_ns, cpu_ns=0)

    def advance(self, duration_ns: int, cpu_ns: int | None = None) -> None:
        """Let time pass: `duration_ns` on the wall, `cpu_ns` of it (default all) on the CPU."""
        self._now_ns += duration_ns
        self._cpu_ns += duration_ns if cpu_ns is None else cpu_ns
