"""CUDA: a friendly refusal without a GPU; with one (`nox -s gpu`), what only a GPU can show."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import plugins
from harness.clock import Monotonic
from harness.errors import DeviceError
from harness.machine import backend, energy
from harness.machine.devices import cuda
from harness.measure import run
from harness.measure.asked import Asked
from harness.measure.gate import Gate
from harness.measure.job import prepare
from harness.runlog import log as runlog

here = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cuda:-1"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(DeviceError, match="cuda:NUMBER"):
        cuda.open(name, Monotonic())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_next_step_is_named() -> None:
    with pytest.raises(DeviceError, match=r"--device cuda.*next: .*--device cpu"):
        plugins.load("devices", "cuda").open("cuda", Monotonic())


@pytest.mark.gpu
@here
def test_events_and_host_clock_agree_on_a_long_product() -> None:
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
def test_memory_and_description() -> None:
    device = cuda.open("cuda:0", Monotonic())
    device.reset_peak()
    before = device.peak_bytes()
    block = torch.empty(64 << 20, dtype=torch.uint8, device=device.torch_name)
    assert device.peak_bytes() - before >= 64 << 20
    assert device.memory()["allocated_bytes"] >= block.numel()
    assert int(device.describe()["memory_bytes"]) > 0
    with pytest.raises(DeviceError, match="CUDA devices here"):
        cuda.open("cuda:99", Monotonic())


def products(count: int, side: int) -> None:
    """Multiply random matrices: what squares itself is soon all zeros, and draws less."""
    x = torch.randn(side, side, device="cuda")
    for _ in range(count):
        (x @ x).mul_(1 / side)


@pytest.mark.gpu
@here
def test_nvml_reads_the_card_that_torch_uses() -> None:
    card = cuda.nvml_card("cuda")
    assert card
    assert card.name == torch.cuda.get_device_name(0)
    assert backend.of("cuda").lock_name() == backend.of("cuda:0").lock_name() == card.uuid.lower()
    told = cuda.open("cuda", Monotonic()).describe()
    assert told["driver"]
    assert float(told["sm_clock_max_mhz"]) > 0


@pytest.mark.gpu
@here
def test_steady_load_is_not_refused() -> None:
    """Ten samples of half a second: a cap, or a locked clock, is a fact and no throttling."""
    gate = Gate(backend.of("cuda").probes(), Monotonic())
    products(50, 4096)
    found = []
    for _ in range(10):
        torch.cuda.synchronize()
        before, start, cpu = gate.before(), time.perf_counter_ns(), time.process_time_ns()
        while time.perf_counter_ns() - start < 500_000_000:
            products(10, 4096)
            torch.cuda.synchronize()
        found.append(gate.after(before, time.perf_counter_ns() - start, time.process_time_ns() - cpu))
    states = [verdict.readings.get("gpu_clock") for verdict in found]
    refused = [verdict.reasons for verdict in found if {"throttled", "other_process_on_device"} & set(verdict.reasons)]
    assert len(refused) <= 2, (refused, states)
    assert any(states), "the clock is read"


@pytest.mark.gpu
@here
def test_large_products_keep_the_device_busy_and_small_kernels_do_not() -> None:
    device = cuda.open("cuda", Monotonic())

    def share(work_of: int, side: int) -> float:
        products(work_of, side)
        device.sync()
        start = time.perf_counter_ns()
        products(work_of, side)
        device.sync()
        wall_ns = time.perf_counter_ns() - start
        work = device.work()
        products(work_of, side)
        work.cut()
        (busy_ns,) = work.close()
        return busy_ns / wall_ns

    assert 0.8 < share(50, 8192) < 1.1
    assert 0 < share(2000, 16) < 0.6


@pytest.mark.gpu
@here
def test_the_same_work_is_counted_the_same_in_every_span_and_profile() -> None:
    """CUPTI loses the first kernels of a profile on some versions: that must not be silent."""
    device, found = cuda.open("cuda", Monotonic()), []
    products(50, 2048)
    for _ in range(2):
        work = device.work()
        for _ in range(3):
            products(50, 2048)
            work.cut()
            time.sleep(0.05)
        found += work.close()
    assert len(found) == 6
    assert max(found) < 1.25 * min(found)


@pytest.mark.gpu
@here
def test_the_energy_counter_moves_and_work_draws_more_than_idling() -> None:
    meter = energy.watched(backend.of("cuda").counter())
    if meter is None:
        pytest.skip("this card has no energy counter")

    def watts(run_for_s: float, load: bool) -> float:
        before, start = meter.read_mj(), time.perf_counter()
        while time.perf_counter() - start < run_for_s:
            if load:
                products(10, 4096)
                torch.cuda.synchronize()
            else:
                time.sleep(0.05)
        after = meter.read_mj()
        assert before is not None
        assert after is not None
        return (after - before) / 1000 / (time.perf_counter() - start)

    idle = watts(2, load=False)
    assert watts(2, load=True) > 1.3 * idle > 0


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    return Asked(suite="pages", device="cuda", limit=4, maximum_samples=8, offline=True, out=str(tmp_path))


@pytest.mark.gpu
@here
def test_the_model_that_ships_runs_and_its_log_says_what_the_card_did(asked: Asked) -> None:
    job = prepare(replace(asked, model="fastvlm-nano", res=512))
    list(run.run_job(job, lambda _: None))
    log = runlog.read(job.path)
    assert log.finished
    assert not log.failures
    assert log.busy[0].stage_busy_ns.get("encode"), log.busy[0].note
    timed = [sample for sample in log.samples if sample.phase == "timed"]
    assert all(sample.stages and sample.stages.device_ns["encode"] > 0 for sample in timed)
    assert any(sample.readings.get("gpu_sm_mhz") for sample in timed)
