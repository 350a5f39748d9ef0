"""Apple's GPU (or the CPU) through MLX: synchronize and the host's monotonic clock; peaks of MLX's own allocator.

MLX is lazy: nothing runs before it is evaluated. The model starts each stage's evaluation (`mx.async_eval`) before it
says that the stage is done; `sync` waits for it, and for torch where the encoder runs there.
"""

import importlib.util
import sys
from collections.abc import Mapping

import psutil

from harness.clock import Clock
from harness.errors import DeviceError, MissingPackage
from harness.machine.backend import host_probes
from harness.machine.devices import mps
from harness.machine.energy import Counter, apple_counter
from harness.machine.probes import Probe

ENGINE = "mlx"


class Mlx:
    """See `device.Device`."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Make MLX's default device the one that `name` says; the encoder's torch device goes with it."""
        import mlx.core as mx
        import torch

        self.name, self._clock, self._mx, self._torch = name, clock, mx, torch
        if name == "mlx:cpu":
            mx.set_default_device(mx.cpu)
        self.torch_name = "mps" if name == "mlx" and torch.backends.mps.is_available() else "cpu"
        self._process = psutil.Process()
        self._kept_bytes = 0

    def sync(self) -> None:
        if self.torch_name == "mps":
            self._torch.mps.synchronize()
        self._mx.synchronize()

    def stamp(self) -> None:
        return None

    def elapsed_ns(self, earlier: object, later: object) -> int | None:
        return None

    def peak_bytes(self) -> int | None:
        """Return the highest use of MLX's allocator since `reset_peak`, and what Metal holds for torch's encoder.

        MLX's own peak begins at 0 when it is reset, whatever is held then: a stage that allocates nothing has none.
        """
        active_bytes = int(self._mx.get_active_memory())
        return max(int(self._mx.get_peak_memory()), self._kept_bytes, active_bytes) + self._torch_bytes()

    def memory(self) -> Mapping[str, int | None]:
        allocated = int(self._mx.get_active_memory())
        return {
            "allocated_bytes": allocated + self._torch_bytes(),
            "reserved_bytes": allocated + int(self._mx.get_cache_memory()) + self._torch_bytes(),
            "rss_bytes": self._process.memory_info().rss,
        }

    def _torch_bytes(self) -> int:
        return int(self._torch.mps.driver_allocated_memory()) if self.torch_name == "mps" else 0

    def reset_peak(self) -> None:
        self._kept_bytes = int(self._mx.get_active_memory())
        self._mx.reset_peak_memory()

    @property
    def doubts(self) -> list[str]:
        """What is held beyond what Metal recommends; MLX refuses nothing before that either."""
        if self.name == "mlx:cpu":
            return []
        about = getattr(self._mx, "device_info", None) or self._mx.metal.device_info
        recommended_bytes = int(about().get("max_recommended_working_set_size", 0))
        return mps.crowded(int(self._mx.get_active_memory()) + self._torch_bytes(), recommended_bytes)

    def describe(self) -> Mapping[str, str]:
        from harness.machine.devices.cpu import model_name

        return {
            "name": self.name,
            "model": model_name(),
            "memory_bytes": str(psutil.virtual_memory().total),
            "mlx": str(self._mx.__version__),
            "mlx_device": str(self._mx.default_device()),
            **({} if self.name == "mlx:cpu" else mps.gpu()),
            "encoder_device": self.torch_name,
            "clock": f"{self._clock.name} after synchronize",
            "sync": "mlx.core.synchronize" + (" and torch.mps.synchronize" if self.torch_name == "mps" else ""),
            "peak_memory": "MLX's allocator, reset per interval"
            + ("; with what the driver holds for torch, a high mark of the run" if self.torch_name == "mps" else ""),
        }


def need(engine: str, *packages: str) -> None:
    """Raise one clear line when a package of the apple extra is not here; the extra itself is for macOS alone."""
    why = missing(engine, *packages)
    if why:
        raise DeviceError(why)


def missing(engine: str, *packages: str) -> str:
    """Return one clear line when a package of the apple extra is not here, else nothing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            if sys.platform == "darwin":
                return str(MissingPackage(package, f"--engine {engine}", extra="apple"))
            return (
                f"--engine {engine} is made for Macs (there: pip install 'vlm-pareto[apple]') and needs the package "
                f"{package!r}; next: to check it here, on the CPU: pip install 'mlx[cpu]' mlx-lm"
            )
    return ""


def open(name: str, clock: Clock) -> Mlx:
    """Open MLX's GPU ("mlx") or CPU ("mlx:cpu"); says what is missing."""
    if name not in ("mlx", "mlx:cpu"):
        raise DeviceError(f"--device {name}: MLX has its GPU (mlx) and its CPU (mlx:cpu); next: one of these")
    need("mlx", "mlx", "mlx_lm")
    import mlx.core as mx

    if name == "mlx" and mx.default_device() != mx.gpu:
        raise DeviceError("--device mlx: MLX sees no GPU here; next: --device cpu (slow, for checks), or a Mac")
    opened = Mlx(name, clock)
    if opened.torch_name == "mps":
        import torch

        mps.watch_fallbacks(torch)
    return opened


# --- What MLX's devices answer for themselves (see `backend.Backend`) ---


def absence(name: str) -> str:
    """Return which package is missing, and how it comes here."""
    return missing("mlx", "mlx", "mlx_lm")


def dtype(name: str) -> str:
    """Return float16, which every Apple GPU computes in."""
    return "float16"


def doubts(name: str, dtype: str) -> list[str]:
    """Doubt what torch's name of the same GPU does; MLX's CPU is for checks alone."""
    return [] if name == "mlx:cpu" else mps.doubts(name, dtype)


def small_dtype(name: str) -> str:
    """Return float16."""
    return "float16"


def card(name: str) -> str | None:
    """Return the GPU's, whose cores the chip's name does not tell."""
    return None if name == "mlx:cpu" else mps.card(name)


def probes(name: str) -> list[Probe]:
    """Return the host's probes, and the one that notes operators of torch's encoder which ran on the CPU."""
    return [*host_probes(), mps.FallbackProbe()]


def counter(name: str) -> Counter | None:
    """Return macOS's energy model."""
    return apple_counter()


def lock_name(name: str) -> str:
    """Return torch's name of the same device: MLX's GPU is Apple's, its CPU is the CPU."""
    return "cpu" if name == "mlx:cpu" else "mps"
