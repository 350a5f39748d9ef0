"""Pictures as tables hold them: bytes, `datasets`' struct, a list of one, base64 text, or a path beside the table."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.images import decode
from harness.suites.contract import Contract, RowProblem

NAMED = re.compile(r"(decoded_)?(image|images|img|picture|photo)(_\d+)?")
"""Columns that hold pictures, where the task's own are not known."""

HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""How the files that `images.decode` takes begin: what base64 text must come to."""

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


class Encoded:
    """An image file's bytes where a task expects a PIL image: `.convert("RGB")` leaves them alone, all else decodes.

    All tasks of our cards return `doc["image"].convert("RGB")`, and adapters convert to RGB themselves, so the model
    gets the data set's own file. A task that crops or resizes gets a real PIL image, and its result is kept as PNG.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    def convert(self, mode: str | None = None, *rest: Any, **named: Any) -> object:
        """Return the file itself for RGB, a decoded image for any other mode."""
        if mode == "RGB" and not rest and not named:
            return self
        return decode(self.data).image.convert(mode, *rest, **named)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(decode(self.data).image, name)


class Broken:
    """A cell that could not be read (text that is not UTF-8 ...), and why."""

    def __init__(self, why: str) -> None:
        self.why = why


def holds(column: str, value: object, contract: Contract | None) -> bool:
    """Return whether a cell is a picture (or a list of them): by the task's columns, else by its name or its form."""
    mine = contract.pictures if contract else None
    if mine is not None and column in mine:
        return True
    if _struct(value) or (isinstance(value, list) and bool(value) and all(map(_struct, value))):
        return True
    if isinstance(value, bytes):
        return mine is None and (NAMED.fullmatch(column) is not None or text_of(value) is None)
    if isinstance(value, list) and value and all(isinstance(item, bytes) for item in value):
        return True
    return mine is None and isinstance(value, str) and NAMED.fullmatch(column) is not None


def text_of(value: bytes) -> str | None:
    """Return the text that bytes spell in UTF-8 (a column written as binary), or None."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() or not re.search(r"[\x00-\x08\x0e-\x1f]", text) else None


def read(column: str, value: object, folder: Path | None, contract: Contract | None) -> object:
    """Return a cell's picture as `Encoded`, a list of them where the task takes several, or None without one.

    Raises `RowProblem` for what is no picture, a path where no file is, and an address: nothing is fetched.
    """
    several = contract.several if contract else isinstance(value, list)
    if isinstance(value, list | tuple):
        if any(isinstance(item, int | float | list | tuple) for item in value):
            raise RowProblem(column, "nested numbers are no picture file; next: encode the pictures as PNG")
        gaps = [at for at, item in enumerate(value) if item is None]
        if gaps:
            raise RowProblem(column, f"picture {gaps[0]} of {len(value)} is null")
        found = [_one(column, item, folder) for item in value]
        if several:
            return found
        if len(found) > 1:
            raise RowProblem(column, f"{len(found)} pictures where the task shows one")
        return found[0] if found else None
    one = _one(column, value, folder)
    return [one] if several and one is not None else one


def paths(value: object) -> Iterator[str]:
    """Yield the files that a picture cell names by path."""
    for item in value if isinstance(value, list | tuple) else [value]:
        path = item
        if isinstance(item, Mapping):
            path = None if item.get("bytes") is not None else item.get("path")
        if not isinstance(path, str) or not path or URL.match(path) or path.startswith("data:"):
            continue
        if len(path) <= 64 or _base64(path) is None:
            yield path


def _struct(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _one(column: str, value: object, folder: Path | None) -> Encoded | None:
    if isinstance(value, Mapping):
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, bytes | bytearray):
        return Encoded(bytes(value))
    if not isinstance(value, str):
        raise RowProblem(column, f"{type(value).__name__} {str(value)[:40]!r} is no picture")
    if URL.match(value):
        raise RowProblem(column, f"{value} is an address: pictures are not fetched; next: put the files into the table")
    data = _base64(value.partition(";base64,")[2] if value.startswith("data:") else value)
    if data is not None:
        return Encoded(data)
    if value.startswith("data:") or len(value) > 4096:
        raise RowProblem(column, f"{value[:40]!r}... is neither base64 of a picture nor a path")
    path = (folder or Path()) / value
    try:
        if path.is_file():
            return Encoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RowProblem(column, f"{value!r}: {error}") from error
    raise RowProblem(column, f"{path}: no such file; next: put it there, relative to the table")


def _base64(text: str) -> bytes | None:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(HEADS) else None
