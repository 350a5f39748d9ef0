"""NVIDIA GPUs: CUDA events beside the host clock, the caching allocator's peaks, and what NVML says of the card."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import psutil

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine.backend import host_probes
from harness.machine.energy import Counter
from harness.machine.probes import Probe, nvml

RANK = 20
PEAK_COPY_BYTES = 1 << 30
FIRST_WITH_BFLOAT16 = 8
"""Compute capability (Ampere) from which on bfloat16 is not emulated."""


class Cuda:
    """See `device.Device`."""

    def __init__(self, name: str, index: int, torch: ModuleType, clock: Clock) -> None:
        self.name, self.torch_name = name, f"cuda:{index}"
        self._index, self._torch, self._clock = index, torch, clock
        self._process = psutil.Process()

    def sync(self) -> None:
        self._torch.cuda.synchronize(self._index)

    def stamp(self) -> object:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._index))
        return event

    def elapsed_ns(self, earlier: Any, later: object) -> int | None:
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

    work_method = "kernels and copies on the GPU, by CUPTI through torch.profiler"

    def work(self) -> "KernelTime":
        """Begin to count the kernels' own time."""
        return KernelTime(self._torch, self.sync)

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


class KernelTime:
    """See `device.WorkMeter`: one profile, in which a kernel of a name of its own marks each cut.

    CUPTI from CUDA 12.6 to 13.0 loses the first kernels of a profile: so there is one profile for all spans, and the
    first marks are there to be lost. A mark that is missed later means that other kernels may be missing too.
    """

    def __init__(self, torch: ModuleType, sync: Callable[[], None]) -> None:
        self._torch, self._sync = torch, sync
        self._cuts = -1
        sync()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self._profile = torch.profiler.profile(activities=activities, acc_events=True)  # else it warns of cycles
        self._profile.start()
        for _ in range(MAY_BE_LOST):
            self._mark()
        self.cut()

    def _mark(self) -> None:
        self._torch.cuda._sleep(1)

    def cut(self) -> None:
        self._sync()
        self._mark()
        self._sync()
        self._cuts += 1

    def close(self) -> list[int]:
        self._sync()
        self._profile.stop()
        on_gpu = self._torch.autograd.DeviceType.CUDA
        events = self._profile.profiler.kineto_results.events()
        return spans_ns([Kernel.of(event) for event in events if event.device_type() == on_gpu], self._cuts)


MAY_BE_LOST = 16
MARK = "spin_kernel"
"""What CUPTI calls the kernel of `torch.cuda._sleep`, which no model has."""
WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""What CUPTI calls work on the GPU; annotations and waits lie on the same line and are none."""


class Kernel(NamedTuple):
    """What CUPTI saw on the GPU."""

    name: str
    start_ns: int
    end_ns: int
    is_work: bool

    @classmethod
    def of(cls, event: Any) -> "Kernel":
        """Read torch's event; before 2.12 it does not tell its kind, but whether it is an annotation."""
        kind = getattr(event, "activity_type", None)
        is_work = kind() in WORK if kind else not getattr(event, "is_user_annotation", bool)()
        return cls(event.name(), event.start_ns(), event.start_ns() + event.duration_ns(), is_work)


def spans_ns(kernels: Iterable[Kernel], cuts: int) -> list[int]:
    """Return how long the GPU worked in each of so many spans, which lie between the last marks."""
    ordered = sorted((one for one in kernels if one.is_work), key=lambda one: one.start_ns)
    marks = [place for place, one in enumerate(ordered) if MARK in one.name]
    if not cuts + 1 <= len(marks) <= cuts + 1 + MAY_BE_LOST:
        raise DeviceError(
            f"the profiler saw {len(marks)} marks, expected {cuts + 1} to {cuts + 1 + MAY_BE_LOST}: it loses kernels; "
            "next: another version of CUDA (13.1 or newer)"
        )
    marks = marks[len(marks) - cuts - 1 :]
    return [
        union_ns((one.start_ns, one.end_ns) for one in ordered[begin + 1 : end])
        for begin, end in itertools.pairwise(marks)
    ]


def union_ns(spans: Iterable[tuple[int, int]]) -> int:
    """Return how long at least one of the spans lasted: kernels on several streams overlap."""
    total = end = 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def open(name: str, clock: Clock) -> Cuda:
    """Open "cuda" or "cuda:1"; says what is wrong when it is not there."""
    index = number(name)
    import torch

    why = absence(name)
    if why:
        raise DeviceError(f"--device {name}: {why}; or --device cpu")
    torch.cuda.set_device(index)
    torch.cuda.init()
    return Cuda(name, index, torch, clock)


def number(name: str) -> int:
    """Return CUDA's number of a device; "cuda" is "cuda:0"."""
    kind, colon, digits = name.partition(":")
    if kind != "cuda" or (colon and not (digits.isascii() and digits.isdigit())):
        raise DeviceError(f"--device {name}: write cuda or cuda:NUMBER")
    return int(digits or 0)


# --- What an NVIDIA GPU answers for itself (see `backend.Backend`) ---


def absence(name: str) -> str:
    """Return what torch misses, and the next step."""
    import torch

    if not torch.backends.cuda.is_built():
        return (
            f"this torch ({torch.__version__}) is built without CUDA; "
            "next: pip install --force-reinstall torch torchvision"
        )
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no usable GPU; next: does nvidia-smi list one, and is its driver new "
            f"enough for CUDA {torch.version.cuda}? `harness doctor` tells"
        )
    count = torch.cuda.device_count()
    return "" if number(name) < count else f"there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}"


def dtype(name: str) -> str:
    """Return bfloat16, or float16 on cards older than Ampere, which emulate bfloat16."""
    return "bfloat16" if _computes_bfloat16(name) else "float16"


def doubts(name: str, dtype: str) -> list[str]:
    """Doubt bfloat16 on a card that has none."""
    if dtype != "bfloat16" or _computes_bfloat16(name):
        return []
    return ["bfloat16 is emulated: this GPU is older than Ampere; next: --dtype float16"]


def _computes_bfloat16(name: str) -> bool:
    import torch

    return bool(absence(name)) or torch.cuda.get_device_capability(number(name))[0] >= FIRST_WITH_BFLOAT16


def small_dtype(name: str) -> str:
    """Return the half precision that the card computes in."""
    return dtype(name)


def nvml_card(name: str) -> nvml.Card | None:
    """Return NVML's card of the very device that torch uses; None without NVML or without that device."""
    if absence(name):
        return None
    import torch

    told: Any = torch.cuda.get_device_properties(number(name))  # torch's stubs lack the address
    pci = ""
    if hasattr(told, "pci_bus_id"):
        pci = f"{told.pci_domain_id:08x}:{told.pci_bus_id:02x}:{told.pci_device_id:02x}.0"
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    # With MIG a process sees one instance, the first that is named.
    mig = visible[0] if visible[0].startswith("MIG-") else ""
    return nvml.find(str(getattr(told, "uuid", "")), pci, mig)


def probes(name: str) -> list[Probe]:
    """Return the host's probes and NVML's, where it is to be had."""
    card = nvml_card(name)
    return [*host_probes(), *([nvml.NvmlProbe(card)] if card else [])]


def counter(name: str) -> Counter | None:
    """Return the card's energy counter."""
    card = nvml_card(name)
    return nvml.counter(card) if card else None


def free_bytes(name: str) -> int | None:
    """Return what the driver says is free on the card (in the MIG instance)."""
    import torch

    return None if absence(name) else int(torch.cuda.mem_get_info(number(name))[0])


def lock_name(name: str) -> str:
    """Return the UUID of the card (of the MIG instance): CUDA's numbers differ from process to process."""
    card = nvml_card(name)
    return card.uuid.lower() if card and card.uuid else f"cuda-{number(name)}"


def spelling(name: str) -> str:
    """Return "cuda" for the first device, whose key logs have always had, and else "cuda:NUMBER"."""
    return f"cuda:{number(name)}" if number(name) else "cuda"


def present(name: str) -> tuple[str, ...]:
    """Return the devices that this process sees."""
    import torch

    return () if absence("cuda") else tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


def seeing(name: str, devices: Sequence[str]) -> dict[str, str]:
    """Return CUDA_VISIBLE_DEVICES for these devices, in terms of what this process sees itself."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    numbers = [number(device) for device in devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[one] if visible else str(one) for one in numbers)}


def cores(name: str) -> tuple[int, ...]:
    """Return the cores beside the card, as Linux tells them of its PCI address."""
    import torch

    from harness.machine import pool

    told: Any = torch.cuda.get_device_properties(number(name))  # torch's stubs lack the address
    if not hasattr(told, "pci_bus_id"):
        return ()
    return pool.near_pci(f"{told.pci_domain_id:04x}:{told.pci_bus_id:02x}:{told.pci_device_id:02x}.0")


def card(name: str) -> str | None:
    """Return the card's brand."""
    import torch

    return None if absence(name) else torch.cuda.get_device_name(number(name))


def nvml_facts(name: str) -> dict[str, str]:
    """Return driver, clocks, power limit and modes of the card from NVML; empty where NVML is not to be had."""
    found = nvml_card(name)
    if not found:
        return {"nvml": "not available"}
    ecc, mig = found.ask("nvmlDeviceGetEccMode"), found.ask("nvmlDeviceGetMigMode")
    limit_mw = found.ask("nvmlDeviceGetEnforcedPowerLimit")
    try:
        driver = str(found.nvml.nvmlSystemGetDriverVersion())
    except Exception:  # noqa: BLE001 - what is not told is not logged
        driver = None
    facts = {
        "driver": driver,
        "sm_clock_max_mhz": found.ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "sm_clock_chosen_mhz": found.ask("nvmlDeviceGetApplicationsClock", nvml.NVML_CLOCK_SM),
        "sm_clock_default_mhz": found.ask("nvmlDeviceGetDefaultApplicationsClock", nvml.NVML_CLOCK_SM),
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "persistence_mode": found.ask("nvmlDeviceGetPersistenceMode"),
        "ecc": ecc[0] if ecc else None,
        "mig": mig[0] if mig else None,
        "temperature_c": found.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device_order": os.environ.get("CUDA_DEVICE_ORDER"),
    }
    return {key: str(value) for key, value in facts.items() if value is not None}
