"""`--res R` in every family: at most R x R pixels of the image reach the encoder, by the one of six rules that fits.

area: the image is shrunk to R x R pixels in all, its shape kept. longest_edge: its longer side becomes R. tiles: as
many tiles as fit into R x R. budget: as many visual tokens as R x R pixels make. caller: we resize the longer side to R
and the family's own rule picks tiles. fixed: the family has one size. square (FastVLM): padded to a square of side R.
tiles, budget and caller are step functions of R. Sources: transformers' image processors; released settings of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from harness import images
from harness.errors import SettingError
from harness.models.families.auto.kinds import kind_of
from harness.models.foreign import Config, Processor

STEPS = ("tiles", "budget", "caller")
"""Rules under which cost grows in steps: sides between two steps are the same measurement."""

UNKNOWN_SIDE = 336
"""What is logged as the side of a family with one size whose files do not say which."""

GEMMA4_BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of visual tokens that Gemma 4's processor takes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What `--res` became: arguments of the image processor, and what is done to an image before it."""

    rule: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    longest: int | None = None
    """The longer side that we resize to, aspect kept."""
    square: bool = False
    """Whether we pad to a square with the colour of the processor's mean."""
    background: tuple[int, int, int] = (0, 0, 0)

    def prepared(self, image: Image.Image) -> Image.Image:
        """Return the image as the processor is given it."""
        if self.square:
            image = images.pad_square(image, self.background)
            return images.resize(image, self.longest or image.width, self.longest or image.height)
        if self.longest is not None:
            image = images.resize(image, *images.fit(image.size, self.longest))
        return image

    def describe(self) -> dict[str, str]:
        """Return what the log says of it."""
        done = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        ours = [f"longer side {self.longest} px before the processor"] if self.longest is not None else []
        ours = ["padded to a square before the processor", *ours] if self.square else ours
        steps = " (a step function of --res)" if self.rule in STEPS else ""
        return {"resolution_rule": f"{self.rule}{steps}", "resolution_how": "; ".join([*ours, done] if done else ours)}


def rule_of(name: str) -> str:
    """Return the rule's name for a family."""
    return kind_of(name).rule


def own_side(processor: Mapping[str, object], vision: Mapping[str, object]) -> int:
    """Return the one side of a family with a fixed size, as its processor's file says; else its tower's."""
    size = processor.get("size")
    for name in ("height", "shortest_edge", "longest_edge"):
        value = size.get(name) if isinstance(size, dict) else size
        if isinstance(value, int):
            return value
    side = vision.get("image_size")
    side = side[0] if isinstance(side, list) else side
    return side if isinstance(side, int) else UNKNOWN_SIDE


def asked(side: int, name: str, config: Config, processor: Processor) -> Asked:
    """Return what `side` means to the image processor of a family; raises `SettingError` for one it cannot take."""
    rule = rule_of(name)
    return RULES[rule](side, name, config, processor)


def _area(side: int, name: str, config: Config, processor: Processor) -> Asked:
    patch, merge = int(processor.patch_size), int(processor.merge_size)
    least = (patch * merge) ** 2
    if side * side < least:
        raise SettingError(
            f"--res {side}: the least is {patch * merge} (one visual token); next: --res {patch * merge}"
        )
    own = _get(processor.size, "shortest_edge") or least
    return Asked("area", {"size": {"shortest_edge": min(int(own), side * side), "longest_edge": side * side}})


def _longest_edge(side: int, name: str, config: Config, processor: Processor) -> Asked:
    return Asked("longest_edge", {"size": {"longest_edge": side}})


def _tiles(side: int, name: str, config: Config, processor: Processor) -> Asked:
    tile, count = tile_side(name, processor), TILE_COUNTS[name]
    most = max(1, side // tile) ** 2
    own = getattr(processor, count, None)
    if name == "mllama" and own:  # its tile embeddings are as many as that
        most = min(most, int(own))
    arguments: dict[str, object] = {count: most}
    if name == "internvl":
        arguments |= {"min_patches": 1, "crop_to_patches": True}
    return Asked("tiles", arguments)


TILE_COUNTS = {
    "internvl": "max_patches",
    "minicpmv4_6": "max_slice_nums",
    "molmo2": "max_crops",
    "mllama": "max_image_tiles",
    "phi4_multimodal": "dynamic_hd",
}
"""What the image processors call the largest number of tiles."""


def tile_side(name: str, processor: Processor) -> int:
    """Return a tile's side in pixels."""
    if name == "minicpmv4_6":
        return int(processor.scale_resolution)
    return int(_get(processor.size, "height"))


def _budget(side: int, name: str, config: Config, processor: Processor) -> Asked:
    if name == "gemma4":
        pixels = int(processor.patch_size) * int(processor.pooling_kernel_size)
        wanted = (side / pixels) ** 2
        budget = next((one for one in GEMMA4_BUDGETS if one >= wanted), GEMMA4_BUDGETS[-1])
        return Asked("budget", {"max_soft_tokens": budget})
    pixels = int(processor.encoder_patch_size) * int(processor.downsample_factor)
    tokens = max(1, min((side // pixels) ** 2, int(processor.max_image_tokens)))
    tiles = (side // int(processor.tile_size)) ** 2
    arguments = {
        "max_image_tokens": tokens,
        "min_image_tokens": min(int(processor.min_image_tokens), tokens),
        "do_image_splitting": tiles > 1,
    }
    if tiles > 1:
        arguments["max_tiles"] = tiles
    return Asked("budget", arguments)


def _caller(side: int, name: str, config: Config, processor: Processor) -> Asked:
    return Asked("caller", longest=side)


def _fixed(side: int, name: str, config: Config, processor: Processor) -> Asked:
    return Asked("fixed")


def _square(side: int, name: str, config: Config, processor: Processor) -> Asked:
    arguments = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    mean = tuple(getattr(processor, "image_mean", None) or (0.0, 0.0, 0.0))
    normalised = bool(getattr(processor, "do_normalize", True))
    return Asked(
        "square", arguments, side, square=True, background=images.mean_colour(mean) if normalised else (0, 0, 0)
    )


RULES = {
    "area": _area,
    "longest_edge": _longest_edge,
    "tiles": _tiles,
    "budget": _budget,
    "caller": _caller,
    "fixed": _fixed,
    "square": _square,
}


def _get(size: object, name: str) -> Any:
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
