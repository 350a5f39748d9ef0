"""What a model card may say: one checkpoint, or one exact architecture, as facts."""

import json
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from harness import cards
from harness.cards import Card, Facts
from harness.errors import SettingError, UnknownName

Size = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
"""A number of something that there is: layers, heads, pixels. Torch takes a negative one for a small one, or ends."""
Id = Annotated[int, msgspec.Meta(ge=0, le=2**40)]

Table: TypeAlias = dict[str, Any]
"""A table of a card that goes to other code by its names: a family's settings, transformers' configuration."""

FREE = ("any", "area", "longest_edge", "tiles", "budget", "caller")
"""Rules under which every side runs."""

STEPS = ("any", "tiles", "budget", "caller")
"""Rules under which cost is a step function of the side."""

USUAL_SIDES = (256, 512, 768, 1024, 1536)
"""What the FastVLM paper sweeps, for tables of cards that take any multiple."""


class Resolution(Facts, frozen=True):
    """Which input sides (pixels of a square) a model takes.

    `multiple`: any multiple of `of` between `minimum` and `maximum`; `choice`: one of `values`; `fixed`: the encoders'
    own sizes, whatever is asked (a sweep keeps one point); `any`: every side runs, in steps the adapter logs. The rest
    are family `auto`'s (see its `resolution`): every side runs; `area`, `longest_edge`: as asked, to a patch; `tiles`,
    `budget`, `caller`: in steps.
    """

    rule: Literal["multiple", "choice", "fixed", "any", "area", "longest_edge", "tiles", "budget", "caller"]
    default: Id
    of: Size | None = None
    minimum: Id = 1
    maximum: Size = 8192
    values: tuple[Size, ...] = ()

    def supported(self) -> list[int]:
        """Return the sides a table lists: all choices, the one fixed, or the paper's usual ones that fit."""
        if self.rule == "choice":
            return list(self.values)
        if self.rule == "fixed":
            return [self.default]
        return list(self.values) or [side for side in USUAL_SIDES if self.problem(side) is None]

    def problem(self, side: int) -> str | None:
        """Return why `side` cannot be taken and the nearest that can, or None."""
        if self.rule == "choice" and side not in self.values:
            near = sorted(sorted(self.values, key=lambda v: abs(v - side))[:2])
            return f"takes {', '.join(map(str, self.values))}; nearest: {' or '.join(map(str, near))}"
        if self.rule == "multiple":
            of = self.of or 1
            low, high = -(-self.minimum // of) * of, self.maximum // of * of
            near = sorted({min(max(side // of * of, low), high), min(max(-(-side // of) * of, low), high)})
            if side not in near:
                return f"takes multiples of {of} from {low} to {high}; nearest: {' or '.join(map(str, near))}"
        if self.rule in FREE and not self.minimum <= side <= self.maximum:
            nearest = min(max(side, self.minimum), self.maximum)
            return f"takes sides from {self.minimum} to {self.maximum}; nearest: {nearest}"
        return None


class Llm(Facts, frozen=True):
    """A decoder-only language model, by the fields of its transformers configuration."""

    kind: Literal["qwen2", "llama", "phi3"]
    hidden: Size
    layers: Size
    heads: Size
    kv_heads: Size
    ffn: Size
    vocab: Size
    rope_theta: float
    rms_eps: float
    positions: Size
    tied: bool = False
    bos: Id | None = None
    eos: tuple[Id, ...] = ()
    rope_scaling: Table = {}
    """What changes the rotary frequencies besides their base, as transformers' `rope_parameters` names it."""
    config: Table = {}
    """Further fields of the transformers configuration: those whose value is not the class's own."""

    def __post_init__(self) -> None:
        """Refuse heads that cannot be: torch says so only in the middle of an answer."""
        if self.hidden % self.heads and "head_dim" not in self.config:
            raise ValueError(f"hidden {self.hidden} must be a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")


class Encoder(Facts, frozen=True):
    """One vision encoder. `architecture` is a name the adapter knows, a transformers class or a timm model."""

    name: str
    library: Literal["own", "transformers", "timm"]
    architecture: str
    width: Size
    side: Size | None = None
    repo: str | None = None
    settings: Table = {}


class Hub(Facts, frozen=True):
    """Where the weights are published; `files` are the patterns to fetch."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


class Published(Facts, frozen=True):
    """Counts that others printed, in millions of parameters by part, to check ours against."""

    params_m: dict[str, float] = {}
    source: str = ""


class ModelCard(Card, frozen=True, kw_only=True):
    """One checkpoint (or one exact architecture)."""

    title: str
    adapter: str
    license: str
    resolution: Resolution
    encoders: tuple[Encoder, ...] = ()
    llm: Llm | None = None
    hub: Hub | None = None
    folder: str = ""
    """The checkpoint's folder where the card was made from one (`--model FOLDER`)."""
    shipped: str = ""
    """A folder beside the cards with the checkpoint itself: it comes with the package."""
    prompt: str = ""
    """Name of the adapter's chat template."""
    settings: dict[str, str | int | float | bool] = {}
    """Options of the adapter with their defaults; `--set name=value` overlays them."""
    config: Table = {}
    """Family `auto`: transformers' configuration with its `model_type`: the exact architecture, for random weights."""
    processor: Table = {}
    """Family `auto`: the processor's own settings, and below `images` those of its image processor."""
    published: Published = Published()
    sources: tuple[str, ...] = ()
    notes: str = ""

    @property
    def part_names(self) -> list[str]:
        """The parts that `--isolate-stages` loads one after the other: each encoder, then the LLM."""
        return [*(encoder.name for encoder in self.encoders), *(["llm"] if self.llm else [])]


def load_model_card(name: str) -> ModelCard:
    """Load the model card `name`, or the card file that `name` is a path of."""
    return cards.load("models", name, ModelCard)


def with_settings(card: ModelCard, **settings: object) -> ModelCard:
    """Return the card with these settings of its first encoder."""
    first = card.encoders[0]
    encoder = msgspec.structs.replace(first, settings={**first.settings, **settings})
    return msgspec.structs.replace(card, encoders=(encoder, *card.encoders[1:]))


def check_side(card: ModelCard, side: int) -> None:
    """Refuse a side that the card's resolution rule cannot take, with the nearest ones that it can."""
    problem = card.resolution.problem(side)
    if problem:
        raise SettingError(f"--res {side}: {card.name} {problem}")


def check_settings(card: ModelCard, given: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Overlay `given` (`--set name=value`) on the card's settings; a name the card lacks is refused."""
    for name in given:
        if name not in card.settings:
            raise UnknownName(f"setting of {card.name}", name, card.settings)
    return {**card.settings, **{name: _like(card, name, value) for name, value in given.items()}}


def _like(card: ModelCard, name: str, value: str | int | float | bool) -> str | int | float | bool:
    """Return a setting in the type that the card has for it; a number is never below 0."""
    usual, given = card.settings[name], f"setting {name} of {card.name}: {str(value)[:60]!r}"
    if isinstance(usual, str):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise SettingError(f"{given} must be true or false, as {name}=true")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{given} must be a number, as {name}={usual}")
    if not 0 <= value < 1e15 or (isinstance(usual, int) and value != int(value)):
        raise SettingError(f"{given} must be a {'whole ' * isinstance(usual, int)}number, 0 or more, as {name}={usual}")
    return type(usual)(value)
