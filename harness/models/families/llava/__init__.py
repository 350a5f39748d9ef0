"""LLaVA-1.5: CLIP ViT-L/14-336, a two-layer projector and Vicuna; PruMerge and Matryoshka token reduction as settings.

Three checkpoint layouts are read: the original one (`liuhaotian/llava-v1.5-7b`: LLM and projector, the tower in a
repository of its own), the same with the tower in it (M3, ConvLLaVA), and transformers' (`llava-hf/llava-1.5-7b-hf`).
Sources: arXiv:2310.03744, `llava/model/llava_arch.py` and `llava/mm_utils.py` of haotian-liu/LLaVA.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from harness import images
from harness.errors import ExampleError, WeightsError
from harness.models import configuration, loading, pipeline, templates, weights
from harness.models.card import ModelCard, Table, check_settings, check_side, with_settings
from harness.models.checkpoints import Tensors
from harness.models.configuration import Comparison, Configuration, Fields, llava_projector, pixels, transformer
from harness.models.families.llava import token_reduction
from harness.models.foreign import Network
from harness.models.loading import Target
from harness.models.pipeline import Prepared, VisionLanguageModel
from harness.models.protocol import Model, Options, Seen, Work
from harness.models.weights import Source

LAYER = -2
"""LLaVA-1.5's feature: the last but one layer's output."""

MEAN, STD = images.OPENAI_CLIP_MEAN, images.OPENAI_CLIP_STD
CLIP: Table = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
"""What CLIP's own configuration says where the card says nothing."""

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
        check_settings(card, dict(options.settings))
        card, options = self.configured(card, source, options)
        self.settings = check_settings(card, dict(options.settings))
        self.reduction = token_reduction.named(str(self.settings.get("reduction", "none")))
        self.tower_name = card.encoders[0].name
        told = card.encoders[0].settings
        self.mean, self.std = tuple(told.get("mean", MEAN)), tuple(told.get("std", STD))
        self.feature_layer = int(told.get("feature_layer", LAYER))
        self.first_token = 1 if told.get("feature", "patch") == "patch" else 0
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
        own = {name: value for name, value in encoder.settings.items() if name in CLIP}
        config = CLIPVisionConfig(
            hidden_size=encoder.width,
            intermediate_size=encoder.settings["ffn"],
            num_hidden_layers=encoder.settings["layers"],
            num_attention_heads=encoder.settings["heads"],
            patch_size=encoder.settings["patch"],
            image_size=encoder.side,
            **(CLIP | own),
        )
        model: Network = CLIPVisionModel(config)
        return cast(nn.Module, getattr(model, "vision_model", model))  # transformers 5 dropped the inner module

    # --- weights ---

    def load(self, source: Source) -> None:
        """Fill the parts; the tower from the folder's `vision_tower/`, the checkpoint itself, or its own repository."""
        assert source.folder
        tensors = Tensors(source.folder)
        parts = self.parts
        if self.tower_name in parts:
            tower = self._own_tower(source, tensors)
            self.tower_source = "the checkpoint"
            if tower:
                self.tower_source = f"{tower.folder} ({tower.digest})"
                module = nn.ModuleDict({self.tower_name: parts[self.tower_name]})
                assert tower.folder
                loading.fill(module, Tensors(tower.folder), self._rename_own_tower, self.device, self.dtype)
                parts = nn.ModuleDict({name: part for name, part in parts.items() if name != self.tower_name})
        if len(parts):
            loading.fill(parts, tensors, self.rename, self.device, self.dtype)

    def _own_tower(self, source: Source, tensors: Tensors) -> Source | None:
        """Return where the tower's own repository lies, or None where the checkpoint has the tower in it."""
        found = weights.towers_of(self.card, source, self.options.settings).get(self.tower_name)
        own = any(str(self.rename(name) or "").startswith(f"{self.tower_name}.") for name in tensors)
        if found or (own and self.settings.get("tower", "checkpoint") == "checkpoint"):
            return found
        assert source.folder
        repo, inside = self.card.encoders[0].repo, source.folder / weights.TOWER_FOLDER
        raise WeightsError(
            f"{source.folder}: the vision tower {self.tower_name} is not taken from it, and its repository {repo} is "
            f"neither in the Hub cache nor reachable; next: put that repository's files into {inside}, or run "
            f"`hf download {repo}`"
        )

    # --- the checkpoint's own configuration ---

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Follow the tower's heads, activation and eps, the layer and tokens that are used, and the pixels' mean."""
        encoder = card.encoders[0]
        llava_projector(comparison, encoder.width, "pad", "flat")
        tower = weights.towers_of(card, source, self.options.settings).get(encoder.name)
        vision, images_as = comparison.configuration.vision, comparison
        if tower and tower.folder:
            own = configuration.read(tower.folder)
            vision = own.vision or own.model
            if not comparison.configuration.preprocessor:
                images_as = Comparison(own, card.name)
            if tower.repository:
                comparison.demand("mm_vision_tower", _last(comparison.configuration), encoder.repo)
        card = self.obey_tower(card, vision, comparison)
        settings = dict(card.encoders[0].settings)
        layer, feature = feature_of(comparison.configuration)
        changed = {
            "feature_layer": comparison.obey("feature layer", layer, settings.get("feature_layer", self.usual_layer)),
            "feature": comparison.obey("feature", feature, settings.get("feature", "patch")),
        }
        mean, std = pixels(images_as, settings.get("mean", MEAN), settings.get("std", STD))
        if images_as is not comparison:
            comparison.obeyed += images_as.obeyed
            comparison.refused += images_as.refused
        self.check_feature(card, changed["feature_layer"], changed["feature"], comparison)
        return with_settings(card, **changed, mean=mean, std=std)

    usual_layer = LAYER

    def obey_tower(self, card: ModelCard, vision: Fields, comparison: Comparison) -> ModelCard:
        """Return the card with the tower as its configuration `vision` has it."""
        encoder = card.encoders[0]
        settings = encoder.settings
        sizes = {
            "hidden_size": encoder.width,
            "intermediate_size": settings["ffn"],
            "num_hidden_layers": settings["layers"],
            "patch_size": settings["patch"],
            "image_size": encoder.side,
        }
        return with_settings(card, **transformer(vision, comparison, {**CLIP, **settings}, sizes))

    def check_feature(self, card: ModelCard, layer: object, feature: object, comparison: Comparison) -> None:
        """Refuse a layer that the tower lacks, and for a reduction of tokens any but the one that it was made for."""
        layers = int(card.encoders[0].settings["layers"])
        reduced = str(self.options.settings.get("reduction", card.settings.get("reduction", "none"))) != "none"
        if reduced or not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
            comparison.demand("feature layer", layer, LAYER)
        comparison.demand("feature", feature, "patch", *([] if reduced else ["cls_patch"]))

    def turns(self) -> tuple[str, str]:
        return templates.vicuna_v1("")

    def rename(self, name: str) -> Target:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        part, rest = PREFIXES.get(prefix), name.removeprefix(prefix)
        if part is None or name.endswith("rotary_emb.inv_freq"):
            return None if part else f"llm.{name}"  # an unknown name is in no part, and so reported
        if part == "tower":
            return self.rename_tower(rest)
        if part == "projector":
            return f"projector.{rest.replace('linear_1.', '0.').replace('linear_2.', '2.')}"
        return f"{part}.{rest}"

    def rename_tower(self, name: str) -> Target:
        """Return where a tower's tensor belongs; `name` is without the layout's beginning."""
        rest = name.removeprefix("vision_model.")
        return None if rest.endswith("position_ids") else f"{self.tower_name}.{rest}"

    def _rename_own_tower(self, name: str) -> Target:
        """As `rename_tower`, for a repository of a whole CLIP, whose text half is not used."""
        text = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
        return None if name.startswith(text) else self.rename_tower(name)

    # --- an answer ---

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Pad to a square of CLIP's mean colour, resize (bicubic) to the tower's side, normalise; one image only."""
        if len(pictures) != 1:
            raise ExampleError(f"{len(pictures)} images: {self.card.name} was made for one; next: another suite")
        picture, side = pictures[0], self.encoder_side
        square = images.pad_and_resize(picture.image, images.mean_colour(self.mean), side)
        values = images.normalise(square, self.mean, self.std)
        width, height = images.fit(picture.size, side)
        return Prepared(
            {self.tower_name: pipeline.to_device(values[None], self.device, self.dtype)},
            original_px=picture.size,
            processed_px=(side, side),
            content_px=width * height,
            tiles=1,
            conversions=picture.conversions,
        )

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the last but one hidden states without the class token (1, tokens, width), pruned where asked."""
        tower: Network = self.parts[name]
        if not self.reduction.adaptive:
            states = tower(prepared.pixels[name], output_hidden_states=True).hidden_states
            features: Tensor = states[self.feature_layer][:, self.first_token :]
            return features
        last = tower.encoder.layers[-1].self_attn
        with outputs_of({"queries": last.q_proj, "keys": last.k_proj}) as seen:
            features = tower(prepared.pixels[name], output_hidden_states=True).hidden_states[-2][:, 1:]
        count = self._stand_in_tokens if features.is_meta else None
        spatial = self.reduction.kind == "prumerge+"
        return token_reduction.prumerge(features[0], seen["queries"][0], seen["keys"][0], spatial, count)[None]

    @property
    def encoders_watched(self) -> bool:
        """An adaptive reduction reads queries and keys of the last layer."""
        return self.reduction.adaptive

    @property
    def _stand_in_tokens(self) -> int:
        """How many tokens an adaptive reduction is taken to give where no image was looked at."""
        return int(self.settings.get("stand_in_tokens", 40))

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        encoder = self.card.encoders[0]
        height, width = prepared.pixels[self.tower_name].shape[-2:]
        tokens = (height // encoder.settings["patch"]) * (width // encoder.settings["patch"])
        tokens += 1 - self.first_token
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
            "features": f"hidden_states[{self.feature_layer}] {'without' if self.first_token else 'with'} the class "
            "token; the last layer runs too, as in the original",
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


def feature_of(of: Configuration) -> tuple[object, object]:
    """Return which layer's output is used and whether with the class token: by transformers' names, else LLaVA's."""
    strategy = of.model.get("vision_feature_select_strategy")
    feature = {"default": "patch", "full": "cls_patch"}.get(str(strategy), strategy)
    if "vision_feature_layer" in of.model or feature is not None:
        return of.model.get("vision_feature_layer"), feature
    return of.model.get("mm_vision_select_layer"), of.model.get("mm_vision_select_feature")


def _last(of: Configuration) -> object:
    """Return the repository that LLaVA's configuration names as its tower; a path is cut to its last two names."""
    named = of.model.get("mm_vision_tower")
    return "/".join(str(named).rstrip("/").split("/")[-2:]) if named else None


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model of `card`, ready to answer."""
    return Llava(card, source, options)
