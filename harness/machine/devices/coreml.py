"""A Mac's Neural Engine through Core ML for the encoder, with MLX on the GPU for the language model: macOS only.

A Core ML prediction is synchronous: it has ended when it returns. So waiting is MLX's. Memory is MLX's allocator: what
Core ML takes for the encoder is not told, and shows in the process's resident set at most.
"""

import sys
from collections.abc import Mapping

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine.devices import mlx
from harness.machine.energy import Counter, apple_counter

ENGINE = "coreml+mlx"


class CoreMl(mlx.Mlx):
    """See `device.Device`."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Keep torch on the CPU: it only holds the pixels."""
        super().__init__(name, clock)
        self.torch_name = "cpu"

    def describe(self) -> Mapping[str, str]:
        return {
            **super().describe(),
            "encoder_device": "Core ML",
            "peak_memory": "MLX's allocator, reset per interval; Core ML's share is not told",
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
    return mlx.missing("coreml+mlx", "mlx", "mlx_lm", "coremltools")


def dtype(name: str) -> str:
    """Return float16: what the Neural Engine computes in."""
    return "float16"


def small_dtype(name: str) -> str:
    """Return float16."""
    return "float16"


def counter(name: str) -> Counter | None:
    """Return macOS's energy model."""
    return apple_counter()


def lock_name(name: str) -> str:
    """Return the GPU's: the language model runs there."""
    return "mps"
