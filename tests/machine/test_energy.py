"""Energy: counters that move in steps, wrap around, stand still or are not there; in virtual time."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.clock import Scripted
from harness.machine import backend, energy

MS = 1_000_000


def stepping(clock: Scripted, watts: float = 100.0, every_ns: int = 20 * MS) -> Callable[[], float]:
    """A counter of a constant power that is only updated now and then."""
    return lambda: watts * (clock.now_ns() // every_ns * every_ns) / 1e6


def test_how_often_a_counter_moves_is_measured() -> None:
    clock = Scripted()
    assert energy.watch(stepping(clock), clock) == pytest.approx(20 * MS, rel=0.02)
    assert energy.watch(lambda: 5.0, clock) is None
    assert energy.watch(lambda: None, clock) is None


def test_an_interval_below_the_resolution_has_no_figure() -> None:
    clock = Scripted()
    meter = energy.Counter(stepping(clock), "test", "1 mJ", 20 * MS)
    start = meter.read_mj()
    clock.advance(99 * MS)
    assert energy.spent_mj(meter, start, meter.read_mj(), 99 * MS) is None
    clock.advance(101 * MS)
    assert energy.spent_mj(meter, start, meter.read_mj(), 200 * MS) == pytest.approx(20_000)  # 100 W for 0.2 s
    assert energy.spent_mj(meter, None, 3.0, 200 * MS) is None
    assert energy.spent_mj(meter, 3.0, 3.0, 200 * MS) is None
    assert "20 ms" in meter.resolution


def rapl(folder: Path, *values: int, limit: int = 1000) -> None:
    for index, value in enumerate(values):
        zone = folder / f"intel-rapl:{index}"
        zone.mkdir(exist_ok=True)
        (zone / "energy_uj").write_text(str(value))
        (zone / "max_energy_range_uj").write_text(str(limit))
    part = folder / "intel-rapl:0:0"
    part.mkdir(exist_ok=True)
    (part / "energy_uj").write_text("123456")


def test_rapl_adds_packages_and_carries_wraps_over(tmp_path: Path) -> None:
    rapl(tmp_path, 900, 100)
    counter = energy.rapl_counter(tmp_path)
    assert counter.read_mj() == 0
    rapl(tmp_path, 950, 400)
    assert counter.read_mj() == pytest.approx(0.35)
    rapl(tmp_path, 50, 400)  # 950 -> 50 past the end at 1000
    assert counter.read_mj() == pytest.approx(0.45)


def test_rapl_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert energy.rapl_counter(tmp_path / "nowhere") is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy.rapl_counter(tmp_path) is None


def test_apple_counter_adds_what_the_chip_tells() -> None:
    now = SimpleNamespace(cpu_total_mj=10, gpu_mj=20, dram_mj=None, ane_mj=1, efficiency_cores_mj=[1, 2])
    counter = energy.apple_counter(SimpleNamespace(get_cumulative_energy=lambda: now))
    assert counter.read_mj() == 31
    assert counter.method == "macOS energy model (CPU + GPU + Neural Engine, estimated; memory not told)"
    now.dram_mj = 5  # a sum of other parts is no later reading of the same
    assert counter.read_mj() is None
    now.dram_mj = now.ane_mj = None
    assert counter.read_mj() is None

    def broken() -> None:
        raise RuntimeError("IOReport")

    assert energy.apple_counter(SimpleNamespace(get_cumulative_energy=broken)) is None


def test_devices_without_a_counter() -> None:
    assert backend.of("fake").counter() is None
    for device in ("cpu", "cuda", "mps"):
        meter = energy.watched(backend.of(device).counter())
        assert meter is None or meter.update_ns > 0
