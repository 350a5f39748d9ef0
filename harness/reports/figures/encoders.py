"""Encoders alone: latency measured here against a published score or size, for weights that cannot be scored here."""

from harness.reports import material, style
from harness.reports.card import ReportCard
from harness.reports.document import Picture
from harness.reports.figures.pareto import plot, table
from harness.reports.material import Material
from harness.reports.paper.evidence import PAPER, Evidence
from harness.reports.paper.published import Printed, select
from harness.reports.pareto import Point, places


def draw(data: Material, card: ReportCard) -> list[Picture]:
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
            pictures.append(picture(name, f"{card.title}: {material.platform_text(platform)}", points, card))
    return pictures


def _point(evidence: Evidence, platform: tuple[str, ...], printed: Printed, card: ReportCard) -> Point | None:
    column = str(card.settings["merit"])
    match = next((match for match in card.matches if printed.label in match.rows), None)
    if match is None or match.model is None or not printed.values.get(column):
        return None
    found = [r for protocol in PAPER for r in evidence.rows(match, platform, protocol, ["encode"])]
    if not found:
        return None
    row = found[0]
    value = float(printed.values[column])
    low, high = row["encode_low_ns"], row["encode_high_ns"]
    encode = material.milliseconds(row, "encode")
    return Point(
        name=printed.label,
        series=printed.label.partition("@")[0],
        cost=row["encode_ns"] / 1e6,
        merit=-value if card.settings.get("smaller") else value,
        cost_low=None if low is None else low / 1e6,
        cost_high=None if high is None else high / 1e6,
        cost_parts=tuple(tuple(v / 1e6 for v in part) for part in evidence.data.series_ns(row, ("encode",))),
        label=f"{row['resolution']}",
        hover=f"{printed.label}: encode {encode.text} ms here ({row['model']}), {column} {value:g} as published",
        marks=(*row["marks"], "published"),
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
        axes.set_ylabel(f"{what}, published{style.symbols(['published'])}")
        if card.settings.get("smaller"):
            axes.yaxis.set_major_formatter(lambda value, _: f"{-value:g}")
        figure.legend(loc="outside upper center", ncols=2, handletextpad=0.3, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
        style.place_labels(axes, [(p.cost, p.merit, p.label + style.symbols(p.marks)) for p in points])
    on = [place.point.name for place in found if place.verdict == "frontier"]
    alt = f"{title}. Latency against {what} as published. On the frontier: {', '.join(on) or 'none for sure'}."
    caption = (
        f"Latency measured here; {what} as published by others, on their data: a mixed picture, and marked as one."
    )
    hovers = {f"point-{i}": f"{p.point.hover}; {p.verdict}, {p.probability:.0%}" for i, p in enumerate(found)}
    return Picture(name, title, alt, figure, table(name, title, found, "encode", what), caption, hovers, marks)
