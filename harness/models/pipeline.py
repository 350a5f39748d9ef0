"""What the families have in common: image(s) → encoder(s) → projector → language model, as a generator of events.

A family's file in `adapters/` subclasses `VisionLanguageModel` and says only what is its own: how an image is prepared,
what each encoder does with it, how features become visual tokens, and the chat template. Time is measured elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import images
from harness.errors import ExampleError, OutputError, SettingError
from harness.models import configuration, llms, loading, tokenizers
from harness.models.card import ModelCard
from harness.models.checkpoints import Tensors
from harness.models.configuration import Comparison, Configuration, Difference
from harness.models.foreign import Array, Output
from harness.models.loading import Target
from harness.models.protocol import Answered, Done, Event, Foreseen, Options, Piece, Request, Seen, Work
from harness.models.weights import Source

NOT_READ = Configuration(Path())


@dataclass(frozen=True, slots=True)
class Prepared:
    """One example's images after preprocessing, on the device.

    `pixels` has for each encoder a tensor (tiles, 3, height, width). `geometry` is whatever the family's `project`
    needs (image sizes, the tile grid). `processed_px`, `content_px`, `tiles` and `note` go to the log (`model.Seen`).
    """

    pixels: Mapping[str, Tensor]
    original_px: tuple[int, int]
    processed_px: tuple[int, int]
    content_px: int
    tiles: int
    conversions: tuple[str, ...] = ()
    geometry: object = None
    note: str = ""


class VisionLanguageModel(ABC):
    """A family's model; see the module's text for what a subclass says."""

    image_backend = "PIL bicubic"
    template = ""
    """The chat template's name, for the log."""

    configuration = NOT_READ
    """The checkpoint's own configuration; empty with random weights."""
    obeyed: tuple[Difference, ...] = ()
    """The fields in which the checkpoint's configuration differs from the card, and counts."""

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Build the modules (all, or `options.only`), fill them, and find the tokenizer."""
        self.card, self.source, self.options = card, source, options
        self.device, self.dtype = options.device, getattr(torch, options.dtype)
        self.encoder_names = [encoder.name for encoder in card.encoders]
        if options.only not in (None, "llm", *self.encoder_names):
            raise SettingError(
                f"{card.name} has no part {options.only!r}; parts: {', '.join([*self.encoder_names, 'llm'])}"
            )
        self.tokenizer = tokenizers.find(
            source.folder, card.llm.vocab if card.llm else 1, trained=source.trained and card.llm is not None
        )
        with loading.empty():
            built = self.build()
        self.parts = nn.ModuleDict({name: module for name, module in built.items() if self._wanted(name)})
        if source.trained and card.llm and source.folder:
            ends = configuration.ends(self.configuration)
            tokenizers.check(self.tokenizer, source.folder, card.llm.vocab, "".join(self.turns()), ends)
        if source.trained and options.device != "meta":
            assert source.folder
            self.load(source)
        else:
            loading.randomise(self.parts, options.seed, options.device, self.dtype)
        self.encoder_side = options.side
        self._largest: list[Array] = []
        """Of the last answer: each token's largest logit, still on the device; of an encoder alone, its features."""

    def configured(self, card: ModelCard, source: Source, options: Options) -> tuple[ModelCard, Options]:
        """Return card and options as the checkpoint's own configuration has them; every family begins with this.

        A setting that was asked for (`--set`) stays as asked. Raises `WeightsError` by field for what cannot be obeyed.
        """
        if not source.trained or not source.folder:
            return card, options
        self.options = options
        self.configuration = configuration.read(source.folder)
        comparison = Comparison(self.configuration, card.name)
        ours = card
        if card.llm:
            tensors = Tensors(source.folder)
            llm = configuration.language_model(card.llm, comparison)
            card = msgspec.structs.replace(card, llm=configuration.vocabulary(llm, tensors, tensors.shape, comparison))
        card = self.obey(card, source, comparison)
        comparison.close()
        self.obeyed = tuple(comparison.obeyed)
        kept = {name: value for name, value in options.settings.items() if value != ours.settings.get(name)}
        given = {name: card.settings.get(name, value) for name, value in options.settings.items()}
        return card, replace(options, settings={**given, **kept})

    # --- what a family says ---

    def obey(self, card: ModelCard, source: Source, comparison: Comparison) -> ModelCard:
        """Return the card with what the checkpoint says of its encoder, projector and images; extended by families."""
        return card

    @abstractmethod
    def turns(self) -> tuple[str, str]:
        """Return the chat template's text before and after the image, for an empty question (no LLM: nothing)."""

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return all modules by part name: each encoder's, "projector", "llm" (from `self.llm()`); none allocated."""

    @abstractmethod
    def rename(self, name: str) -> Target:
        """Return where the checkpoint's tensor `name` belongs: "<part>.<its name there>", None, or several targets."""

    @abstractmethod
    def prepare(self, pictures: list[images.Picture]) -> Prepared:
        """Turn decoded images into pixels on the device; raise `ExampleError` for what the family cannot take."""

    @abstractmethod
    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Run one encoder: features (tiles, tokens, width)."""

    @abstractmethod
    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        """Return the shape `encode` gives for each encoder: for the LLM timed alone, with stand-in features."""

    @abstractmethod
    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Tensor:
        """Turn features into visual tokens in the LLM's space: (visual tokens, hidden)."""

    @abstractmethod
    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the ids before and after the visual tokens, by the family's chat template (with its BOS, if any)."""

    def foresee_visual(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return tiles and visual tokens of an image of this size; None (the default): the same for all sizes."""
        return None

    def foresee(self, sizes: Sequence[tuple[int, int]], question: str) -> Foreseen:
        """Return what an example will be, without answering it; an image that cannot be read foretells nothing."""
        text = sum(map(len, self.prompt(question))) if self.card.llm else 0
        text += self.text_padding(text)
        seen = [self.foresee_visual(size) for size in sizes if 0 not in size]
        known = [each for each in seen if each is not None]
        if len(known) < len(sizes):
            return Foreseen(0, 0, text)
        return Foreseen(sum(tiles for tiles, _ in known), sum(tokens for _, tokens in known), text)

    def prefill_scope(
        self, features: Mapping[str, Tensor], prepared: Prepared, position: int
    ) -> AbstractContextManager[object]:
        """Return a context in which prefill runs, for families whose LLM looks at the features again (Cambrian-1)."""
        return nullcontext()

    def load(self, source: Source) -> None:
        """Fill the parts from a checkpoint; families whose encoders come from other repositories extend this."""
        assert source.folder
        loading.fill(self.parts, Tensors(source.folder), self.rename, self.device, self.dtype)

    # --- what they share ---

    channels_last = False
    """Whether the encoders' images and weights lie pixel by pixel in memory (see `memory_format`)."""

    @property
    def convolutional(self) -> bool:
        """Whether an encoder has convolutions beyond the one that cuts patches, so that the memory format matters."""
        encoders = [self.parts[name] for name in self.encoder_names if name in self.parts]
        return any(sum(isinstance(module, nn.Conv2d) for module in encoder.modules()) > 1 for encoder in encoders)

    def lay_out(self, channels_last: bool) -> None:
        """Have the encoders keep images and weights channels-last, or contiguous again: the same values."""
        form = torch.channels_last if channels_last else torch.contiguous_format
        for name in self.encoder_names:
            if name in self.parts:
                self.parts[name].to(memory_format=form)  # type: ignore[call-overload]
        self.channels_last = channels_last

    projector_by_shape = True
    """Whether what the projector does follows from its input's shape: only then is it compiled for static shapes."""

    @property
    def encoders_watched(self) -> bool:
        """Whether `encode` listens to modules inside an encoder, which must not be compiled away then."""
        return False

    scaler: images.Scaler | None = None
    """What resizes images in PIL's place."""

    def look(self, pictures: list[images.Picture]) -> Prepared:
        """Return the images' pixels on the device, as the encoders take them."""
        with images.scaled_by(self.scaler):
            return self.laid_out(self.prepare(pictures))

    def laid_out(self, prepared: Prepared) -> Prepared:
        """Return the pixels in the encoders' memory format."""
        if not self.channels_last:
            return prepared
        pixels = {name: each.to(memory_format=torch.channels_last) for name, each in prepared.pixels.items()}
        return replace(prepared, pixels=pixels)

    text_bucket = 0
    """Prompts' text is padded to multiples of so many tokens; 0: it is not."""

    def text_padding(self, text_tokens: int) -> int:
        """Return how many tokens are added after a prompt with so many text tokens."""
        return -text_tokens % self.text_bucket if self.text_bucket and text_tokens else 0

    def llm(self) -> nn.Module:
        """Return the language model of the card, for `build`."""
        assert self.card.llm, f"{self.card.name}: the card has no [llm]"
        return llms.build(self.card.llm)

    def _wanted(self, part: str) -> bool:
        only = self.options.only
        return only is None or part == only or (only == "llm" and part not in self.encoder_names)

    @torch.inference_mode()
    def answer(self, request: Request, /) -> Iterator[Event]:
        """Answer one request (batch 1, greedy, caches made anew): see `model.Model`."""
        only = self.options.only
        self.forget()
        pictures = [images.decode(data) for data in request.images]
        prepared = self.look(pictures)
        before, after = ([], []) if request.visual_only else self.prompt(request.question)
        features: dict[str, Tensor] = {}
        if only == "llm":
            features = self.stand_in(prepared)
        yield Done("preprocess")
        if only != "llm":
            for name in self.encoder_names if only is None else [only]:
                features[name] = self.encode(name, prepared)
                if len(self.encoder_names) > 1:
                    yield Done("encode", name)
            yield Done("encode")
            if only or not self.card.llm:  # an encoder alone: its tokens are counted, nothing is said
                self._largest = list(features.values())
                tokens = (
                    0 if self.card.llm else sum(feature.shape[0] * feature.shape[1] for feature in features.values())
                )
                yield self.seen(prepared, tokens, 0)
                return
        visual = self.project(features, prepared)
        yield Done("project")
        text = len(before) + len(after)
        yield self.seen(prepared, len(visual), text + self.text_padding(text))
        yield from self.generate(features, prepared, visual, before, after, request)

    def stand_in(self, prepared: Prepared) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.options.seed)
        return {
            name: torch.randn(shape, generator=generator).to(self.device, self.dtype)
            for name, shape in self.feature_shapes(prepared).items()
        }

    def seen(self, prepared: Prepared, visual_tokens: int, text_tokens: int) -> Seen:
        return Seen(
            prepared.original_px,
            prepared.processed_px,
            prepared.content_px,
            prepared.tiles,
            visual_tokens,
            text_tokens,
            prepared.conversions,
            prepared.note,
        )

    def embed(self, visual: Tensor, before: list[int], after: list[int]) -> Tensor:
        """Return the input embeddings (1, sequence, hidden): text before, visual tokens, text after."""
        table = self.parts["llm"].get_input_embeddings()  # type: ignore[operator]
        rows = table.num_embeddings
        beyond = [i for i in before + after if i >= rows]
        if beyond:
            raise ExampleError(
                f"the question has the token {self.tokenizer.decode(beyond[:1])!r} ({beyond[0]}), which is beyond the "
                f"{rows} rows of the embedding; next: leave this example out"
            )
        ids = torch.tensor(before + after, dtype=torch.long, device=self.device)
        text: Tensor = table(ids)
        return torch.cat([text[: len(before)], visual.to(text.dtype), text[len(before) :]])[None]

    def prefill(self, embeds: Tensor, scope: AbstractContextManager[object]) -> Output:
        """Run the LLM over the whole prompt, logits of the last position only; returns transformers' output."""
        with scope:
            return self.parts["llm"](inputs_embeds=embeds, cache=self.new_cache(), use_cache=True, logits_to_keep=1)

    static_cache = False
    """Whether keys and values lie in one place of fixed length (see `deployment`)."""
    decode_ahead = False
    """Whether the next step is asked for before a token is read, from the second token on."""
    steps: Output = None
    """What replays decode steps from CUDA graphs (`deployment.GraphedSteps`)."""
    _longest = 0
    """How many tokens prompt and answer may come to."""

    def new_cache(self) -> Output:
        """Return an empty cache for one answer; None: transformers makes one that grows."""
        if not self.static_cache or self.device == "meta":
            return None
        from harness.models import deployment

        length = -(-self._longest // deployment.BLOCK) * deployment.BLOCK
        return self.steps.cache(length) if self.steps else deployment.static_cache(self.parts["llm"], length)

    def forget(self) -> None:
        """Begin a new answer: what was kept of the last one, for `verify`, is its own."""
        self._largest = []

    def prefill_padded(self, embeds: Tensor, padding: int, scope: AbstractContextManager[object]) -> Output:
        """Run `prefill` with so many tokens of nothing after the prompt, and forget these.

        No token of the prompt looks at what comes after it, so its logits are the same; prompts of unlike lengths have
        one shape. The logits are those of the prompt's last token, the cache is the prompt's.
        """
        length = embeds.shape[1]
        nothing = embeds.new_zeros(1, padding, embeds.shape[2])
        last = torch.tensor([length - 1], device=embeds.device)
        with scope:
            output = self.parts["llm"](
                inputs_embeds=torch.cat([embeds, nothing], dim=1), use_cache=True, logits_to_keep=last
            )
        output.cache.crop(-padding)
        return output

    def greedy(self, output: Output) -> Array:
        """Return the likeliest next token, still on the device; its logit is kept for `verify`."""
        largest, token = output.logits[0, -1].max(dim=-1)
        self._largest.append(largest)
        return token

    def verify(self) -> None:
        """Raise `OutputError` if the last answer rests on a logit (or an encoder's features) that is not finite.

        The largest tells it for the whole vocabulary: NaN is larger than all else.
        """
        kept, self._largest = self._largest, []
        for number, tensor in enumerate(kept, 1):
            if not self.finite(tensor):
                if self.steps:
                    self.steps.forget()
                what = "features that are" if self._encoder_alone else f"logits of token {number} that are"
                stage = "encode" if self._encoder_alone else "prefill" if number == 1 else "decode"
                raise OutputError(f"{self.card.name} computed {what} not finite (NaN or infinite)", stage)

    def finite(self, value: Array) -> bool:
        """Return whether all of a kept value is finite."""
        return bool(torch.isfinite(value).all())

    @property
    def _encoder_alone(self) -> bool:
        return self.options.only not in (None, "llm") or not self.card.llm

    def decode(self, token: Array, output: Output) -> Output:
        """Run the LLM over one more token, on the cache of `output`."""
        if self.steps:
            return self.steps.step(token, output.cache)
        return self.parts["llm"](input_ids=token.view(1, 1), cache=output.cache, use_cache=True, logits_to_keep=1)

    def generate(
        self,
        features: Mapping[str, Tensor],
        prepared: Prepared,
        visual: Tensor,
        before: list[int],
        after: list[int],
        request: Request,
    ) -> Iterator[Event]:
        embeds = self.embed(visual, before, after)
        padding = self.text_padding(len(before) + len(after))
        self.check_length(embeds.shape[1], request, padding)
        self._longest = embeds.shape[1] + max(request.max_new_tokens, request.room)
        scope = self.prefill_scope(features, prepared, len(before))
        output = self.prefill_padded(embeds, padding, scope) if padding else self.prefill(embeds, scope)
        token = self.greedy(output)
        yield Done("prefill")
        yield from self.pieces(token, output, request)

    def check_length(self, prompt_tokens: int, request: Request, padding: int = 0) -> None:
        """Refuse a prompt that leaves the language model no positions for its answer."""
        positions = self.card.llm.positions if self.card.llm else 0
        if prompt_tokens + max(padding, request.max_new_tokens) > positions:
            raise ExampleError(
                f"{prompt_tokens} prompt tokens and {request.max_new_tokens} new ones exceed the {positions} "
                f"positions of {self.card.name}; next: a lower --res"
            )

    def stops(self, request: Request) -> set[int]:
        """Return the tokens that end an answer."""
        return set() if request.ignore_eos or not self.card.llm else set(self.card.llm.eos)

    def pieces(self, token: Array, output: Output, request: Request) -> Iterator[Piece]:
        """Yield the first token, and decode and yield the ones after it."""
        stream, stops = tokenizers.Stream(self.tokenizer), self.stops(request)
        for count, value in enumerate(self.tokens(token, output, request.max_new_tokens)):
            if value in stops:
                if not count:
                    yield Piece("")
                return
            yield Piece(stream.add(value))

    def tokens(self, token: Array, output: Output, most: int) -> Iterator[int]:
        """Yield at most so many tokens on the host.

        With `decode_ahead` the device computes the next one while the host reads this one; never before the first was
        read, for asking would be part of TTFT. An answer that ends early has then asked for one step too many.
        """
        for count in range(most):
            ahead = self.decode_ahead and 0 < count < most - 1
            if ahead:
                output = self.decode(token, output)
                following = self.greedy(output)
            yield int(token)  # waits for the device: the token is on the host only now
            if ahead:
                token = following
            elif count + 1 < most:
                output = self.decode(token, output)
                token = self.greedy(output)

    scoring = "features"
    """What questions about one image share when they are answered for their score alone (see `sharing`)."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answered]:
        """Answer questions about the same images, untimed; what their images themselves raise comes out."""
        from harness.models import sharing

        return sharing.answer_all(self, requests, self.scoring)

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log."""
        return {
            "dtype": self.options.dtype,
            "route": "own",
            "attention": "sdpa",
            "image_backend": self.image_backend,
            "template": self.template or self.card.prompt,
            "tokenizer": self.tokenizer.name,
            "parts": self.options.only or "all",
            **self._describe_memory_format(),
            **self.deployed,
            **({"text_bucket": f"text padded to multiples of {self.text_bucket} tokens"} if self.text_bucket else {}),
            **self._describe_configuration(),
        }

    deployed: Mapping[str, str] = {}
    """What of `deployment` took effect."""

    def _describe_memory_format(self) -> dict[str, str]:
        if not any(name in self.parts for name in self.encoder_names):
            return {}
        return {"memory_format": "channels_last" if self.channels_last else "contiguous"}

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the log must doubt of the answers, whatever their times."""
        trained = self.source.trained and self.card.llm is not None
        return configuration.decoding_doubts(self.configuration.generation) if trained else ()

    def _describe_configuration(self) -> dict[str, str]:
        if not self.source.trained or not self.source.folder:
            return {}
        told = {"configuration": "; ".join(map(str, self.obeyed)) or "as the card's"}
        if not self.configuration.model:
            told["configuration"] += " (no config.json)"
        told["decoding"] = configuration.decoding(self.configuration.generation)
        return told

    @torch.inference_mode()
    def work(self, seen: Seen, /) -> dict[str, Work]:
        """Count FLOPs and weight bytes by stage on a twin without memory (meta device), for an example like `seen`."""
        twin = self
        if self.options.device != "meta":
            twin = type(self)(self.card, Source("random"), replace(self.options, device="meta", only=None))
        prepared = twin.prepare([images.blank(seen.original_px)])
        shapes = twin.feature_shapes(prepared)
        features = {name: torch.empty(shape, dtype=twin.dtype, device="meta") for name, shape in shapes.items()}
        result = {}
        for name in twin.encoder_names:
            runs = len(prepared.pixels[name]) if twin.tiles_one_by_one else 1
            flops = _flops(partial(twin.encode, name, prepared))
            result[f"encode.{name}"] = Work(flops, runs * parameter_bytes(twin.parts[name]))
        result["encode"] = Work(sum(w.flops for w in result.values()), sum(w.weight_bytes for w in result.values()))
        if "projector" in twin.parts:
            flops = _flops(lambda: twin.project(features, prepared))
            result["project"] = Work(flops, parameter_bytes(twin.parts["projector"]))
        if "llm" in twin.parts and twin.card.llm:
            sequence = seen.visual_tokens + seen.text_tokens
            embeds = torch.empty(1, sequence, twin.card.llm.hidden, dtype=twin.dtype, device="meta")
            flops = _flops(lambda: twin.prefill(embeds, nullcontext()))
            result["prefill"] = Work(
                flops, parameter_bytes(twin.parts["llm"], but="embed_tokens" if not twin.card.llm.tied else None)
            )
        if len(twin.encoder_names) == 1:
            del result[f"encode.{twin.encoder_names[0]}"]
        return result

    tiles_one_by_one = False
    """Whether `encode` runs an encoder once per tile (and reads its weights each time) or over all tiles at once."""

    def close(self) -> None:
        """Free the weights."""
        for part in self.parts.values():
            part.__dict__.pop("forward_features", None)  # compiled or replayed, it holds its part: memory would stay
        self.parts, self.steps = nn.ModuleDict(), None
        empty = getattr(getattr(torch, self.device.partition(":")[0], None), "empty_cache", None)
        if empty:
            empty()


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def parameter_bytes(module: nn.Module, but: str | None = None) -> int:
    """Return the bytes of all parameters of `module`, tied ones once, without those whose name contains `but`."""
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if not (but and but in name))


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of `module`, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def to_device(pixels: NDArray[np.float32], device: str, dtype: torch.dtype) -> Tensor:
    """Return float32 numpy pixels as a tensor on `device` in `dtype` (meta: the shape alone).

    The device rounds: torch would have the host do it before it copies, 8 ms instead of 1 at 1024 px to an H100.
    """
    return torch.from_numpy(pixels).to(device).to(dtype)


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Return LLaVA's `mlp2x_gelu` projector: Linear, GELU (exact), Linear; keys `0.*` and `2.*`."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
