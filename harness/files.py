"""Files of ours: the cache folder, digests, and writing that leaves either the old content or the new, never half."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where there is no room for a file."""


def cache_folder() -> Path:
    """Return the cache folder: VLM_PARETO_CACHE, or `vlm-pareto` below XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("VLM_PARETO_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-pareto"


def digest_bytes(data: bytes, size: int = 16) -> str:
    """Return the BLAKE2b digest of `data` in hexadecimal, `size` bytes long."""
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def digest_file(path: Path, size: int = 16) -> str:
    """Return the BLAKE2b digest of a file's content, read piece by piece. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=size)).hexdigest()


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write `data` beside `path` and rename it there: a reader sees the old content or the new. Raises `OSError`."""
    raw = data.encode() if isinstance(data, str) else data
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
