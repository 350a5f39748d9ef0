"""LLaVA-OneVision: SigLIP on tiles chosen by the anyres rule, a projector with one learned newline, Qwen2.

In the layout of the `llava-hf` repositories. Source: arXiv:2408.03326, and transformers'
`LlavaOnevisionForConditionalGeneration`

`--res R`: the image is first resized so that its longer side is R, aspect kept, up or down; then the model's own rule
picks a pinpoint for that size. Cost is a step function of R, so what is logged is R, pinpoint, tiles and tokens.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from math import ceil, sqrt
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from harness import images
from harness.errors import ExampleError, UnknownName
from harness.models.card import ModelCard, Table, with_settings
from harness.models.configuration import Comparison, llava_projector, pixels, transformer
from harness.models.foreign import Network
from harness.models.loading import Target
from harness.models.pipeline import Prepared, VisionLanguageModel, mlp, to_device
from harness.models.protocol import Options
from harness.models.weights import Source

HALF = (0.5, 0.5, 0.5)
SIGLIP: Table = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
"""What SigLIP's own configuration says where the card says nothing."""


def qwen_1_5(question: str) -> tuple[str, str]:
    """Return the template the model was trained and published with (LLaVA-NeXT's `qwen_1_5`, lmms-eval's default)."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        f"\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )


def chatml(question: str) -> tuple[str, str]:
    """Return the template of transformers' conversion script: as `qwen_1_5` without the system turn."""
    return "<|im_start|>user\n", f"\n{question}<|im_end|>\n<|im_start|>assistant\n"


def llava_hf(question: str) -> tuple[str, str]:
    """Return the template of transformers' processor tests: a space after the role, no line break between turns."""
    return "<|im_start|>user ", f"\n{question}<|im_end|><|im_start|>assistant\n"


TEMPLATES: dict[str, Callable[[str], tuple[str, str]]] = {"qwen_1_5": qwen_1_5, "chatml": chatml, "llava_hf": llava_hf}


def load(card: ModelCard, source: Source, options: Options) -> "LlavaOnevision":
    """Return the model of a LLaVA-OneVision card."""
    return LlavaOnevision(card, source, options)


def pinpoint(size: tuple[int, int], choices: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the (width, height) of `choices` that keeps most of an image's pixels and of those wastes least.

    A tie goes to the earlier choice; the released list is sorted by height, then width.
    """
    width, height = size

    def merit(choice: tuple[int, int]) -> tuple[int, int]:
        scale = min(choice[0] / width, choice[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - choice[0] * choice[1]

    return max(choices, key=merit)


def grid(largest: int, side: int) -> list[tuple[int, int]]:
    """Return the released list of pinpoints (width, height): up to `largest` tiles along a side, sorted by height."""
    steps = range(1, largest + 1)
    return [(cols * side, rows * side) for rows in steps for cols in steps]


def boxes(stated: object, side: int, height_first: bool) -> object:
    """Return a configuration's pinpoints as (width, height), in its order; what is no list of pairs as it is.

    Transformers lists (height, width), LLaVA-NeXT (width, height), or in words: "(1x1),...,(6x6)" tiles.
    """
    if isinstance(stated, str):
        spans = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", stated)]
        if len(spans) == 2 and "..." in stated:
            (first, also), (last, too) = spans
            return [(a * side, b * side) for a in range(first, last + 1) for b in range(also, too + 1)]
        return [(a * side, b * side) for a, b in spans] if spans else stated
    if not isinstance(stated, list) or not all(isinstance(one, list) and len(one) == 2 for one in stated):
        return stated
    return [(b, a) if height_first else (a, b) for a, b in stated]


def largest(aspect: object, comparison: Comparison) -> int | None:
    """Return the N of `anyres_max_N`, 0 for `anyres` alone, None where nothing is stated; refuse any other rule."""
    text = str(aspect or "")
    match = re.fullmatch(r"anyres(?:_max_(\d+))?", text)
    if text and not match:
        comparison.demand("image_aspect_ratio", text, "anyres_max_9")
    return int(match[1] or 0) if match else None


def inside(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of an image resized to fit `box` with its aspect kept, rounded up."""
    across, down = box[0] / size[0], box[1] / size[1]
    if across < down:
        return box[0], min(ceil(size[1] * across), box[1])
    return min(ceil(size[0] * down), box[0]), box[1]


class Layout(NamedTuple):
    """How the tiles' features become rows of tokens.

    `grid` is (rows, cols) of tiles, `per_tile` the tokens along a tile's side; `top` and `left` are rows and columns of
    padding to take off on each side; `tokens` is (rows, cols) afterwards, and after shrinking where `shrunk`.
    """

    grid: tuple[int, int]
    per_tile: int
    top: int
    left: int
    tokens: tuple[int, int]
    shrunk: bool

    @property
    def visual_tokens(self) -> int:
        """Visual tokens: the base tile's, then each row's with its newline."""
        return self.per_tile**2 + self.tokens[0] * (self.tokens[1] + 1)


def layout(size: tuple[int, int], box: tuple[int, int], side: int, per_tile: int, largest: int) -> Layout:
    """Return the layout of an image of `size` in the pinpoint `box` (both width, height) with tiles of `side` pixels.

    More tokens than `largest` tiles have, by more than 1.1 along a side, are shrunk to that many (`anyres_max_9`); with
    0 there is no such limit.
    """
    width, height = size
    grid = (box[1] // side, box[0] // side)
    rows, cols = grid[0] * per_tile, grid[1] * per_tile
    top = left = 0
    if width / height > cols / rows:
        top = (rows - int(round(height * (cols / width), 7))) // 2
    else:
        left = (cols - int(round(width * (rows / height), 7))) // 2
    rows, cols = rows - 2 * top, cols - 2 * left
    ratio = sqrt(rows * cols / (largest * per_tile**2)) if largest else 1.0
    shrunk = ratio > 1.1
    return Layout(
        grid, per_tile, top, left, (int(rows // ratio), int(cols // ratio)) if shrunk else (rows, cols), shrunk
    )


class Projector(nn.Module):
    """Linear, GELU, Linear, and the learned newline."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = mlp(width, hidden)
        self.image_newline = nn.Parameter(torch.empty(hidden))

    def forward(self, features: Tensor, plan: Layout) -> Tensor:
        """Return (visual tokens, hidden) of features (1 + tiles, tokens per tile, width), the base tile first."""
        projected = self.layers(features)
        rows, cols = plan.grid
        maps = projected[1:].unflatten(1, (plan.per_tile, plan.per_tile)).unflatten(0, (rows, cols))
        maps = maps.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # hidden, token rows, token columns
        maps = maps[:, plan.top : maps.shape[1] - plan.top, plan.left : maps.shape[2] - plan.left]
        if plan.shrunk:
            maps = nn.functional.interpolate(maps[None], plan.tokens, mode="bilinear")[0]
        newlines = self.image_newline[:, None, None].expand(-1, maps.shape[1], 1)
        return torch.cat([projected[0], torch.cat([maps, newlines], 2).flatten(1).T])


class LlavaOnevision(VisionLanguageModel):
    """See the module's text. The encoder takes all tiles as one batch unless the setting `tiles_one_by_one` is on."""

    projector_by_shape = False  # how the map is cut and shrunk follows from the image's size

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Read the settings: `native_size` leaves the image as it is and lets the model's rule alone decide."""
        if card.prompt not in TEMPLATES:
            raise UnknownName(f"prompt of {card.name}", card.prompt, TEMPLATES)
        card, options = self.configured(card, source, options)
        settings: Table = {**card.settings, **options.settings}
        self.encoder = card.encoders[0]
        self.tiles_one_by_one = bool(settings["tiles_one_by_one"])
        self.native_size = bool(settings["native_size"])
        self.largest_tiles = int(settings["largest_tiles"])
        self.tile_side = self.encoder.side or 0
        self.per_tile = self.tile_side // int(self.encoder.settings["patch"])
        told = self.encoder.settings
        self.mean, self.std = tuple(told.get("mean", HALF)), tuple(told.get("std", HALF))
        given = told.get("pinpoints") if settings["largest_grid"] == card.settings["largest_grid"] else None
        self.pinpoints = [tuple(one) for one in given or grid(int(settings["largest_grid"]), self.tile_side)]
        super().__init__(card, source, options)

    def build(self) -> dict[str, nn.Module]:
        """Return SigLIP without its last norm, which LLaVA-OneVision does not use, the projector and the LLM."""
        assert self.card.llm
        own = {name: value for name, value in self.encoder.settings.items() if name in SIGLIP}
        model: Network = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=self.encoder.width,
                num_hidden_layers=self.encoder.settings["layers"],
                num_attention_heads=self.encoder.settings["heads"],
                intermediate_size=self.encoder.settings["ffn"],
                patch_size=self.encoder.settings["patch"],
                image_size=self.tile_side,
                vision_use_head=False,
                **(SIGLIP | own),
            )
        )
        tower: Network = getattr(model, "vision_model", model)  # some versions of transformers keep it one level down
        tower.post_layernorm = nn.Identity()
        projector = Projector(self.encoder.width, self.card.llm.hidden)
        return {self.encoder.name: tower, "projector": projector, "llm": self.llm()}

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Follow SigLIP's heads, activation and eps, the pinpoints, the most tiles' tokens, and the pixels' mean."""
        encoder, model = card.encoders[0], comparison.configuration.model
        settings, nested = encoder.settings, comparison.configuration.nested
        llava_projector(comparison, encoder.width, "", "spatial_unpad")
        tower = str(model.get("mm_vision_tower", "siglip"))
        comparison.demand("mm_vision_tower", None if "siglip" in tower.lower() else tower, "siglip-so400m-patch14-384")
        comparison.demand("vision_feature_layer", model.get("vision_feature_layer"), -1)
        comparison.demand("vision_feature_select_strategy", model.get("vision_feature_select_strategy"), "full")
        sizes = {
            "hidden_size": encoder.width,
            "intermediate_size": settings["ffn"],
            "num_hidden_layers": settings["layers"],
            "patch_size": settings["patch"],
            "image_size": encoder.side,
        }
        changed = transformer(comparison.configuration.vision, comparison, {**SIGLIP, **settings}, sizes)
        mean, std = pixels(comparison, settings.get("mean", HALF), settings.get("std", HALF))
        side = encoder.side or 0
        usual = settings.get("pinpoints") or grid(int(card.settings["largest_grid"]), side)
        stated = boxes(model.get("image_grid_pinpoints"), side, height_first=nested)
        chosen = comparison.obey("image_grid_pinpoints (width, height)", stated, usual)
        wrong = [box for box in chosen if box[0] % side or box[1] % side]
        if wrong or not chosen:
            comparison.demand("image_grid_pinpoints", wrong or [], f"multiples of {side}")
        processor = boxes(comparison.configuration.preprocessor.get("image_grid_pinpoints"), side, height_first=True)
        if processor is not None and stated is not None:  # the tiles are cut by one file and put together by the other
            comparison.demand("image_grid_pinpoints of the processor", processor, chosen)
        aspect = model.get("vision_aspect_ratio", model.get("image_aspect_ratio"))
        tiles = comparison.obey("anyres_max (tiles)", largest(aspect, comparison), int(card.settings["largest_tiles"]))
        card = with_settings(card, **changed, mean=mean, std=std, pinpoints=chosen)
        return msgspec.structs.replace(card, settings={**card.settings, "largest_tiles": tiles})

    def turns(self) -> tuple[str, str]:
        return TEMPLATES[self.card.prompt]("")

    def rename(self, name: str) -> Target:
        """Return where a tensor belongs: by transformers' names, with or without `model.` in front, or lmms-lab's."""
        name = name.removeprefix("model.")
        if name.startswith("vision_tower."):
            inner = name.removeprefix("vision_tower.").removeprefix("vision_tower.").removeprefix("vision_model.")
            unused = inner.startswith(("post_layernorm.", "head.")) or inner.endswith(".position_ids")
            return None if unused else f"{self.encoder.name}.{inner}"
        if name.startswith("multi_modal_projector.linear_"):
            number, kind = name.removeprefix("multi_modal_projector.linear_").split(".")
            return f"projector.layers.{2 * int(number) - 2}.{kind}"
        if name.startswith("mm_projector."):
            return f"projector.layers.{name.removeprefix('mm_projector.')}"
        if name.endswith(".rotary_emb.inv_freq"):
            return None
        if name == "image_newline":
            return "projector.image_newline"
        inner = name.removeprefix("language_model.")
        return f"llm.{inner}" if inner.startswith(("lm_head.", "model.")) else f"llm.model.{inner}"

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Resize to the asked side, then make the base tile and the pinpoint's, as the released processor does."""
        if len(pictures) != 1:
            raise ExampleError(f"{self.card.name} is timed with one image, the example has {len(pictures)}")
        picture, side = pictures[0], self.tile_side
        image = picture.image
        if not self.native_size:
            image = images.resize(image, *images.fit(image.size, self.options.side))
        box = pinpoint(image.size, self.pinpoints)
        plan = layout(image.size, box, side, self.per_tile, self.largest_tiles)
        if not plan.tokens[0] * plan.tokens[1]:
            raise ExampleError(
                f"an image of {picture.size[0]}x{picture.size[1]} pixels is too thin for {self.card.name}: no row of "
                "tokens is left; next: crop or remove this example"
            )
        content = inside(image.size, box)
        sheet = Image.new("RGB", box)  # padding is black
        sheet.paste(images.resize(image, *content), ((box[0] - content[0]) // 2, (box[1] - content[1]) // 2))
        tiles = [images.resize(image, side, side)]
        for top in range(0, box[1], side):
            tiles += [sheet.crop((left, top, left + side, top + side)) for left in range(0, box[0], side)]
        values = np.stack([images.normalise(tile, self.mean, self.std) for tile in tiles])
        asked = "its own size" if self.native_size else f"{self.options.side}"
        return Prepared(
            pixels={self.encoder.name: to_device(values, self.device, self.dtype)},
            original_px=picture.size,
            processed_px=(side, side * len(tiles)),
            content_px=side * side + content[0] * content[1],
            tiles=len(tiles),
            conversions=picture.conversions,
            geometry=plan,
            note=f"asked {asked}, pinpoint {box[0]}x{box[1]}, {len(tiles)} tiles, {plan.visual_tokens} tokens",
        )

    def foresee_visual(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return tiles and visual tokens of an image of this size: the anyres rule looks at nothing else."""
        if not self.native_size:
            size = images.fit(size, self.options.side)
        box = pinpoint(size, self.pinpoints)
        plan = layout(size, box, self.tile_side, self.per_tile, self.largest_tiles)
        return 1 + plan.grid[0] * plan.grid[1], plan.visual_tokens

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the last block's output without the final norm: (1 + tiles, tokens per tile, width)."""
        pixels, tower = prepared.pixels[name], self.parts[name]
        batches = pixels.split(1) if self.tiles_one_by_one else (pixels,)
        return torch.cat([tower(batch).last_hidden_state for batch in batches])

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        """Return (1 + tiles, tokens per tile, width)."""
        return {self.encoder.name: (prepared.tiles, self.per_tile**2, self.encoder.width)}

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        """Return the visual tokens (visual tokens, hidden)."""
        visual: Tensor = self.parts["projector"](features[self.encoder.name], prepared.geometry)
        return visual

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the ids around the image by the card's template (no BOS)."""
        before, after = TEMPLATES[self.card.prompt](question)
        return self.tokenizer.encode(before), self.tokenizer.encode(after)

    def describe(self) -> dict[str, str]:
        """Add how tiles are run and sized."""
        return {
            **super().describe(),
            "tiles": "one by one" if self.tiles_one_by_one else "one batch",
            "image_size": "as given" if self.native_size else f"longer side {self.options.side}",
            "anyres": f"{len(self.pinpoints)} pinpoints, "
            + (f"anyres_max_{self.largest_tiles}" if self.largest_tiles else "no limit of tokens"),
        }
