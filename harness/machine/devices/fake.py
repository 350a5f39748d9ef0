"""A device that does not exist, to show that the measuring is right: work is queued, and takes as long as told.

In virtual time (`clock.Scripted`) a whole run takes none and gives exact numbers; on the real clock the fake waits, and
spins to the deadline, so that it is right to microseconds. Tests inject what goes wrong on real machines (`Episode`).
The device and the fake model share this module's state: `CLOCK`, `EPISODES`, the queue and the memory.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.clock import Clock, Monotonic, Scripted
from harness.errors import DeviceError, UnknownName
from harness.machine.energy import Counter
from harness.machine.probes import Probe, Readings, Span
from harness.machine.probes.clocks import SteadyClock

MAXIMUM_MHZ = 1000.0
SPIN_NS = 2_000_000
"""Sleeping oversleeps by up to about a millisecond, so the last stretch is spent looking at the clock."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Something that happens to the fake machine between two moments of its clock.

    Work begun meanwhile takes `factor` times as long. The gate is told `reason` (a name of `gate.REASONS`); with an
    empty one it must find out by itself. With `on_cpu` False the extra time is no CPU time of ours, as when others use
    the CPU. `clock_share` is what a card's clock would say meanwhile, of its maximum. With `error` the device fails:
    as real ones do, not when it is asked but when it is next waited for.
    """

    start_ns: int
    end_ns: int
    factor: float = 1.0
    reason: str = ""
    on_cpu: bool = True
    clock_share: float = 1.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Power:
    """What the fake machine draws, and how often its energy counter moves."""

    idle_w: float
    busy_w: float
    update_ns: int


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
    worked: list[tuple[int, int]] = field(default_factory=list)
    """When it worked, or will: the queue's spans, those that meet made one, of the last while."""
    worked_before_ns: int = 0
    """Its work before those."""
    fault: str = ""
    """What is planted (a name of `FAULTS`); the model looks at it too."""


FAULTS = {
    "lagging-clock": "the device's own clock runs a fifth too slow",
    "wrong-stage": "a sync comes back when half of the work is done: the rest falls into the next stage",
    "not-finite": "logits are NaN",
    "wandering": "the same request gets another answer each time",
    "leak": "every answer keeps some memory",
    "kept-weights": "closing a model frees nothing",
    "stuck-counter": "the energy counter stands still",
    "refusing-gate": "the gate takes steady load for throttling",
}
"""What `harness selftest` may be shown on this device: each must be found, by its name."""
LEAK_BYTES = 8 << 20
NEVER_NS = 1 << 60

CLOCK: Clock = Monotonic()
EPISODES: list[Episode] = []
POWER: list[Power] = []
"""Empty: there is no energy counter."""
STATE = State()


def reset(clock: Clock | None = None) -> None:
    """Begin anew: on `clock` (the real one if None), with no episodes and nothing queued or allocated."""
    global CLOCK, STATE
    CLOCK, STATE = clock or Monotonic(), State()
    EPISODES.clear()
    POWER.clear()
    LOOKED.clear()


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
    _note_work(start_ns, start_ns + wall_ns)
    STATE.queued_ns += wall_ns
    STATE.queued_cpu_ns += wall_ns * cpu_share


def wait_half() -> None:
    """Return too early, when half of the queued work is done: what a sync must never do."""
    now_ns = CLOCK.now_ns()
    until(now_ns + max(0, STATE.queue_end_ns - now_ns) // 2)


def wait() -> None:
    """Return when all queued work is done."""
    until(STATE.queue_end_ns, STATE.queued_cpu_ns / STATE.queued_ns if STATE.queued_ns else 1.0)
    STATE.queued_ns, STATE.queued_cpu_ns = 0, 0.0
    now_ns = CLOCK.now_ns()
    for episode in EPISODES:
        if episode.error and episode.start_ns <= now_ns < episode.end_ns:
            raise RuntimeError(episode.error)


MOST_SPANS = 64


def _note_work(start_ns: int, end_ns: int) -> None:
    if end_ns <= start_ns:
        return
    spans = STATE.worked
    if spans and spans[-1][1] == start_ns:
        spans[-1] = (spans[-1][0], end_ns)
    else:
        spans.append((start_ns, end_ns))
    while len(spans) > MOST_SPANS:
        first = spans.pop(0)
        STATE.worked_before_ns += first[1] - first[0]


def worked_ns(at_ns: int) -> int:
    """Return how long the device has worked until then, since it was opened."""
    return STATE.worked_before_ns + sum(max(0, min(end, at_ns) - start) for start, end in STATE.worked)


def drawn_mj() -> float | None:
    """Return what the energy counter says: it moves in steps of time, and stands still between them."""
    if not POWER:
        return None
    power = POWER[0]
    at_ns = CLOCK.now_ns() // power.update_ns * power.update_ns
    return (power.idle_w * at_ns + (power.busy_w - power.idle_w) * worked_ns(at_ns)) / 1e6


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
        if STATE.fault == "wrong-stage":
            wait_half()
        else:
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

    work_method = "the fake queue's own count"

    def work(self) -> "QueueTime":
        """Begin to count."""
        return QueueTime()

    def describe(self) -> Mapping[str, str]:
        return {
            "name": self.name,
            "number": lock_name(self.name).partition("-")[2] or "0",
            "model": "fake device: no number measured on it says anything about a machine",
            "clock": CLOCK.name,
            "sync": "waits for the queue",
            "peak_memory": "scripted",
        }


class QueueTime:
    """See `device.WorkMeter`."""

    def __init__(self) -> None:
        wait()
        self._cuts_ns = [worked_ns(CLOCK.now_ns())]

    def cut(self) -> None:
        wait()
        self._cuts_ns.append(worked_ns(CLOCK.now_ns()))

    def close(self) -> list[int]:
        return [end_ns - begin_ns for begin_ns, end_ns in itertools.pairwise(self._cuts_ns)]


def open(name: str, clock: Clock) -> Fake:
    """Open the fake device and put the fake machine on `clock`; episodes stay."""
    global CLOCK, STATE
    if name not in ("fake", *present(name)):
        raise DeviceError(f"--device {name}: the fake devices are {', '.join(present(name))}; next: --device fake")
    CLOCK, STATE = clock, State()
    return Fake(name)


class ScriptedProbe:
    """Tells the gate the reasons of the episodes that a sample met, and the clock of a card (see `probes.Probe`)."""

    def __init__(self) -> None:
        self._clock = SteadyClock(MAXIMUM_MHZ)

    def read(self) -> Readings:
        now_ns = CLOCK.now_ns()
        shares = [each.clock_share for each in EPISODES if each.start_ns <= now_ns < each.end_ns]
        return {"at_ns": float(now_ns), "mhz": MAXIMUM_MHZ * min(shares, default=1.0)}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        start, end = before["at_ns"], after["at_ns"]
        assert isinstance(start, float)
        assert isinstance(end, float)
        met = [each for each in EPISODES if each.reason and each.start_ns < end and start < each.end_ns]
        reasons = list(dict.fromkeys(each.reason for each in met))
        mhz = after["mhz"]
        if isinstance(mhz, float) and self._clock.fell(mhz) and "throttled" not in reasons:
            reasons.append("throttled")
        return reasons, ({"episodes": "+".join(reasons)} if reasons else {})


# --- What the fake device answers for itself (see `backend.Backend`) ---


CARD = "fake"
"""The one model that it runs."""


def trial_clock(name: str) -> Clock:
    """Return virtual time: a self-test then takes none, and has no noise."""
    return Scripted()


def plant(name: str, fault: str) -> None:
    """Have the opened device (and the fake model) be faulty in one way, "" for none; it has an energy counter then."""
    if fault and fault not in FAULTS:
        raise UnknownName("fault", fault, FAULTS)
    STATE.fault = fault
    STATE.clock_rate = 0.8 if fault == "lagging-clock" else 1.0
    POWER[:] = [Power(idle_w=10.0, busy_w=60.0, update_ns=NEVER_NS if fault == "stuck-counter" else 1_000_000)]
    if fault == "refusing-gate":
        EPISODES[:] = [Episode(CLOCK.now_ns(), NEVER_NS, reason="throttled")]


def absence(name: str) -> str:
    """Return nothing: what does not exist is everywhere."""
    return ""


def probes(name: str) -> list[Probe]:
    """Return what tells of the episodes; the host has no part in virtual time."""
    return [ScriptedProbe()]


COUNT = 4
"""Of fake devices: enough to show what a pool does."""
VISIBLE = "HARNESS_FAKE_DEVICES"
"""Which of them a process sees, as CUDA_VISIBLE_DEVICES says of CUDA's."""


LOOKED: list[str] = []
"""What the variable said when this process first looked at the devices: as CUDA, it keeps to that."""


def named() -> list[str]:
    """Return the numbers of the fake devices that the variable names now: those that children will see."""
    return os.environ.get(VISIBLE, ",".join(map(str, range(COUNT)))).split(",")


def visible() -> list[str]:
    """Return the numbers of the fake devices that this process sees: its fake:0 is the first of them."""
    LOOKED[:] = LOOKED or named()
    return LOOKED


def present(name: str) -> tuple[str, ...]:
    """Return the fake devices that this process sees."""
    return tuple(f"fake:{index}" for index in range(len(visible())))


def seeing(name: str, devices: Sequence[str]) -> dict[str, str]:
    """Return the environment in which a process sees these devices alone."""
    return {VISIBLE: ",".join(named()[int(device.partition(":")[2] or 0)] for device in devices)}


def spelling(name: str) -> str:
    """Return "fake" for the first device, and else "fake:NUMBER"."""
    return "fake" if name == "fake:0" else name


def lock_name(name: str) -> str:
    """Return which of the fake devices it is, whatever it is called in this process."""
    if name not in ("fake", *present(name)):
        return name  # it is not here: opening it says so
    number = visible()[int(name.partition(":")[2] or 0)]
    return "fake" if number == "0" else f"fake-{number}"


def counter(name: str) -> Counter | None:
    """Return the energy counter that was scripted, if one was."""
    return Counter(drawn_mj, "scripted counter (the whole fake machine)", "exact") if POWER else None


def free_bytes(name: str) -> None:
    """Return None: its memory has no end."""
