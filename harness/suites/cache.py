"""The cache of built examples: `examples/<digest>/` with manifest.json, examples.jsonl, images/; all or nothing.

A build is named by what it was made from (source contents or Hub revision, task, lmms-eval's version, our builder's),
with `-first-N` where it was cut short. A folder that does not agree with its manifest counts as absent and is replaced.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Required, TypedDict, Unpack

import msgspec

from harness.errors import DataError
from harness.files import FULL, cache_folder, digest_file
from harness.suites import definitions

BUILDER = 2
"""Raise it when builds of the same data come out differently."""
BUILDER_OF_EMBEDDED = 1
"""The same for the suites that the program makes: their rows are always whole, and version 2 changed only others."""
BUILDERS = {"scienceqa_img": 3, "textvqa_val": 3, "vqav2_val": 3}
"""The same for single tasks: version 3 changed null hints and 4 to 9 references, and baselines of others stay good."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One example in `examples.jsonl`; its images are files beside it."""

    id: str
    index: int
    question: str
    references: tuple[str, ...]
    doc: dict[str, object]
    images: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build is, and how to tell that all of it is there."""

    digest: str
    task: str
    source: dict[str, object]
    count: int
    complete: bool
    lines_digest: str
    images: dict[str, int]
    """Size of each image file in bytes."""
    max_new_tokens: int | None = None
    notes: tuple[str, ...] = ()
    rows: int | None = None
    """How many rows the tables have, whatever was built of them; None where nobody counted."""
    problems: dict[int, str] = {}
    """By index: why an example cannot be measured."""
    unlabelled: dict[int, str] = {}
    """By index: why an example has no references."""


class ReaderFacts(TypedDict, total=False):
    """What of the manifest only the reader of all rows knows."""

    max_new_tokens: int | None
    notes: tuple[str, ...]
    problems: dict[int, str]
    unlabelled: dict[int, str]


class ManifestFacts(ReaderFacts, total=False):
    """What of the manifest only the builder knows; the rest the writer has counted."""

    task: Required[str]
    source: Required[dict[str, object]]
    complete: Required[bool]
    rows: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """What the child process is to build."""

    task: str
    suite: str
    source: dict[str, object]
    limit: int | None
    digest: str = ""
    """Empty where only the child learns it (the Hub's revision)."""
    files: list[str] = field(default_factory=list)
    offline: bool = False
    rows: int | None = None
    """How many rows there are, once the child has counted them."""

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON takes it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Build:
    """A build that agrees with its manifest."""

    folder: Path
    manifest: Manifest
    offsets: list[int]
    """Where each line of `examples.jsonl` starts, in bytes."""

    @property
    def digest(self) -> str:
        """What it was made from."""
        return self.manifest.digest

    @property
    def count(self) -> int:
        """Number of examples."""
        return self.manifest.count

    @property
    def max_new_tokens(self) -> int | None:
        """The task's own limit."""
        return self.manifest.max_new_tokens

    @property
    def revision(self) -> str:
        """Of the Hub's data set, where it is one."""
        return str(self.manifest.source.get("revision", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was remarkable when it was built."""
        return self.manifest.notes

    def line(self, at: int) -> Line:
        """Read one example."""
        with self._open("examples.jsonl") as file:
            file.seek(self.offsets[at])
            return msgspec.json.decode(file.readline(), type=Line)

    def image(self, digest: str) -> bytes:
        """Read one image file and check that it is what it was."""
        with self._open(f"images/{digest}") as file:
            data: bytes = file.read()
        if image_digest(data) != digest:
            raise DataError(
                f"{self.folder}/images/{digest}: the file has changed; next: delete {self.folder} and run again"
            )
        return data

    def open_image(self, digest: str) -> BinaryIO:
        """Open one image file, to look at its header."""
        return self._open(f"images/{digest}")

    def _open(self, name: str) -> BinaryIO:
        try:
            return (self.folder / name).open("rb")
        except OSError as error:
            raise DataError(
                f"{self.folder}/{name}: {error.strerror}; next: delete {self.folder} and run again"
            ) from error


def image_digest(data: bytes) -> str:
    """Return what an image file is known by in the log."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest(task: str, source: dict[str, object]) -> str:
    """Return the name of a build: of its source, task, lmms-eval's version and our builder's."""
    version = BUILDER_OF_EMBEDDED if source.get("kind") == "embedded" else _builder(task)
    return _hash([version, definitions.release(), task, source])


def _builder(task: str) -> int:
    return BUILDERS.get(task.removesuffix("_lite"), BUILDER)


def content_digest(path: Path) -> str:
    """Return the digest of a file's contents; one that is the same file, unchanged, is not read again."""
    return content_digests([path])[0]


def content_digests(paths: Sequence[Path]) -> list[str]:
    """Return the digest of each file's contents, empty for one that is not there; unchanged ones are not read again.

    "Unchanged" is what the system says: size, both times and the inode. A copy with its old date (`cp -p`) has a new
    time of change.
    """
    note = cache_folder() / "sources" / f"{_hash([str(path.resolve()) for path in paths])}.json"
    known: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(note.read_bytes()))
    found: dict[str, tuple[list[int], str]] = {}
    for path in paths:
        name = str(path)
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            had = known.get(name)
            kept = str(had[1]) if isinstance(had, list) and len(had) == 2 and had[0] == stamp else ""
            found[name] = (stamp, kept or (digest_file(path) if path.is_file() else ""))
        except FileNotFoundError:
            found[name] = ([], "")
    if {name: [*one] for name, one in found.items()} != known:
        with writing():
            _write(note, json.dumps(found).encode())
    return [found[str(path)][1] for path in paths]


def outside(task: str, source: dict[str, object]) -> list[tuple[int, str]] | None:
    """Return the pictures that these tables name by path (number of the table, path), or None where nobody looked."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [(int(at), str(path)) for at, path in json.loads(_outside(task, source).read_bytes())["pictures"]]
    return None


def remember_outside(task: str, source: dict[str, object], pictures: Sequence[tuple[int, str]]) -> None:
    """Note which pictures these tables name by path."""
    with writing():
        _write(_outside(task, source), json.dumps({"pictures": pictures}).encode())


def with_pictures(
    source: dict[str, object], files: Sequence[Path], pictures: Sequence[tuple[int, str]]
) -> dict[str, object]:
    """Return `source` with the contents of the pictures beside its tables: a repaired one makes other examples."""
    if not pictures:
        return source
    digests = content_digests([files[at].parent / path for at, path in pictures])
    named = [[at, path, one] for (at, path), one in zip(pictures, digests, strict=True)]
    return {**source, "pictures": _hash(named)}


def find(name: str, limit: int | None) -> Build | None:
    """Return a sound build called `name` with all examples, or with at least the first `limit`."""
    folder = cache_folder() / "examples"
    whole = read(folder / name)
    if whole is not None or limit is None:
        return whole
    parts = sorted((int(path.name.rpartition("-")[2]), path) for path in folder.glob(f"{name}-first-*"))
    return next((build for size, path in parts if size >= limit and (build := read(path)) is not None), None)


def remember(task: str, name: str) -> None:
    """Note that `name` is the latest build of the task's published data."""
    with writing():
        _write(_note(task), json.dumps({"digest": name}).encode())


def remembered(task: str, limit: int | None, any_size: bool = False) -> Build | None:
    """Return the latest sound build of the task's published data; with `any_size`, a limited one where that is all."""
    try:
        name = str(json.loads(_note(task).read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    build = find(name, limit)
    if build is None and any_size:
        parts = [read(path) for path in (cache_folder() / "examples").glob(f"{name}-first-*")]
        build = max(filter(None, parts), key=lambda part: part.count, default=None)
    return build


def read(folder: Path) -> Build | None:
    """Read a build; None where it is absent, torn or does not agree with its manifest."""
    try:
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
        hashed, offsets, at = hashlib.blake2b(digest_size=16), [], 0
        with (folder / "examples.jsonl").open("rb") as file:
            for line in file:
                offsets.append(at)
                at += len(line)
                hashed.update(line)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder / "images")}
    except (OSError, msgspec.MsgspecError):
        return None
    sound = hashed.hexdigest() == manifest.lines_digest and len(offsets) == manifest.count
    return Build(folder, manifest, offsets) if sound and manifest.images.items() <= sizes.items() else None


class Writer:
    """Writes one build into a folder of its own, which gets its name only when everything is there."""

    def __init__(self) -> None:
        root = cache_folder() / "examples"
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self._folder = root / f".building-{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        (self._folder / "images").mkdir(parents=True)
        self._lines = (self._folder / "examples.jsonl").open("wb")
        self._hashed = hashlib.blake2b(digest_size=16)
        self._images: dict[str, int] = {}
        self.count = 0

    def add(self, images: list[bytes], line: Line) -> None:
        """Append one example; an image that is there already is not written twice."""
        digests = []
        for data in images:
            name = image_digest(data)
            digests.append(name)
            if name not in self._images:
                (self._folder / "images" / name).write_bytes(data)
                self._images[name] = len(data)
        written = msgspec.json.encode(msgspec.structs.replace(line, images=tuple(digests))) + b"\n"
        self._lines.write(written)
        self._hashed.update(written)
        self.count += 1

    def finish(self, name: str, **facts: Unpack[ManifestFacts]) -> Path:
        """Write the manifest and give the folder its name; where another process was faster, its build is kept."""
        self._lines.close()
        manifest = Manifest(
            digest=name, count=self.count, lines_digest=self._hashed.hexdigest(), images=self._images, **facts
        )
        (self._folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        final = self._folder.parent / (name if manifest.complete else f"{name}-first-{self.count}")
        for _ in range(3):
            try:
                self._folder.rename(final)
                return final
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if read(final) is not None:
                self.discard()
                return final
            with contextlib.suppress(OSError):  # a broken one: out of the way, and again
                broken = self._folder.with_name(f"{self._folder.name}-broken")
                final.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
        raise DataError(f"{final}: cannot be replaced; next: delete it and run again")

    def discard(self) -> None:
        """Remove what was written so far."""
        with contextlib.suppress(OSError):
            self._lines.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a full or read-only disk into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(
                f"{error.filename or cache_folder()}: no room for the examples ({error.strerror}); next: free space, "
                "or put the cache elsewhere with VLM_PARETO_CACHE=FOLDER"
            ) from error
        named, cache = Path(str(error.filename or "")), cache_folder()
        ours = bool(error.filename) and (named.is_relative_to(cache) or cache.is_relative_to(named))
        barred = error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)
        if barred or (ours and error.errno in (errno.ENOENT, errno.EEXIST)):  # as /proc says it, or a file in the way
            raise DataError(
                f"{error.filename or cache_folder()}: cannot be written ({error.strerror}); next: put the cache "
                "elsewhere with VLM_PARETO_CACHE=FOLDER"
            ) from error
        raise


def _note(task: str) -> Path:
    return cache_folder() / "hub" / f"{task}-{definitions.release()}-{_builder(task)}.json"


def _outside(task: str, source: dict[str, object]) -> Path:
    return cache_folder() / "sources" / f"pictures-{_hash([BUILDER, task, source])}.json"


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Remove what builders of this machine left behind when they were killed."""
    for folder in root.glob(f".building-{socket.gethostname()}-*"):
        pid = folder.name.removeprefix(f".building-{socket.gethostname()}-").partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
