"""The run log: JSON lines, appended one by one, renamed when finished, recognised when torn.

While a run goes on its log is `NAME.jsonl.part`; the footer is followed by an atomic rename to `NAME.jsonl`. A process
that dies leaves the `.part`: the next run with the same key cuts an unfinished last line off and goes on below it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType

import msgspec

from harness.errors import LogError
from harness.runlog.records import SCHEMA, Counted, Failure, Footer, Header, Line, Resumed, Sample

try:
    import fcntl
except ImportError:  # Windows has no flock; two runs into one log are then not noticed
    fcntl = None  # type: ignore[assignment]

_decoder = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Log:
    """A run log as read: raw records in their order. `torn_bytes` counts what an unfinished last line left behind."""

    path: Path
    header: Header
    samples: tuple[Sample, ...] = ()
    failures: tuple[Failure, ...] = ()
    counted: tuple[Counted, ...] = ()
    resumed: tuple[Resumed, ...] = ()
    footer: Footer | None = None
    torn_bytes: int = 0
    good_bytes: int = field(default=0, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return self.footer is not None


def read(path: Path) -> Log:
    """Read a run log, finished or not.

    Raises `LogError` for a file that is no run log, is of a future schema, or is broken anywhere but in its last line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}; next: check the path") from error
    lines: list[Line] = []
    good = 0
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        if raw.endswith(b"\n") and not raw.strip():
            good += len(raw)
            continue
        try:
            line = _decode(raw)
        except LogError as error:
            raise LogError(f"{path}: {error}") from None
        except msgspec.MsgspecError as error:
            if good + len(raw) == len(data) and number > 1:
                break  # the last line, cut off in the middle of being written
            raise LogError(f"{path}:{number}: not a line of a run log: {error}; next: move the file away") from error
        if not raw.endswith(b"\n"):
            break  # complete by luck, but its end was not written: measured anew
        lines.append(line)
        good += len(raw)
    if not lines or not isinstance(lines[0], Header):
        raise LogError(f"{path}: has no header line; next: move the file away")
    footer = lines[-1] if isinstance(lines[-1], Footer) else None
    return Log(
        path,
        lines[0],
        tuple(line for line in lines if isinstance(line, Sample)),
        tuple(line for line in lines if isinstance(line, Failure)),
        tuple(line for line in lines if isinstance(line, Counted)),
        tuple(line for line in lines if isinstance(line, Resumed)),
        footer,
        len(data) - good,
        good,
    )


def _decode(raw: bytes) -> Line:
    try:
        line: Line = _decoder.decode(raw)
        return line
    except msgspec.ValidationError:
        schema = msgspec.json.decode(raw).get("schema", SCHEMA)  # only a header has one
        if isinstance(schema, int) and schema > SCHEMA:
            raise LogError(
                f"schema {schema} is newer than this harness reads ({SCHEMA}); next: pip install -U vlm-pareto"
            ) from None
        raise


def find(folder: Path) -> Iterator[Path]:
    """Yield every run log below `folder` (or `folder` itself if it is one), unfinished ones too, in a stable order."""
    if folder.is_file():
        yield folder
        return
    yield from sorted(path for path in folder.rglob("*.jsonl*") if path.suffix in (".jsonl", ".part"))


class Writer:
    """Appends records to `path` + `.part` and renames it at the end; besides reports, nothing else writes files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self._file: FileIO | None = None
        self._good = 0

    def open(self) -> Log | None:
        """Take the log's lock, and return what an earlier, unfinished run left (its torn end is cut off)."""
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: after a failed write nothing waits in memory to be written behind our back.
            self._file = open(self.part, "ab", buffering=0)  # noqa: SIM115 - closed in `close`
        except OSError as error:
            raise LogError(f"{self.part}: cannot be written: {error.strerror}; next: choose another --out") from error
        if fcntl:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise LogError(f"{self.part}: another run is writing it; next: wait for it, or stop it") from error
        if not self.part.stat().st_size:
            return None
        try:
            left = read(self.part)
        except LogError:
            if self.part.read_bytes().count(b"\n"):
                raise
            self._truncate(0)  # not even the header was finished: nothing was measured
            return None
        self._truncate(left.good_bytes)
        return left

    def append(self, record: Line) -> None:
        """Write one record and hand it to the operating system: from here on, our own death cannot lose it."""
        assert self._file, "open() first"
        data = _encoder.encode(record) + b"\n"
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            with suppress(OSError):  # else the torn line is recognised and cut off when the run is resumed
                self._truncate(self._good)
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            raise LogError(
                f"{self.part}: {what}; everything before is kept; next: free space, then the same command resumes"
            ) from error
        self._good += len(data)

    def finish(self, footer: Footer) -> Path:
        """Write the footer and give the log its name, atomically."""
        self.append(footer)
        assert self._file
        os.fsync(self._file.fileno())
        os.replace(self.part, self.path)
        self.close()
        return self.path

    def close(self) -> None:
        """Let go of the file; an unfinished log stays as it is."""
        if self._file:
            self._file.close()
            self._file = None

    def _truncate(self, size: int) -> None:
        os.truncate(self.part, size)
        self._good = size

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
