"""LLaVA-1.5: CLIP ViT-L/14-336, a two-layer projector and Vicuna; PruMerge and Matryoshka token reduction as settings.

Three checkpoint layouts are read: the original one (`liuhaotian/llava-v1.5-7b`: LLM and projector, the tower in a
repository of its own), the same with the tower in it (M3, ConvLLaVA), and transformers' (`llava-hf/llava-1.5-7b-hf`).
Sources: arXiv:2310.03744, `llava/model/llava_arch.py` and `llava/mm_utils.py` of haotian-liu/LLaVA.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from harness import images
from harness.errors import ExampleError, WeightsError
from harness.models import pipeline, templates, weights
from harness.models.card import Hub, ModelCard, check_settings, check_side
from harness.models.families.llava import token_reduction
from harness.models.pipeline import Prepared, VisionLanguageModel
from harness.models.protocol import Model, Options, Seen, Work
from harness.models.weights import Source, Target, Tensors

TOWER_FOLDER = "vision_tower"
"""The subfolder of a checkpoint's folder that may hold the tower's own repository."""

PREFIXES = {
    "model.vision_tower.vision_tower.": "tower",  # the original layout, where the tower was trained too
    "model.vision_tower.": "tower",  # transformers' layout, three spellings
    "vision_tower.": "tower",
    "model.mm_projector.": "projector",
    "model.multi_modal_projector.": "projector",
    "multi_modal_projector.": "projector",
    "model.language_model.": "llm.model",
    "language_model.": "llm",
    "model.": "llm.model",
    "lm_head.": "llm.lm_head",
}
"""How names begin in the layouts, longer beginnings before shorter ones, and what they belong to."""


class Llava(VisionLanguageModel):
    """The LLaVA-1.5 recipe; ConvLLaVA shares all of it but the tower."""

    template = "vicuna_v1"
    tower_source = "random"

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Build and fill; raises `SettingError` for a setting or side that the card cannot take."""
        check_side(card, options.side)
        self.settings = check_settings(card, dict(options.settings))
        self.reduction = token_reduction.named(str(self.settings.get("reduction", "none")))
        self.tower_name = card.encoders[0].name
        super().__init__(card, source, options)
        self.encoder_side = card.encoders[0].side or options.side

    def build(self) -> dict[str, nn.Module]:
        assert self.card.llm
        encoder = self.card.encoders[0]
        return {
            self.tower_name: self.build_tower(),
            "projector": pipeline.mlp(encoder.width, self.card.llm.hidden),
            "llm": self.llm(),
        }

    def build_tower(self) -> nn.Module:
        """Return CLIP's vision transformer, all layers: the originals run the last one too and discard its output."""
        encoder = self.card.encoders[0]
        config = CLIPVisionConfig(
            hidden_size=encoder.width,
            intermediate_size=encoder.settings["ffn"],
            num_hidden_layers=encoder.settings["layers"],
            num_attention_heads=encoder.settings["heads"],
            patch_size=encoder.settings["patch"],
            image_size=encoder.side,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        )
        model: Any = CLIPVisionModel(config)
        tower: nn.Module = getattr(model, "vision_model", model)  # transformers 5 dropped the inner module
        return tower

    # --- weights ---

    def load(self, source: Source) -> None:
        """Fill the parts; the tower from the folder's `vision_tower/`, the checkpoint itself, or its own repository."""
        assert source.folder
        tensors = Tensors(source.folder)
        parts = self.parts
        if self.tower_name in parts:
            folder = self._tower_folder(source, tensors)
            self.tower_source = "the checkpoint"
            if folder:
                self.tower_source = f"{folder.folder} ({folder.digest})"
                tower = nn.ModuleDict({self.tower_name: parts[self.tower_name]})
                assert folder.folder
                weights.fill(tower, Tensors(folder.folder), self._rename_own_tower, self.device, self.dtype)
                parts = nn.ModuleDict({name: part for name, part in parts.items() if name != self.tower_name})
        if len(parts):
            weights.fill(parts, tensors, self.rename, self.device, self.dtype)

    def _tower_folder(self, source: Source, tensors: Tensors) -> Source | None:
        """Return where the tower's own repository lies, or None where the checkpoint has the tower in it."""
        assert source.folder
        inside = source.folder / TOWER_FOLDER
        if inside.is_dir():
            return Source("local", inside, digest=weights.digest(inside))
        own = any(str(self.rename(name) or "").startswith(f"{self.tower_name}.") for name in tensors)
        if own and self.settings.get("tower", "checkpoint") == "checkpoint":
            return None
        repo = self.card.encoders[0].repo
        if repo:
            found = weights.resolve(msgspec.structs.replace(self.card, hub=Hub(repo=repo)), None)
            if found.trained:
                return found
        raise WeightsError(
            f"{source.folder}: the vision tower {self.tower_name} is not taken from it, and its repository {repo} is "
            f"neither in the Hub cache nor reachable; next: put that repository's files into {inside}, or run "
            f"`hf download {repo}`"
        )

    def rename(self, name: str) -> Target:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        part, rest = PREFIXES.get(prefix), name.removeprefix(prefix)
        if part is None or name.endswith("rotary_emb.inv_freq"):
            return None if part else f"llm.{name}"  # an unknown name is in no part, and so reported
        if part == "tower":
            return self.rename_tower(rest)
        if part == "projector":
            return f"projector.{rest.replace('linear_1.', '0.').replace('linear_2.', '2.')}"
        if rest in ("lm_head.weight", "embed_tokens.weight", "model.embed_tokens.weight") or part == "llm.lm_head":
            return [(f"{part}.{rest}", self._without_added_words)]
        return f"{part}.{rest}"

    def rename_tower(self, name: str) -> Target:
        """Return where a tower's tensor belongs; `name` is without the layout's beginning."""
        rest = name.removeprefix("vision_model.")
        return None if rest.endswith("position_ids") else f"{self.tower_name}.{rest}"

    def _rename_own_tower(self, name: str) -> Target:
        """As `rename_tower`, for a repository of a whole CLIP, whose text half is not used."""
        text = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
        return None if name.startswith(text) else self.rename_tower(name)

    def _without_added_words(self, table: Tensor) -> Tensor:
        """Cut the rows that transformers' layout adds to the vocabulary (`<image>`, `<pad>` and padding to 64 rows)."""
        vocab = self.card.llm.vocab if self.card.llm else len(table)
        return table[:vocab] if vocab < len(table) <= vocab + 64 else table

    # --- an answer ---

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Pad to a square of CLIP's mean colour, resize (bicubic) to the tower's side, normalise; one image only."""
        if len(pictures) != 1:
            raise ExampleError(f"{len(pictures)} images: {self.card.name} was made for one; next: another suite")
        picture, side = pictures[0], self.encoder_side
        square = images.pad_square(picture.image, images.mean_colour(images.OPENAI_CLIP_MEAN))
        pixels = images.normalise(images.resize(square, side, side), images.OPENAI_CLIP_MEAN, images.OPENAI_CLIP_STD)
        width, height = images.fit(picture.size, side)
        return Prepared(
            {self.tower_name: pipeline.to_device(pixels[None], self.device, self.dtype)},
            original_px=picture.size,
            processed_px=(side, side),
            content_px=width * height,
            tiles=1,
            conversions=picture.conversions,
        )

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the last but one hidden states without the class token (1, tokens, width), pruned where asked."""
        tower: Any = self.parts[name]
        if not self.reduction.adaptive:
            features: Tensor = tower(prepared.pixels[name], output_hidden_states=True).hidden_states[-2][:, 1:]
            return features
        last = tower.encoder.layers[-1].self_attn
        with outputs_of({"queries": last.q_proj, "keys": last.k_proj}) as seen:
            features = tower(prepared.pixels[name], output_hidden_states=True).hidden_states[-2][:, 1:]
        count = self._stand_in_tokens if features.is_meta else None
        spatial = self.reduction.kind == "prumerge+"
        return token_reduction.prumerge(features[0], seen["queries"][0], seen["keys"][0], spatial, count)[None]

    @property
    def _stand_in_tokens(self) -> int:
        """How many tokens an adaptive reduction is taken to give where no image was looked at."""
        return int(self.settings.get("stand_in_tokens", 40))

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        encoder = self.card.encoders[0]
        height, width = prepared.pixels[self.tower_name].shape[-2:]
        tokens = (height // encoder.settings["patch"]) * (width // encoder.settings["patch"])
        return {self.tower_name: (1, self._stand_in_tokens if self.reduction.adaptive else tokens, encoder.width)}

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        tokens: Tensor = self.parts["projector"](features[self.tower_name])[0]
        return token_reduction.matryoshka(tokens, self.reduction.tokens) if self.reduction.kind == "m3" else tokens

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        assert self.card.llm
        before, after = templates.vicuna_v1(question)
        start = [] if self.card.llm.bos is None else [self.card.llm.bos]
        return start + self.tokenizer.encode(before), self.tokenizer.encode(after)

    def work(self, seen: Seen, /) -> dict[str, Work]:
        """As the base class; an adaptive reduction is counted at `seen.visual_tokens`, without looking at an image."""
        if not (self.reduction.adaptive and seen.visual_tokens > 1):
            return super().work(seen)
        settings = {**self.settings, "stand_in_tokens": seen.visual_tokens}
        options = replace(self.options, device="meta", only=None, settings=settings)
        return super(Llava, type(self)(self.card, Source("random"), options)).work(seen)

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log."""
        return {**super().describe(), "tower": self.tower_source, **self.describe_tower()}

    def describe_tower(self) -> dict[str, str]:
        """Return what the log says of the features and of what becomes of them."""
        told = {
            "features": "hidden_states[-2] without the class token; the last layer runs too, as in the original",
            "reduction": str(self.settings.get("reduction", "none")),
        }
        if self.reduction.adaptive:
            told["reduction_stage"] = (
                "encode: inside the tower, as in the original; the attention of the class token alone is computed from "
                "the last layer's queries and keys over the full width (the layers themselves stay on sdpa); tokens "
                "are merged by matrix products where the original loops over them in Python"
            )
            if self.options.only == "llm":
                told["stand_in_tokens"] = str(self._stand_in_tokens)
            if not self.source.trained:
                told["reduction_note"] = "token counts with random weights say nothing of trained ones"
        if self.reduction.kind == "m3":
            told["reduction_stage"] = "project: average pooling after the projector, as in the original"
        return told


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what `modules` return while the context is open, by their given names."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model of `card`, ready to answer."""
    return Llava(card, source, options)
