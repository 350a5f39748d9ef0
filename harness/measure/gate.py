"""When is a sample invalid: before and after every sample, read what tells a bad one, and name the reason.

A refused sample stays in the log, marked; it is measured again after a growing delay. Probes take their readers as
arguments, so recorded outputs of the system drive the tests. Nothing here runs inside a timed region.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness.clock import Clock
from harness.machine.probes import Probe, Readings, Span, Value

REASONS = {
    "throttled": "the device's clock was held down",
    "contended": "other programs used the CPU",
    "other_process_on_device": "another process computes on the device",
    "thermal_pressure": "the system reports thermal pressure",
    "memory_pressure": "macOS reports that memory is short: it compresses or swaps",
    "slept": "the machine slept meanwhile, or since the sample before",
    "low_power_mode": "low power mode is on",
    "on_battery": "the machine runs on battery",
    "frequency_drop": "the CPU's frequency fell",
    "cpu_starved": "the process got less CPU time than with this cell's other samples",
    "drift": "the last samples are all slower than this cell's first ones of the same shape",
}
"""Every name that a verdict may give, and what it means."""

STARVED_SHARE = 0.70
"""CPU time per wall time against the median of this cell's valid samples."""
STARVED_LEAST = 0.50
"""A process that mostly waits (for a GPU, asleep) has a CPU share too small to judge by."""
HISTORY = 5
"""Valid samples to learn from before a sample is compared with them."""
DRIFT_SHARE = 1.15
DRIFT_RUN = 5
"""So many samples in a row, each so much slower than the first ones' median, are a drift and not a slow sample."""
PATIENCE = 12
"""After so many refusals in a row (three examples of four attempts) waiting has not helped, and is cut short."""
SHORTEST_DELAY_NS = 50_000_000
FIRST_DELAY_NS = 250_000_000
LONGEST_DELAY_NS = 8_000_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What every probe read at one moment."""

    at_ns: int
    cpu_ns: int
    parts: tuple[Readings, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a sample can be trusted; `reasons` are names from `REASONS`."""

    valid: bool
    reasons: tuple[str, ...] = ()
    readings: dict[str, Value] = field(default_factory=dict)


class Gate:
    """Judges one cell's samples; it learns from the valid ones what is normal here."""

    def __init__(self, probes: Sequence[Probe], clock: Clock) -> None:
        self._probes, self._clock = list(probes), clock
        self._cpu_shares: dict[Hashable, list[float]] = {}
        self._first_ns: dict[Hashable, list[int]] = {}
        self._last: list[float] = []
        self._refused_in_a_row = 0

    def before(self) -> Reading:
        """Read the machine before a sample, the CPU last of all: what the other readings cost is no foreign load.

        It is the first probe, and read first after the sample: so its two readings have the sample alone between them.
        """
        parts = tuple(probe.read() for probe in reversed(self._probes))[::-1]
        return Reading(self._clock.now_ns(), self._clock.cpu_ns(), parts)

    def after(
        self, before: Reading, wall_ns: int, cpu_ns: int, headline_ns: int | None = None, shape: Hashable = ()
    ) -> Verdict:
        """Read the machine after a sample and judge it.

        `wall_ns` and `cpu_ns` are what its stages took that are the same for all samples of this `shape`: a large page
        is decoded by one core, which says nothing about the machine. With `headline_ns`, likewise comparable, a drift
        over the cell is noticed. A wall time of 0 is not judged.
        """
        span = Span(self._clock.now_ns() - before.at_ns, self._clock.cpu_ns() - before.cpu_ns)
        reasons: list[str] = []
        readings: Readings = {}
        for probe, earlier in zip(self._probes, before.parts, strict=True):
            found, told = probe.judge(earlier, probe.read(), span)
            reasons += [reason for reason in found if reason not in reasons]
            readings |= told
        share = cpu_ns / wall_ns if wall_ns > 0 else None
        if share is not None:
            readings["cpu_per_wall"] = round(share, 3)
            if self._starved(share, shape):
                reasons.append("cpu_starved")
        if headline_ns is not None and self._drifting(headline_ns, shape):
            reasons.append("drift")
        if reasons:
            self._refused_in_a_row += 1
        else:
            self._refused_in_a_row = 0
            if share is not None:
                self._cpu_shares.setdefault(shape, []).append(share)
            first_ns = self._first_ns.setdefault(shape, [])
            if headline_ns is not None and len(first_ns) < 2 * HISTORY:
                first_ns.append(headline_ns)
        return Verdict(not reasons, tuple(reasons), readings)

    def retry_delay_ns(self, attempt: int) -> int:
        """Return how long to wait after the refused attempt 1, 2, ...: doubling, from a quarter second.

        On a machine that is never quiet the wait is cut short, so that the run still ends.
        """
        return SHORTEST_DELAY_NS if self._refused_in_a_row >= PATIENCE else retry_delay_ns(attempt)

    def _starved(self, share: float, shape: Hashable) -> bool:
        known = self._cpu_shares.get(shape, [])
        if len(known) < HISTORY:
            return False
        usual = median(known)
        return usual >= STARVED_LEAST and share < STARVED_SHARE * usual

    def _drifting(self, headline_ns: int, shape: Hashable) -> bool:
        """Look at the last samples, each over the first ones of its own shape; a shape met seldom says nothing."""
        known = self._first_ns.get(shape, [])
        if len(known) < HISTORY:
            return False
        self._last = [*self._last[-(DRIFT_RUN - 1) :], headline_ns / median(known)]
        return len(self._last) == DRIFT_RUN and min(self._last) > DRIFT_SHARE


def retry_delay_ns(attempt: int) -> int:
    """Return the delay after attempt 1, 2, ...: 0.25, 0.5, 1, 2 ... at most 8 seconds (nvbench grows likewise)."""
    return min(LONGEST_DELAY_NS, FIRST_DELAY_NS << max(0, min(attempt, 30) - 1))
