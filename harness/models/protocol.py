"""The seam everything hangs on: a model answers as a generator of events; the measurer alone owns the clock."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from harness.clock import Clock

STAGES = ("preprocess", "encode", "project", "prefill")
"""The stages before the first token, in order. What follows (`decode`) is timed from the pieces."""
JOINED = ("encode+project", "encode+project+prefill")
"""What is told as one stage where nothing in a model divides them."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one or more images, as bytes in memory: that is where TTFT starts.

    `images` are encoded image files (PNG, JPEG ...), untouched. `question` is the suite's bare text with its suffix;
    chat templates are the adapter's. With `ignore_eos` exactly `max_new_tokens` tokens are made (timing); without, the
    model stops by itself (scoring). With `visual_only` the prompt is the visual tokens alone, as in the FastVLM
    paper's prefill.
    """

    images: tuple[bytes, ...]
    question: str
    max_new_tokens: int = 32
    ignore_eos: bool = False
    visual_only: bool = False
    room: int = 0
    """A cache of fixed length has room for at least so many new tokens: all passes over an example have one length."""


class Done(NamedTuple):
    """A stage has just ended. `part` names a piece of it (one of several encoders) whose whole is yet to end."""

    stage: str
    part: str = ""


class Piece(NamedTuple):
    """One decoded token's text, on the host; the first one ends TTFT. The text may be empty (half a character)."""

    text: str


class Seen(NamedTuple):
    """What the model was shown: yielded once, before `Done("prefill")`; it costs no clock read and no sync.

    Pixel sizes are (width, height). `processed_px` is what the encoder gets in all (tiles added up), `content_px` the
    number of those pixels that show the image and not padding. `tiles` counts encoder passes of one encoder.
    `original_px` is the first image's; of several images `all_px` has each one's.
    `conversions` states what was done to the file to make RGB pixels of it ("CMYK to RGB", "first frame of 12").
    """

    original_px: tuple[int, int]
    processed_px: tuple[int, int]
    content_px: int
    tiles: int
    visual_tokens: int
    text_tokens: int
    conversions: tuple[str, ...] = ()
    note: str = ""
    all_px: tuple[tuple[int, int], ...] = ()


class Thought(NamedTuple):
    """A server's reasoning text, which is no part of the answer: its first one is timed apart from TTFT."""

    text: str


class Told(NamedTuple):
    """What a server counted for one answer: yielded last; the clock stops, then `facts` is called for the log."""

    output_tokens: int | None
    """None where the server does not count."""
    facts: Callable[[], Mapping[str, int | float | str]]


Event = Done | Piece | Seen | Thought | Told

DECODE = "decode"
"""What comes after the first token; no stage of its own, but a place where an answer can fail."""


def stage_after(done: Event | None) -> str:
    """Return what a model works on after its event `done` (None: it has just begun)."""
    if done is None:
        return STAGES[0]
    if not isinstance(done, Done):
        return DECODE
    if done.part:
        return done.stage
    last = done.stage.rpartition("+")[2]  # stages that no mark divides are told as one: "encode+project"
    return dict(zip(STAGES, (*STAGES[1:], DECODE), strict=True)).get(last, DECODE)


class Answered(NamedTuple):
    """An answer that was asked for its score alone: no times; `error` in place of an answer that could not be had."""

    seen: Seen | None
    text: str
    tokens: int
    shared: str
    """What it shared with other questions about its images, for the log."""
    error: Exception | None = None


class Work(NamedTuple):
    """What a stage must do, counted: floating-point operations (2 per multiply-add) and bytes of weights read."""

    flops: int
    weight_bytes: int

    def share_of_roofline(self, duration_ns: float, flops_per_s: float, bytes_per_s: float) -> float | None:
        """Return the least time this could take, over the time it took; None where either is unknown.

        The least time is the longer of computing and of reading the weights, at the machine's measured peaks.
        """
        if duration_ns <= 0 or (self.flops <= 0 and self.weight_bytes <= 0):
            return None
        return max(self.flops / flops_per_s, self.weight_bytes / bytes_per_s) / (duration_ns / 1e9)


class Model(Protocol):
    """Anything that can be timed. Adapters never import `time`.

    A model whose stages end inside a library's call cannot yield there. It has an attribute `hear`, None until the
    stage pass puts a callable there; the model calls it with the event (same thread, no cost when None).
    A model may also have `verify()`, called after each pass and outside its time: it raises `OutputError` where what
    was computed is not finite. NaN has a largest element too, and would be logged as an answer.
    It may have `foresee(sizes, question) -> Foreseen`: what an example of these image sizes will be, without answering
    it (cheap: it is asked for every example of a suite). An attribute `minds_shapes = False` says that the first
    request of a shape costs no more than the next (a server that is warm already): then none is made in advance.
    And `answer_all(requests) -> list[Answered]`: untimed answers to questions about the same images, which may share
    what the images cost; what the images themselves raise is raised.
    """

    def answer(self, request: Request, /) -> Iterator[Event]:
        """Yield `Done` after each stage, then a `Piece` per token. Closing the generator early must be safe.

        The clock starts when the first event is asked for. Only a client of a server does work before it returns its
        iterator (it builds the request); what computes here is a generator, all of which is timed.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return the effective settings for the log: dtype, attention, image backend, tokenizer, prompt template ..."""
        ...

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        """Return FLOPs and weight bytes by stage for an example like `seen`; empty where unknown."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...


@runtime_checkable
class Examined(Protocol):
    """A model that must be asked what it does before it is measured: one that a server serves."""

    IDENTITY: ClassVar[tuple[str, ...]]
    """What of `describe` must be the same when a run goes on."""

    def examine(self, clock: Clock) -> None:
        """Ask; what is found is in `describe` and `doubts`."""
        ...

    def describe(self) -> Mapping[str, str]: ...

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes every number of this model doubtful."""
        ...


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a model can tell of an example before answering it; None: it cannot, or it is the same for all."""

    tiles: int | None = None
    visual_tokens: int | None = None
    text_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How to build a model: what a cell decided and an adapter needs to know. Everything here is logged."""

    side: int
    """Requested input side in pixels; the adapter's own rule (fixed, step, multiple) makes the effective one of it."""
    device: str = "cpu"
    """A torch device string ("cpu", "cuda", "cuda:1", "mps", "meta" for counting only)."""
    dtype: str = "float32"
    seed: int = 0
    only: str | None = None
    """Load this part alone (`--isolate-stages`): an encoder's name, or "llm" (with stand-in features); None: all."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """The card's `[settings]` table overlaid with `--set name=value`."""
    endpoint: str = ""
    """The URL of the server that serves the model (engine openai)."""
