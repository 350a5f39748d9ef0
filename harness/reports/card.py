"""What a report card may say: a table, figure or page, and what of the published figures it shows."""

from typing import Literal

from harness import cards
from harness.cards import Card, Facts


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
    square_tokens: int | None = None
    """Visual tokens of a square image, where they depend on the image's shape: papers count them of a square one."""
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
    square_tokens: int | None = None
    """As in `Match`."""


class Claim(Facts, frozen=True):
    """A headline ratio: `numerator` over `denominator`."""

    name: str
    text: str
    claimed: float
    quantity: Literal["ttft", "encode", "prefill", "params", "tokens", "points"]
    """`points` is a difference of scores (`count`) on `suite`, all others are ratios."""
    numerator: Side
    denominator: Side
    saving: bool = False
    """The claim is 1 - denominator/numerator."""
    suite: str = ""
    tolerance: float = 0.1
    footnotes: tuple[str, ...] = ()


class ReportCard(Card, frozen=True, kw_only=True):
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


def load_report_card(name: str) -> ReportCard:
    """Load the report card `name`, or the card file that `name` is a path of."""
    return cards.load("reports", name, ReportCard)
