"""What the machine can do at best, measured once: a matrix product per precision, and a copy. Rooflines follow."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import parent
from harness.clock import Clock, Monotonic
from harness.files import cache_folder, write_atomically
from harness.machine import backend, environment
from harness.machine.device import Device

if TYPE_CHECKING:
    import torch

REPETITIONS = 5
"""The best of these counts: a peak is what the machine can do, not what it does on average."""
LONG_ENOUGH_NS = 30_000_000
"""A product that takes this long is large enough: launching it no longer matters."""
SMALLEST, LARGEST = 512, 16384


@dataclass(frozen=True, slots=True)
class Peak:
    """A machine's best: floating-point operations (2 per multiply-add) and bytes moved (read + written) per second."""

    flops_per_s: float
    bytes_per_s: float
    how: str


def measure(device: str, dtype: str) -> Peak | None:
    """Return the peak of `device` in `dtype` ("float32", "bfloat16", ...), from the cache folder or measured now.

    Kept by machine, device, precision, torch and number of threads. It is measured in a process of its own: this one
    may be about to time its first request. None for a device whose peak torch cannot measure, and where measuring
    fails.
    """
    if not backend.of(device).peak_copy_bytes:
        return None
    import torch

    threads = torch.get_num_threads()
    peak = _read(device).get(_entry(dtype, threads))
    if peak is None:
        code = "import sys; from harness.machine import peaks; peaks.keep(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        try:
            subprocess.run(
                [*parent.python(), "-c", code, device, dtype, str(threads)],
                env=parent.surroundings(), check=True, capture_output=True, timeout=300,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        peak = _read(device).get(_entry(dtype, threads))
    return peak


def known(device: str, dtype: str | None = None) -> Peak | None:
    """Return a peak that was measured earlier (of several numbers of threads, the best), without importing torch."""
    found = [peak for entry, peak in _read(device).items() if dtype is None or entry.startswith(f"{dtype} ")]
    return max(found, key=lambda peak: peak.flops_per_s, default=None)


def keep(device: str, dtype: str, threads: int) -> None:
    """Measure a peak and write it into the cache folder; raises `OSError` where that cannot be written."""
    import torch

    torch.set_num_threads(threads)
    clock = Monotonic()
    asked = backend.of(device)
    measured = _measure(asked.open(clock), getattr(torch, dtype), clock, asked.peak_copy_bytes)
    peaks = {**_read(device), _entry(dtype, threads): measured}
    path = _path(device)
    write_atomically(path, json.dumps({entry: asdict(peak) for entry, peak in peaks.items()}, indent=1))


def _entry(dtype: str, threads: int) -> str:
    return f"{dtype} {threads} threads"


def _path(device: str) -> Path:
    names = [environment.machine_name(device), device.replace(":", "-"), f"torch-{environment.installed('torch')}"]
    return cache_folder() / "peaks" / f"{'-'.join(names)}.json"


def _read(device: str) -> dict[str, Peak]:
    try:
        return {entry: Peak(**facts) for entry, facts in json.loads(_path(device).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure(device: Device, dtype: "torch.dtype", clock: Clock, size: int) -> Peak:
    import torch

    generator = torch.Generator().manual_seed(0)

    def timed(run: Callable[[], object]) -> int:
        device.sync()
        start_ns = clock.now_ns()
        run()
        device.sync()
        return clock.now_ns() - start_ns

    def best(run: Callable[[], object]) -> int:
        return min(timed(run) for _ in range(REPETITIONS))

    side = SMALLEST
    while True:
        # Random numbers, not zeros: GPUs draw less power on zeros and clock higher than any model would see.
        left, right = (torch.randn(side, side, generator=generator).to(device.torch_name, dtype) for _ in range(2))
        once_ns = min(timed(lambda left=left, right=right: left @ right) for _ in range(2))  # type: ignore[misc]
        if once_ns >= LONG_ENOUGH_NS or side >= LARGEST:
            break
        side *= 2
    product_ns = best(lambda: left @ right)
    block = torch.randint(256, (1 << 20,), generator=generator, dtype=torch.uint8)
    source = block.to(device.torch_name).repeat(size >> 20)
    target = torch.empty_like(source)
    target.copy_(source)  # the first copy pays for the pages
    copy_ns = best(lambda: target.copy_(source))
    how = (
        f"best of {REPETITIONS}: {side}x{side} product in {str(dtype).removeprefix('torch.')}, "
        f"copy of {size >> 20} MiB (read + write), {torch.get_num_threads()} CPU threads, random data"
    )
    return Peak(2 * side**3 / (product_ns / 1e9), 2 * size / (copy_ns / 1e9), how)
