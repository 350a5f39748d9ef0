"""The CPU: nothing to wait for; memory is the resident set of the process, its peak per interval where permitted."""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine.device import Immediate
from harness.machine.energy import Counter, apple_counter, rapl_counter

RANK = 1
PEAK_COPY_BYTES = 1 << 28
"""Server CPUs have some hundred MB of L3 in all; one socket's share is what a copy sees."""
HALVES = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "svebf16"),
    "float16": ("amx_fp16", "avx512_fp16", "asimdhp"),
}
"""The CPU's flags (Linux' names) that mean arithmetic in a half precision; without any it is emulated, and slow."""


class Cpu(Immediate):
    """See `device.Device`."""

    torch_name = "cpu"

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self._clock = name, clock
        self._process = psutil.Process()
        self.peak_method = "VmHWM, reset per interval" if _reset_high_water() else "peak of the whole process"

    def peak_bytes(self) -> int | None:
        """Return the resident set's highest size: since `reset_peak` on Linux, else of the whole process."""
        if self.peak_method.startswith("VmHWM"):
            return _high_water_bytes()
        if sys.platform == "win32":
            return int(self._process.memory_info().peak_wset)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB

    def memory(self) -> Mapping[str, int | None]:
        return {"allocated_bytes": None, "reserved_bytes": None, "rss_bytes": self._process.memory_info().rss}

    def reset_peak(self) -> None:
        if self.peak_method.startswith("VmHWM"):
            _reset_high_water()

    def describe(self) -> Mapping[str, str]:
        import torch

        return {
            "name": self.name,
            "model": model_name(),
            "threads": str(torch.get_num_threads()),
            "interop_threads": str(torch.get_num_interop_threads()),
            "cores_usable": str(usable_cores()),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "bf16_native": half_native("bfloat16"),
            "fp16_native": half_native("float16"),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "clock": self._clock.name,
            "sync": "none needed",
            "peak_memory": f"resident set: {self.peak_method}",
        }


def open(name: str, clock: Clock) -> Cpu:
    """Open the CPU; there is only one."""
    if name != "cpu":
        raise DeviceError(f"--device {name}: the CPU has no number; next: --device cpu and --threads")
    return Cpu(name, clock)


def _reset_high_water() -> bool:
    """Set the peak resident set back to the present one (5 into clear_refs, proc(5)); False where not permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water_bytes() -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def model_name() -> str:
    """Return the CPU's brand as the system writes it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        from harness.machine.probes.mac import run_text

        return run_text("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(usable())


def usable() -> tuple[int, ...]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_flags() -> set[str] | None:
    """Return the words that Linux has about the CPU, its flags among them; None elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None


def half_native(dtype: str) -> str:
    """Return which instructions the CPU has for the half precision `dtype`: names, "no", or "unknown"."""
    flags = cpu_flags()
    if flags is None:
        return _half_of_a_mac(dtype) if sys.platform == "darwin" else "unknown"
    return "+".join(flag for flag in HALVES[dtype] if flag in flags) or "no"


def _half_of_a_mac(dtype: str) -> str:
    from harness.machine.probes.mac import run_text

    feature = {"bfloat16": "FEAT_BF16", "float16": "FEAT_FP16"}[dtype]
    return feature if run_text("sysctl", "-n", f"hw.optional.arm.{feature}").strip() == "1" else "no"


# --- What the CPU answers for itself (see `backend.Backend`) ---


def dtype(name: str) -> str:
    """Return float32: half precisions are emulated on most CPUs."""
    return "float32"


def doubts(name: str, dtype: str) -> list[str]:
    """Doubt a half precision that this CPU has no instructions for."""
    if dtype not in HALVES or half_native(dtype) != "no":
        return []
    return [
        f"{dtype} is emulated: this CPU has no instructions for it, so these times tell nothing of a CPU that has; "
        "next: --dtype float32"
    ]


def small_dtype(name: str) -> str:
    """Return the half precision that this CPU has instructions for, if any."""
    return next((dtype for dtype in HALVES if half_native(dtype) not in ("no", "unknown")), "")


def counter(name: str) -> Counter | None:
    """Return RAPL's counter, or macOS's energy model."""
    return apple_counter() if sys.platform == "darwin" else rapl_counter()


def absence(name: str) -> str:
    """Return nothing: there is always a CPU."""
    return ""
