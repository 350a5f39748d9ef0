"""Image files to pixels: exactly, with what was done stated, or refused."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers import CLIPImageProcessorPil

from harness import images
from harness.errors import ExampleError
from harness.models import deployment

WHITE = [255, 255, 255]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *extra: bytes) -> bytes:
    """Write a PNG by hand: PIL writes neither 16-bit colour nor grey of two bits with a transparent value."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def noise(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(data: bytes) -> list[list[int]]:
    found: list[list[int]] = np.asarray(images.decode(data).image).reshape(-1, 3).tolist()
    return found


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


# --- decoded ---


def test_rgb_comes_through_untouched() -> None:
    picture = images.decode(saved(noise(), "PNG"))
    assert picture.conversions == ()
    assert picture.size == (48, 32)
    assert np.array_equal(np.asarray(picture.image), np.asarray(noise()))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    data = png(4, 1, 16, 0, [words(0, 257, 32768, 65535)])
    assert pixels(data) == [[0] * 3, [1] * 3, [128] * 3, WHITE]
    assert images.decode(data).conversions == ("I;16 to RGB by 1/257",)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=32))
@settings(max_examples=50, deadline=None)
def test_16_bit_grey_is_rounded_to_the_nearest_level(values: list[int]) -> None:
    expected = [[int(np.rint(value / 257))] * 3 for value in values]
    assert pixels(png(len(values), 1, 16, 0, [words(*values)])) == expected


def test_16_bit_grey_with_a_transparent_value() -> None:
    data = png(2, 1, 16, 0, [words(100, 40000)], chunk(b"tRNS", words(100)))
    assert pixels(data) == [WHITE, [156] * 3]
    assert images.decode(data).conversions == ("I;16 to RGB by 1/257", "laid on white")


def test_16_bit_tiff_grey_of_either_byte_order() -> None:
    grey = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert pixels(saved(grey, "TIFF")) == [[0] * 3, WHITE]
    assert pixels(saved(grey, "TIFF", compression="tiff_lzw")) == [[0] * 3, WHITE]


def test_16_bit_colour_says_that_the_low_byte_is_lost() -> None:
    colour = images.decode(png(2, 1, 16, 2, [words(0, 255, 256, 65535, 128, 32767)]))
    assert np.asarray(colour.image).tolist() == [[[0, 0, 1], [255, 0, 127]]]
    assert colour.conversions == ("16 bit to 8 by the high byte (RGB;16B)",)
    clear = images.decode(png(2, 1, 16, 6, [words(256, 512, 768, 65535, 9, 9, 9, 0)]))
    assert np.asarray(clear.image).tolist() == [[[1, 2, 3], WHITE]]
    assert clear.conversions == ("16 bit to 8 by the high byte (RGBA;16B)", "RGBA laid on white")


def test_16_bit_colour_with_a_transparent_colour_is_refused() -> None:
    with pytest.raises(ExampleError, match="one of them transparent"):
        images.decode(png(1, 1, 16, 2, [words(0, 255, 256)], chunk(b"tRNS", words(0, 255, 256))))


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        (1, b"\xa0", 1, [255, 0, 255, 0]),
        (1, b"\xa0", 0, [255, 255, 255, 255]),
        (2, b"\x1b", 2, [0, 85, 255, 255]),
        (4, b"\x01\x2a", 2, [0, 17, 255, 170]),
        (8, b"\x00\x07\x08\xff", 7, [0, 255, 8, 255]),
    ],
)
def test_a_transparent_grey_is_the_files_value_at_every_depth(
    depth: int, row: bytes, clear: int, expected: list[int]
) -> None:
    data = png(4, 1, depth, 0, [row], chunk(b"tRNS", words(clear)))
    assert pixels(data) == [[level] * 3 for level in expected]


def test_palettes() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    opaque = png(2, 1, 8, 3, [b"\0\1"], palette)
    assert pixels(opaque) == [[10, 20, 30], [40, 50, 60]]
    assert images.decode(opaque).conversions == ("P to RGB",)
    clear = png(2, 1, 8, 3, [b"\0\1"], palette, chunk(b"tRNS", b"\x00"))
    assert pixels(clear) == [WHITE, [40, 50, 60]]
    half = png(2, 1, 8, 3, [b"\0\1"], palette, chunk(b"tRNS", b"\xff\x80"))
    assert pixels(half) == [[10, 20, 30], [147, 152, 157]]
    assert images.decode(half).conversions == ("P laid on white",)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_white(format_name: str) -> None:
    layer = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    layer.putpixel((1, 0), (200, 0, 0, 0))
    data = saved(layer, format_name, **({"lossless": True, "exact": True} if format_name == "WEBP" else {}))
    assert pixels(data) == [[10, 20, 30], WHITE]
    assert images.decode(data).conversions == ("RGBA laid on white",)


def test_grey_with_alpha_and_bare_grey() -> None:
    assert pixels(saved(Image.new("LA", (1, 1), (50, 0)), "PNG")) == [WHITE]
    assert pixels(saved(Image.new("L", (1, 1), 50), "PNG")) == [[50] * 3]
    assert pixels(saved(Image.new("1", (1, 1), 1), "TIFF")) == [WHITE]


@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
def test_cmyk_is_neither_inverted_nor_clipped(format_name: str) -> None:
    """PIL writes CMYK JPEGs as Adobe does, inverted and marked so; a reader that ignores the mark shows negatives."""
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = saved(ink, format_name, **({"quality": 100} if format_name == "JPEG" else {}))
    assert (b"Adobe" in data) is (format_name == "JPEG")
    red = pixels(data)[0]
    assert red[0] >= 253
    assert max(red[1:]) <= 2
    assert images.decode(data).conversions == ("CMYK to RGB",)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format_name: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = saved(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    picture = images.decode(data)
    assert np.asarray(picture.image)[0, 0].tolist() == [255, 0, 0]
    assert picture.conversions[0] == "first frame of 3"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_an_exif_orientation_is_followed_once_as_the_suites_library_does(format_name: str, orientation: int) -> None:
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif}
    if format_name == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    if format_name == "WEBP":
        options["lossless"] = True
    data = saved(noise(), format_name, **options)
    picture = images.decode(data)
    theirs = datasets.Image().decode_example({"bytes": data, "path": None})
    assert picture.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(np.asarray(picture.image), np.asarray(theirs.convert("RGB")))
    told = (f"turned upright by EXIF orientation {orientation}",) if orientation > 1 else ()
    assert picture.conversions == told


def test_a_broken_exif_block_leaves_the_pixels_alone() -> None:
    data = saved(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(np.asarray(images.decode(data).image), np.asarray(Image.open(io.BytesIO(data))))


# --- refused ---


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


PNG, JPEG, GIF = saved(noise(), "PNG"), saved(noise(), "JPEG", quality=95), saved(noise(), "GIF")

BAD = {
    "zero bytes": b"",
    "text": b"<html>not found</html>",
    "half a png": PNG[: len(PNG) // 2],
    "a png's head": PNG[:20],
    "png data damaged": damaged(PNG, 200),
    "png checksum of the pixels damaged": damaged(PNG, len(PNG) - 18),
    "png palette damaged": damaged(png(2, 1, 8, 3, [b"\0\1"], chunk(b"PLTE", bytes(6))), 42),
    "half a jpeg": JPEG[: len(JPEG) // 2],
    "a jpeg without its end": JPEG[:-2],
    "half a gif": GIF[: len(GIF) // 2],
    "half a webp": saved(noise(), "WEBP")[:300],
    "half a tiff": saved(noise(), "TIFF")[:2000],
    "32-bit integers": saved(Image.new("I", (2, 2), 70000), "TIFF"),
    "floats": saved(Image.new("F", (2, 2), 0.5), "TIFF"),
    "16-bit grey, white is zero": saved(Image.new("I;16", (2, 2), 1000), "TIFF", tiffinfo={262: 0}),
    "LAB": saved(Image.new("LAB", (2, 2)), "TIFF"),
    "a format that loses bits without a word": saved(noise(), "PPM"),
    "a format that runs a program": saved(noise(), "EPS"),
}


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("what", list(BAD))
def test_files_that_cannot_be_decoded_exactly_are_refused(
    what: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # lmms-eval sets it for the whole process
    with pytest.raises(ExampleError, match=r"^page 7: .*; next: "):
        images.decode(BAD[what], "page 7")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize("side", [13_000, 65_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    bomb = png(side, side, 1, 0, [b"\0"])
    with pytest.raises(ExampleError, match="bomb"):
        images.decode(bomb)


def test_a_long_strip_is_not_padded_to_a_square_that_fills_memory() -> None:
    strip = images.decode(saved(Image.new("1", (30_000, 1)), "PNG"))
    with pytest.raises(ExampleError, match="30000x1"):
        images.pad_square(strip.image, (0, 0, 0))


@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_byte_never_gives_other_pixels(at: int, change: int) -> None:
    data = PNG[:at] + bytes([PNG[at] ^ change]) + PNG[at + 1 :]
    try:
        picture = images.decode(data)
    except ExampleError:
        return
    assert np.array_equal(np.asarray(picture.image), np.asarray(noise()))


# --- pixels to numbers ---


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (images.OPENAI_CLIP_MEAN, images.OPENAI_CLIP_STD)]
)
@pytest.mark.parametrize("size", [(48, 32), (33, 91), (64, 64)])
def test_pad_resize_and_normalise_equal_clips_slow_processor(
    size: tuple[int, int], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    image = noise(*size)
    square = images.pad_square(image, images.mean_colour(mean))
    ours = images.normalise(images.resize(square, 40, 40), mean, std)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, image_mean=mean, image_std=std
    )
    theirs = np.asarray(processor(square)["pixel_values"][0])
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs)


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_padding_centres_and_keeps_every_pixel(width: int, height: int) -> None:
    square = np.asarray(images.pad_square(Image.new("RGB", (width, height), (9, 9, 9)), (0, 0, 0)))
    side = max(width, height)
    assert square.shape == (side, side, 3)
    left, top = (side - width) // 2, (side - height) // 2
    assert (square[top : top + height, left : left + width] == 9).all()
    assert int((square == 9).all(-1).sum()) == width * height


def test_the_content_of_a_padded_page() -> None:
    assert images.fit((640, 480), 1024) == (1024, 768)
    assert images.fit((10_000, 3), 256) == (256, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 16, 40, 64, 90]), st.integers(0, 2**24 - 1))
def test_padding_after_the_rows_were_scaled_is_padding_before(width: int, height: int, side: int, colour: int) -> None:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, padding = Image.fromarray(noise), (colour >> 16, colour >> 8 & 255, colour & 255)
    wanted = images.resize(images.pad_square(image, padding), side, side)
    assert np.array_equal(np.asarray(images.pad_and_resize(image, padding, side)), np.asarray(wanted))


def test_what_is_said_of_a_file_is_the_same_each_time() -> None:
    with pytest.raises(ExampleError, match=r"\(16 bytes\): cannot identify image file; next: repair the file"):
        images.decode(b"this is no image")


def test_a_strip_that_is_padded_later_is_refused_too() -> None:
    with pytest.raises(ExampleError, match="square of more than"):
        images.pad_and_resize(Image.new("RGB", (images.LARGEST_SQUARE_SIDE + 1, 1)), (0, 0, 0), 64)


@pytest.mark.parametrize("size", [(301, 533), (1240, 1754), (90, 60)])
def test_torchvision_resizes_to_almost_the_same_pixels_and_only_where_it_is_asked_for(size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    usual = np.asarray(images.resize(image, 256, 320)).astype(int)
    with images.scaled_by(deployment.by_torchvision):
        other = np.asarray(images.resize(image, 256, 320)).astype(int)
    assert other.shape == usual.shape
    apart = np.abs(other - usual)
    assert (np.asarray(images.resize(image, 256, 320)) == usual).all()
    assert apart.mean() < 0.5  # the largest difference is the CPU's kernel's
    assert (apart > 2).mean() < 0.01


def test_how_far_a_scaler_is_from_pil_is_measured() -> None:
    def bright(image: Image.Image, width: int, height: int) -> Image.Image:
        scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).copy()
        scaled[:32, :, 0] = np.where(scaled[:32, :, 0] > 127, scaled[:32, :, 0] - 7, scaled[:32, :, 0] + 7)
        return Image.fromarray(scaled)

    told = deployment.off_by(bright)
    assert told.startswith("3.33% of the values")
    assert told.endswith("by up to 7 of 255")
