"""Pools of devices: which are meant, and how the machine is divided among them."""

import os
from collections.abc import Iterator

import pytest

from harness.errors import DeviceError, SettingError
from harness.machine import backend, pool
from harness.machine.devices import cuda, fake
from harness.machine.probes import cpu


@pytest.fixture(autouse=True)
def unlooked() -> Iterator[None]:
    """A process that has not looked at the devices yet: from then on it sees what it saw."""
    fake.reset()
    yield
    fake.reset()


def test_a_pools_devices_are_those_that_are_here() -> None:
    assert pool.devices("fake:all") == ["fake:0", "fake:1", "fake:2", "fake:3"]
    assert pool.devices("fake:2, fake:0") == ["fake:2", "fake:0"]
    assert [pool.is_pool(text) for text in ("fake:all", "fake:0,fake:1", "fake", "cuda:1")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(DeviceError, match="no 'fake:9' here; known: fake:0"):
        pool.devices("fake:0,fake:9")
    with pytest.raises(SettingError, match="twice"):
        pool.devices("fake:0,fake:0")
    with pytest.raises(DeviceError, match="next: name one device"):
        pool.devices("cpu:all")


def test_each_process_sees_its_own_device_and_locks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = pool.members("fake:1,fake:3")
    assert [one.environment[fake.VISIBLE] for one in made] == ["1", "3"]
    names = []
    for one in made:
        with monkeypatch.context() as patch:
            patch.setenv(fake.VISIBLE, one.environment[fake.VISIBLE])
            fake.reset()
            assert pool.devices("fake:all") == ["fake:0"]
            names.append(backend.of("fake").lock_name())
    assert names == ["fake-1", "fake-3"]
    monkeypatch.setenv(fake.VISIBLE, "2,3")
    fake.reset()
    assert [backend.of(name).lock_name() for name in ("fake", "fake:0", "fake:1")] == ["fake-2", "fake-2", "fake-3"]
    assert fake.seeing("fake", ["fake:1"]) == {fake.VISIBLE: "3"}


def test_cudas_numbers_are_those_of_the_process_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda.seeing("cuda", ["cuda:1", "cuda:0"]) == {"CUDA_VISIBLE_DEVICES": "1,0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert cuda.seeing("cuda", ["cuda:1"]) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}


def test_cores_are_divided_without_overlap_those_of_the_own_node_first() -> None:
    cores = range(1000, 1008)  # no such cores: each is a core of its own
    assert pool.divided([(), ()], cores) == [(1000, 1001, 1002, 1003), (1004, 1005, 1006, 1007)]
    near = [tuple(range(1004, 1008)), tuple(range(1004, 1008)), (), tuple(range(1000, 1004))]
    shares = pool.divided(near, cores)
    assert shares[:2] == [(1004, 1005), (1006, 1007)]
    assert set(shares[3]) <= set(range(1000, 1004))
    assert len({core for share in shares for core in share}) == 8
    assert pool.divided([()] * 9, cores) == [()] * 9


def test_the_threads_of_one_core_are_not_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_physical", lambda core: core % 5)  # 0 and 5 are threads of one core, 1 and 6 ...
    assert pool.divided([(), ()], range(10)) == [(0, 1, 5, 6), (2, 3, 7, 8)]
    assert pool.divided([(3, 8), ()], range(10)) == [(0, 3, 5, 8), (1, 2, 6, 7)]
    assert pool.divided([()] * 6, range(10)) == [()] * 6


def test_threads_are_divided_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "usable", lambda: tuple(range(1000, 1008)))
    one = pool.members("fake:all")[1]
    assert (one.cores, one.environment["OMP_NUM_THREADS"]) == ((1002, 1003), "2")
    assert one.environment[pool.NAME] == "fake:1, one of 4; cores 1002-1003"
    monkeypatch.setattr(pool, "usable", lambda: (0, 1))
    one = pool.members("fake:all")[1]
    assert (one.cores, one.environment["OMP_NUM_THREADS"]) == ((), "1")
    assert "cores not divided" in one.environment[pool.NAME]


@pytest.mark.parametrize(("cores", "text"), [((0, 1, 2, 8), "0-2,8"), ((5,), "5"), ((), "")])
def test_lists_of_cores_are_the_kernels(cores: tuple[int, ...], text: str) -> None:
    assert pool.ranges(cores) == text
    assert pool.cores_of(text) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind processes to cores")
def test_what_is_started_meanwhile_is_bound() -> None:
    before = os.sched_getaffinity(0)
    with pool.bound([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


STAT = "cpu  100 0 100 800 0 0 0 10\ncpu0 80 0 80 400 0 0 0 4\ncpu1 20 0 20 400 0 0 0 6\nintr 1\n"


def test_the_gate_tells_the_own_cores_from_the_neighbours() -> None:
    assert cpu.parse_stat(STAT) == cpu.CpuTimes(2.0, 0.1)
    assert cpu.parse_stat(STAT, cores={1}) == cpu.CpuTimes(0.4, 0.06, 1.6)
