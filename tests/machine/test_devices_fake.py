"""The fake device keeps its word: exact in virtual time, within 1 % in real time."""

import time
from collections.abc import Iterator

import pytest

from harness import plugins
from harness.clock import Monotonic, Scripted
from harness.errors import DeviceError
from harness.machine import backend
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.machine.probes import Span

MS = 1_000_000


@pytest.fixture
def clock() -> Iterator[Scripted]:
    clock = Scripted()
    yield clock
    fake.reset()


def test_work_is_queued_and_sync_waits_for_it(clock: Scripted) -> None:
    device = plugins.load("devices", "fake").open("fake", clock)
    first = device.stamp()
    fake.enqueue(10 * MS)
    fake.enqueue(5 * MS)
    assert clock.now_ns() == 0, "asking takes no time: a measurement without sync would read 0"
    second = device.stamp()
    device.sync()
    assert clock.now_ns() == 15 * MS
    assert device.elapsed_ns(first, second) == 15 * MS
    fake.host_work(2 * MS)
    assert clock.now_ns() == 17 * MS
    assert clock.cpu_ns() == 17 * MS


def test_host_and_device_overlap(clock: Scripted) -> None:
    device = fake.open("fake", clock)
    fake.enqueue(10 * MS)
    fake.host_work(8 * MS)
    device.sync()
    assert clock.now_ns() == 10 * MS


def test_episodes_slow_what_begins_in_them(clock: Scripted) -> None:
    device = fake.open("fake", clock)
    fake.EPISODES.append(Episode(10 * MS, 20 * MS, 2.0, "contended", on_cpu=False))
    for _ in range(3):
        fake.enqueue(10 * MS)
        device.sync()
    assert clock.now_ns() == 10 * MS + 20 * MS + 10 * MS
    assert clock.cpu_ns() == 30 * MS, "what others take is not our CPU time"


def test_the_device_clock_can_be_wrong(clock: Scripted) -> None:
    device = fake.open("fake", clock)
    fake.STATE.clock_rate = 0.9
    start = device.stamp()
    fake.enqueue(10 * MS)
    assert device.elapsed_ns(start, device.stamp()) == 9 * MS


def test_memory_is_scripted(clock: Scripted) -> None:
    device = fake.open("fake", clock)
    fake.allocate(100)
    fake.allocate(50)
    fake.allocate(-120)
    assert device.peak_bytes() == 150
    assert device.memory()["allocated_bytes"] == 30
    device.reset_peak()
    assert device.peak_bytes() == 30


def test_in_real_time_no_wait_ends_early() -> None:
    device = fake.open("fake", Monotonic())
    for duration_ns in (1 * MS, 5 * MS):
        start = time.perf_counter_ns()
        fake.enqueue(duration_ns)
        device.sync()
        assert time.perf_counter_ns() - start >= duration_ns


def test_it_fails_when_it_is_waited_for_and_not_when_it_is_asked() -> None:
    clock = Scripted()
    fake.reset(clock)
    fake.EPISODES.append(Episode(10 * MS, 20 * MS, error="CUDA error: an illegal memory access was encountered"))
    fake.enqueue(15 * MS)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fake.wait()
    clock.advance(10 * MS)
    fake.wait()
    fake.reset()


def test_its_clock_falls_and_settles_as_a_cards_does() -> None:
    clock = Scripted()
    fake.reset(clock)
    fake.EPISODES.append(Episode(5 * MS, 1000 * MS, clock_share=0.8))
    (probe,) = backend.of("fake").probes()
    found = []
    for _ in range(12):
        before = probe.read()
        clock.advance(MS)
        found.append(probe.judge(before, probe.read(), Span(MS, MS))[0])
    fake.reset()
    assert found == [[]] * 4 + [["throttled"]] * 4 + [[]] * 4


def test_its_work_is_counted_as_it_is_done() -> None:
    clock = Scripted()
    fake.open("fake", clock)
    work = fake.Fake("fake").work()
    fake.enqueue(3 * MS)
    clock.advance(10 * MS)
    fake.enqueue(2 * MS)
    work.cut()
    work.cut()
    for _ in range(3 * fake.MOST_SPANS):
        fake.enqueue(MS)
        clock.advance(2 * MS)
    work.cut()
    assert work.close() == [5 * MS, 0, 3 * fake.MOST_SPANS * MS], "old spans are added up, not forgotten"
    fake.reset()


def test_a_fake_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="--device fake"):
        fake.open("fake:9", Monotonic())
