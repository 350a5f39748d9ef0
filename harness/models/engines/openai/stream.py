"""Server-sent events → chunks of text, reasoning, usage; errors in the server's own words."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.errors import ServerError

LONGEST_WORDS = 500
"""So much of what a server says is quoted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event: any of these may be there, or none (the first one often says only who speaks)."""

    text: str = ""
    thought: str = ""
    """Reasoning text, which is no part of the answer."""
    finish: str = ""
    model: str = ""
    fingerprint: str = ""
    usage: Mapping[str, object] = field(default_factory=dict)
    timings: Mapping[str, object] = field(default_factory=dict)
    """llama.cpp's own clock."""


def chunks(read: Callable[[], bytes]) -> Iterator[Chunk]:
    """Yield the chunks of one answer as they come; `read` returns what has arrived, empty bytes at the end.

    Raises `ServerError` for an error event, for what is no JSON, and for a stream that ends before the answer has.
    """
    finished = False
    for name, data in events(read):
        if data == "[DONE]":
            return
        chunk = parse(name, data)
        finished = finished or bool(chunk.finish)
        yield chunk
    if not finished:
        raise ServerError("the stream ended before the answer did: no finish_reason and no [DONE]", cut=True)


def events(read: Callable[[], bytes]) -> Iterator[tuple[str, str]]:
    """Yield (event name, data) of a stream of server-sent events; comments (":") and unknown fields are passed over."""
    name = ""
    data: list[str] = []
    for line in _lines(read):
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "", []
            continue
        field_name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field_name == "data":
            data.append(value)
        elif field_name == "event":
            name = value
        elif field_name == "error":  # older llama.cpp
            yield "error", value
    if data:
        yield name, "\n".join(data)


def _lines(read: Callable[[], bytes]) -> Iterator[str]:
    left = b""
    while more := read():
        left += more
        *whole, left = left.split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
    if left:
        yield left.rstrip(b"\r").decode("utf-8", "replace")


def parse(name: str, data: str) -> Chunk:
    """Read one event's data; an error is raised, whatever status the answer began with."""
    try:
        told = json.loads(data)
    except ValueError:
        raise ServerError(f"the server sent what is no JSON: {short(data)}") from None
    if not isinstance(told, dict):
        raise ServerError(f"the server sent what is no chunk: {short(data)}")
    if name == "error" or told.get("error") or told.get("object") == "error":
        raise ServerError(f"the server sent an error event: {words(told)}")
    choice = next(iter(told.get("choices") or []), None) or {}
    delta = choice.get("delta") or {}
    return Chunk(
        text=_text(delta.get("content")),
        thought=_text(delta.get("reasoning_content") or delta.get("reasoning")),
        finish=str(choice.get("finish_reason") or ""),
        model=str(told.get("model") or ""),
        fingerprint=str(told.get("system_fingerprint") or ""),
        usage=_table(told.get("usage")),
        timings=_table(told.get("timings")),
    )


def words(told: object) -> str:
    """Return the server's own words of an error's body, shortened."""
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return short(error if isinstance(error, str) else json.dumps(error))


def short(text: str) -> str:
    """Return the text on one line, at most so long as is worth quoting."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_WORDS else line[:LONGEST_WORDS] + " ..."


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
