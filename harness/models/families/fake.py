"""A model that does not exist: its stages take as long as its card says, so that what is measured can be checked.

Settings (card, `--set`): `preprocess_ms`, `encode_ms` (at 1024 pixels; scaled by the area), `project_ms`,
`prefill_ms`, `decode_ms` (per token after the first), and what may go wrong: `jitter` (each stage uniformly within
±this share), `slow_first` (the first request takes so many times as long), `drift` (each request is slower than the
one before by this share of the first), `sample_ms` (time between the end of prefill and the first piece, which no stage
owns: a positive residual), `launch_ms` (host time to launch each stage: the stage pass pays them all, the whole pass
overlaps them: a negative residual), `weights_mb`, `activations_mb`, `answer` (empty: the question's last word),
`decode` (whether the image is decoded, or only its header read).
"""

import io
import random
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from harness import images
from harness.errors import ExampleError, OutputError, SettingError
from harness.machine.devices import fake
from harness.models.card import ModelCard
from harness.models.protocol import Done, Event, Options, Piece, Request, Seen, Work
from harness.models.weights import Source

MS = 1_000_000
PATCH = 64
"""Pixels per visual token's side."""


class FakeModel:
    """See `model.Model`."""

    def __init__(self, card: ModelCard, options: Options) -> None:
        parts = [encoder.name for encoder in card.encoders]
        if options.only not in (None, "llm", *parts):
            raise SettingError(f"{card.name} has no part {options.only!r}; parts: {', '.join([*parts, 'llm'])}")
        self._options, self._settings = options, {**card.settings, **options.settings}
        for name, value in (*card.settings.items(), *self._settings.items()):
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
            if name not in ("answer", "decode") and not number:
                told = f"setting {name} of {card.name}: {str(value)[:60]!r}"
                raise SettingError(f"{told} must be a number, 0 or more; next: mend the card, or --set {name}=1")
        self._random = random.Random(options.seed)
        self._answered = 0
        self._slowness = 1.0
        fake.allocate(self._bytes("weights_mb"))

    def _ms(self, name: str) -> float:
        return float(self._settings[name])

    def _bytes(self, name: str) -> int:
        return round(float(self._settings[name]) * 2**20)

    @property
    def _area(self) -> float:
        return (self._options.side / 1024) ** 2

    def _spend(self, duration_ms: float, asked_ns: int | None = None) -> None:
        """Launch one stage: the host is held for `launch_ms`, then the device works while the host goes on."""
        asked_ns = asked_ns or fake.CLOCK.now_ns()
        jitter = float(self._settings["jitter"])
        factor = self._slowness * (1 + self._random.uniform(-jitter, jitter))
        launch_ns = self._ms("launch_ms") * MS
        if launch_ns:
            fake.host_work(launch_ns)
            asked_ns = fake.CLOCK.now_ns()
        fake.enqueue(duration_ms * factor * MS, asked_ns)

    def answer(self, request: Request, /) -> Iterator[Event]:
        """Answer with the question's last word (or the card's `answer`), one piece per word."""
        asked_ns = fake.CLOCK.now_ns()
        first = not self._answered
        self._slowness = 1 + float(self._settings["drift"]) * self._answered
        self._slowness *= float(self._settings["slow_first"]) if first else 1.0
        self._answered += 1
        only = self._options.only
        activations = round(self._bytes("activations_mb") * self._area)
        self._spend(self._ms("preprocess_ms"), asked_ns)
        original = self._look(request.images)  # meanwhile, so that the stage takes what the card says if that is longer
        yield Done("preprocess")
        fake.allocate(activations)
        try:
            if only != "llm":
                self._spend(self._ms("encode_ms") * self._area)
                yield Done("encode")
                if only:
                    yield self._seen(original, 0, 0)
                    return
            self._spend(self._ms("project_ms"))
            yield Done("project")
            text_tokens = 0 if request.visual_only else len(request.question.split())
            yield self._seen(original, (self._options.side // PATCH) ** 2, text_tokens)
            self._spend(self._ms("prefill_ms"))
            yield Done("prefill")
        finally:
            fake.allocate(-activations + (fake.LEAK_BYTES if fake.STATE.fault == "leak" else 0))
        fake.enqueue(self._ms("sample_ms") * self._slowness * MS)
        fake.wait()  # the token comes to the host, as `int(token)` makes a real model do
        yield from self._pieces(request)

    def _pieces(self, request: Request) -> Iterator[Piece]:
        words = str(self._settings["answer"]).split() or request.question.split()[-1:] or [""]
        if fake.STATE.fault == "wandering":
            words = [f"{words[0]}{self._answered}", *words[1:]]
        count = request.max_new_tokens if request.ignore_eos else min(len(words), request.max_new_tokens)
        for index in range(count):
            if index:
                fake.enqueue(self._ms("decode_ms") * self._slowness * MS)
                fake.wait()
            yield Piece(("" if index == 0 else " ") + words[index % len(words)].strip("?!.,:;"))

    def _look(self, files: tuple[bytes, ...]) -> tuple[int, int]:
        if not files:
            raise ExampleError("the example has no image; next: repair or remove it")
        if self._settings["decode"]:
            sizes = [images.decode(data).size for data in files]
            for size in sizes:
                images.square_side(size)  # it shows itself a padded square, and refuses what cannot be one
            return sizes[0]
        try:
            with Image.open(io.BytesIO(files[0])) as image:
                return image.size
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ExampleError(
                f"not a readable image ({len(files[0])} bytes): {images.told(error)}; next: repair the file"
            ) from error

    def _seen(self, original: tuple[int, int], visual_tokens: int, text_tokens: int) -> Seen:
        side = self._options.side
        shown = images.fit(original, side)
        return Seen(original, (side, side), shown[0] * shown[1], 1, visual_tokens, text_tokens)

    def describe(self) -> dict[str, str]:
        """Return the settings: on a fake model they are the truth that the measurement is held against."""
        return {
            "dtype": self._options.dtype,
            "tokenizer": "words",
            "parts": self._options.only or "all",
            **{name: str(value) for name, value in sorted(self._settings.items())},
        }

    def work(self, seen: Seen, /) -> dict[str, Work]:
        """Return made-up counts, so that every report can be drawn: 1 GFLOP and 1 MB for each millisecond."""
        stages = {"encode": self._ms("encode_ms") * self._area, "project": self._ms("project_ms")}
        stages["prefill"] = self._ms("prefill_ms")
        return {stage: Work(round(ms * 1e9), round(ms * 1e6)) for stage, ms in stages.items()}

    def verify(self) -> None:
        """Raise `OutputError` where the fake machine was told to compute what is not finite."""
        if fake.STATE.fault == "not-finite":
            raise OutputError(
                "the fake model computed logits of token 1 that are not finite (NaN or infinite)", "prefill"
            )

    def close(self) -> None:
        """Give the memory back."""
        if fake.STATE.fault != "kept-weights":
            fake.allocate(-self._bytes("weights_mb"))


def load(card: ModelCard, source: Source, options: Options) -> FakeModel:
    """Build the fake model; there are no weights to read."""
    return FakeModel(card, options)
