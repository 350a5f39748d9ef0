"""Apple GPUs through Metal: synchronize and the host's monotonic clock; operators that fell back to the CPU by name.

MPS events are not used: they were found to hang, and to report an end before the start (PyTorch pull requests 152199,
157131, 196395).

An operator that Metal lacks is an error, unless the user has set PYTORCH_ENABLE_MPS_FALLBACK=1 (torch reads it when it
is imported) or torch falls back for it always; it then warns, once per process and not per operator, unless told to
warn always (aten/src/ATen/mps/MPSFallback.mm of pytorch/pytorch).
"""

import os
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import psutil

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine.backend import host_probes
from harness.machine.device import Unclocked
from harness.machine.energy import Counter, apple_counter
from harness.machine.probes import Probe, Readings, Span
from harness.machine.probes.mac import gpu_cores
from harness.units import size

RANK = 10
PEAK_COPY_BYTES = 1 << 28

FALLBACK = re.compile(r"operator '([^']+)' is not currently supported on the MPS backend")
FALLEN: dict[str, bool] = {}
"""Operators that ran on the CPU so far in this process, in the order in which they were first met."""


def watch_fallbacks(torch: ModuleType) -> None:
    """Note the operator of each fallback warning from now on, and keep the warning itself off the screen."""
    if getattr(warnings.showwarning, "notes_fallbacks", False):
        return
    torch.set_warn_always(True)
    warnings.filterwarnings("always", message=r".*not currently supported on the MPS backend", category=UserWarning)
    shown = warnings.showwarning

    def note(message: Any, *others: Any, **named: Any) -> None:
        found = FALLBACK.search(str(message))
        if found:
            FALLEN[found[1]] = True
        else:
            shown(message, *others, **named)

    note.notes_fallbacks = True  # type: ignore[attr-defined]
    warnings.showwarning = note


class FallbackProbe:
    """Tells the log which operators ran on the CPU so far; no reason to refuse a sample: users get them too."""

    def read(self) -> Readings:
        return {"cpu_fallback": "+".join(FALLEN) or None}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        return [], {name: value for name, value in after.items() if value is not None}


class Mps(Unclocked):
    """See `device.Device`. The allocator keeps no peak: `peak_bytes` is what the driver holds at the stage's end."""

    torch_name = "mps"

    def __init__(self, name: str, torch: ModuleType, clock: Clock) -> None:
        self.name, self._torch, self._clock = name, torch, clock
        self._process = psutil.Process()

    def sync(self) -> None:
        self._torch.mps.synchronize()

    def peak_bytes(self) -> int | None:
        """Return the memory that Metal has given to this process: a high mark of the run, heaps seldom shrink."""
        return int(self._torch.mps.driver_allocated_memory())

    def memory(self) -> Mapping[str, int | None]:
        return {
            "allocated_bytes": int(self._torch.mps.current_allocated_memory()),
            "reserved_bytes": int(self._torch.mps.driver_allocated_memory()),
            "rss_bytes": self._process.memory_info().rss,
        }

    def reset_peak(self) -> None:
        """Nothing to reset; emptying the cache here would make the next stage pay for its allocations."""

    @property
    def doubts(self) -> list[str]:
        """What is held beyond what Metal recommends: torch refuses only far beyond that (1.7 times, its default)."""
        held_bytes = int(self._torch.mps.driver_allocated_memory())
        return crowded(held_bytes, int(self._torch.mps.recommended_max_memory()))

    def describe(self) -> Mapping[str, str]:
        from harness.machine.devices.cpu import model_name

        return {
            "name": self.name,
            "model": model_name(),
            "memory_bytes": str(psutil.virtual_memory().total),
            "recommended_bytes": str(self._torch.mps.recommended_max_memory()),
            **gpu(),
            "clock": f"{self._clock.name} after synchronize",
            "sync": "torch.mps.synchronize",
            "cpu_fallback": "allowed, noted by operator" if fallback_allowed() else "an error",
            "peak_memory": "driver_allocated_memory at the end of the stage (a high mark of the run, not of the stage)",
        }


def gpu() -> dict[str, str]:
    """Return how many cores the GPU has, where that is told: chips of one name differ in it."""
    cores = gpu_cores()
    return {"gpu_cores": str(cores)} if cores else {}


def crowded(held_bytes: int, recommended_bytes: int) -> list[str]:
    """Doubt times of a model that the GPU can hold only by swapping: nothing refuses it."""
    if not recommended_bytes or held_bytes <= recommended_bytes:
        return []
    return [
        f"the model takes {size(held_bytes)} where Metal recommends {size(recommended_bytes)} at most: macOS may "
        "compress or swap it, and these times tell nothing of a Mac that holds it; next: a smaller model"
    ]


def fallback_allowed() -> bool:
    """Return whether torch was told to run on the CPU what Metal lacks."""
    return os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") not in ("", "0")


def open(name: str, clock: Clock) -> Mps:
    """Open the Apple GPU; says what is wrong elsewhere."""
    if name != "mps":
        raise DeviceError(f"--device {name}: there is one Apple GPU; next: --device mps")
    why = absence(name)
    if why:
        raise DeviceError(f"--device mps: no Apple GPU can be used here ({why}); next: --device cpu, or a Mac")
    import torch

    watch_fallbacks(torch)
    return Mps(name, torch, clock)


# --- What Apple's GPU answers for itself (see `backend.Backend`) ---


def absence(name: str) -> str:
    """Return what torch misses."""
    import torch

    if torch.backends.mps.is_available():
        return ""
    return "macOS 14 or newer is needed" if torch.backends.mps.is_built() else "this torch is built without MPS"


def dtype(name: str) -> str:
    """Return float16, which every Apple GPU computes in."""
    return "float16"


def doubts(name: str, dtype: str) -> list[str]:
    """Doubt bfloat16 on an M1, whose GPU has none."""
    from harness.machine.devices.cpu import model_name

    if dtype == "bfloat16" and " M1" in f" {model_name()}":
        return ["bfloat16 is emulated: the GPU of an M1 has none; next: --dtype float16"]
    return []


def small_dtype(name: str) -> str:
    """Return float16."""
    return "float16"


def card(name: str) -> str | None:
    """Return the GPU by its cores, for the machine's name: the chip's name does not tell them."""
    cores = gpu_cores()
    return f"{cores}-core GPU" if cores else None


def probes(name: str) -> list[Probe]:
    """Return the Mac's probes, and the one that notes operators which ran on the CPU."""
    return [*host_probes(), FallbackProbe()]


def counter(name: str) -> Counter | None:
    """Return macOS's energy model."""
    return apple_counter()
