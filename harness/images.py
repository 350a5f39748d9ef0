"""From image files to pixels, with PIL alone and the same for every adapter: no backend that changes with the machine.

A file is either decoded exactly (what was converted is stated) or refused with an `ExampleError`; never a wrong pixel.
One thing cannot be seen here: damage inside a JPEG's compressed data that still decodes; libjpeg passes over it.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from harness.errors import ExampleError

LARGEST_PIXELS = 150_000_000
"""Beyond this an image is taken for a decompression bomb (DocVQA's largest page has 39 million pixels); below PIL's own
limit of 179 million, so that ours is the one that speaks."""

LARGEST_SQUARE_SIDE = 20_000
"""Beyond this a strip is not padded to a square (1.6 GB of memory)."""

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF")
"""What is decoded. Formats that PIL brings down to 8 bit without a word (JPEG 2000, AVIF, PPM) or hands to another
program (EPS) are refused."""

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its EXIF orientation."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded RGB image and what was done to make it one."""

    image: Image.Image
    conversions: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.size


def decode(data: bytes, name: str = "image") -> Picture:
    """Decode an image file into RGB pixels.

    Transparent pixels are laid on white, 16-bit grey is scaled to 8 bit by 1/257 and 16-bit colour by its high byte
    (all that PIL gives), animated files give their first frame, and an EXIF orientation is followed, as the `datasets`
    library does when it decodes a suite's images; each is stated in `conversions`. Raises `ExampleError` for an empty,
    truncated, unknown or absurdly large file, and for samples without a stated scale.
    """
    if not data:
        raise ExampleError(f"{name}: the image file is empty (0 bytes); next: repair or remove this example")
    try:
        with _strictly():
            image = Image.open(io.BytesIO(data))
            if image.format not in FORMATS:
                raise ExampleError(f"a {image.format} file; decoded are {', '.join(FORMATS)}; next: convert it to PNG")
            if image.width * image.height > LARGEST_PIXELS:
                raise ExampleError(
                    f"{image.width}x{image.height} pixels is more than {LARGEST_PIXELS} (a decompression bomb?); "
                    "next: downscale or remove this example"
                )
            return _decode(image)
    except ExampleError as error:
        raise ExampleError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ExampleError(f"{name}: {error}; next: downscale or remove this example") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ExampleError(
            f"{name}: not a readable image ({len(data)} bytes): {told(error)}; next: repair the file"
        ) from error


def told(error: Exception) -> str:
    """Return what PIL says of a file without where in memory it was read: the same file, the same words in each log."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))


def size_of(data: bytes | BinaryIO) -> tuple[int, int]:
    """Return (width, height) of an image file from its header, set upright; (0, 0) where it cannot be told.

    No pixel is decoded: this is for looking at a whole suite, not for answering.
    """
    try:
        with _strictly(), Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            turned = image.getexif().get(ORIENTATION) if image.format in ("JPEG", "MPO") else None
            return (image.height, image.width) if turned in (5, 6, 7, 8) else (image.width, image.height)
    except Exception:  # noqa: BLE001 - a file that cannot be looked at fails, with its reason, when it is decoded
        return 0, 0


@contextmanager
def _strictly() -> Iterator[None]:
    """Make PIL refuse truncated files, whatever a library that was imported before us has told it (lmms-eval does)."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large files, broken EXIF: what matters is raised or stated
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _decode(image: Image.Image) -> Picture:
    frames = getattr(image, "n_frames", 1)
    done = [f"first frame of {frames}"] if frames > 1 else []
    tiles = getattr(image, "tile", None)
    samples = str(tiles[0].args) if tiles else ""  # PIL's raw mode, which `load` forgets
    turned = getattr(image, "tag_v2", {}).get(ORIENTATION)  # PIL itself turns a TIFF as it loads it
    image.load()
    pixels = _grey(image, done) if image.mode.startswith(("I", "F")) else _colour(image, samples, done)
    turn = _orientation(image)
    if turn in TURNS:
        pixels = pixels.transpose(TURNS[turn])
    elif turned in TURNS:
        turn = turned
    if turn in TURNS:
        done.append(f"turned upright by EXIF orientation {turn}")
    return Picture(pixels, tuple(done))


def _orientation(image: Image.Image) -> int | None:
    """Return the orientation of a loaded image; before, this might load it itself and swallow what is wrong with it."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def _grey(image: Image.Image, done: list[str]) -> Image.Image:
    """Scale 16-bit grey by 1/257; samples of any other scale (32 bit, 12 bit, floats, white-is-zero) are refused."""
    sixteen = image.mode.startswith("I;16") or image.format == "PNG"  # PIL before 11 opens such a PNG as "I"
    if isinstance(tags := getattr(image, "tag_v2", None), Mapping):
        black_is_zero, bits = tags.get(262) == 1, tags.get(258)
        sixteen = sixteen and black_is_zero and bits in (16, (16,))
    if not sixteen:
        raise ExampleError(f"samples of mode {image.mode!r} ({image.format}) have no stated scale; next: save as 8 bit")
    values = np.asarray(image, dtype=np.int64)
    done.append(f"{image.mode} to RGB by 1/257")
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], 65535, values)
        done.append("laid on white")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _colour(image: Image.Image, samples: str, done: list[str]) -> Image.Image:
    mode, clear = image.mode, image.info.get("transparency")
    if ";16" in samples:
        done.append(f"16 bit to 8 by the high byte ({samples})")
        if clear is not None:
            raise ExampleError(
                "16-bit colours, one of them transparent, cannot be told apart in 8 bit; next: save as RGBA"
            )
    if mode == "RGB" and clear is None:
        return image
    if mode == "L" and isinstance(clear, int) and samples in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if samples == "L;2" else 17)  # PIL scales the pixels, not this value
    if clear is not None or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        done.append(f"{mode} laid on white")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    if mode not in ("1", "L", "P", "CMYK", "YCbCr"):
        raise ExampleError(f"no exact conversion of mode {mode!r} to RGB; next: save it as RGB")
    done.append(f"{mode} to RGB")
    return image.convert("RGB")


def square_side(size: tuple[int, int]) -> int:
    """Return the side of the square that an image of `size` is padded to. Raises `ExampleError` for a long strip."""
    width, height = size
    if width != height and max(size) > LARGEST_SQUARE_SIDE:
        raise ExampleError(
            f"{width}x{height} pixels make a square of more than {LARGEST_SQUARE_SIDE} a side; next: downscale it"
        )
    return max(size)


def pad_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre `image` on a square of `colour` (LLaVA's expand2square: the offset is `(w - h) // 2`)."""
    width, height = image.size
    if width == height:
        return image
    side = square_side(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def pad_and_resize(image: Image.Image, colour: tuple[int, int, int], side: int) -> Image.Image:
    """Return what `resize` makes of `pad_square`, to the last bit, without scaling rows of padding.

    PIL scales rows first, then columns, with 8-bit values between, and a row of one colour stays as it is. So rows
    above and below an image can be added after its own were scaled. Columns beside it blend with it in its own rows.
    """
    width, height = image.size
    if width <= height or width > LARGEST_SQUARE_SIDE or width == side:
        return resize(pad_square(image, colour), side, side)
    band = Image.new("RGB", (side, width), colour)
    band.paste(resize(image, side, height), (0, (width - height) // 2))
    return resize(band, side, side)


def mean_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the padding colour that LLaVA derives from a processor's mean: `int(255 * mean)`."""
    red, green, blue = (int(255 * channel) for channel in mean)
    return red, green, blue


Scaler = Callable[[Image.Image, int, int], Image.Image]
"""Resizes an RGB image to a width and a height."""
_SCALER: ContextVar[Scaler | None] = ContextVar("scaler", default=None)


@contextmanager
def scaled_by(scaler: Scaler | None) -> Iterator[None]:
    """Have `resize` use another library inside this (None: PIL, as ever)."""
    before = _SCALER.set(scaler)
    try:
        yield
    finally:
        _SCALER.reset(before)


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with PIL's bicubic filter, as the slow CLIP image processor does (but see `scaled_by`)."""
    if image.size == (width, height):
        return image
    scaler = _SCALER.get()
    if scaler is not None and image.mode == "RGB":
        return scaler(image, width, height)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def normalise(
    image: Image.Image,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> NDArray[np.float32]:
    """Return (3, height, width) float32: value / 255, minus mean, over std; CLIP's slow processor to the last bit."""
    levels = np.asarray(image)
    pixels = np.empty((levels.shape[2], *levels.shape[:2]), np.float32)
    for plane, channel in enumerate(pixels):
        channel[...] = levels[..., plane]
    pixels /= np.float32(255)  # a product with 1/255 is one unit off for 126 of the 256 values
    if any(mean) or any(channel != 1 for channel in std):
        pixels -= np.array(mean, np.float32)[:, None, None]
        pixels /= np.array(std, np.float32)[:, None, None]
    return pixels


def fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the (width, height) of the content of `size` inside a square of `side` after padding and resizing."""
    longest = max(size)
    return max(1, round(size[0] * side / longest)), max(1, round(size[1] * side / longest))


def blank(size: tuple[int, int]) -> Picture:
    """Return a white picture: for counting FLOPs at a size without a file."""
    return Picture(Image.new("RGB", size, (255, 255, 255)), ())


def png(image: Image.Image) -> bytes:
    """Encode without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
