"""Encoders alone: latency measured here against a published score or size, for weights that cannot be scored here."""

from harness.reports import style, wording
from harness.reports.card import ReportCard
from harness.reports.document import Picture
from harness.reports.figures.pareto import plot, table
from harness.reports.marks import symbols
from harness.reports.measured import Measured
from harness.reports.paper.evidence import PAPER, Evidence
from harness.reports.paper.published import Printed, select
from harness.reports.pareto import Point, places


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture per platform: encoder latency here, and the published column `merit` of the card's CSV file.

    With setting `smaller` the merit counts the other way (parameters). The published values are taken as certain.
    """
    evidence = Evidence(data)
    pictures = []
    for number, platform in enumerate(evidence.platforms(card.matches)):
        points = []
        for printed in select(card):
            point = _point(evidence, platform, printed, card)
            points += [point] if point else []
        if points:
            name = f"{card.name}{f'-{number + 1}' if number else ''}"
            pictures.append(picture(name, f"{card.title}: {wording.platform(platform)}", points, card))
    return pictures


def _point(evidence: Evidence, platform: tuple[str, ...], printed: Printed, card: ReportCard) -> Point | None:
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
    return Point(
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
        marks=(*one.marks, "published"),
    )


def picture(name: str, title: str, points: list[Point], card: ReportCard) -> Picture:
    """Draw the points and their frontier."""
    found = places(points)
    column = str(card.settings["merit"])
    what = str(card.settings.get("merit_title", column))
    marks = frozenset(mark for p in points for mark in p.marks)
    with style.style():
        figure, axes = style.new(2.8)
        plot(axes, found, log=True)
        axes.set_xlabel("encoder latency, measured here (ms, log scale)")
        axes.set_ylabel(f"{what}, published{symbols(['published'])}")
        if card.settings.get("smaller"):
            axes.yaxis.set_major_formatter(lambda value, _: f"{-value:g}")
        figure.legend(loc="outside upper center", ncols=2, handletextpad=0.3, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
        style.place_labels(axes, [(p.cost, p.merit, p.label + symbols(p.marks)) for p in points])
    on = [place.point.name for place in found if place.verdict == "frontier"]
    alt = f"{title}. Latency against {what} as published. On the frontier: {', '.join(on) or 'none for sure'}."
    caption = (
        f"Latency measured here; {what} as published by others, on their data: a mixed picture, and marked as one."
    )
    hovers = {f"point-{i}": f"{p.point.hover}; {p.verdict}, {p.probability:.0%}" for i, p in enumerate(found)}
    return Picture(name, title, alt, figure, table(name, title, found, "encode", what), caption, hovers, marks)
