"""How numbers and cells are worded in every report: three significant digits, intervals in brackets, `–` for none."""

import math
from collections.abc import Callable, Iterable, Sequence

from harness.reports.accuracy import Accuracy
from harness.reports.configuration import FIELDS, Configuration, Platform, told_apart_by
from harness.reports.document import Entry, Heading, Table
from harness.reports.summary import CellSummary
from harness.stats import Estimate

NO_TIME = Entry("–", None, "not measured", (), "absent")


def platform(where: Platform, protocol: str = "ttft") -> str:
    """Return a platform in words, with the protocol where it is not the usual one."""
    return ", ".join(where) + ("" if protocol == "ttft" else f", protocol {protocol}")


QUESTIONS: dict[str, Callable[[Configuration], str]] = {
    "limit": lambda one: "all questions" if one.limit is None else f"the first {one.limit} questions",
    "data_digest": lambda one: f"data {one.data_digest[:8]}",
    "suite_digest": lambda one: f"suite card {one.suite_digest[:8]}",
}
"""How groups of cells are told apart that are of one suite, and not of the same questions."""


def abouts(groups: Sequence[tuple[Platform, str, Sequence[CellSummary]]]) -> list[str]:
    """Return what each group of `measured.by_platform` is about: no two are called alike."""
    plain = [f"{cells[0].cell.suite} on {platform(where, protocol)}" for where, protocol, cells in groups]
    alike: dict[str, list[Configuration]] = {}
    for text, (_, _, cells) in zip(plain, groups, strict=True):
        alike.setdefault(text, []).append(cells[0].cell)
    found = []
    for text, (_, _, cells) in zip(plain, groups, strict=True):
        names = told_apart_by(alike[text], QUESTIONS) if len(alike[text]) > 1 else []
        found.append(", ".join([text, *(QUESTIONS[name](cells[0].cell) for name in names)]))
    return found


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with so many significant digits, without an exponent; `–` for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def count(value: float | None) -> str:
    """Return a count, without decimals where it has none; `–` for None."""
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def interval(value: float | None, low: float | None, high: float | None, scale: float = 1.0, digits: int = 3) -> str:
    """Return `166 [160, 171]`, scaled; without bounds, only the value."""
    if value is None:
        return "–"
    text = number(value * scale, digits)
    if low is None or high is None:
        return text
    return f"{text} [{number(low * scale, digits)}, {number(high * scale, digits)}]"


def scaled(value: float | None, scale: float) -> float | None:
    """Return a number in another unit; None stays None."""
    return None if value is None else value * scale


def estimate(found: Estimate | None, scale: float = 1.0, digits: int = 3) -> str:
    """Return an estimate with its interval, scaled; `–` for None."""
    return "–" if found is None else interval(found.value, found.low, found.high, scale, digits)


def milliseconds(one: CellSummary, name: str, marks: tuple[str, ...] = ()) -> Entry:
    """Return the entry of one of a cell's times, in ms."""
    found = one.times.of(name)
    if found is None or found.value is None:
        return NO_TIME
    sure = f"median of {one.times.n} samples" + ("" if found.low is None else ", 95 % interval in brackets")
    return Entry(estimate(found, 1e-6), found.value / 1e6, f"{name}: {sure}", marks)


def residual(one: CellSummary) -> Entry:
    """Return the entry of what of TTFT no stage owns, in percent."""
    share = one.times.residual_percent
    return Entry("–" if share is None else f"{share:+.1f}", share, "TTFT minus the sum of its stages")


def basis(one: CellSummary) -> tuple[Entry, Entry]:
    """Return the entries of what a cell's times rest on: its images of how many, and the share of shapes in percent."""
    found = one.basis
    if found is None:
        none = Entry("–", None, "the log does not say it", (), "absent")
        return none, none
    share = None if found.share_of_shapes is None else 100 * found.share_of_shapes
    images = Entry(f"{found.images} of {found.suite_images}", found.images, "distinct images that were timed")
    told = "share of the suite's examples whose shape (tiles, tokens, pixels) was timed"
    return images, Entry("–" if share is None else f"{share:.0f}", share, told)


def accuracy(one: CellSummary) -> Entry:
    """Return the entry of a cell's accuracy in points of 100, or why there is none."""
    found = one.accuracy
    if found.value is None:
        return Entry("not scored", None, found.reason, (), "absent")
    text = interval(found.value, found.low, found.high, 100)
    hover = "; ".join([f"{found.metric} over {found.over} of {one.cell.suite}", *found.remarks])
    return Entry(text, found.value * 100, hover)


def remarks(found: Iterable[tuple[CellSummary, Accuracy]]) -> tuple[tuple[str, str], ...]:
    """Return the notes below a table of accuracies: what is missing of each, was guessed or cut off; of how many."""
    notes = []
    for one, scored in found:
        if scored.remarks and scored.value is not None:
            size = f" at {one.cell.resolution} px" if one.cell.resolution else ""
            over = f"over {scored.n} of {max(scored.asked, scored.n)} questions"
            if scored.questions:
                over = f"over {scored.questions} questions, which are {scored.n} of {max(scored.asked, scored.n)} rows"
            notes.append((f"accuracy of {one.cell.label}{size}:", f"{'; '.join([over, *scored.remarks])}."))
    return tuple(dict.fromkeys(notes))


def exactly(value: float | None) -> Entry:
    """Return a number for CSV: six decimals, nothing for None."""
    return Entry("") if value is None else Entry(f"{value:.6f}".rstrip("0").rstrip("."), value)


def long_form(name: str, title: str, cells: Iterable[CellSummary], times: Iterable[str]) -> Table:
    """Return one line per cell and time, with unrounded medians and bounds: what is written as CSV.

    Where cells are alike in all usual columns, what else tells them apart is a column too.
    """
    facts = (
        "model", "settings", "resolution", "weights", "suite", "data", "machine", "device", "engine", "dtype",
        "protocol",
    )  # fmt: skip
    cells = list(cells)
    columns = [*facts, *told_apart_by([one.cell for one in cells], FIELDS, facts)]
    headings = [Heading(fact) for fact in columns]
    headings += [Heading(text) for text in ("visual_tokens", "n", "quantity", "median_ms", "low_ms", "high_ms")]
    lines = []
    for one in cells:
        for time in times:
            found = one.times.of(time)
            if found is None:
                continue
            known = [Entry(one.cell.text(fact), None, "", one.marks) for fact in columns]
            values = (found.value, found.low, found.high)
            numbers = [exactly(None if value is None else value / 1e6) for value in values]
            lines.append((*known, exactly(one.tokens.visual), exactly(one.times.n), Entry(time), *numbers))
    return Table(name, title, tuple(headings), tuple(lines))
