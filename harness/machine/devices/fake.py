"""A device that does not exist, to show that the measuring is right: work is queued, and takes as long as told.

In virtual time (`clock.Scripted`) a whole run takes none and gives exact numbers; on the real clock the fake waits, and
spins to the deadline, so that it is right to microseconds. Tests inject what goes wrong on real machines (`Episode`).
The device and the fake model share this module's state: `CLOCK`, `EPISODES`, the queue and the memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.clock import Clock, Monotonic, Scripted
from harness.errors import DeviceError
from harness.machine.probes import Probe, Readings, Span

SPIN_NS = 2_000_000
"""Sleeping oversleeps by up to about a millisecond, so the last stretch is spent looking at the clock."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Something that happens to the fake machine between two moments of its clock.

    Work begun meanwhile takes `factor` times as long. The gate is told `reason` (a name of `gate.REASONS`); with an
    empty one it must find out by itself. With `on_cpu` False the extra time is no CPU time of ours, as when others use
    the CPU.
    """

    start_ns: int
    end_ns: int
    factor: float = 1.0
    reason: str = ""
    on_cpu: bool = True


@dataclass(slots=True)
class State:
    """What the fake machine is doing: when its queue is empty, what memory is in use, how its own clock runs."""

    queue_end_ns: int = 0
    queued_ns: int = 0
    queued_cpu_ns: float = 0.0
    allocated_bytes: int = 0
    peak_bytes: int = 0
    clock_rate: float = 1.0
    """Device nanoseconds per host nanosecond: a clock gap, when not 1."""


CLOCK: Clock = Monotonic()
EPISODES: list[Episode] = []
STATE = State()


def reset(clock: Clock | None = None) -> None:
    """Begin anew: on `clock` (the real one if None), with no episodes and nothing queued or allocated."""
    global CLOCK, STATE
    CLOCK, STATE = clock or Monotonic(), State()
    EPISODES.clear()


def until(deadline_ns: int, cpu_share: float = 1.0) -> None:
    """Return at `deadline_ns`; in virtual time `cpu_share` of the wait counts as our CPU time."""
    left_ns = deadline_ns - CLOCK.now_ns()
    if left_ns <= 0:
        return
    if isinstance(CLOCK, Scripted):
        CLOCK.advance(left_ns, round(left_ns * cpu_share))
        return
    if left_ns > SPIN_NS:
        CLOCK.sleep_ns(left_ns - SPIN_NS)
    while CLOCK.now_ns() < deadline_ns:
        pass


def slowed(duration_ns: float, at_ns: int) -> tuple[int, float]:
    """Return how long work begun at `at_ns` takes under the episodes then, and the share of it that is our CPU time."""
    wall = cpu = duration_ns
    for episode in EPISODES:
        if episode.start_ns <= at_ns < episode.end_ns:
            wall *= episode.factor
            cpu *= episode.factor if episode.on_cpu else 1.0
    return round(wall), cpu / wall if wall else 1.0


def host_work(duration_ns: float) -> None:
    """Keep the host busy."""
    start_ns = CLOCK.now_ns()
    wall_ns, cpu_share = slowed(duration_ns, start_ns)
    until(start_ns + wall_ns, cpu_share)


def enqueue(duration_ns: float, asked_ns: int | None = None) -> None:
    """Ask the device for work and return at once, as CUDA and Metal do; `wait` returns when it is done.

    `asked_ns` is when the asking began, so that the time of our own bookkeeping is not added to the work.
    """
    start_ns = max(CLOCK.now_ns() if asked_ns is None else asked_ns, STATE.queue_end_ns)
    wall_ns, cpu_share = slowed(duration_ns, start_ns)
    STATE.queue_end_ns = start_ns + wall_ns
    STATE.queued_ns += wall_ns
    STATE.queued_cpu_ns += wall_ns * cpu_share


def wait() -> None:
    """Return when all queued work is done."""
    until(STATE.queue_end_ns, STATE.queued_cpu_ns / STATE.queued_ns if STATE.queued_ns else 1.0)
    STATE.queued_ns, STATE.queued_cpu_ns = 0, 0.0


def allocate(size_bytes: int) -> None:
    """Take memory (or give it back, when negative)."""
    STATE.allocated_bytes += size_bytes
    STATE.peak_bytes = max(STATE.peak_bytes, STATE.allocated_bytes)


class Fake:
    """See `device.Device`."""

    torch_name = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def sync(self) -> None:
        wait()

    def stamp(self) -> int:
        """Return when the work queued so far will be done, as a CUDA event does."""
        return max(CLOCK.now_ns(), STATE.queue_end_ns)

    def elapsed_ns(self, earlier: int, later: int) -> int | None:
        return round((later - earlier) * STATE.clock_rate)

    def peak_bytes(self) -> int | None:
        return STATE.peak_bytes

    def memory(self) -> Mapping[str, int | None]:
        return {"allocated_bytes": STATE.allocated_bytes, "reserved_bytes": STATE.allocated_bytes, "rss_bytes": None}

    def reset_peak(self) -> None:
        STATE.peak_bytes = STATE.allocated_bytes

    def describe(self) -> Mapping[str, str]:
        return {
            "name": self.name,
            "model": "fake device: no number measured on it says anything about a machine",
            "clock": CLOCK.name,
            "sync": "waits for the queue",
            "peak_memory": "scripted",
        }


def open(name: str, clock: Clock) -> Fake:
    """Open the fake device and put the fake machine on `clock`; episodes stay."""
    global CLOCK, STATE
    if name != "fake":
        raise DeviceError(f"--device {name}: there is one fake device; next: --device fake")
    CLOCK, STATE = clock, State()
    return Fake(name)


class ScriptedProbe:
    """Tells the gate the reasons of the episodes that a sample met (see `probes.Probe`)."""

    def read(self) -> Readings:
        return {"at_ns": float(CLOCK.now_ns())}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        start, end = before["at_ns"], after["at_ns"]
        assert isinstance(start, float)
        assert isinstance(end, float)
        met = [each for each in EPISODES if each.reason and each.start_ns < end and start < each.end_ns]
        reasons = list(dict.fromkeys(each.reason for each in met))
        return reasons, ({"episodes": "+".join(reasons)} if reasons else {})


# --- What the fake device answers for itself (see `backend.Backend`) ---


def absence(name: str) -> str:
    """Return nothing: what does not exist is everywhere."""
    return ""


def probes(name: str) -> list[Probe]:
    """Return what tells of the episodes; the host has no part in virtual time."""
    return [ScriptedProbe()]


def free_bytes(name: str) -> None:
    """Return None: its memory has no end."""
