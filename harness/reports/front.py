"""The first screen of a page: the figure that decides, which cell to take for a budget, and how the claims came out."""

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.reports import choice, wording
from harness.reports.choice import Answer, Budget
from harness.reports.document import Entry, Heading, Picture, Report, Table
from harness.reports.measured import Measured
from harness.units import milliseconds

ROUND = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""Budgets are these times a power of ten."""
MOST_BUDGETS = 5


def front(data: Measured, sections: Sequence[Report]) -> tuple[tuple[Table | Picture, ...], tuple[Report, ...]]:
    """Return what the first screen shows, and the sections without what has moved there."""
    first, rest = _picture(sections)
    blocks: list[Table | Picture] = [first] if first else []
    blocks += [table for table in (_choices(data), _claims(sections)) if table]
    return tuple(blocks), rest


def _picture(sections: Sequence[Report]) -> tuple[Picture | None, tuple[Report, ...]]:
    """Return the first section's picture of most points, and the sections without it."""
    if not sections:
        return None, ()
    drawn = [one for one in sections[0].blocks if isinstance(one, Picture) and one.figure is not None]
    if not drawn:
        return None, tuple(sections)
    most = max(drawn, key=lambda one: len(one.numbers.rows))
    left = tuple(one for one in sections[0].blocks if one is not most)
    return most, (*((replace(sections[0], blocks=left),) if left else ()), *sections[1:])


def _choices(data: Measured) -> Table | None:
    """Return the choice for a few round budgets, on the platform and suite with most cells."""
    everything = next(iter(choice.choose(data, Budget(ttft_ns=math.inf))), None)
    if everything is None or not everything.contenders:
        return None
    found = [one.candidate for one in everything.contenders]
    metric = found[0].accuracy.metric or "accuracy"
    budgets = _budgets([one.point.cost for one in found])
    rows = [_row(ms, choice.answer(everything.about, found, Budget(ttft_ns=ms * 1e6))) for ms in budgets]
    heads = (
        Heading("TTFT at most", "", True), Heading("take"), Heading("TTFT", "ms", True),
        Heading(metric, "of 100", True), Heading("probability", "", True),
    )  # fmt: skip
    key = (
        f"the most accurate cell that keeps to the budget, for {everything.about}; the probability that it is the best "
        "one. `harness choose --ttft 200ms` answers for yours."
    )
    notes = tuple(("Note:", f"{told}.") for told in everything.notes)
    return Table("choice", "Which to take", heads, tuple(rows), notes, key=key)


def _row(ms: float, answer: Answer) -> tuple[Entry, ...]:
    head = Entry(milliseconds(ms * 1e6), ms)
    if answer.winner is None:
        return (head, Entry("none fits", None, answer.nothing, (), "absent"), *[Entry("–", tone="absent")] * 3)
    one, carried = answer.winner.cell, answer.winner.candidate.point.marks
    hover = "; doubt: ".join([one.cell.name, *answer.winner.candidate.doubts])
    rival = answer.runner_up
    second = f"next: {rival.cell.cell.label} at {rival.cell.cell.resolution} px" if rival else "no rival"
    return (
        head,
        Entry(f"{one.cell.label} at {one.cell.resolution} px", one.cell.label, hover, carried),
        wording.milliseconds(one, "ttft"),
        wording.accuracy(replace(one, accuracy=answer.winner.candidate.accuracy)),
        Entry(choice.probability(answer.winner.probability), answer.winner.probability, second),
    )


def _budgets(costs_ms: Sequence[float]) -> list[float]:
    """Return round budgets from just above the fastest to just above the slowest, evenly chosen."""
    low, high = min(costs_ms), max(costs_ms)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    steps = [r * 10.0**power for power in powers for r in ROUND]
    last = next(step for step in steps if step >= high)
    inside = [step for step in steps if low <= step <= last]
    while len(inside) > MOST_BUDGETS:  # every other one, but the last
        inside = inside[-1::-2][::-1]
    return inside


def _claims(sections: Sequence[Report]) -> Table | None:
    """Return the claims that were measured, a line each, from the section that holds them all."""
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    whole = next((one for one in tables if [h.title for h in one.headings][:1] == ["claim"]), None)
    if whole is None:
        return None
    titles = [heading.title for heading in whole.headings]
    claim, published, here, verdict = (
        titles.index(name) for name in ("claim", "published ratio", "measured ratio", "verdict")
    )
    lines: dict[str, tuple[Entry, ...]] = {}
    for row in whole.rows:
        if row[verdict].tone != "absent":
            printed = replace(row[published], text=row[published].text.split(" = ")[0])
            lines.setdefault(row[0].text, (row[claim], printed, row[here], row[verdict]))
    every = len({row[0].text for row in whole.rows})
    heads = (Heading("claim"), Heading("published", "", True), Heading("here", "", True), Heading("verdict"))
    key = f"{len(lines)} of {every} claims could be measured here; both protocols and all reasons are in the section."
    return Table("claims-measured", "The paper's claims", heads, tuple(lines.values()), key=key)
