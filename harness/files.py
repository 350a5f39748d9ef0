"""Files of ours: the cache folder, digests, and writing that leaves either the old content or the new, never half."""

import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no flock; two runs at once are then not noticed
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where there is no room for a file."""


def cache_folder() -> Path:
    """Return the cache folder: VLM_PARETO_CACHE, or `vlm-pareto` below XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("VLM_PARETO_CACHE")
    if named:
        return Path(named).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "vlm-pareto"
    try:
        return Path.home() / ".cache" / "vlm-pareto"
    except RuntimeError:  # a container run under a number that has no name and no HOME
        return Path(tempfile.gettempdir()) / f"vlm-pareto-{os.getuid()}"


def hub_folder(repo: str) -> Path:
    """Return the folder of a data set in the Hub's cache, without importing the Hub's client."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
    return hub / f"datasets--{repo.replace('/', '--')}"


def hub_revision(repo: str) -> str:
    """Return the revision of a data set that the Hub's cache calls `main` (`refs/main`), or nothing."""
    try:
        text = (hub_folder(repo) / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch(r"[0-9a-f]{7,64}", text) else ""


def digest_bytes(data: bytes, size: int = 16) -> str:
    """Return the BLAKE2b digest of `data` in hexadecimal, `size` bytes long."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def digest_file(path: Path, size: int = 16) -> str:
    """Return the BLAKE2b digest of a file's content, read piece by piece. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=size)).hexdigest()


def read_regular(path: Path, limit_bytes: int | None = None) -> bytes:
    """Return the content of a regular file. Raises `OSError` for anything else, which might never end.

    A named pipe waits for a writer, /dev/zero has no end: both are refused before a byte is read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"is {_kind(found.st_mode)}, not a regular file", str(path))
        if limit_bytes is not None and found.st_size > limit_bytes:
            raise OSError(errno.EINVAL, f"has {found.st_size} bytes, at most {limit_bytes} are read", str(path))
        return file.read()


def locked(file: IO[str] | IO[bytes], wait_s: float) -> bool | None:
    """Take the file's lock, waiting so long for a process that is about to let go of it; False where it is kept.

    None where there are no locks (Windows; file systems that answer ENOLCK or ENOSYS), so that nobody is blamed.
    """
    if fcntl is None:
        return None
    end_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                return None
            if time.monotonic() >= end_s:
                return False
            time.sleep(0.05)


def _kind(mode: int) -> str:
    known = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return known.get(stat.S_IFMT(mode), "a device")


def is_file(path: Path) -> bool:
    """Return whether this is a file; a name that no file system can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether this is a folder; a name that no file system can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write `data` beside `path` and rename it there: a reader sees the old content or the new.

    Raises `OSError` with the name of `path`: a full disk names no file, a read-only one that beside it.
    """
    try:
        _replace(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        error.filename = str(path)
        raise


def _replace(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.chmod(beside, 0o644)  # mkstemp's files are for their owner alone
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
