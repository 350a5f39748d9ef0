"""What the encoder was shown, read from the processor's output: tiles, their pixels, and how many of those are image.

Pixel tensors have four to six dimensions and mean something else in each family, so each is asked in its own way.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from harness.models.foreign import Config, Processor

Size = tuple[int, int]


class Shown(NamedTuple):
    """`tiles` are (width, height) in pixels, one for each picture that the encoder gets; `note` says what is odd."""

    tiles: tuple[Size, ...]
    note: str = ""

    @property
    def processed_px(self) -> Size:
        """Width and height of all tiles put below each other; exact in area."""
        if not self.tiles:
            return 0, 0
        width = max(tile[0] for tile in self.tiles)
        return width, round(self.area / width)

    @property
    def area(self) -> int:
        """Pixels of all tiles."""
        return sum(width * height for width, height in self.tiles)


def shown(batch: Mapping[str, Tensor], config: Config, image_processor: Processor) -> Shown:
    """Return what the batch of a processor holds; an unknown form is told in the note, never guessed."""
    patch = _patch(config, image_processor)
    for name, read in GRIDS.items():
        if isinstance(batch.get(name), Tensor) and patch:
            return Shown(read(batch[name], patch))
    pixels = next((batch[name] for name in PIXELS if isinstance(batch.get(name), Tensor)), None)
    if pixels is None:
        return Shown((), "the processor gave no pixels under a known name")
    if pixels.dim() == 4 and "image_sizes" in batch and config.model_type in ("llava", "mistral3", "pixtral"):
        return Shown(tuple((int(width), int(height)) for height, width in batch["image_sizes"].tolist()))
    if pixels.dim() >= 4:
        width, height = int(pixels.shape[-1]), int(pixels.shape[-2])
        return Shown(((width, height),) * _real(batch, pixels))
    if config.model_type == "molmo2" and pixels.dim() == 3:
        side = round(pixels.shape[1] ** 0.5) * (patch or 0)
        return Shown(((side, side),) * int(pixels.shape[0]))
    return Shown((), f"pixels of shape {tuple(pixels.shape)} are not understood: tiles and pixels are not counted")


PIXELS = ("pixel_values", "image_pixel_values", "pixel_values_images", "image_patches")
"""What processors call the pixels."""


def _real(batch: Mapping[str, Tensor], pixels: Tensor) -> int:
    """Return how many tiles are image; several images of unequal tiles are padded with tiles of zeros."""
    if pixels.dim() == 4:
        return int(pixels.shape[0])
    mask = batch.get("aspect_ratio_mask")
    if isinstance(mask, Tensor):
        return int(mask.sum())
    flat = pixels.flatten(0, -4)
    if pixels.shape[0] == 1 and pixels.dim() == 5 and "pixel_attention_mask" not in batch:
        return int(flat.shape[0])
    return int((flat.flatten(1) != 0).any(1).sum())


def _thw(grid: Tensor, patch: int) -> tuple[Size, ...]:
    return tuple((int(w) * patch, int(h) * patch) for _, h, w in grid.tolist())


def _hw(shapes: Tensor, patch: int) -> tuple[Size, ...]:
    return tuple((int(w) * patch, int(h) * patch) for h, w in shapes.reshape(-1, 2).tolist())


def _positions(positions: Tensor, patch: int) -> tuple[Size, ...]:
    last = positions.reshape(-1, positions.shape[-2], 2).amax(1)
    return tuple(((int(x) + 1) * patch, (int(y) + 1) * patch) for x, y in last.tolist())


def content(look: Shown, name: str, image_processor: Processor, sizes: Sequence[Size]) -> int | None:
    """Return how many of the tiles' pixels show the images of these sizes; None where padding cannot be told apart.

    Most families stretch or cut an image until it fills its tiles; those in `FITTED` keep its shape and pad.
    """
    if name in UNKNOWN_PADDING:
        return None
    if name not in FITTED:
        return look.area
    found = [FITTED[name](size, image_processor) for size in sizes]
    return sum(area for area, _ in found) if sum(tiles for _, tiles in found) == len(look.tiles) else None


def _pinpoints(size: Size, image_processor: Processor) -> tuple[int, int]:
    """Return area and tiles of LLaVA's anyres: the image stretched to one tile, and fitted into a grid."""
    width, height = size
    tile = _side(getattr(image_processor, "crop_size", None)) or _side(image_processor.size)
    pinpoints = [list(each) for each in image_processor.image_grid_pinpoints]
    best_height, best_width = select_best_resolution((height, width), pinpoints)
    across, down = best_width / width, best_height / height
    if across < down:
        fitted = best_width, min(math.ceil(height * across), best_height)
    else:
        fitted = min(math.ceil(width * down), best_width), best_height
    return tile * tile + fitted[0] * fitted[1], 1 + best_width * best_height // (tile * tile)


def _canvas(size: Size, image_processor: Processor) -> tuple[int, int]:
    """Return area and tiles of Llama 3.2's canvas, in whose corner the image lies."""
    from transformers.models.mllama import image_processing_mllama as mllama

    (width, height), tile = size, _side(image_processor.size)
    canvas = mllama.get_optimal_tiled_canvas(height, width, int(image_processor.max_image_tiles), tile)
    down, across = (int(each) for each in canvas)
    fitted = mllama.get_image_size_fit_to_canvas(height, width, down, across, tile)
    return int(fitted[0]) * int(fitted[1]), down * across // (tile * tile)


def _side(size: object) -> int:
    for name in ("height", "shortest_edge"):
        value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
        if isinstance(value, int):
            return value
    return 0


FITTED = {"llava_next": _pinpoints, "llava_onevision": _pinpoints, "mllama": _canvas}
UNKNOWN_PADDING = ("phi4_multimodal",)


GRIDS = {"image_grid_thw": _thw, "spatial_shapes": _hw, "target_sizes": _hw, "image_position_ids": _positions}
"""Outputs that say how many patches each tile has, and how to read them."""


def _patch(config: Config, image_processor: Processor) -> int:
    vision = getattr(config, "vision_config", None)
    for holder, name in (
        (vision, "patch_size"),
        (image_processor, "patch_size"),
        (image_processor, "encoder_patch_size"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    return 0


def tokens(ids: Tensor, image_token_id: int | None) -> int | None:
    """Return how many ids of the prompt stand for a visual token, or None where the configuration names none."""
    return None if image_token_id is None else int(torch.count_nonzero(ids == image_token_id))
