"""Apple GPUs: a friendly refusal elsewhere; on a Mac, synchronize really waits."""

import time

import pytest
import torch

from harness import plugins
from harness.clock import Monotonic
from harness.errors import DeviceError

on_a_mac = torch.backends.mps.is_available()


def test_there_is_one():
    with pytest.raises(DeviceError, match="--device mps"):
        plugins.load("devices", "mps").open("mps:1", Monotonic())


@pytest.mark.skipif(on_a_mac, reason="there is an Apple GPU here")
def test_elsewhere_the_next_step_is_named():
    with pytest.raises(DeviceError, match=r"no Apple GPU.*next: --device cpu"):
        plugins.load("devices", "mps").open("mps", Monotonic())


@pytest.mark.skipif(not on_a_mac, reason="no Apple GPU here")
def test_sync_waits_for_the_work():
    device = plugins.load("devices", "mps").open("mps", Monotonic())
    x = torch.randn(2048, 2048, device="mps")
    device.sync()
    start = time.perf_counter_ns()
    for _ in range(50):
        x = x @ x * 1e-3
    asked_ns = time.perf_counter_ns() - start
    device.sync()
    assert time.perf_counter_ns() - start > 2 * asked_ns
    assert device.stamp() is None
    assert device.memory()["allocated_bytes"] > 0
