"""The model of family `auto`: any checkpoint that transformers runs without remote code, as a generator of events."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from PIL.Image import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import images
from harness.errors import ExampleError, OutputError, SettingError
from harness.models import configuration, deployment, tokenizers
from harness.models.card import ModelCard, check_settings, check_side
from harness.models.families.auto import loading, parts, resolution, shown
from harness.models.families.auto.kinds import family, kind_of
from harness.models.families.auto.seam import Inputs, Seam, on_device
from harness.models.foreign import Config, Network, Processor
from harness.models.protocol import Done, Event, Options, Piece, Request, Seen, Work
from harness.models.weights import Source

SETTINGS: dict[str, str | int | float | bool] = {"projector": ""}
"""`projector`: path of the module where project begins; empty: looked for by its usual names."""


class AnyModel:
    """See `protocol.Model`. `hear` is called with what ends inside a library's call; the stage pass alone sets it."""

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Load, find the seam and turn `--res` into the processor's words."""
        if options.only is not None:
            raise SettingError(f"{card.name} runs by transformers' own code, which is not taken apart; next: without "
                               "--isolate-stages")  # fmt: skip
        check_side(card, options.side)
        self.card, self.options, self.trained = card, options, source.trained
        self.settings = check_settings(card, {k: v for k, v in options.settings.items() if k in card.settings})
        self.hear: Callable[[Event], None] | None = None
        self._largest: list[torch.Tensor] = []
        self.loaded = loading.load(card, source, options)
        self.model: Network = self.loaded.model
        self.processor, self.config = self.loaded.processor, self.loaded.config
        self.image_processor = self.processor.image_processor
        self.family = family(self.config)
        self.kind = kind_of(self.family)
        self.scaler = deployment.by_torchvision if options.settings.get("image_backend") == "torchvision" else None
        self.asked = resolution.asked(options.side, self.family, self.config, self.image_processor)
        self.seam = Seam(self.model, self._tell, str(self.settings.get("projector", "")))
        self.image_token_id = parts.image_token_id(self.config)
        self.dtype = getattr(torch, options.dtype)
        text = self.config.get_text_config()
        self.positions = int(getattr(text, "max_position_embeddings", 0) or 0)
        self.tokenizer: tokenizers.Tokenizer = (
            tokenizers.StandIn(text.vocab_size) if self.loaded.stands_in else Words(self.processor.tokenizer)
        )

    def _tell(self, event: Done) -> None:
        if self.hear:
            self.hear(event)

    # --- an answer ---

    def prepare(self, request: Request) -> tuple[Inputs, Seen]:
        """Decode, template, and run the processor; returns the model's inputs and what it is shown of them."""
        if self.kind.one_image and len(request.images) != 1:
            raise ExampleError(f"{len(request.images)} images: {self.card.name} was made for one; next: another suite")
        pictures = [images.decode(data) for data in request.images]
        with images.scaled_by(self.scaler):
            given = [self.asked.prepared(picture.image) for picture in pictures]
        text = self._prompt(len(given), "" if request.visual_only else request.question, request.visual_only)
        try:
            batch = self._process(text, given, bare=request.visual_only)
        except (ValueError, TypeError, IndexError) as error:
            what = f"the processor of {self.family} refuses it: {str(error).splitlines()[0]}"
            raise ExampleError(f"{what}; next: another --res, or remove this example") from error
        seen = self._seen(batch, pictures, given)
        if request.visual_only and seen.text_tokens:
            raise SettingError(
                f"--protocol paper: {self.card.name} has {seen.text_tokens} marks among its visual tokens, and the "
                "paper's prefill is of visual tokens alone; next: --protocol ttft, or --route own where there is one"
            )
        ids = batch["input_ids"]
        if not self.config.is_encoder_decoder and 0 < self.positions < ids.shape[1] + request.max_new_tokens:
            raise ExampleError(
                f"{ids.shape[1]} prompt tokens and {request.max_new_tokens} new ones exceed the {self.positions} "
                f"positions of {self.card.name}; next: a lower --res"
            )
        return on_device(batch, self.options.device, self.dtype), seen

    def _prompt(self, count: int, question: str, bare: bool) -> str:
        if bare:
            return self.kind.marker * count
        if getattr(self.processor, "chat_template", None):
            content: list[dict[str, str]] = [{"type": "image"}] * count + [{"type": "text", "text": question}]
            told = [{"role": "user", "content": content}]
            text: str = self.processor.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
            return text
        return self.kind.marker * count + question

    def _process(self, text: str, given: list[Image], bare: bool = False) -> Inputs:
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        once = {"add_special_tokens": False} if bare or (bos and text.startswith(bos)) else {}
        batch: Inputs = self.processor(
            images=given, text=[text], return_tensors="pt", text_kwargs=once, images_kwargs=dict(self.asked.arguments)
        )
        return batch

    def _seen(self, batch: Inputs, pictures: list[images.Picture], given: list[Image]) -> Seen:
        look = shown.shown(batch, self.config, self.image_processor)
        ids = batch["input_ids"]
        count = shown.tokens(ids, self.image_token_id)
        notes = [look.note] if look.note else []
        text_tokens = ids.shape[1] - (count or 0)
        if self.family == "mllama":
            vision = self.config.vision_config
            count = len(look.tiles) * ((vision.image_size // vision.patch_size) ** 2 + 1)
            notes.append("visual states are attended to by cross attention and are not in the prompt")
        elif count is None:
            notes.append("the configuration names no image token: visual tokens are not counted")
        content = self._content(look, given)
        if content is None:
            notes.append("padding is counted among the image's pixels")
        sizes = [picture.size for picture in pictures]
        if len(sizes) > 1:
            notes.append(f"{len(sizes)} images: {', '.join(f'{w}x{h}' for w, h in sizes)}")
        return Seen(
            sizes[0] if sizes else (0, 0),
            look.processed_px,
            look.area if content is None else content,
            len(look.tiles),
            count or 0,
            text_tokens,
            tuple(text for picture in pictures for text in picture.conversions),
            "; ".join([f"asked {self.options.side}", *notes]),
            tuple(sizes) if len(sizes) > 1 else (),
        )

    def _content(self, look: shown.Shown, given: list[Image]) -> int | None:
        """Return how many of the encoder's pixels show the image, less than all where it was padded; None: unknown."""
        if self.asked.square and look.tiles:
            return sum(
                min(tile[0] * tile[1], w * h) for tile, (w, h) in zip(look.tiles, self._fitted(given), strict=False)
            )
        return shown.content(look, self.family, self.image_processor, [image.size for image in given])

    def _fitted(self, given: list[Image]) -> list[tuple[int, int]]:
        return [images.fit(image.size, self.options.side) for image in given]

    @torch.inference_mode()
    def answer(self, request: Request, /) -> Iterator[Event]:
        """Answer one request (batch 1, greedy, caches made anew): see `protocol.Model`."""
        self.seam.begin()
        self._largest = []
        inputs, seen = self.prepare(request)
        yield Done("preprocess")
        features = None
        if self.seam.way == "direct" and request.images:
            features = self.seam.encode(inputs)
            yield Done(self.seam.visual)
        yield seen
        step = (
            self.seam.prefill_decoder(inputs) if self.config.is_encoder_decoder else self.seam.prefill(inputs, features)
        )
        token = self._likeliest(step.logits)
        prefilled = self.seam.end()
        yield Done(prefilled if request.images else "prefill")
        stream = tokenizers.Stream(self.tokenizer)
        stops = set() if request.ignore_eos else self._stops()
        for count in range(request.max_new_tokens):
            value = int(token)  # waits for the device: the token is on the host only now
            if value in stops:
                if not count:
                    yield Piece("")
                return
            yield Piece(stream.add(value))
            if count + 1 < request.max_new_tokens:
                step.run(token.view(1, 1))
                token = self._likeliest(step.logits)

    def _likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest next token, still on the device; its logit is kept for `verify`."""
        largest, token = logits.max(dim=-1)
        self._largest.append(largest)
        return token

    def verify(self) -> None:
        """Raise `OutputError` if the last answer rests on logits that are not finite: NaN is larger than all else."""
        kept, self._largest = self._largest, []
        for number, largest in enumerate(kept, 1):
            if not torch.isfinite(largest):
                what = f"{self.card.name} computed logits of token {number} that are not finite (NaN or infinite)"
                raise OutputError(what, "prefill" if number == 1 else "decode")

    def _stops(self) -> set[int]:
        if self.loaded.stands_in:
            return set()
        eos = self.model.generation_config.eos_token_id
        return set(eos) if isinstance(eos, list) else set() if eos is None else {int(eos)}

    # --- what the log says ---

    deployed: Mapping[str, str] = {}
    """Torch's switches as they took effect (`deployment.told`)."""

    @property
    def generation(self) -> Mapping[str, object]:
        """The checkpoint's generation_config.json, as transformers read it."""
        fields: Mapping[str, object] = self.model.generation_config.to_dict()
        return fields

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the log must doubt of the answers."""
        return configuration.decoding_doubts(self.generation) if self.trained else ()

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log."""
        told = {
            "dtype": self.options.dtype,
            "route": "auto",
            "family": self.family,
            "attention": _attention(self.config),
            "image_backend": self._image_backend(),
            "template": "stand-in" if self.loaded.stands_in else self._template(),
            "tokenizer": self.tokenizer.name,
            "parts": "all",
            "seam": self.seam.way,
            "projector": self.seam.projector_path or "none found: encode and project are not told apart",
            **self.asked.describe(),
            **self.loaded.notes,
            **self.deployed,
        }
        if self.trained:
            told["decoding"] = configuration.decoding(self.generation)
        if self.kind.boundary:
            told["boundary"] = self.kind.boundary
        if not self.seam.clean:
            told["boundary"] = "encode and project alternate in this family: they are given as one"
        return told

    def _image_backend(self) -> str:
        """Say which libraries resize an image: ours before the processor, where the family's rule asks for it."""
        library = loading.library(self.image_processor)
        last = {"pil": "PIL"}.get(library, library or "a library that transformers does not name")
        first = "torchvision" if self.scaler else "PIL"
        both = f"{first}, then {last}" if self.asked.longest is not None and first != last else last
        return f"{both}, by {type(self.image_processor).__name__}"

    def _template(self) -> str:
        own = getattr(self.processor, "chat_template", None)
        return "the checkpoint's chat template" if own else f"none: {self.kind.marker or 'no marker'} and the question"

    @torch.inference_mode()
    def work(self, seen: Seen, /) -> dict[str, Work]:
        """Count FLOPs by stage in one more answer, read at the stage marks, for an example like `seen`."""
        if self.options.device == "meta":
            return {}
        counts: dict[str, int] = {}
        blanks = tuple(images.png(images.blank(size).image) for size in seen.all_px or (seen.original_px,))
        words = max(1, seen.text_tokens - self._template_tokens(blanks))
        request = Request(blanks, " ".join(["a"] * words), max_new_tokens=1)
        with FlopCounterMode(display=False) as counter:

            def mark(event: Event) -> None:
                if isinstance(event, Done):
                    counts[event.stage] = int(counter.get_total_flops()) - sum(counts.values())

            self.hear = mark
            try:
                for event in self.answer(request):
                    mark(event)
            finally:
                self.hear = None
        size = self._bytes()
        return {stage: Work(flops, size.get(stage, 0)) for stage, flops in counts.items() if stage != "preprocess"}

    def counted(self) -> tuple[Seen, dict[str, int]]:
        """Return what a square image of the asked side amounts to, and parameters by part; needs no weights."""
        side = self.options.side
        blank = images.png(images.blank((side, side)).image)
        seen = self.prepare(Request((blank,), "a", max_new_tokens=1))[1]
        whole, tower = _count(self.model), parts.tower(self.model)
        found = {"encoder": _count(tower[1]) if tower else 0}
        if self.seam.projector is not None:
            found["projector"] = _count(self.seam.projector)
            if tower and any(module is self.seam.projector for module in tower[1].modules()):
                found["encoder"] -= found["projector"]
        return seen, {**found, "llm": whole - sum(found.values())}

    def _template_tokens(self, blanks: tuple[bytes, ...]) -> int:
        seen = self.prepare(Request(blanks, "", max_new_tokens=1))[1]
        return seen.text_tokens

    def _bytes(self) -> dict[str, int]:
        """Return the bytes of weights that each stage reads: tower, projector, and all the rest but looked-up rows."""
        whole = _size(self.model)
        tower, projector = parts.tower(self.model), self.seam.projector
        project = _size(projector) if projector is not None else 0
        encode = _size(tower[1]) if tower else 0
        if tower and projector is not None and any(module is projector for module in tower[1].modules()):
            encode -= project
        table = self.model.get_input_embeddings()
        tied = bool(getattr(self.config.get_text_config(), "tie_word_embeddings", False)) or table is None
        prefill = whole - encode - project - (0 if tied else _size(table))
        return {"encode": encode, "project": project, "encode+project": encode + project, "prefill": prefill}

    def close(self) -> None:
        """Free the weights."""
        self.seam.model = self.model = nn.Module()
        self.loaded = self.loaded._replace(model=self.model)
        if self.options.device.startswith("cuda"):
            torch.cuda.empty_cache()


class Words:
    """A checkpoint's own tokenizer, as `tokenizers.Stream` wants it."""

    def __init__(self, tokenizer: Processor) -> None:
        self._tokenizer = tokenizer
        self.name = f"{type(tokenizer).__name__} of the checkpoint"

    def encode(self, text: str) -> list[int]:
        """Return ids; none is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _attention(config: Config) -> str:
    vision = getattr(config, "vision_config", None)
    text = getattr(config.get_text_config(), "_attn_implementation", None)
    own = {"vision": getattr(vision, "_attn_implementation", None), "text": text}
    told = {str(name) for name in own.values() if name}
    return told.pop() if len(told) == 1 else ", ".join(f"{part} {name}" for part, name in own.items())
