"""The marks: what must be known of a number wherever it is shown, as a sign beside it."""

from collections.abc import Iterable
from typing import NamedTuple


class Mark(NamedTuple):
    """`symbol` stands beside the number, `meaning` below the table, `short` below a figure."""

    symbol: str
    meaning: str
    short: str


MARKS = {
    "random": Mark(
        "†", "random weights of the exact architecture: times are real, answers mean nothing", "random weights"
    ),
    "embedded": Mark(
        "‡", "data embedded in this package (generated pages), no public benchmark", "data from this package"
    ),
    "isolated": Mark(
        "§", "stages loaded and timed one after the other and added up, not one run", "stages timed apart, added"
    ),
    "paper": Mark(
        "¶",
        "the FastVLM paper's protocol: encoder and prefill of the visual tokens, timed apart and added up",
        "encoder + prefill, added",
    ),
    "auto": Mark(
        "∘", "run by transformers' own classes (route auto), not by an adapter of the family", "transformers' own code"
    ),
    "emulated": Mark("◇", "predicted or emulated time, not a measurement of this machine", "predicted, not measured"),
    "served": Mark(
        "@",
        "measured at the client of a server: what the network, the server's queue and its own code add is in it",
        "measured at the client of a server",
    ),
    "torn": Mark("⚠", "the run did not finish: fewer samples than planned", "unfinished run"),
    "refused": Mark(
        "!", "the validity gate refused every sample: shown, but not to be quoted", "every sample refused by the gate"
    ),
    "doubted": Mark(
        "?", "there are doubts about it: a report lists them at its end, `harness show --long` too", "there are doubts"
    ),
    "published": Mark("*", "as printed by others, not measured here", "published, not measured here"),
}
"""By name, in the order they are printed; `doubted` is a point's in a choice or a figure, tables list doubts below."""


def symbols(marks: Iterable[str]) -> str:
    """Return the marks' symbols in their order."""
    present = set(marks)
    return "".join(mark.symbol for name, mark in MARKS.items() if name in present)


def of_all(several: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return the marks that any of several things carries, in their order."""
    present = {mark for marks in several for mark in marks}
    return tuple(mark for mark in MARKS if mark in present)


def legend(marks: Iterable[str]) -> list[str]:
    """Return a line for each mark: its symbol and what it means."""
    present = set(marks)
    return [f"{mark.symbol} {mark.meaning}" for name, mark in MARKS.items() if name in present]
