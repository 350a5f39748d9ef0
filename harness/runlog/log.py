"""The run log: JSON lines, appended one by one, renamed when finished, recognised when torn.

While a run goes on its log is `NAME.jsonl.part`; the footer is followed by an atomic rename to `NAME.jsonl`. A process
that dies leaves the `.part`: the next run with the same key cuts an unfinished last line off and goes on below it.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType

import msgspec

from harness import files
from harness.errors import LogError
from harness.runlog.records import (
    SCHEMA,
    Busy,
    Counted,
    Energy,
    Failure,
    Footer,
    Header,
    Line,
    Loaded,
    Resumed,
    Sample,
)

WAIT_S = 5.0
"""For the lock: a run that was just killed lets go of it when its process has ended."""

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
    repeated: tuple[int, ...] = ()
    """Numbers of lines that say again, byte for byte, what a line above has said: left out."""
    torn_bytes: int = 0
    good_bytes: int = field(default=0, compare=False)
    digest: str = field(default="", compare=False)
    """Of the bytes that were read."""
    loaded: tuple[Loaded, ...] = ()
    busy: tuple[Busy, ...] = ()
    energy: tuple[Energy, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return self.footer is not None

    @property
    def lasting(self) -> tuple[Failure, ...]:
        """The failures that are still true: a later try may have succeeded, and one that failed again counts once."""
        mended = {sample.example for sample in self.samples if sample.phase == "timed" and sample.valid}
        last = {failure.example: number for number, failure in enumerate(self.failures)}
        return tuple(
            failure
            for number, failure in enumerate(self.failures)
            if failure.example is None or (failure.example not in mended and last[failure.example] == number)
        )

    @property
    def done(self) -> frozenset[str]:
        """The examples that need not be measured again: timed and valid, or failed for good."""
        measured = {sample.example for sample in self.samples if sample.phase == "timed" and sample.valid}
        return frozenset(
            measured | {one.example for one in self.failures if one.example and one.error == "ExampleError"}
        )

    @property
    def cut_short(self) -> bool:
        """Whether trouble that may pass (memory, a device, a disk) ended the run: the same command goes on with it."""
        # What was put together of shards is whole: none of them was cut short, and none is there to go on with.
        if not self.finished or not self.failures or "shards" in self.header.effective:
            return False
        timed = any(sample.phase == "timed" for sample in self.samples)
        stopped = self.footer is not None and self.footer.stopped == "failures"
        return self.failures[-1].passing if timed and stopped else not timed and all(f.passing for f in self.failures)


SHARD = ".jsonl.shard"
"""In the names of logs that are to be put together to one."""
MOST_BYTES = 1 << 32
"""Of a log; 100,000 samples with their answers take a hundredth of it."""


def read(path: Path) -> Log:
    """Read a run log, finished or not.

    Raises `LogError` for a file that is no run log, is of a future schema, or is broken anywhere but in its last line.
    """
    try:
        data = files.read_regular(path, MOST_BYTES)
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}; next: check the path") from error
    lines: list[Line] = []
    seen: dict[bytes, int] = {}
    repeated: list[int] = []
    good = 0
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        if raw.endswith(b"\n") and not raw.strip():
            good += len(raw)
            continue
        try:
            line = _decode(raw)
        except LogError as error:
            raise LogError(f"{path}: {error}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if good + len(raw) == len(data) and number > 1:
                break  # the last line, cut off in the middle of being written
            raise LogError(f"{path}:{number}: not a line of a run log: {error}; next: move the file away") from error
        if not raw.endswith(b"\n"):
            break  # complete by luck, but its end was not written: measured anew
        good += len(raw)
        if problem := _disorder(lines, line):
            raise LogError(f"{path}:{number}: {problem}; next: move the file away")
        if isinstance(line, Sample) and seen.setdefault(raw.strip(), number) != number:
            repeated.append(number)
            continue
        lines.append(line)
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
        tuple(repeated),
        len(data) - good,
        good,
        files.digest_bytes(data, 8),
        tuple(line for line in lines if isinstance(line, Loaded)),
        tuple(line for line in lines if isinstance(line, Busy)),
        tuple(line for line in lines if isinstance(line, Energy)),
    )


def _disorder(above: list[Line], line: Line) -> str:
    """Return why `line` cannot follow the lines above it, or nothing: two logs in one file would count twice."""
    if isinstance(line, Header):
        return "a second header: these are two logs in one file" if above else ""
    if not above:
        return "the first line is no header"
    if isinstance(above[-1], Footer) and not isinstance(line, Resumed):  # resumed after a footer: versions up to 0.2
        return "a line after the footer, which ends a log"
    return ""


def _decode(raw: bytes) -> Line:
    try:
        line: Line = _decoder.decode(raw)
        return line
    except msgspec.ValidationError:
        table = msgspec.json.decode(raw)
        schema = table.get("schema", SCHEMA) if isinstance(table, dict) else SCHEMA  # only a header has one
        if isinstance(schema, int) and schema > SCHEMA:
            raise LogError(
                f"schema {schema} is newer than this harness reads ({SCHEMA}); next: pip install -U vlm-pareto"
            ) from None
        raise


def find(folder: Path) -> Iterator[Path]:
    """Yield every run log below `folder` (or `folder` itself if it is one), unfinished ones too, in a stable order."""
    if not folder.is_dir():
        yield folder
        return
    yield from sorted(
        path
        for path in folder.rglob("*.jsonl*")
        if path.suffix in (".jsonl", ".part") and SHARD not in path.name and not path.is_dir()
    )


def find_shards(folder: Path) -> Iterator[Path]:
    """Yield the finished logs of shards below `folder`, which are no logs of their own (`measure.shards`)."""
    yield from sorted(path for path in folder.rglob(f"*{SHARD}*") if path.suffix != ".part" and not path.is_dir())


def complete(path: Path) -> None:
    """Give the log `path` its name, if the process that wrote it died between its footer and the renaming."""
    writer = Writer(path)
    if path.exists() or not writer.part.is_file():
        return
    try:
        if read(writer.part).finished:
            with writer:
                writer.lock(create=False)
                # Once more, now that nobody else moves: another process may have finished it, or gone on with it.
                if not path.exists() and read(writer.part).finished:
                    os.replace(writer.part, path)
    except (LogError, OSError):
        return  # still being written, or unreadable: said where it is opened


def _there(path: str, flags: int) -> int:
    """Open a file that is there: one that has just been renamed must not come to be anew, and empty."""
    return os.open(path, flags & ~os.O_CREAT)


class Writer:
    """Appends records to `path` + `.part` and renames it at the end; besides reports, nothing else writes files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self._file: FileIO | None = None
        self._good = 0
        self._footer_at: int | None = None

    def lock(self, create: bool = True) -> None:
        """Open the unfinished log (not `create`: one that is there) and take its lock.

        Raises `LogError` where another run has it.
        """
        try:
            if self.part.exists() and not self.part.is_file():
                raise OSError(errno.EINVAL, "is no regular file")
            self.part.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: after a failed write nothing waits in memory to be written behind our back.
            self._file = open(  # noqa: SIM115 - closed in `close`
                self.part, "ab", buffering=0, opener=None if create else _there
            )
        except OSError as error:
            raise LogError(f"{self.part}: cannot be written: {error.strerror}; next: choose another --out") from error
        if files.locked(self._file, WAIT_S) is False:
            raise LogError(f"{self.part}: another run is writing it; next: wait for it, or stop it")
        if not self.part.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.part.stat()):
            raise LogError(f"{self.path}: another run has just finished it; next: the same command shows it")

    def open(self) -> Log | None:
        """Take the log's lock, and return what an earlier, unfinished run left (its torn end is cut off)."""
        self.lock()
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
        if left.finished:  # another footer comes in place of this one, when there is more to say
            self._footer_at = self.part.read_bytes().rstrip().rfind(b"\n") + 1
        return left

    def reopen(self) -> Log | None:
        """Open a log that has its name already, to go on with what trouble has cut short."""
        if self.path.is_file() and not self.part.exists():
            with suppress(FileNotFoundError):  # another run does the same just now: its lock is met below
                os.replace(self.path, self.part)
        left = self.open()
        if left is None and self.path.is_file():  # finished since: a run from the beginning would overwrite it
            self.part.unlink(missing_ok=True)
            raise LogError(f"{self.path}: another run has just finished it; next: the same command shows it")
        return left

    def append(self, record: Line) -> None:
        """Write one record and hand it to the operating system: from here on, our own death cannot lose it."""
        assert self._file, "open() first"
        if self._footer_at is not None:
            self._truncate(self._footer_at)
        try:
            data = _encoder.encode(record) + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, as a server's JSON may hold one: no reader takes it
            data = json.dumps(msgspec.to_builtins(record), ensure_ascii=False).encode(errors="replace") + b"\n"
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
        os.replace(self.part, self.path)  # a process that dies just before: see `complete`
        self.close()
        return self.path

    def close(self) -> None:
        """Let go of the file; an unfinished log stays as it is."""
        if self._file:
            self._file.close()
            self._file = None

    def empty(self) -> None:
        """Forget what an earlier process left, to write it anew."""
        self._truncate(0)

    def _truncate(self, size: int) -> None:
        os.truncate(self.part, size)
        self._good, self._footer_at = size, None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
