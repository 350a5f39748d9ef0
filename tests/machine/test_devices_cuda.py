"""CUDA: a friendly refusal without a GPU; with one, events beside the host clock and memory that is counted."""

import time

import pytest
import torch

from harness import plugins
from harness.clock import Monotonic
from harness.errors import DeviceError
from harness.machine.devices import cuda

here = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cuda:-1"])
def test_a_name_that_is_none(name):
    with pytest.raises(DeviceError, match="cuda:NUMBER"):
        cuda.open(name, Monotonic())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_next_step_is_named():
    with pytest.raises(DeviceError, match=r"--device cuda.*next: .*--device cpu"):
        plugins.load("devices", "cuda").open("cuda", Monotonic())


@pytest.mark.gpu
@here
def test_events_and_host_clock_agree_on_a_long_product():
    device = cuda.open("cuda", Monotonic())
    x = torch.randn(4096, 4096, device=device.torch_name)
    for _ in range(3):
        x @ x
    device.sync()
    start, first = time.perf_counter_ns(), device.stamp()
    for _ in range(50):
        x @ x
    last = device.stamp()
    device.sync()
    host_ns = time.perf_counter_ns() - start
    assert device.elapsed_ns(first, last) == pytest.approx(host_ns, rel=0.1)


@pytest.mark.gpu
@here
def test_memory_and_description():
    device = cuda.open("cuda:0", Monotonic())
    device.reset_peak()
    before = device.peak_bytes()
    block = torch.empty(64 << 20, dtype=torch.uint8, device=device.torch_name)
    assert device.peak_bytes() - before >= 64 << 20
    assert device.memory()["allocated_bytes"] >= block.numel()
    assert int(device.describe()["memory_bytes"]) > 0
    with pytest.raises(DeviceError, match="CUDA devices here"):
        cuda.open("cuda:99", Monotonic())
