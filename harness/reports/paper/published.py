"""Published figures, as printed, beside what was measured here, and the verdict: matches, differs by so much, not run.

Milliseconds of another machine are compared only as ratios: a row's time over the same table's reference row, there and
here. Scores are compared only with weights whose training is that row's. The tolerance is the report card's.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from harness import cards
from harness.errors import CardError
from harness.reports import marks as marks_
from harness.reports.card import Column, Match, ReportCard
from harness.reports.configuration import Platform
from harness.reports.paper.evidence import APART, PAPER, Evidence, fits
from harness.reports.summary import CellSummary
from harness.stats import Estimate


@dataclass(frozen=True, slots=True)
class Printed:
    """One row of a published table: its label is the table's own, or `name@resolution/tokens` where it has none."""

    file: str
    table: str
    label: str
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One published figure and ours. `printed` is the text of the CSV file; `published` what of it is compared."""

    row: str
    column: str
    printed: str
    published: float | None = None
    measured: Estimate | None = None
    unit: str = ""
    protocol: str = ""
    difference: str = ""
    matches: bool | None = None
    why_not: str = ""
    marks: tuple[str, ...] = ()
    reference: bool = False
    """It is the row that times are divided by, so that there is nothing to compare."""
    sides: tuple[CellSummary, ...] = ()
    """The cells whose times are divided: the row's and the reference's."""

    @property
    def verdict(self) -> str:
        """`matches`, `differs by ...` (or `differs: 0.18 × the published ratio`), `not run here`, or `reference`.

        `undecided`: it is beyond the tolerance, and too few samples or images were measured for an interval.
        """
        if self.reference or self.measured is None:
            return "reference" if self.reference else "not run here"
        if self.matches is None:
            return f"undecided, no interval: {self.difference}"
        if self.matches:
            return "matches"
        return f"differs{':' if '×' in self.difference else ' by'} {self.difference}"


@cache
def read(file: str) -> tuple[Printed, ...]:
    """Read one file of `reports/paper/`. Raises `CardError` for a file that is not there."""
    if "/" in file or "\\" in file:
        raise CardError(f"{file}: out of reports/paper; next: the name of a file in it, without folders")
    path = cards.ROOT / "reports" / "paper" / file
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = list(csv.DictReader(lines))
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}; next: mend `csv` in the report card") from error
    rows: list[Printed] = []
    seen: dict[tuple[str, str], int] = {}
    for values in table:
        label = values.get("row") or values.get("t10_row") or ""
        if not label:
            name = values.get("encoder") or values.get("model") or values.get("method") or ""
            label = f"{name}@{values.get('input_res', '')}/{values.get('visual_tokens', '')}"
        where = values.get("table") or ("T10" if "t10_row" in values else "")
        seen[where, label] = seen.get((where, label), 0) + 1
        if seen[where, label] > 1:
            label += f"#{seen[where, label]}"
        rows.append(Printed(file, where, label, values))
    return tuple(rows)


def cite(reference: str) -> str:
    """Return the figure that `file|table|row|column` names, as printed. Raises `CardError` if there is none."""
    if reference.count("|") != 3:
        raise CardError(f"{reference!r} cites no figure; next: write file|table|row|column")
    file, table, label, column = reference.split("|")
    for row in read(file):
        if row.table == table and row.label == label:
            if row.values.get(column):
                return row.values[column]
            break
    raise CardError(f"{reference}: no such published figure; next: see reports/paper/{file}")


def select(card: ReportCard) -> list[Printed]:
    """Return the rows that a report card shows."""
    return [row for row in read(card.csv) if not card.tables or row.table in card.tables]


def compare(card: ReportCard, row: Printed, evidence: Evidence, platform: Platform | None) -> Iterator[Comparison]:
    """Yield the comparison of every figure in a row: for TTFT one per protocol that was measured."""
    match = next((match for match in card.matches if row.label in match.rows), None)
    for column in card.columns:
        printed = row.values.get(column.name) or ""
        if column.quantity == "shown":
            continue
        if not printed:
            yield Comparison(row.label, column.name, "", why_not="not reported")
        elif match is None or match.model is None:
            why = match.why_not if match else "no card of this harness is this model"
            yield Comparison(row.label, column.name, printed, why_not=why)
        elif column.quantity == "score":
            yield _score(row, column, printed, match, evidence)
        elif column.quantity in ("params", "tokens"):
            yield _count(row, column, printed, match, evidence)
        else:
            yield from _times(card, row, column, printed, match, evidence, platform)


def _score(row: Printed, column: Column, printed: str, match: Match, evidence: Evidence) -> Comparison:
    if not column.suites:
        return Comparison(row.label, column.name, printed, why_not="no suite of this harness is this one")
    if not evidence.platforms([match]):
        return Comparison(row.label, column.name, printed, float(printed), why_not=_no_run(match))
    score = evidence.score(match, column.suites)
    measured = score.estimate
    if measured is None:
        return Comparison(row.label, column.name, printed, float(printed), why_not=score.why_not)
    if row.label not in match.scored:
        why = f"the released weights of {match.model} had other training than this row's"
        return Comparison(row.label, column.name, printed, float(printed), why_not=why)
    assert measured.value is not None
    difference = measured.value - float(printed)
    half = 0.0 if measured.low is None or measured.high is None else (measured.high - measured.low) / 2
    near = abs(difference) <= column.tolerance + 1e-9
    within = (
        measured.low is not None
        and measured.high is not None
        and (measured.low - column.tolerance <= float(printed) <= measured.high + column.tolerance)
    )
    told = f"{difference:+.1f} points (our interval ±{half:.1f})" if half else f"{difference:+.1f} points"
    return Comparison(
        row.label, column.name, printed, float(printed), measured, "points", "", told, near or within, "", score.marks
    )


def _count(row: Printed, column: Column, printed: str, match: Match, evidence: Evidence) -> Comparison:
    try:
        published = sum(float(part) for part in printed.split("+"))
    except ValueError:
        return Comparison(row.label, column.name, printed, why_not="printed as text")
    value = evidence.params_m(match) if column.quantity == "params" else evidence.tokens(match)
    if value is None:
        return Comparison(row.label, column.name, printed, published, why_not=_no_run(match))
    pages = ""
    if column.quantity == "tokens" and match.square_tokens:
        pages = f"; of a square image, {value:.0f} of this suite's pages"
        value = float(match.square_tokens)
    difference = value / published - 1
    near = abs(difference) <= column.tolerance + 1e-9
    told = f"{value - published:+.4g} ({difference:+.1%}){pages}"
    return Comparison(row.label, column.name, printed, published, Estimate(value, None, None, 1), "", "", told, near)


def _times(
    card: ReportCard,
    row: Printed,
    column: Column,
    printed: str,
    match: Match,
    evidence: Evidence,
    platform: Platform | None,
) -> Iterator[Comparison]:
    reference = next((r for r in select(card) if r.label == card.reference), None)
    base = next((m for m in card.matches if card.reference in m.rows), None)
    if reference is None or base is None or not reference.values.get(column.name):
        raise CardError(
            f"report {card.name}: reference row {card.reference!r} has no {column.name}; next: mend the card"
        )
    published = float(printed) / float(reference.values[column.name])
    found = apart = False
    for protocol in PAPER:
        if platform is None:
            break
        upper, lower = (evidence.cells(each, platform, protocol, (column.quantity,)) for each in (match, base))
        pair = evidence.pair(upper, lower)
        apart = apart or bool(upper and lower and not pair)
        ratio = evidence.ratio(*pair, column.quantity) if pair else None
        if pair is None or ratio is None or ratio.value is None:
            continue
        found = True
        marks = marks_.of_all(one.marks for one in pair)
        if match is base:
            yield Comparison(
                row.label, column.name, printed, published, ratio, "×", protocol, marks=marks, reference=True
            )
            break
        matches, told = _against(published, ratio, column.tolerance)
        yield Comparison(
            row.label, column.name, printed, published, ratio, "×", protocol, told, matches, "", marks, sides=pair
        )
        if column.quantity == "encode":
            break  # the encoder does the same in both protocols
    if not found:
        missing = [m for m in (match, base) if platform is None or not _ran(evidence, m, platform)]
        why = (
            "; ".join(dict.fromkeys(map(_no_run, missing)))
            or (f"{match.model} and {base.model} were {APART}" if apart else "")
            or f"no run of {match.model} has a time for {column.quantity}"
        )
        yield Comparison(row.label, column.name, printed, published, why_not=why)


def _ran(evidence: Evidence, match: Match, platform: Platform) -> bool:
    return any(evidence.cells(match, platform, protocol) for protocol in PAPER)


def _no_run(match: Match) -> str:
    return f"no run of {match.model}" + (f" at {match.resolution} px" if match.resolution else "")


def _against(published: float, ratio: Estimate, tolerance: float) -> tuple[bool | None, str]:
    """Compare two ratios: they match when the published one lies in our interval widened by the tolerance.

    Without an interval a ratio beyond the tolerance decides nothing, unless it is another one by a factor of two.
    """
    assert ratio.value is not None
    low, high = ratio.low or ratio.value, ratio.high or ratio.value
    times = ratio.value / published
    told = f"{times - 1:+.0%}" if 0.5 <= times <= 2 else f"{times:.2g} × the published ratio"
    return fits(low * (1 - tolerance) <= published <= high * (1 + tolerance), ratio, published), told
