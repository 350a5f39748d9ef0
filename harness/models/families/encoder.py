"""Any one vision encoder of timm or transformers, by card: alone, or before an LLM in the LLaVA-1.5 recipe.

A card without `[llm]` gives an encoder-only model: its answer ends after the encode stage and has no piece. A card
with one is a pair such as the FastVLM paper's Figure 1a is made of: no one released its weights, so a pair is random.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from harness import images
from harness.cards import Facts
from harness.errors import CardError, ExampleError, MissingPackage, SettingError, UnknownName, WeightsError
from harness.models import loading, templates
from harness.models.card import Encoder, ModelCard, Table, with_settings
from harness.models.checkpoints import Tensors
from harness.models.configuration import Comparison
from harness.models.foreign import Network
from harness.models.loading import Target
from harness.models.pipeline import Prepared, VisionLanguageModel, mlp, to_device
from harness.models.protocol import Options
from harness.models.weights import Source

PROMPTS: dict[str, Callable[[str], tuple[str, str]]] = {"qwen_2": templates.qwen_2, "vicuna_v1": templates.vicuna_v1}


FOLLOWED = ("num_attention_heads", "hidden_act", "layer_norm_eps")
UNUSED = ("projection_dim", "vision_use_head", "out_features", "out_indices", "use_mask_token")
"""Fields of an encoder's configuration that are obeyed, and those that its features do not depend on."""


class Settings(Facts, frozen=True):
    """The `settings` table of an encoder's card.

    `feature` says which output is used (see `FEATURES`); `mean` and `std` are of pixels in 0..1; `prefixes` are taken
    off a checkpoint's names, and names that begin with one of `unused` (text tower, classifier) are known and left out.
    `config` are the fields of a transformers configuration, `arguments` those of `timm.create_model`.
    """

    feature: Literal["map", "last_patches", "penultimate_patches"]
    mean: tuple[float, float, float] = images.OPENAI_CLIP_MEAN
    std: tuple[float, float, float] = images.OPENAI_CLIP_STD
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    config: Table = {}
    arguments: Table = {}


def load(card: ModelCard, source: Source, options: Options) -> "EncoderModel":
    """Return the model of an encoder-only or a pair card."""
    return EncoderModel(card, source, options)


class EncoderModel(VisionLanguageModel):
    """One encoder, its patch features as visual tokens, and where the card has an LLM, projector and LLM."""

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Check what the card says before anything is built."""
        if len(card.encoders) != 1:
            raise CardError(f"{card.name}: adapter 'encoder' takes one encoder, the card has {len(card.encoders)}")
        if options.only == "llm" and not card.llm:
            raise SettingError(f"{card.name} has no LLM; its only part is {card.encoders[0].name!r}")
        if card.llm and card.prompt not in PROMPTS:
            raise UnknownName(f"prompt of {card.name}", card.prompt, PROMPTS)
        if card.llm and source.trained:
            raise WeightsError(
                f"{source.folder}: {card.name} pairs two models that no one released together, so no checkpoint can be "
                "its weights; next: --weights random"
            )
        card, options = self.configured(card, source, options)
        self.encoder = card.encoders[0]
        self.settings = read_settings(card)
        fixed = card.resolution.rule == "fixed"
        self.side = card.resolution.default if fixed else options.side
        self.side_note = f"fixed {self.side} px, asked for {options.side}" if self.side != options.side else ""
        super().__init__(card, source, options)
        self.encoder_side = self.side
        # counted once: the timed part of an example with stand-in features must not pay for it
        self._shape = self._count() if options.only == "llm" or options.device == "meta" else ()

    def build(self) -> dict[str, nn.Module]:
        """Return the encoder, and with an LLM the projector and the LLM."""
        built = {self.encoder.name: build(self.encoder, self.settings)}
        if self.card.llm:
            built["projector"] = mlp(self.encoder.width, self.card.llm.hidden)
            built["llm"] = self.llm()
        return built

    def load(self, source: Source) -> None:
        """Fill the encoder from a folder in the layout of the card's Hub repository.

        FastViT is published with its training branches; such a folder fills a model in that form (fp32), which is then
        re-parameterised: the same function, in the form that is timed.
        """
        assert source.folder
        tensors, name = Tensors(source.folder), self.encoder.name
        if not self.settings.arguments.get("inference_mode") or any(".reparam_conv." in key for key in tensors):
            loading.fill(self.parts, tensors, self.rename, self.device, self.dtype)
            return
        from timm.utils import reparameterize_model  # type: ignore[attr-defined]

        arguments = {**self.settings.arguments, "inference_mode": False}
        with loading.empty():
            whole = build(self.encoder, msgspec.structs.replace(self.settings, arguments=arguments))
        self.parts[name] = whole
        loading.fill(self.parts, tensors, self.rename, "cpu", torch.float32)
        fused = reparameterize_model(self.parts[name])
        self.parts[name] = fused.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)

    def rename(self, name: str) -> Target:
        """Return the encoder's own name for a checkpoint's tensor: prefixes off, text tower and classifier left out."""
        if name.startswith(self.settings.unused):
            return None
        for prefix in self.settings.prefixes:
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        # older releases of transformers keep the towers of CLIP and SigLIP one level down
        inner = "vision_model." if hasattr(self.parts[self.encoder.name], "vision_model") else ""
        return f"{self.encoder.name}.{inner}{name}"

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Follow heads, activation and eps of a transformers' encoder; refuse another size or another timm model."""
        encoder, settings = card.encoders[0], read_settings(card)
        own = comparison.configuration
        fields = own.vision or own.model
        if encoder.library == "timm":
            named = fields.get("architecture")
            comparison.demand("architecture", str(named).partition(".")[0] if named else None, encoder.architecture)
            return card
        obeyed = {}
        for name, ours in settings.config.items():
            if name in FOLLOWED:
                obeyed[name] = comparison.obey(name, fields.get(name), ours)
            elif name not in UNUSED:
                comparison.demand(name, fields.get(name), ours)
        return with_settings(card, config={**settings.config, **obeyed})

    def turns(self) -> tuple[str, str]:
        return PROMPTS[self.card.prompt]("") if self.card.llm else ("", "")

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Pad to a square with the mean colour, resize (bicubic), normalise: LLaVA-1.5's `pad`."""
        if len(pictures) != 1:
            raise ExampleError(f"{self.card.name} takes one image, the example has {len(pictures)}")
        picture, side = pictures[0], self.side
        square = images.pad_and_resize(picture.image, images.mean_colour(self.settings.mean), side)
        array = images.normalise(square, self.settings.mean, self.settings.std)
        width, height = images.fit(picture.size, side)
        return Prepared(
            pixels={self.encoder.name: to_device(array[None], self.device, self.dtype)},
            original_px=picture.size,
            processed_px=(side, side),
            content_px=width * height,
            tiles=1,
            conversions=picture.conversions,
            note=self.side_note,
        )

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the card's feature: (1, tokens, width)."""
        take = FEATURES[self.encoder.library, self.settings.feature]
        return take(self.parts[name], prepared.pixels[name])

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        """Return (1, tokens, width)."""
        return {self.encoder.name: self._shape}

    @torch.inference_mode()
    def _count(self) -> tuple[int, ...]:
        """Run the encoder without memory: this model's own on the meta device, else a twin."""
        twin = self.parts
        if self.options.device != "meta" or self.encoder.name not in self.parts:
            with loading.empty():
                twin = nn.ModuleDict({self.encoder.name: build(self.encoder, self.settings)})
            loading.randomise(twin, 0, "meta", self.dtype)
        pixels = torch.empty(1, 3, self.side, self.side, dtype=self.dtype, device="meta")
        take = FEATURES[self.encoder.library, self.settings.feature]
        return tuple(take(twin[self.encoder.name], pixels).shape)

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        """Return (tokens, hidden)."""
        projected: Tensor = self.parts["projector"](features[self.encoder.name])
        return projected[0]

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the ids before and after the visual tokens by the card's template; none without an LLM."""
        if not self.card.llm:
            return [], []
        before, after = PROMPTS[self.card.prompt](question)
        bos = [] if self.card.llm.bos is None else [self.card.llm.bos]
        return bos + self.tokenizer.encode(before), self.tokenizer.encode(after)

    def describe(self) -> dict[str, str]:
        """Add what the card says of the encoder."""
        return {
            **super().describe(),
            "encoder": f"{self.encoder.library}:{self.encoder.architecture}",
            "feature": self.settings.feature,
            "aspect": "pad",
            "encoder_side": str(self.side),
        }


def read_settings(card: ModelCard) -> Settings:
    """Return the settings of the card's encoder, checked; raise `CardError` naming the field."""
    try:
        return msgspec.convert(card.encoders[0].settings, Settings)
    except msgspec.ValidationError as error:
        raise CardError(
            f"{card.name}: encoder {card.encoders[0].name!r}, settings: {error}; next: mend the card"
        ) from error


def build(encoder: Encoder, settings: Settings) -> nn.Module:
    """Return the encoder of timm or transformers, without classifier; call under `loading.empty()`."""
    if encoder.library == "own":
        raise CardError(
            f"encoder {encoder.name!r}: library 'own' belongs to a family's adapter; here: timm, transformers"
        )
    return (_timm if encoder.library == "timm" else _transformers)(encoder, settings)


def _timm(encoder: Encoder, settings: Settings) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingPackage(error.name or "timm", f"encoder {encoder.name!r}") from error
    if not timm.is_model(encoder.architecture):
        raise UnknownName("timm model", encoder.architecture, timm.list_models(f"{encoder.architecture[:4]}*"))
    # ViTamin's convolutional stem runs itself once to learn its output's size: its input must be where the weights are
    place: AbstractContextManager[object] = nullcontext()
    if encoder.architecture.startswith("vitamin"):
        place = torch.device("meta")
    with place:
        model: nn.Module = timm.create_model(encoder.architecture, num_classes=0, **settings.arguments)
    for head in ("head", "fc_norm"):  # after the features; only a classifier would use it
        if hasattr(model, head):
            setattr(model, head, nn.Identity())
    return model


def _transformers(encoder: Encoder, settings: Settings) -> nn.Module:
    import transformers

    model_class: Network = getattr(transformers, encoder.architecture, None)
    if not getattr(model_class, "config_class", None):
        known = [name for name in dir(transformers) if name.endswith(("VisionModel", "Model"))]
        raise UnknownName("transformers model", encoder.architecture, known)
    config = model_class.config_class(**settings.config)
    config._attn_implementation = "sdpa"
    model: nn.Module = model_class(config)
    return model


def _timm_map(model: Network, pixels: Tensor) -> Tensor:
    features: Tensor = model.forward_features(pixels)
    return features.flatten(2).transpose(1, 2)


def _timm_last(model: Network, pixels: Tensor) -> Tensor:
    features: Tensor = model.forward_features(pixels)
    return features[:, model.num_prefix_tokens :]


def _timm_penultimate(model: Network, pixels: Tensor) -> Tensor:
    layer = len(model.blocks) - 2
    features: Tensor = model.forward_intermediates(
        pixels, indices=[layer], intermediates_only=True, norm=False, output_fmt="NLC"
    )[0]
    return features


def _transformers_map(model: Network, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixel_values=pixels).last_hidden_state
    return features.flatten(2).transpose(1, 2)


def _transformers_last(model: Network, pixels: Tensor) -> Tensor:
    return _patches(model, pixels, model(pixel_values=pixels).last_hidden_state)


def _transformers_penultimate(model: Network, pixels: Tensor) -> Tensor:
    return _patches(model, pixels, model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2])


def _patches(model: Network, pixels: Tensor, features: Tensor) -> Tensor:
    """Return `features` without class and register tokens, which stand first."""
    size = model.config.patch_size
    return features[:, features.shape[1] - (pixels.shape[2] // size) * (pixels.shape[3] // size) :]


FEATURES: dict[tuple[str, str], Callable[[Network, Tensor], Tensor]] = {
    ("timm", "map"): _timm_map,
    ("timm", "last_patches"): _timm_last,
    ("timm", "penultimate_patches"): _timm_penultimate,
    ("transformers", "map"): _transformers_map,
    ("transformers", "last_patches"): _transformers_last,
    ("transformers", "penultimate_patches"): _transformers_penultimate,
}
"""(tiles, 3, side, side) to (tiles, tokens, width). `map`: the last feature map, row by row. `last_patches`: the last
layer's tokens, `penultimate_patches`: those of the layer before it (LLaVA's choice; all layers are run, as LLaVA does),
in both without class token."""
