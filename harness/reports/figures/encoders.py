"""Encoders alone: latency measured here against a published score or size, for weights that cannot be scored here."""

from harness.reports import canvas, likeness, wording
from harness.reports.card import ReportCard
from harness.reports.document import Picture
from harness.reports.figures.pareto import LABELS, READ, carriers, described, plot, table
from harness.reports.marks import symbols
from harness.reports.measured import Measured
from harness.reports.paper.evidence import PAPER, Evidence
from harness.reports.paper.published import Printed, select
from harness.reports.pareto import Point, places
from harness.reports.summary import CellSummary


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture per platform: encoder latency here, and the published column `merit` of the card's CSV file.

    With setting `smaller` the merit counts the other way (parameters). The published values are taken as certain.
    """
    evidence = Evidence(data)
    groups = []
    for platform in evidence.platforms(card.matches):
        found = [pair for printed in select(card) if (pair := _point(evidence, platform, printed, card)) is not None]
        groups += [(wording.platform(platform), found)] if found else []

    def one(name: str, title: str, found: list[tuple[CellSummary, Point]]) -> Picture:
        drawn = picture(name, title, [point for _, point in found], card)
        return canvas.noted(drawn, likeness.notes(cell for cell, _ in found))

    return canvas.pictures(card, groups, one)


def _point(
    evidence: Evidence, platform: tuple[str, ...], printed: Printed, card: ReportCard
) -> tuple[CellSummary, Point] | None:
    column = str(card.settings["merit"])
    match = next((match for match in card.matches if printed.label in match.rows), None)
    if match is None or match.model is None or not printed.values.get(column):
        return None
    found = [r for protocol in PAPER for r in evidence.cells(match, platform, protocol, ["encode"])]
    if not found:
        return None
    one = found[0]
    time = one.times.of("encode")
    assert time is not None
    assert time.value is not None
    value = float(printed.values[column])
    return one, Point(
        name=printed.label,
        series=printed.label.partition("@")[0],
        cost=time.value / 1e6,
        merit=-value if card.settings.get("smaller") else value,
        cost_low=None if time.low is None else time.low / 1e6,
        cost_high=None if time.high is None else time.high / 1e6,
        cost_parts=tuple(tuple(v / 1e6 for v in part) for part in one.times.parts_ns(("encode",))),
        label=f"{one.cell.resolution}",
        hover=f"{printed.label}: encode {wording.estimate(time, 1e-6)} ms here ({one.cell.model}), "
        f"{column} {value:g} as published",
        marks=(*one.marks, *(("doubted",) if one.doubts else ()), "published"),
        unbounded=time.low is None,
    )


def picture(name: str, title: str, points: list[Point], card: ReportCard) -> Picture:
    """Draw the points and their frontier."""
    found = places(points)
    column = str(card.settings["merit"])
    what = str(card.settings.get("merit_title", column))
    marks = frozenset(mark for p in points for mark in p.marks)
    with canvas.canvas(2.3, carriers(points)) as drawn:
        plot(drawn, found)
        drawn.axes.set_xlabel("encoder latency, measured here (ms, log scale)")
        drawn.axes.set_ylabel(f"{what}, published{symbols(['published'])}")
        if card.settings.get("smaller"):
            drawn.axes.yaxis.set_major_formatter(lambda value, _: f"{-value:g}")
            drawn.axes.set_ylabel(f"{what}, {symbols(['published'])} turned: fewer is higher")
    alt = described(title, found, "ms", f"{what} as published")
    caption = (
        f"Latency measured here; {what} as published by others, on their data: a mixed picture, and marked as one. "
        f"{LABELS} {READ}"
    )
    numbers = table(name, title, found, "encode", what)
    return Picture(name, title, alt, drawn.figure, numbers, caption, drawn.hovers, marks)
