"""The CPU: nothing to wait for; memory is the resident set of the process, its peak per interval where permitted."""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from harness.clock import Clock
from harness.errors import DeviceError


class Cpu:
    """See `device.Device`."""

    torch_name = "cpu"

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self._clock = name, clock
        self._process = psutil.Process()
        self.peak_method = "VmHWM, reset per interval" if _reset_high_water() else "peak of the whole process"

    def sync(self) -> None:
        """Torch's CPU operators have finished when they return."""

    def stamp(self) -> None:
        return None

    def elapsed_ns(self, earlier: object, later: object) -> int | None:
        return None

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
            "bf16_native": bf16_native(),
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
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bf16_native() -> str:
    """Return which bfloat16 instructions the CPU has; without any, bfloat16 is emulated and slow."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        if sys.platform == "darwin":
            from harness.machine.probes.mac import run_text

            return "FEAT_BF16" if run_text("sysctl", "-n", "hw.optional.arm.FEAT_BF16").strip() == "1" else "no"
        return "unknown"
    found = [flag for flag in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "svebf16") if flag in flags]
    return "+".join(found) or "no"
