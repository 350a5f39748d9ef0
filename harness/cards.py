"""Cards: TOML files of facts. A field is a fact or a name from a closed list; a misspelt one is guessed."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from harness.errors import CardError, SettingError, UnknownName, guess

SHIPPED = Path(__file__).parent / "_shipped"  # in the wheel; an editable install and a clone have the folders beside us
ROOT = SHIPPED if SHIPPED.is_dir() else Path(__file__).parent.parent


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of a card has in common: frozen, and no field that we do not know."""


USUAL_SIDES = (256, 512, 768, 1024, 1536)
"""What the FastVLM paper sweeps, for tables of cards that take any multiple."""


class Resolution(Facts, frozen=True):
    """Which input sides (pixels of a square) a model takes.

    `multiple`: any multiple of `of` between `minimum` and `maximum`; `choice`: one of `values`; `fixed`: the encoders'
    own sizes, whatever is asked (a sweep keeps one point); `any`: every side runs, in steps the adapter logs.
    """

    rule: Literal["multiple", "choice", "fixed", "any"]
    default: int
    of: int | None = None
    minimum: int = 1
    maximum: int = 8192
    values: tuple[int, ...] = ()

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
        if self.rule == "any" and not self.minimum <= side <= self.maximum:
            nearest = min(max(side, self.minimum), self.maximum)
            return f"takes sides from {self.minimum} to {self.maximum}; nearest: {nearest}"
        return None


class Llm(Facts, frozen=True):
    """A decoder-only language model, by the fields of its transformers configuration."""

    kind: Literal["qwen2", "llama", "phi3"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    rope_theta: float
    rms_eps: float
    positions: int
    tied: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()


class Encoder(Facts, frozen=True):
    """One vision encoder. `architecture` is a name the adapter knows, a transformers class or a timm model."""

    name: str
    library: Literal["own", "transformers", "timm"]
    architecture: str
    width: int
    side: int | None = None
    repo: str | None = None
    settings: dict[str, Any] = {}


class Hub(Facts, frozen=True):
    """Where the weights are published; `files` are the patterns to fetch."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


class Published(Facts, frozen=True):
    """Counts that others printed, in millions of parameters by part, to check ours against."""

    params_m: dict[str, float] = {}
    source: str = ""


class ModelCard(Facts, frozen=True):
    """One checkpoint (or one exact architecture)."""

    title: str
    adapter: str
    license: str
    resolution: Resolution
    encoders: tuple[Encoder, ...] = ()
    llm: Llm | None = None
    hub: Hub | None = None
    shipped: str = ""
    """A folder beside the cards with the checkpoint itself: it comes with the package."""
    prompt: str = ""
    """Name of the adapter's chat template."""
    settings: dict[str, str | int | float | bool] = {}
    """Options of the adapter with their defaults; `--set name=value` overlays them."""
    published: Published = Published()
    sources: tuple[str, ...] = ()
    notes: str = ""
    name: str = ""
    digest: str = ""


class SuiteCard(Facts, frozen=True):
    """One evaluation suite: an lmms-eval task, or the embedded one."""

    title: str
    task: str
    """lmms-eval task name, from which data set, split, question and scoring come."""
    metric: str
    """The key of that task's own metric which is quoted first."""
    unit: str = ""
    """How the metric is called in tables: ANLS, VQA accuracy, relaxed accuracy ..."""
    judge: bool = False
    """Scoring needs a judge model (an API): answers are logged, nothing is scored here."""
    origin: Literal["hub", "embedded"] = "hub"
    stand_in: str | None = None
    """The embedded suite used, and named, when this one's data cannot be had."""
    max_new_tokens: int | None = None
    """Where the task itself states no limit."""
    license: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""
    name: str = ""
    digest: str = ""


class Column(Facts, frozen=True):
    """One printed column of a published table, and what of ours it may be compared with."""

    name: str
    """The column of the CSV file."""
    title: str = ""
    unit: str = ""
    quantity: Literal["shown", "score", "ttft", "encode", "prefill", "params", "tokens"] = "shown"
    """`shown`: printed only. Times are compared as ratios to the same table's reference row, never as milliseconds."""
    suites: tuple[str, ...] = ()
    """Suite cards of a score; several: the mean of all of them."""
    tolerance: float = 0.0
    """Points for a score, a fraction of the published ratio or count otherwise."""


class Match(Facts, frozen=True):
    """Which of our model cards some rows of a published table are; without one, why none is."""

    rows: tuple[str, ...]
    model: str | None = None
    alike: tuple[str, ...] = ()
    """Other cards of the very same architecture: their times and counts serve as well, their scores do not."""
    resolution: int | None = None
    settings: str = ""
    """As the summary words them: `reduction=m3-36`."""
    scored: tuple[str, ...] = ()
    """Those of `rows` whose training the released weights of the card had: only their scores are comparable."""
    why_not: str = ""


class Side(Facts, frozen=True):
    """One side of a claimed ratio. Figures are cited as `file|table|row|column`; several are added up."""

    title: str
    model: str | None = None
    alike: tuple[str, ...] = ()
    resolution: int | None = None
    settings: str = ""
    ttft: tuple[str, ...] = ()
    encode: tuple[str, ...] = ()
    prefill: tuple[str, ...] = ()
    count: tuple[str, ...] = ()


class Claim(Facts, frozen=True):
    """A headline ratio: `numerator` over `denominator`."""

    name: str
    text: str
    claimed: float
    quantity: Literal["ttft", "params", "tokens"]
    numerator: Side
    denominator: Side
    saving: bool = False
    """The claim is 1 - denominator/numerator."""
    tolerance: float = 0.1
    footnotes: tuple[str, ...] = ()


class ReportCard(Facts, frozen=True):
    """One table, figure or page made from run logs."""

    title: str
    kind: Literal["cells", "figure", "published", "claims", "page"]
    figures: tuple[str, ...] = ()
    """Plug-ins of `harness.figures` that draw it."""
    settings: dict[str, str | int | float | bool] = {}
    csv: str = ""
    """File in `reports/paper/`."""
    tables: tuple[str, ...] = ()
    """Values of that file's `table` column to keep, empty for all."""
    reference: str = ""
    """Row that times are divided by."""
    columns: tuple[Column, ...] = ()
    matches: tuple[Match, ...] = ()
    claims: tuple[Claim, ...] = ()
    footnotes: dict[str, str] = {}
    """By row label, `row|column`, or `*` for the whole table."""
    reports: tuple[str, ...] = ()
    """What a page shows, in order."""
    caption: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""
    name: str = ""
    digest: str = ""


KINDS: dict[str, type[Facts]] = {"models": ModelCard, "suites": SuiteCard, "reports": ReportCard}


def names(kind: str) -> list[str]:
    """Return the names of the shipped cards of `kind` ("models", "suites", "reports")."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.toml"))


def model(name: str) -> ModelCard:
    """Load the model card `name`, or the card file that `name` is a path of."""
    card = load("models", name)
    assert isinstance(card, ModelCard)
    return card


def suite(name: str) -> SuiteCard:
    """Load the suite card `name`, or the card file that `name` is a path of."""
    card = load("suites", name)
    assert isinstance(card, SuiteCard)
    return card


def report(name: str) -> ReportCard:
    """Load the report card `name`, or the card file that `name` is a path of."""
    card = load("reports", name)
    assert isinstance(card, ReportCard)
    return card


def load(kind: str, name: str) -> Facts:
    """Load one card; an unknown name lists the known ones, a bad field names the file, the field and its neighbour."""
    path = Path(name) if name.endswith(".toml") else ROOT / kind / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise CardError(f"{path}: no such card; next: `harness list {kind}` shows the shipped ones")
        raise UnknownName(kind.removesuffix("s"), name, names(kind))
    return read(path, KINDS[kind])


def read(path: Path, struct: type[Facts]) -> Facts:
    """Read one TOML file as `struct` and give it its name and digest."""
    raw = path.read_bytes()
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: not TOML: {error}; next: mend that line") from error
    try:
        card = msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        raise CardError(f"{path}: {explain(str(error), struct)}; next: mend the card, then `harness check`") from error
    return msgspec.structs.replace(card, name=path.stem, digest=hashlib.blake2b(raw, digest_size=8).hexdigest())


def explain(message: str, struct: type[Facts]) -> str:
    """Add the nearest known field to msgspec's message about an unknown one."""
    match = re.search(r"unknown field `(\w+)`", message)
    if not match:
        return message
    fields = {field.name for part in [struct, *Facts.__subclasses__()] for field in msgspec.structs.fields(part)}
    return message + guess(match[1], fields)


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
    return {**card.settings, **given}
