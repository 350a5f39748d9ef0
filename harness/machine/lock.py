"""The lock of each device: two timed runs on one device would measure each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from harness import files
from harness.errors import DeviceError
from harness.files import cache_folder

WAIT_S = 5.0
"""For a run that was just killed: it lets go of the device when its process has ended."""

SAME = {"mlx": "mps", "mlx:cpu": "cpu", "coreml": "mps"}
"""Names of other engines for a device that torch has a name for: they share its lock."""


@contextmanager
def hold(device: str) -> Iterator[None]:
    """Hold `device` for this process alone: two timed runs on one device would measure each other.

    Who holds it already may hold it again: the two arms of a comparison share it.
    """
    if device in HELD:
        yield
        return
    path = cache_folder() / "locks" / f"{SAME.get(device, device).replace(':', '-')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - held until the run ends
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written: {error.strerror}; next: set VLM_PARETO_CACHE") from error
    with file:
        if not files.locked(file, WAIT_S):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise DeviceError(f"{device} is held by {holder}; next: wait for it, or stop it")
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        HELD.add(device)
        try:
            yield
        finally:
            HELD.discard(device)


HELD: set[str] = set()
"""The devices that this process holds."""
