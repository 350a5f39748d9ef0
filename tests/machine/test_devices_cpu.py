"""The CPU device: memory that follows what is allocated, and a description without guesses."""

import mmap

import pytest

from harness import plugins
from harness.clock import Monotonic
from harness.errors import DeviceError
from harness.machine.devices import cpu

MB = 2**20


def test_it_has_no_clock_of_its_own_and_no_number() -> None:
    device = plugins.load("devices", "cpu").open("cpu", Monotonic())
    device.sync()
    assert device.stamp() is None
    assert device.elapsed_ns(None, None) is None
    with pytest.raises(DeviceError, match="--threads"):
        cpu.open("cpu:1", Monotonic())


def test_peak_follows_allocations() -> None:
    device = cpu.open("cpu", Monotonic())
    # Fresh pages from the system: an array may be served from what earlier tests gave back, and nothing would rise.
    device.reset_peak()
    before, now = device.peak_bytes(), device.memory()["rss_bytes"]
    block = mmap.mmap(-1, 64 * MB)
    block.write(b"x" * (64 * MB))
    risen = device.peak_bytes()
    assert risen >= now + 60 * MB
    block.close()
    assert device.peak_bytes() >= now + 60 * MB, "a peak stays when the memory is given back"
    device.reset_peak()
    if device.peak_method.startswith("VmHWM"):
        assert device.peak_bytes() < risen - 50 * MB
        assert before < risen
    else:
        assert "whole process" in device.describe()["peak_memory"]


def test_it_says_what_it_is() -> None:
    import torch

    told = cpu.open("cpu", Monotonic()).describe()
    assert told["threads"] == str(torch.get_num_threads())
    assert told["model"]
    assert told["clock"] == "perf_counter_ns"
    assert told["isa"] == torch.backends.cpu.get_cpu_capability()
    assert all(isinstance(value, str) for value in told.values())


def test_without_permission_the_process_peak_is_given_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_reset_high_water", lambda: False)
    device = cpu.open("cpu", Monotonic())
    device.reset_peak()
    assert device.peak_bytes() > 10 * MB
    assert device.describe()["peak_memory"] == "resident set: peak of the whole process"
