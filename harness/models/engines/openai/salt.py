"""Other bytes, same pixels: a comment in the image file, so that a server's cache does not know the picture again.

A PNG gets a `tEXt` chunk behind its header, a JPEG a comment segment behind its application segments. What decodes the
file sees the same pixels, and the same EXIF orientation.
"""

import struct
import zlib

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES = 25
"""Length, name, 13 bytes and checksum of the first chunk, IHDR."""
JPEG_START = b"\xff\xd8"
JPEG_APPLICATION = range(0xE0, 0xF0)
JPEG_COMMENT = b"\xff\xfe"


def salted(data: bytes, salt: str) -> bytes | None:
    """Return the file with the comment `salt`, or None for a format that has no place for it (or a torn file)."""
    text = salt.encode("ascii")
    if data.startswith(PNG_START) and data[12:16] == b"IHDR":
        at = len(PNG_START) + PNG_HEADER_BYTES
        chunk = b"tEXt" + b"Comment\x00" + text
        return data[:at] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    if data.startswith(JPEG_START):
        at = _behind_application_segments(data)
        return data[:at] + JPEG_COMMENT + struct.pack(">H", len(text) + 2) + text + data[at:] if at else None
    return None


def media_type(data: bytes) -> str:
    """Return the type that a data URL states."""
    return "image/png" if data.startswith(PNG_START) else "image/jpeg"


def _behind_application_segments(data: bytes) -> int:
    at = len(JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] in JPEG_APPLICATION:
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return at if at + 1 < len(data) and data[at] == 0xFF and data[at + 1] not in JPEG_APPLICATION else 0
