"""The body of a chat completion, built before any clock runs: pictures as data URLs, salted, and the question."""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import images
from harness.errors import ExampleError
from harness.models.engines.openai.salt import media_type, salted


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture as it is sent, and what was done to it."""

    data: bytes
    original_px: tuple[int, int]
    sent_px: tuple[int, int]
    conversions: tuple[str, ...] = ()


def show(data: bytes, side: int) -> Shown:
    """Return the file's own bytes; with a `side`, the picture with its longest side brought to so many pixels, as PNG.

    A file that has no place for a comment (neither PNG nor JPEG) becomes a PNG of the same pixels. Raises
    `ExampleError` for what is no readable image.
    """
    picture = images.decode(data)
    size = images.fit(picture.size, side) if side else picture.size
    if size == picture.size:
        if salted(data, "x") is not None:
            return Shown(data, picture.size, picture.size)
        return Shown(images.png(picture.image), picture.size, size, (*picture.conversions, "sent as PNG"))
    resized = images.png(images.resize(picture.image, *size))
    done = f"resized from {picture.size[0]}x{picture.size[1]} to {size[0]}x{size[1]} (bicubic), sent as PNG"
    return Shown(resized, picture.size, size, (*picture.conversions, done))


def build(
    model: str, pictures: Sequence[bytes], question: str, fields: Mapping[str, object], salt: str | None = None
) -> bytes:
    """Return the body; every picture gets `salt` as a comment, a new one each time where none is given."""
    salt = salt or secrets.token_hex(8)
    content: list[dict[str, object]] = []
    for number, data in enumerate(pictures):
        sent = salted(data, f"{salt}-{number}")
        if sent is None:
            raise ExampleError("the image file has no place for a comment; next: repair or remove this example")
        url = f"data:{media_type(sent)};base64,{base64.b64encode(sent).decode('ascii')}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, "stream": True, **fields}).encode()
