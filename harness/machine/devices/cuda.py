"""NVIDIA GPUs: CUDA events beside the host clock, the caching allocator's peaks, and what NVML says of the card."""

import os
from collections.abc import Mapping
from typing import Any

import psutil

from harness.clock import Clock
from harness.errors import DeviceError


class Cuda:
    """See `device.Device`."""

    def __init__(self, name: str, index: int, torch: Any, clock: Clock) -> None:
        self.name, self.torch_name = name, f"cuda:{index}"
        self._index, self._torch, self._clock = index, torch, clock
        self._process = psutil.Process()

    def sync(self) -> None:
        self._torch.cuda.synchronize(self._index)

    def stamp(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._index))
        return event

    def elapsed_ns(self, earlier: Any, later: Any) -> int | None:
        """Return the time between two events; CUDA gives milliseconds, to about half a microsecond."""
        return round(float(earlier.elapsed_time(later)) * 1e6)

    def peak_bytes(self) -> int | None:
        return int(self._torch.cuda.max_memory_allocated(self._index))

    def memory(self) -> Mapping[str, int | None]:
        cuda = self._torch.cuda
        return {
            "allocated_bytes": int(cuda.memory_allocated(self._index)),
            "reserved_bytes": int(cuda.memory_reserved(self._index)),
            "rss_bytes": self._process.memory_info().rss,
        }

    def reset_peak(self) -> None:
        self._torch.cuda.reset_peak_memory_stats(self._index)

    def describe(self) -> Mapping[str, str]:
        torch = self._torch
        properties = torch.cuda.get_device_properties(self._index)
        return {
            "name": self.name,
            "model": properties.name,
            "memory_bytes": str(properties.total_memory),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "tf32_matmul": str(torch.backends.cuda.matmul.allow_tf32),
            "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
            "clock": f"{self._clock.name} after synchronize; CUDA events beside it",
            "sync": "torch.cuda.synchronize",
            "peak_memory": "torch.cuda.max_memory_allocated",
            **nvml_facts(self.name),
        }


def open(name: str, clock: Clock) -> Cuda:
    """Open "cuda" or "cuda:1"; says what is wrong when it is not there."""
    kind, colon, number = name.partition(":")
    if kind != "cuda" or (colon and not number.isdigit()):
        raise DeviceError(f"--device {name}: write cuda or cuda:NUMBER")
    import torch

    if not torch.backends.cuda.is_built():
        raise DeviceError(
            f"--device {name}: this torch ({torch.__version__}) is built without CUDA; "
            "next: pip install --force-reinstall torch torchvision, or --device cpu"
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} finds no usable GPU; next: does nvidia-smi list one, "
            f"and is its driver new enough for CUDA {torch.version.cuda}? `harness doctor` tells; or --device cpu"
        )
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"--device {name}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}")
    torch.cuda.set_device(index)
    torch.cuda.init()
    return Cuda(name, index, torch, clock)


def nvml_facts(name: str) -> dict[str, str]:
    """Return driver, clocks, power limit and modes of the card from NVML; empty where NVML is not to be had."""
    from harness.machine.probes.nvml import NVML_CLOCK_SM, open_nvml

    opened = open_nvml(name)
    if not opened:
        return {"nvml": "not available"}
    nvml, handle = opened
    questions = {
        "driver": lambda: nvml.nvmlSystemGetDriverVersion(),
        "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, NVML_CLOCK_SM),
        "sm_clock_chosen_mhz": lambda: nvml.nvmlDeviceGetApplicationsClock(handle, NVML_CLOCK_SM),
        "sm_clock_default_mhz": lambda: nvml.nvmlDeviceGetDefaultApplicationsClock(handle, NVML_CLOCK_SM),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "persistence_mode": lambda: nvml.nvmlDeviceGetPersistenceMode(handle),
        "ecc": lambda: nvml.nvmlDeviceGetEccMode(handle)[0],
        "mig": lambda: nvml.nvmlDeviceGetMigMode(handle)[0],
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    facts = {}
    for key, ask in questions.items():
        try:
            facts[key] = str(ask())
        except Exception:  # noqa: BLE001 - cards and drivers differ in what they tell; what is not told is not logged
            continue
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return facts | ({"visible_devices": visible} if visible is not None else {})
