"""What a suite card may say: which task, how it is scored and called, what stands in for its data."""

from typing import Literal

from harness import cards
from harness.cards import Card


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
    """Where the task itself states no limit."""
    license: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""


def load_suite_card(name: str) -> SuiteCard:
    """Load the suite card `name`, or the card file that `name` is a path of."""
    return cards.load("suites", name, SuiteCard)
