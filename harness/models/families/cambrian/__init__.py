"""Cambrian-1: four encoders, the spatial vision aggregator as connector, and samplers of it inside the LLM.

Released checkpoints hold the LLM, connector and samplers; the encoders come from four other repositories. Source:
arXiv:2406.16860 and github.com/cambrian-mllm/cambrian.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import cast

import msgspec
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import images
from harness.errors import ExampleError, UnknownName, WeightsError
from harness.models import configuration, loading, weights
from harness.models.card import Encoder, ModelCard, Table
from harness.models.checkpoints import Tensors
from harness.models.configuration import Comparison
from harness.models.families.cambrian.aggregator import Connector, Sampler, Views, views, window
from harness.models.families.cambrian.encoders import RGB, TOWERS, Tower
from harness.models.families.cambrian.templates import TEMPLATES
from harness.models.foreign import Network, Output
from harness.models.loading import Target
from harness.models.pipeline import Prepared, VisionLanguageModel, parameter_bytes, to_device
from harness.models.protocol import Options, Seen, Work
from harness.models.tokenizers import StandIn
from harness.models.weights import Source

STATED = {
    "image_position": "image_position",
    "connector_depth": "connector_depth",
    "start_of_vision_sampler_layers": "sampler_first",
    "stride_of_vision_sampler_layers": "sampler_stride",
    "num_of_vision_sampler_layers": "sampler_number",
}
"""Fields of the checkpoint's configuration, and the settings that they are here."""


def load(card: ModelCard, source: Source, options: Options) -> "Cambrian":
    """Return the model of a Cambrian-1 card."""
    return Cambrian(card, source, options)


@dataclass(slots=True)
class Geometry:
    """The image's size, and what the samplers inside the LLM look at once `project` has made it."""

    size: tuple[int, int]
    views: Views | None = None


class Cambrian(VisionLanguageModel):
    """See the module's text. Encoders run one by one; inputs have each encoder's own size, whatever `--res` says."""

    projector_by_shape = False  # the connector cuts its windows by the image's size

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Read the settings, and check that the image stands where the samplers look."""
        if card.prompt not in TEMPLATES:
            raise UnknownName(f"prompt of {card.name}", card.prompt, TEMPLATES)
        card, options = self.configured(card, source, options)
        settings: Table = {**card.settings, **options.settings}
        self.query_side = int(settings["query_side"])
        self.aggregator_width = int(settings["aggregator_width"])
        self.connector_depth = int(settings["connector_depth"])
        first, stride, number = (int(settings[f"sampler_{name}"]) for name in ("first", "stride", "number"))
        self.sampler_layers = [first + stride * index for index in range(number)]
        self.image_position = int(settings["image_position"])
        self.encoder_sources: dict[str, str] = {}
        super().__init__(card, source, options)
        self.encoder_side = max(encoder.side or 0 for encoder in card.encoders)
        if "llm" in self.parts:
            self._check_position()

    def build(self) -> dict[str, nn.Module]:
        """Return the encoders, the connector ("projector"), the samplers inside the LLM and the LLM."""
        assert self.card.llm
        connector = Connector(
            [encoder.width for encoder in self.card.encoders],
            [encoder.settings["grid"] for encoder in self.card.encoders],
            self.query_side,
            self.aggregator_width,
            self.card.llm.hidden,
            self.connector_depth,
        )
        encoders = {encoder.name: self._tower(encoder).build(encoder) for encoder in self.card.encoders}
        return {**encoders, "projector": connector, "samplers": self._samplers(), "llm": self.llm()}

    def _tower(self, encoder: Encoder) -> Tower:
        if encoder.architecture not in TOWERS:
            raise UnknownName(f"architecture of encoder {encoder.name}", encoder.architecture, TOWERS)
        return TOWERS[encoder.architecture]

    def _samplers(self) -> nn.ModuleList:
        assert self.card.llm
        spans = [encoder.settings["grid"] // self.query_side for encoder in self.card.encoders]
        hidden, width = self.card.llm.hidden, self.aggregator_width
        return nn.ModuleList(Sampler(hidden, width, spans, 1) for _ in self.sampler_layers)

    # --- weights ---

    def load(self, source: Source) -> None:
        """Fill LLM, connector and samplers from the checkpoint's folder, and each encoder from its own.

        An encoder's folder is `<checkpoint's folder>/<encoder's name>` where there is one, else its repository in the
        Hub cache or on the Hub. Raises `WeightsError` naming the repository where there is neither.
        """
        assert source.folder
        own = nn.ModuleDict({name: part for name, part in self.parts.items() if name not in self.encoder_names})
        if own:
            loading.fill(own, Tensors(source.folder), self.rename, self.device, self.dtype)
        for encoder in self.card.encoders:
            if encoder.name in self.parts:
                tower = self._encoder_source(encoder, source)
                assert tower.folder
                part = nn.ModuleDict({encoder.name: self.parts[encoder.name]})
                rename = partial(self.rename_encoder, encoder)
                loading.fill(part, Tensors(tower.folder), rename, self.device, self.dtype)
                self.encoder_sources[encoder.name] = f"{encoder.repo} at {tower.folder.name}"

    def rename(self, name: str) -> Target:
        """Return where a tensor of the Cambrian checkpoint belongs."""
        if name.endswith(".rotary_emb.inv_freq"):
            return None
        inner = name.removeprefix("model.")
        if inner.startswith("vision_sampler_layers."):
            return f"samplers.{inner.removeprefix('vision_sampler_layers.')}"
        if inner.startswith(("mm_projector", "vision_query", "vision_sampler_0.", "image_newline")):
            return f"projector.{inner}"
        return f"llm.{name}"

    def rename_encoder(self, encoder: Encoder, name: str) -> Target:
        """Return where a tensor of an encoder's own repository belongs."""
        target = self._tower(encoder).rename(name)
        if target is None:
            return None
        if isinstance(target, str):
            return f"{encoder.name}.{target}"
        return [(f"{encoder.name}.{goal}", change) for goal, change in target]

    def _encoder_source(self, encoder: Encoder, source: Source) -> Source:
        found = weights.towers_of(self.card, source, self.options.settings).get(encoder.name)
        if found:
            return found
        assert source.folder
        raise WeightsError(
            f"{self.card.name}: encoder {encoder.name!r} has no weights: no folder {source.folder / encoder.name}, and "
            f"{encoder.repo} is neither in the Hub cache nor to be fetched; next: `hf download {encoder.repo}`, or put "
            "its files into that folder"
        )

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Follow the samplers' places and the connector's depth; refuse another aggregator and other encoders."""
        model, settings = comparison.configuration.model, dict(card.settings)
        grids = [encoder.settings["grid"] for encoder in card.encoders]
        cells = int(settings["query_side"]) ** 2
        demanded: dict[str, object] = {
            "mm_projector_type": "sva",
            "image_aspect_ratio": "pad",
            "connector_only": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "num_query_group": 1,
            "query_num_list": [cells],
            "image_token_len": cells,
            "vision_hidden_size": settings["aggregator_width"],
            "mm_vision_tower_aux_token_len_list": [grid**2 for grid in grids],
        }
        for name, ours in demanded.items():
            comparison.demand(name, model.get(name), ours)
        for name, setting in STATED.items():
            settings[setting] = comparison.obey(name, model.get(name), settings[setting])
        towers = weights.towers_of(card, source, self.options.settings)
        for encoder in card.encoders:
            folder = towers[encoder.name].folder if encoder.name in towers else None
            if folder:
                own = configuration.read(folder)
                for name, ours in self._tower(encoder).stated(encoder).items():
                    comparison.demand(f"{encoder.name} {name}", (own.vision or own.model).get(name), ours)
        return msgspec.structs.replace(card, settings=settings)

    def turns(self) -> tuple[str, str]:
        return TEMPLATES[self.card.prompt]("")

    def _check_position(self) -> None:
        """Refuse a tokenizer that puts the image where the samplers do not look: one off is wrong without an error."""
        expected, place = self.image_position, self.source.folder
        configured = place / "config.json" if place else None
        if configured and configured.is_file():
            stated = json.loads(configured.read_text()).get("image_position", expected)
            if stated != expected:
                raise WeightsError(
                    f"{configured}: image_position {stated}, {self.card.name} has {expected}; "
                    f"next: --set image_position={stated}"
                )
        found = len(self.prompt("")[0])
        if found != expected:
            raise WeightsError(
                f"{place}: its tokenizer puts the image at position {found}, the samplers in the LLM were trained for "
                f"{expected}; next: fetch the tokenizer of {self.card.hub.repo if self.card.hub else self.card.name}"
            )

    # --- one example ---

    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Pad to a square, resize (bicubic) and normalise for each encoder; raise `ExampleError` beyond about 24:1."""
        if len(pictures) != 1:
            raise ExampleError(f"{self.card.name} takes one image, the example has {len(pictures)}")
        picture = pictures[0]
        shown = window(picture.size, self.query_side)
        if not shown.rows * shown.cols:
            raise ExampleError(
                f"an image of {picture.size[0]}x{picture.size[1]} pixels is too thin for {self.card.name}: no cell of "
                f"its {self.query_side}x{self.query_side} grid is left; next: crop or remove this example"
            )
        squares: dict[RGB, Image] = {}
        pixels = {}
        for encoder in self.card.encoders:
            tower, side = self._tower(encoder), encoder.side or 0
            if tower.padding not in squares:
                squares[tower.padding] = images.pad_square(picture.image, images.mean_colour(tower.padding))
            array = images.normalise(images.resize(squares[tower.padding], side, side), tower.mean, tower.std)
            pixels[encoder.name] = to_device(array[None], self.device, self.dtype)
        largest = self.encoder_side
        sides = ", ".join(f"{encoder.name} {encoder.side}" for encoder in self.card.encoders)
        return Prepared(
            pixels=pixels,
            original_px=picture.size,
            processed_px=(largest, largest),
            content_px=prod(images.fit(picture.size, largest)),
            tiles=1,
            conversions=picture.conversions,
            geometry=Geometry(picture.size),
            note=f"fixed sides: {sides}; grid {shown.rows}x{shown.cols}",
        )

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the encoder's features on its grid: (1, grid x grid, width)."""
        encoder = self._encoder(name)
        return self._tower(encoder).run(self.parts[name], prepared.pixels[name], encoder.settings["grid"])

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        """Return (1, grid x grid, width) by encoder."""
        return {encoder.name: (1, encoder.settings["grid"] ** 2, encoder.width) for encoder in self.card.encoders}

    def _encoder(self, name: str) -> Encoder:
        return next(encoder for encoder in self.card.encoders if encoder.name == name)

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        """Return the visual tokens, (rows x (cols + 1), hidden): 600 for a square, 450 for 4:3, 350 for 16:9."""
        connector: Network = self.parts["projector"]
        geometry = cast(Geometry, prepared.geometry)
        maps = connector.maps([features[name][0] for name in self.encoder_names])
        visual: Tensor = connector(maps, geometry.size)
        geometry.views = views(maps, geometry.size, self.query_side, crop=True)
        return visual

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the ids around the image as the published inference code makes them.

        That code tokenizes the halves apart and, where the first begins with BOS, drops the first id of the second.
        With a tokenizer that adds BOS itself (13B) the dropped id is that BOS; in the llama_3 template, which has BOS
        in its text, it is the line break after the image, which training kept: the released behaviour, and so ours.
        """
        assert self.card.llm
        before, after = TEMPLATES[self.card.prompt](question)
        first, second = self.tokenizer.encode(before), self.tokenizer.encode(after)
        if self.card.prompt == "llama_3":
            second = second[1:]
        elif self.card.prompt in ("vicuna_v1", "phi3") and self.card.llm.bos is not None:
            first = [self.card.llm.bos, *first]
        if isinstance(self.tokenizer, StandIn):  # as long as the real one makes it
            first = (first * (self.image_position // len(first) + 1))[: self.image_position]
        return first, second

    @contextmanager
    def prefill_scope(self, features: Mapping[str, Tensor], prepared: Prepared, position: int) -> Iterator[None]:  # type: ignore[override]  # a context manager once decorated
        """Let the samplers rewrite the image's hidden states after their decoder layers; decode runs without them."""
        geometry = cast(Geometry, prepared.geometry)
        if geometry.views is None:
            self.project(features, prepared)
        shown = window(geometry.size, self.query_side)
        llm: Network = self.parts["llm"]
        samplers: Network = self.parts["samplers"]
        handles = []
        for index, sampler in zip(self.sampler_layers, samplers, strict=True):

            def look(_module: object, _inputs: object, output: Output, sampler: nn.Module = sampler) -> None:
                hidden = output if isinstance(output, Tensor) else output[0]
                block = hidden[0, position : position + shown.rows * (shown.cols + 1)]
                cells = block.unflatten(0, (shown.rows, shown.cols + 1))[:, :-1]  # newlines stay as they are
                queries = cells.reshape(-1, 1, cells.shape[-1])
                cells.copy_(sampler(queries, geometry.views).view_as(cells))

            handles.append(llm.model.layers[index].register_forward_hook(look))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- what the log says ---

    def describe(self) -> dict[str, str]:
        """Add the order of the encoders, the samplers' layers and where the encoders' weights came from."""
        return {
            **super().describe(),
            "encoders": ", ".join(self.encoder_names),
            "samplers_after_layers": ", ".join(map(str, self.sampler_layers)),
            "line_break_after_image": "dropped, as at inference" if self.card.prompt == "llama_3" else "kept",
            **{f"weights_{name}": place for name, place in self.encoder_sources.items()},
        }

    @torch.inference_mode()
    def work(self, seen: Seen, /) -> dict[str, Work]:
        """Count as the other families do, and add the samplers to prefill."""
        result = super().work(seen)
        with loading.empty():
            samplers = nn.ModuleDict({"samplers": self._samplers()})
        loading.randomise(samplers, 0, "meta", self.dtype)
        maps = [
            torch.empty(encoder.settings["grid"] ** 2, self.aggregator_width, dtype=self.dtype, device="meta")
            for encoder in self.card.encoders
        ]
        looked = views(maps, seen.original_px, self.query_side, crop=True)
        assert self.card.llm
        queries = torch.empty(len(looked.keys[0]), 1, self.card.llm.hidden, dtype=self.dtype, device="meta")
        with FlopCounterMode(display=False) as counter:
            for sampler in samplers.children():
                for each in sampler.children():
                    each(queries, looked)
        if "prefill" in result:
            prefill = result["prefill"]
            flops = prefill.flops + int(counter.get_total_flops())
            result["prefill"] = Work(flops, prefill.weight_bytes + parameter_bytes(samplers))
        return result
