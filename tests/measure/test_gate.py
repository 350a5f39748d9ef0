"""Each thing that spoils a sample is caught by its name: recorded system outputs, and virtual time."""

from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace

import psutil
import pytest

from harness.clock import Scripted
from harness.machine import backend
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.machine.probes import Probe, Span, cpu
from harness.machine.probes.cpu import BatteryProbe, CpuProbe, CpuTimes, parse_stat
from harness.machine.probes.mac import (
    MacProbe,
    System,
    parse_low_power,
    parse_power_source,
    parse_speed_limit,
    parse_thermal_level,
)
from harness.measure import gate
from harness.measure.gate import Gate, Verdict

MS = 1_000_000
SECOND = 1_000_000_000

STAT = """cpu  22093 12 8381 244324 1191 3 149 80 7 0
cpu0 2355 0 2457 132933 228 0 13 35 0 0
intr 323420 0 0
"""


class Judge:
    """A gate in virtual time, given samples one by one."""

    def __init__(self, probes: Sequence[Probe] = ()) -> None:
        self.clock = Scripted()
        self.gate = Gate(list(probes), self.clock)

    def sample(
        self,
        wall_ns: int = SECOND,
        cpu_ns: int | None = None,
        headline_ns: int | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Verdict:
        before = self.gate.before()
        cpu_ns = wall_ns if cpu_ns is None else cpu_ns
        self.clock.advance(wall_ns, cpu_ns)
        meanwhile()
        return self.gate.after(before, wall_ns, cpu_ns, headline_ns)


# --- CPU ---


def test_proc_stat_is_read_as_proc_5_says() -> None:
    assert parse_stat(STAT) == CpuTimes((22093 + 12 + 8381 + 3 + 149) / 100, 0.8)


def test_what_the_gate_itself_costs_is_no_foreign_load() -> None:
    """Other readings start programs: their CPU time lies outside the two readings of the CPU."""
    judge, busy_s = Judge(), [0.0]

    class Costly:
        def read(self) -> dict[str, float | str | None]:
            busy_s[0] += 0.5
            judge.clock.advance(100 * MS, 0)
            return {}

        def judge(self, *_: object) -> tuple[list[str], dict[str, float | str | None]]:
            return [], {}

    judge.gate = Gate([CpuProbe(lambda: CpuTimes(busy_s[0], 0.0), cores=2), Costly()], judge.clock)
    verdict = judge.sample(meanwhile=lambda: busy_s.__setitem__(0, busy_s[0] + 1.0))
    assert verdict.valid
    assert verdict.readings["foreign_cores"] == 0


def test_without_proc_stat_each_core_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS answers what is asked of all cores at once from a cache that is up to a second old."""

    def cpu_times(percpu: bool = False) -> list[SimpleNamespace]:
        assert percpu
        return [SimpleNamespace(user=1.0, nice=0.5, system=2.0, idle=9.0)] * 2

    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(cpu, "parse_stat", lambda *_: int("no such file"))
    assert cpu.cpu_times() == CpuTimes(7.0, 0.0)


class FakeCpu:
    def __init__(self, cores: int = 2) -> None:
        self.busy_s = self.steal_s = 0.0
        self.mhz = 3000.0
        self.probe = CpuProbe(lambda: CpuTimes(self.busy_s, self.steal_s), lambda: 1.5, lambda: self.mhz, cores)

    def use(self, busy_s: float, steal_s: float = 0.0) -> None:
        self.busy_s += busy_s
        self.steal_s += steal_s


@pytest.mark.parametrize(
    ("busy_s", "steal_s", "cores", "reasons"),
    [
        (2.0, 0.0, 2, ()),  # two seconds of CPU in one second: all our own
        (2.2, 0.0, 2, ()),
        (2.3, 0.0, 2, ("contended",)),
        (4.5, 0.0, 64, ()),  # 2.5 of 64 cores
        (6.0, 0.0, 64, ("contended",)),
        (2.0, 0.04, 2, ()),
        (2.0, 0.3, 2, ("contended",)),
        (1.0, 0.0, 2, ()),  # ticks book less than the precise clock: never negative
    ],
)
def test_foreign_cpu_use_and_steal_are_contention(
    busy_s: float, steal_s: float, cores: int, reasons: tuple[str, ...]
) -> None:
    cpu = FakeCpu(cores)
    verdict = Judge([cpu.probe]).sample(SECOND, 2 * SECOND, meanwhile=lambda: cpu.use(busy_s, steal_s))
    assert verdict.reasons == reasons
    assert verdict.valid == (not reasons)
    assert verdict.readings["foreign_cores"] == pytest.approx(max(0.0, busy_s - 2))
    assert verdict.readings["load_1min"] == 1.5


def test_single_ticks_do_not_condemn_a_short_sample() -> None:
    cpu = FakeCpu()
    judge = Judge([cpu.probe])
    short = 20 * MS
    assert judge.sample(short, short, meanwhile=lambda: cpu.use(0.04)).valid  # 20 ms of others: two ticks
    assert not judge.sample(short, short, meanwhile=lambda: cpu.use(0.1)).valid


def test_a_fallen_frequency_is_named() -> None:
    cpu = FakeCpu()
    judge = Judge([cpu.probe])
    assert judge.sample().valid
    cpu.mhz = 2400.0
    assert judge.sample().valid
    cpu.mhz = 2200.0
    assert judge.sample().reasons == ("frequency_drop",)


def test_a_machine_that_tells_nothing_refuses_nothing() -> None:
    probe = CpuProbe(lambda: None, lambda: None, lambda: None, 2)
    assert Judge([probe, BatteryProbe(lambda: None)]).sample().valid


def test_battery() -> None:
    plugged = [True, True, True, False]
    judge = Judge([BatteryProbe(lambda: plugged.pop(0))])
    assert judge.sample().valid
    assert judge.sample().reasons == ("on_battery",)


def test_this_machine_can_be_read() -> None:
    for device in ("cpu", "cuda:0"):
        probes = backend.of(device).probes()
        verdict = Judge(probes).sample(meanwhile=lambda: None)
        assert set(verdict.reasons) <= set(gate.REASONS)
        assert "load_1min" in verdict.readings


# --- starved, drifting ---


def test_a_starved_process_is_named() -> None:
    judge = Judge()
    for _ in range(gate.HISTORY):
        assert judge.sample(SECOND, 2 * SECOND).valid
    assert judge.sample(SECOND, round(1.5 * SECOND)).valid
    verdict = judge.sample(2 * SECOND, 2 * SECOND)
    assert verdict.reasons == ("cpu_starved",)
    assert verdict.readings["cpu_per_wall"] == 1.0


def test_a_process_that_waits_for_a_gpu_is_not_starved() -> None:
    judge = Judge()
    for _ in range(10):
        assert judge.sample(SECOND, SECOND // 10).valid
    assert judge.sample(SECOND, SECOND // 50).valid


def test_drift_is_named_and_one_slow_sample_is_not() -> None:
    judge = Judge()
    for _ in range(12):
        assert judge.sample(headline_ns=100 * MS).valid
    assert judge.sample(headline_ns=300 * MS).valid
    assert judge.sample(headline_ns=101 * MS).valid
    verdicts = [judge.sample(headline_ns=120 * MS).reasons for _ in range(7)]
    assert verdicts == [()] * 4 + [("drift",)] * 3
    assert judge.sample(headline_ns=100 * MS).valid


# --- Macs, by outputs as these commands print them ---

THERM_QUIET = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
THERM_LIMITED = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
2020-11-24 13:10:40 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 35
"""
MAINS = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true\n"
BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t19%; discharging; 1:02 remaining\n"
IN_USE = """System-wide power settings:
Currently in use:
 standby              1
 powernap             1
 hibernatemode        3
 displaysleep         10
 lowpowermode         {}
 womp                 1
"""


SILENT = System(SimpleNamespace())
"""A library without an answer: the commands are asked."""


def mac(level: str = "0", therm: str = THERM_QUIET, source: str = MAINS, low: str = "0") -> MacProbe:
    outputs = {
        (
            "notifyutil",
            "-g",
            "com.apple.system.thermalpressurelevel",
        ): f"com.apple.system.thermalpressurelevel {level}\n",
        ("pmset", "-g", "therm"): therm,
        ("pmset", "-g", "batt"): source,
        ("pmset", "-g"): IN_USE.format(low),
    }
    return MacProbe(lambda *command: outputs[command], system=SILENT)


@pytest.mark.parametrize(
    ("state", "reasons"),
    [
        ({}, ()),
        ({"level": "1"}, ("thermal_pressure",)),
        ({"level": "2"}, ("thermal_pressure",)),
        ({"therm": THERM_LIMITED}, ("throttled",)),
        ({"source": BATTERY}, ("on_battery",)),
        ({"low": "1"}, ("low_power_mode",)),
        ({"level": "1", "source": BATTERY, "low": "1"}, ("thermal_pressure", "on_battery", "low_power_mode")),
    ],
)
def test_macs(state: dict[str, str], reasons: tuple[str, ...]) -> None:
    assert Judge([mac(**state)]).sample().reasons == reasons


def test_mac_outputs_that_say_nothing() -> None:
    probe = MacProbe(lambda *command: "", system=SILENT)
    verdict = Judge([probe]).sample()
    assert verdict.valid
    assert [parse_thermal_level(""), parse_speed_limit(THERM_QUIET), parse_power_source(""), parse_low_power("")] == [
        None
    ] * 4
    assert parse_low_power(" powermode            2\n") is False
    assert parse_low_power(" powermode            1\n") is True


def test_mac_settings_are_not_asked_around_every_sample() -> None:
    asked, seconds = [], [0.0]

    def run(*command: str) -> str:
        asked.append(command[0])
        return MAINS

    judge = Judge([MacProbe(run, lambda: seconds[0], SILENT)])
    for _ in range(5):
        judge.sample()
    assert asked.count("notifyutil") == 10
    assert asked.count("pmset") == 3
    seconds[0] = 60.0
    judge.sample()
    assert asked.count("pmset") == 6


# --- retries ---


def test_delays_grow_and_end() -> None:
    delays = [gate.retry_delay_ns(attempt) for attempt in range(1, 9)]
    assert delays == sorted(delays)
    assert delays[:3] == [250 * MS, 500 * MS, SECOND]
    assert max(delays) == gate.LONGEST_DELAY_NS == gate.retry_delay_ns(10**6)


def test_a_machine_that_is_never_quiet_is_not_waited_for_for_ever() -> None:
    cpu = FakeCpu()
    judge = Judge([cpu.probe])
    for _ in range(gate.PATIENCE):
        assert judge.gate.retry_delay_ns(3) == SECOND
        assert not judge.sample(meanwhile=lambda: cpu.use(3.0)).valid
    assert judge.gate.retry_delay_ns(3) == gate.SHORTEST_DELAY_NS
    assert judge.sample(meanwhile=lambda: cpu.use(1.0)).valid
    assert judge.gate.retry_delay_ns(3) == SECOND


# --- the fake machine's own episodes ---


def test_episodes_reach_the_gate_by_name() -> None:
    judge = Judge(backend.of("fake").probes())
    fake.reset(judge.clock)
    fake.EPISODES.append(Episode(2 * SECOND, 3 * SECOND, 1.5, "throttled"))
    fake.EPISODES.append(Episode(5 * SECOND, 6 * SECOND, 1.0, "on_battery"))
    verdicts = [judge.sample().reasons for _ in range(7)]
    fake.reset()
    assert verdicts == [(), (), ("throttled",), (), (), ("on_battery",), ()]
    assert {"throttled", "on_battery"} <= set(gate.REASONS)


def test_span_is_measured_by_the_gate_itself() -> None:
    """What happened between the readings and outside the sample is our own as well: it must not count as foreign."""
    cpu = FakeCpu()
    judge = Judge([cpu.probe])
    before = judge.gate.before()
    judge.clock.advance(2 * SECOND, 2 * SECOND)
    cpu.use(2.0)
    assert judge.gate.after(before, SECOND, SECOND).valid
    assert Span(1, 0).wall_ns == 1


def headlines(times_ms: Sequence[float], shape: Hashable = ()) -> list[Verdict]:
    """Return what a fresh gate says of these headlines one by one."""
    judge = Judge()
    told = []
    for ms in times_ms:
        before = judge.gate.before()
        judge.clock.advance(SECOND, SECOND)
        told.append(judge.gate.after(before, SECOND, SECOND, ms * MS, shape))
    return told


def test_a_slow_drift_is_measured_from_the_first_samples_and_not_from_ever_later_ones() -> None:
    """One per cent a sample: over the first ten's median it is 15 % after some twenty, whatever came in between."""
    told = headlines([100 + n for n in range(30)])
    assert any("drift" in verdict.reasons for verdict in told)
    assert all(verdict.valid for verdict in told[:15])


def test_large_pages_after_small_ones_are_no_drift() -> None:
    judge = Judge()
    for size, ms in [("small", 10)] * 12 + [("large", 40)] * 12:
        before = judge.gate.before()
        judge.clock.advance(SECOND, SECOND)
        assert judge.gate.after(before, SECOND, SECOND, ms * MS, size).valid
