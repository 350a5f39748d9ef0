"""What a suite card may say: which task, how it is scored and called, what stands in for its data."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from harness import cards
from harness.cards import Card
from harness.errors import CardError


class SuiteCard(Card, frozen=True, kw_only=True):
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
    """The most tokens of an answer: where the task itself states no limit, or in place of its own, which is said."""
    license: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""
    also: dict[str, str] = {}
    """Other metrics of the task that are shown beside the first, and what to call them: F1 ..."""

    def as_dict(self) -> dict[str, object]:
        """Return the card for a log's header."""
        return dict(msgspec.to_builtins(self))


def load_suite_card(name: str) -> SuiteCard:
    """Load the suite card `name`, or the card file that `name` is a path of."""
    return cards.load("suites", name, SuiteCard)


def logged_suite_card(content: Mapping[str, object], name: str) -> SuiteCard:
    """Return the card that a log carries; of an older log, which carries none, the shipped card of that name.

    Raises `CardError` for content that is no card, and `UnknownName`.
    """
    if not content:
        return load_suite_card(name)
    try:
        return msgspec.convert(content, SuiteCard)
    except msgspec.ValidationError as error:
        raise CardError(f"the log's suite card {name}: {error}; next: measure again") from error
