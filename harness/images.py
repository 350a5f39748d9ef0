"""From image files to pixels, with PIL alone and the same for every adapter: no backend that changes with the environment.

A file is either decoded exactly (what was converted is stated) or refused with an `ExampleError`; never a wrong pixel.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harness.errors import ExampleError

LARGEST_PIXELS = 200_000_000
"""Beyond this an image is taken for a decompression bomb (DocVQA's largest page has 39 million pixels)."""

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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

    Transparent pixels are laid on white, 16-bit samples scaled to 8 bit by 1/257, animated files give their first frame,
    an EXIF orientation is left alone (lmms-eval and the originals do not turn images either); each is stated in
    `conversions`. Raises `ExampleError` for an empty, truncated, unknown or absurdly large file.
    """
    if not data:
        raise ExampleError(f"{name}: the image file is empty (0 bytes); next: repair or remove this example")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > LARGEST_PIXELS:
            raise ExampleError(
                f"{name}: {image.width}x{image.height} pixels is more than {LARGEST_PIXELS} (a decompression bomb?); "
                "next: downscale or remove this example"
            )
        return _to_rgb(image)
    except ExampleError:
        raise
    except Image.DecompressionBombError as error:
        raise ExampleError(f"{name}: {error}; next: downscale or remove this example") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ExampleError(
            f"{name}: not a readable image ({len(data)} bytes): {error}; next: repair the file"
        ) from error


def _to_rgb(image: Image.Image) -> Picture:
    conversions = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        conversions.append(f"first frame of {frames}")
        image.seek(0)
    image.load()
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return Picture(image, tuple(conversions))
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image, dtype=np.float64)
        sixteen = mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "TIFF", "PPM"))
        if not sixteen and (values.min() < 0 or values.max() > 255):
            raise ExampleError(
                f"pixels of mode {mode!r} from {values.min():g} to {values.max():g} have no stated scale"
            )
        grey = np.rint(values / 257 if sixteen else values).astype(np.uint8)
        conversions.append(f"{mode} to RGB{' by 1/257' if sixteen else ''}")
        return Picture(Image.fromarray(grey, "L").convert("RGB"), tuple(conversions))
    if "transparency" in image.info or mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        conversions.append(f"{mode} laid on white")
        return Picture(Image.alpha_composite(paper, clear).convert("RGB"), tuple(conversions))
    conversions.append(f"{mode} to RGB")
    return Picture(image.convert("RGB"), tuple(conversions))


def pad_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre `image` on a square of `colour` (LLaVA's expand2square: the offset is `(w - h) // 2`)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def mean_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the padding colour that LLaVA derives from a processor's mean: `int(255 * mean)`."""
    red, green, blue = (int(255 * channel) for channel in mean)
    return red, green, blue


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with PIL's bicubic filter, as the slow CLIP image processor does."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def normalise(
    image: Image.Image,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> NDArray[np.float32]:
    """Return (3, height, width) float32: value / 255, minus mean, over std."""
    pixels = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    if any(mean) or any(channel != 1 for channel in std):
        pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
