"""A Mac's Neural Engine through Core ML for the encoder, with MLX on the GPU for the language model: macOS only.

A Core ML prediction is synchronous: it has ended when it returns. So waiting is MLX's. Memory is MLX's allocator: what
Core ML takes for the encoder is not told, and shows in the process's resident set at most.
"""

import importlib.util
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine.devices import mlx, mps
from harness.machine.energy import Counter, apple_counter
from harness.machine.probes import Probe

ENGINE = "coreml+mlx"


class CoreMl(mlx.Mlx):
    """See `device.Device`."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Keep torch on the CPU: it only holds the pixels."""
        super().__init__(name, clock)
        self.torch_name = "cpu"

    def peak_bytes(self) -> int | None:
        """Return MLX's alone; None while it holds nothing, as where the encoder is run by itself."""
        return super().peak_bytes() or None

    def describe(self) -> Mapping[str, str]:
        return {
            **super().describe(),
            "encoder_device": "Core ML",
            "peak_memory": "MLX's allocator, reset per interval; Core ML's share is not told",
            "memory_not_told": "Core ML's",
        }


def open(name: str, clock: Clock) -> CoreMl:
    """Open the pair; on anything but a Mac one line says that conversion works there, and prediction does not."""
    if name != "coreml":
        raise DeviceError(f"--device {name}: Core ML has no number; next: --engine coreml+mlx without --device")
    why = absence(name)
    if why:
        raise DeviceError(why)
    return CoreMl(name, clock)


# --- What Core ML answers for itself (see `backend.Backend`) ---


def absence(name: str) -> str:
    """Return that this is no Mac, or which package is missing."""
    if sys.platform != "darwin":
        return (
            "--engine coreml+mlx needs macOS: Core ML packages can be converted here (`harness export coreml`), "
            "but prediction runs on a Mac only; next: the same command on a Mac, or --engine torch"
        )
    asked = ["mlx", "mlx_lm", *(["coremltools"] if sys.version_info < (3, 14) else [])]
    return mlx.missing("coreml+mlx", *asked) or without_native_part()


def without_native_part() -> str:
    """Return that coremltools cannot predict: where it has no wheel for this Python, pip makes one of Python alone."""
    spec = importlib.util.find_spec("coremltools")
    folders = (spec.submodule_search_locations if spec else None) or ()
    if any(path for folder in folders for path in Path(folder).glob("libcoremlpython*")):
        return ""
    return (
        "--engine coreml+mlx: coremltools is not here with its native part, as where there is no wheel for this Python "
        f"({platform.python_version()}); next: Python 3.11 to 3.13, and pip install 'vlm-pareto[apple]'"
    )


def dtype(name: str) -> str:
    """Return float16: what the Neural Engine computes in."""
    return "float16"


def doubts(name: str, dtype: str) -> list[str]:
    """Doubt what torch's name of the same GPU does: the language model runs there."""
    return mps.doubts(name, dtype)


def small_dtype(name: str) -> str:
    """Return float16."""
    return "float16"


def card(name: str) -> str | None:
    """Return the GPU's, whose cores the chip's name does not tell."""
    return mps.card(name)


def probes(name: str) -> list[Probe]:
    """Return MLX's: torch does nothing here that could fall back, but the same machine is watched."""
    return mlx.probes(name)


def counter(name: str) -> Counter | None:
    """Return macOS's energy model."""
    return apple_counter()


def lock_name(name: str) -> str:
    """Return the GPU's: the language model runs there."""
    return "mps"
