"""The lock of each device: two timed runs on one device would measure each other.

It belongs to the host and the physical device, whoever runs and by whatever number CUDA calls it there: so it lies in
the host's folder for temporary files, not below a home that several hosts may share.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from harness import files
from harness.errors import DeviceError
from harness.machine import awake, backend

WAIT_S = 5.0
"""For a run that was just killed: it lets go of the device when its process has ended."""
HELD: dict[str, str] = {}
"""The physical devices that this process holds, each with the doubt that `hold` gave."""


def folder() -> Path:
    """Return where the locks lie: VLM_PARETO_LOCKS, or `vlm-pareto-locks` in the host's folder for temporary files."""
    named = os.environ.get("VLM_PARETO_LOCKS")
    if named:
        return Path(named).expanduser()
    # Not TMPDIR where it can be helped: two users of one host must find the same folder.
    shared = Path("/tmp")
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / "vlm-pareto-locks"


@contextmanager
def hold(device: str, wait: bool = False, notify: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Hold `device` for this process alone, and give a doubt where that cannot be had here (else an empty text).

    Raises `DeviceError` where another process holds it, unless told to `wait`. Who holds it already may hold it again:
    the two arms of a comparison share it.
    """
    name = backend.of(device).lock_name()
    if name in HELD:
        yield HELD[name]
        return
    path = folder() / f"{name.replace(':', '-').replace('/', '-')}.lock"
    try:
        file = _opened(path)
    except OSError as error:
        HELD[name] = _unlocked(device, f"{path}: {error.strerror}; next: set VLM_PARETO_LOCKS to a folder on this host")
        file = None
    try:
        if file is not None:
            HELD[name] = _take(file, device, path, wait, notify)
        with awake.keep() as sleepy:
            HELD[name] = "; ".join(filter(None, [HELD[name], sleepy]))
            yield HELD[name]
    finally:
        HELD.pop(name, None)
        if file is not None:
            file.close()


def _unlocked(device: str, why: str) -> str:
    return f"{device} was not locked, another run may have used it meanwhile ({why})"


def _opened(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        path.parent.chmod(0o1777)  # for every user of the host, as /tmp itself
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags | os.O_CREAT, 0o666)
    except PermissionError:
        # Linux lets nobody create in such a folder what another user has created (fs.protected_regular).
        handle = os.open(path, flags)
    with suppress(OSError):
        os.chmod(path, 0o666)
    return os.fdopen(handle, "r+b")


def _take(file: BinaryIO, device: str, path: Path, wait: bool, notify: Callable[[str], None]) -> str:
    """Lock the file and write who we are; return a doubt where the file system has no locks."""
    told = False
    while not (taken := files.locked(file, WAIT_S)):
        if taken is None:
            where = f"{path.parent} has no file locks"
            return _unlocked(device, f"{where}; next: set VLM_PARETO_LOCKS to a folder on this host")
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip() or "another process"
        if not wait:
            raise DeviceError(f"{device} is held by {holder}; next: add --wait to wait for it, or stop it")
        if not told:
            notify(f"waiting for {device}, which is held by {holder}")
            told = True
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()}".encode())
    file.flush()
    return ""
