"""FastVLM: FastViTHD (timm's `fastvit_mci3` in inference form), a two-layer projector and Qwen2 or Vicuna.

Reads Apple's released checkpoint layout. An image is padded to a square with black and resized to `side` (bicubic), or
with the setting `tiles` = n > 1 cut into n x n tiles after an overview (the paper's dynamic resolution). Sources:
arXiv:2412.13303; `llava/mm_utils.py`, `llava/conversation.py` and `llava/model/llava_arch.py` of apple/ml-fastvlm.
"""

import math
import re
from collections.abc import Mapping

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from harness import images
from harness.errors import CardError, ExampleError, SettingError, UnknownName
from harness.models import pipeline, templates
from harness.models.card import ModelCard, check_settings, check_side, with_settings
from harness.models.configuration import Comparison, llava_projector, pixels, section
from harness.models.foreign import Network
from harness.models.loading import Target
from harness.models.pipeline import Prepared, VisionLanguageModel
from harness.models.protocol import Model, Options
from harness.models.weights import Source

STRIDE = 64
"""Pixels a side of the square that one visual token stands for."""

BLACK = (0, 0, 0)
RAW: dict[str, tuple[float, float, float]] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""FastVLM's pixels are not normalised, so LLaVA's padding colour `int(255 * mean)` is black."""

PROMPTS = {"qwen_2": templates.qwen_2, "vicuna_v1": templates.vicuna_v1}
SETTINGS = ("tiles", "reparameterised")

TOWER = "model.vision_tower.vision_tower.model."
NETWORK = {
    "0": "stages.0.blocks",
    "1": "stages.1.downsample",
    "2": "stages.1.blocks",
    "3": "stages.2.downsample",
    "4": "stages.2.blocks",
    "5": "stages.3.downsample",
    "6": "stages.3.pos_emb",
    "7": "stages.3.blocks",
    "8": "stages.4.downsample",
    "9": "stages.4.pos_emb",
    "10": "stages.4.blocks",
}
"""Apple's flat list of sub-networks, and what timm calls each."""

WORDS = {
    "patch_embed": "stem",
    "conv_exp": "final_conv",
    "convffn": "mlp",
    "lkb_reparam": "reparam_conv",
    "reduce": "fc1",
    "expand": "fc2",
    "layer_scale": "layer_scale.gamma",
    "layer_scale_1": "layer_scale_1.gamma",
    "layer_scale_2": "layer_scale_2.gamma",
}
"""Components of Apple's names, and timm's."""


class FastVlm(VisionLanguageModel):
    """FastVLM at one resolution; tiles are encoded one after another, as the paper's arithmetic has it."""

    tiles_one_by_one = True

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Build and fill; raises `SettingError` for a side or setting that the card cannot take."""
        if len(card.encoders) != 1 or not card.llm:
            raise CardError(f"{card.name}: adapter 'fastvlm' takes one encoder and an [llm]; next: mend the card")
        if card.prompt not in PROMPTS:
            raise UnknownName(f"prompt of {card.name}", card.prompt, PROMPTS)
        for name in card.settings:
            if name not in SETTINGS:
                raise UnknownName(f"setting of {card.name}", name, SETTINGS)
        check_side(card, options.side)
        asked = check_settings(card, dict(options.settings))
        if source.trained and not asked.get("reparameterised", True):
            raise SettingError(
                f"{card.name}: released checkpoints are re-parameterised, the training form has random weights only; "
                "next: --weights random, or without reparameterised=false"
            )
        card, options = self.configured(card, source, options)
        settings = check_settings(card, dict(options.settings))
        self.mean, self.std = (tuple(card.encoders[0].settings.get(name, usual)) for name, usual in RAW.items())
        self.padding = images.mean_colour(self.mean)
        self.tiles = int(settings.get("tiles", 1))
        self.reparameterised = bool(settings.get("reparameterised", True))
        self.encoder_name = card.encoders[0].name
        if self.tiles < 1 or options.side % (STRIDE * self.tiles):
            raise SettingError(
                f"tiles={self.tiles} of --res {options.side}: each tile must be a multiple of {STRIDE} pixels a side; "
                f"next: a --res that is a multiple of {STRIDE * max(self.tiles, 1)}"
            )
        super().__init__(card, source, options)
        self.encoder_side = options.side // self.tiles

    def build(self) -> dict[str, nn.Module]:
        assert self.card.llm
        encoder = self.card.encoders[0]
        arguments = {name: value for name, value in encoder.settings.items() if name not in RAW}
        tower: nn.Module = timm.create_model(
            encoder.architecture, num_classes=0, inference_mode=self.reparameterised, **arguments
        )
        if getattr(tower, "num_features", None) != encoder.width:
            raise CardError(
                f"{self.card.name}: {encoder.architecture} gives {getattr(tower, 'num_features', '?')} channels, the "
                f"card's encoder width is {encoder.width}; next: mend the card"
            )
        return {
            encoder.name: tower,
            "projector": pipeline.mlp(encoder.width, self.card.llm.hidden),
            "llm": self.llm(),
        }

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Follow the pixels' mean and std; tower, projector and the square are FastVLM's or the checkpoint is not."""
        encoder, configuration = card.encoders[0], comparison.configuration
        model, vision = configuration.model, configuration.vision
        llava_projector(comparison, encoder.width, "pad", "flat")
        tower = str(model.get("mm_vision_tower", "mobileclip"))
        comparison.demand("mm_vision_tower", None if "mobileclip" in tower else tower, "mobileclip_l_1024")
        comparison.demand("vision_feature_layer", model.get("vision_feature_layer"), -1)
        comparison.demand("vision_feature_select_strategy", model.get("vision_feature_select_strategy"), "full")
        comparison.demand("vision architecture", vision.get("architecture"), encoder.architecture)
        comparison.demand("vision hidden_size", vision.get("hidden_size"), encoder.width)
        for name, value in section(vision, ("model_args",)).items():
            comparison.demand(f"vision {name}", value, True if name == "inference_mode" else encoder.settings.get(name))
        usual = [tuple(encoder.settings.get(name, value)) for name, value in RAW.items()]
        mean, std = pixels(comparison, usual[0], usual[1])
        if [mean, std] == usual:
            return card
        return with_settings(card, mean=mean, std=std)

    def turns(self) -> tuple[str, str]:
        return PROMPTS[self.card.prompt]("")

    def rename(self, name: str) -> Target:
        """Map Apple's names and transformers'; the unused CLIP projection `head.proj` is known and left out."""
        if ".timm_model." in name:
            return f"{self.encoder_name}.{name.partition('.timm_model.')[2]}"
        for layout in ("model.language_model.", "language_model.model."):
            if name.startswith(layout):
                return f"llm.model.{name.removeprefix(layout)}"
        if ".linear_" in name and "multi_modal_projector." in name:
            number, kind = name.partition(".linear_")[2].split(".")
            return f"projector.{2 * int(number) - 2}.{kind}"
        name = name.removeprefix("language_model.")
        if name.startswith(TOWER):
            rest = name.removeprefix(TOWER)
            return None if rest == "head.proj" else f"{self.encoder_name}.{_to_timm(rest)}"
        if name.startswith("model.mm_projector."):
            return f"projector.{name.removeprefix('model.mm_projector.')}"
        return None if name.endswith(".rotary_emb.inv_freq") else f"llm.{name}"

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Make the square, or the overview and the tiles, of one image."""
        if len(pictures) != 1:
            raise ExampleError(f"{len(pictures)} images: {self.card.name} was made for one; next: another suite")
        picture, side, tile = pictures[0], self.options.side, self.encoder_side
        if self.tiles == 1:
            squares = [images.pad_and_resize(picture.image, self.padding, side)]
            width, height = images.fit(picture.size, side)
            content_px = width * height
        else:
            canvas, content_px = _canvas(picture.image, side, self.padding)
            corners = [(x, y) for y in range(0, side, tile) for x in range(0, side, tile)]
            squares = [images.resize(picture.image, tile, tile)]
            squares += [canvas.crop((x, y, x + tile, y + tile)) for x, y in corners]
            content_px += tile * tile
        pixels = [
            pipeline.to_device(images.normalise(square, self.mean, self.std)[None], self.device, self.dtype)
            for square in squares
        ]
        return Prepared(
            {self.encoder_name: torch.cat(pixels) if len(pixels) > 1 else pixels[0]},
            original_px=picture.size,
            processed_px=(tile, tile * len(squares)),
            content_px=content_px,
            tiles=len(squares),
            conversions=picture.conversions,
            note=f"an overview and {self.tiles}x{self.tiles} tiles of {tile} px" if self.tiles > 1 else "",
        )

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the map after FastViTHD's last convolution as tokens, row by row: (tiles, (side / 64)^2, width)."""
        tower: Network = self.parts[name]
        maps = [tower.forward_features(tile) for tile in prepared.pixels[name].split(1)]
        return (torch.cat(maps) if len(maps) > 1 else maps[0]).flatten(2).transpose(1, 2)

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        tokens = (self.encoder_side // STRIDE) ** 2
        return {self.encoder_name: (prepared.tiles, tokens, self.card.encoders[0].width)}

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        """Return the visual tokens of the overview, then of each tile (LLaVA's merge type "flat": no newlines)."""
        tokens: Tensor = self.parts["projector"](features[self.encoder_name])
        return tokens.flatten(0, 1)

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        assert self.card.llm
        before, after = PROMPTS[self.card.prompt](question)
        start = [] if self.card.llm.bos is None else [self.card.llm.bos]
        return start + self.tokenizer.encode(before), self.tokenizer.encode(after)

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log."""
        rule = (
            f"padded to a square with {'black' if self.padding == (0, 0, 0) else self.padding}"
            if self.tiles == 1
            else f"an overview and {self.tiles}x{self.tiles} tiles"
        )
        form = "re-parameterised" if self.reparameterised else "training form"
        return {
            **super().describe(),
            "image_rule": rule,
            "encoder_form": form,
            "tile_px": str(self.encoder_side),
        }


def _to_timm(name: str) -> str:
    """Return timm's name of a FastViTHD tensor."""
    name = re.sub(r"^network\.(\d+)", lambda match: NETWORK.get(match[1], match[0]), name)
    return ".".join(WORDS.get(word, word) for word in name.split("."))


def _canvas(image: Image.Image, side: int, padding: tuple[int, int, int]) -> tuple[Image.Image, int]:
    """Fit `image` into a square of `side`, centred, as LLaVA's "anyres" does; and how many pixels show it."""
    scale = min(side / image.width, side / image.height)
    width, height = (min(math.ceil(length * scale), side) for length in image.size)
    canvas = Image.new("RGB", (side, side), padding)
    canvas.paste(images.resize(image, width, height), ((side - width) // 2, (side - height) // 2))
    return canvas, width * height


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model of `card`, ready to answer."""
    return FastVlm(card, source, options)
