"""Accuracy against TTFT (or visual tokens), a series per model across resolutions, the frontier drawn, ties named."""

from collections.abc import Sequence
from typing import Any

from harness.reports import measured, style, wording
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.marks import symbols
from harness.reports.measured import Measured
from harness.reports.pareto import Place, Point, places
from harness.reports.summary import CellSummary
from harness.stats import Estimate

COSTS = {
    "ttft": ("TTFT", "ms"),
    "encode": ("encoder latency", "ms"),
    "visual_tokens": ("visual tokens", ""),
}


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each suite on each platform and protocol that has scored cells.

    Setting `cost` of the card is `ttft` (default), `encode` or `visual_tokens`.
    """
    cost = str(card.settings.get("cost", "ttft"))
    pictures: list[Picture] = []
    for where, protocol, cells in measured.by_platform(measured.chosen(data, card), suites=True):
        answered = [scored(data, one) for one in cells]
        points = [point(one, twin, cost) for one, twin in zip(cells, answered, strict=True) if has(one, twin, cost)]
        if points:
            name = f"{card.name}-{len(pictures) + 1}" if pictures else card.name
            title = f"{card.title}: {cells[0].cell.suite} on {wording.platform(where, protocol)}"
            pictures.append(picture(name, title, points, cost, answered[0].accuracy.metric or "accuracy"))
    return pictures


TWIN = ("model", "weights", "weights_digest", "suite", "data_digest", "limit", "resolution", "settings", "machine")
"""What a cell shares with the one that has its accuracy."""


def scored(data: Measured, one: CellSummary) -> CellSummary:
    """Return the cell with its accuracy: itself, or the whole run of an isolated or additive one; else itself."""
    if one.accuracy.value is not None:
        return one
    wanted = [getattr(one.cell, name) for name in TWIN]
    twins = (t for t in data.cells if t.accuracy.value is not None and [getattr(t.cell, n) for n in TWIN] == wanted)
    return next(twins, one)


def has(one: CellSummary, twin: CellSummary, cost: str) -> bool:
    """Return whether the cell has this cost and its twin a score."""
    return twin.accuracy.value is not None and _cost(one, cost) is not None


def _cost(one: CellSummary, cost: str) -> Estimate | None:
    if cost != "visual_tokens":
        return one.times.of(cost)
    return None if one.tokens.visual is None else Estimate(one.tokens.visual, None, None, one.times.n)


def point(one: CellSummary, twin: CellSummary, cost: str) -> Point:
    """Return a cell as a point; `twin` has its accuracy."""
    title, unit = COSTS[cost]
    timed, accuracy, about = unit == "ms", twin.accuracy, one.cell
    scale = 1e-6 if timed else 1.0
    found = _cost(one, cost)
    assert found is not None
    assert found.value is not None
    assert accuracy.value is not None
    tokens = "–" if one.tokens.visual is None else f"{one.tokens.visual:.0f}"
    return Point(
        name=f"{about.model} {about.resolution} px {about.settings}".strip(),
        series=about.label,
        cost=found.value * scale,
        merit=100 * accuracy.value,
        cost_low=None if found.low is None else found.low * scale,
        cost_high=None if found.high is None else found.high * scale,
        merit_low=None if accuracy.low is None else 100 * accuracy.low,
        merit_high=None if accuracy.high is None else 100 * accuracy.high,
        cost_parts=tuple(tuple(v / 1e6 for v in part) for part in one.times.parts_ns((cost,))) if timed else (),
        scores=tuple(100 * score for score in accuracy.scores),
        clusters=accuracy.clusters,
        questions=f"{about.suite} {about.data_digest} {about.limit}",
        label=f"{about.resolution}·{tokens}",
        hover=f"{about.model} at {about.resolution} px, {tokens} visual tokens: {title} "
        f"{wording.estimate(found, scale)} {unit}, {accuracy.metric} {wording.estimate(accuracy.estimate, 100)}",
        marks=one.marks,
    )


def picture(name: str, title: str, points: list[Point], cost: str, metric: str) -> Picture:
    """Draw `points`, their intervals and the frontier."""
    found = places(points)
    quantity, unit = COSTS[cost]
    marks = frozenset(mark for p in points for mark in p.marks)
    with style.style():
        figure, axes = style.new(2.7)
        plot(axes, found, log=True)
        axes.set_xlabel(f"{quantity} ({unit}, log scale)" if unit else f"{quantity} (log scale)")
        axes.set_ylabel(f"{metric} (points of 100)")
        figure.legend(loc="outside upper center", ncols=2, handletextpad=0.3, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
        style.place_labels(axes, [(p.cost, p.merit, p.label + symbols(p.marks)) for p in points])
    on = [place.point.name for place in found if place.verdict == "frontier"]
    ties = [place.point.name for place in found if place.verdict == "tie"]
    alt = f"{title}. On the frontier: {', '.join(on) or 'none for sure'}."
    alt += f" Ties, which the data do not decide: {', '.join(ties)}." if ties else ""
    caption = (
        "Labels: resolution in px · visual tokens. Bars: 95 % intervals. Line: the frontier of the point estimates. "
        "Filled: on it in at least 95 % of bootstrap draws; half filled: a tie; empty: dominated."
    )
    hovers = {f"point-{i}": f"{p.point.hover}; {p.verdict}, {p.probability:.0%}" for i, p in enumerate(found)}
    return Picture(name, title, alt, figure, table(name, title, found, cost), caption, hovers, marks)


def plot(axes: Any, found: Sequence[Place], log: bool) -> None:
    """Draw points, bars and the frontier's steps into `axes`."""
    series = sorted({place.point.series for place in found})
    line = sorted((p.point for p in found if p.on_frontier), key=lambda p: p.cost)
    if log:
        axes.set_xscale("log")
    ends = [value for p in found for value in (p.point.cost_low or p.point.cost, p.point.cost_high or p.point.cost)]
    low, high = min(ends) / 1.35, max(ends) * 1.6
    xs, ys = [p.cost for p in line] + [high], [p.merit for p in line] + [line[-1].merit]
    axes.step(xs, ys, where="post", color=style.QUIET, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1, label="frontier")
    for number, one in enumerate(series):
        mine = sorted((p for p in found if p.point.series == one), key=lambda p: p.point.cost)
        colour, marker = style.COLOURS[number % 8], style.MARKERS[number % 8]
        axes.plot([p.point.cost for p in mine], [p.point.merit for p in mine], color=colour, linewidth=0.7, zorder=2)
        for place in mine:
            p = place.point
            across, up = _bar(p.cost, p.cost_low, p.cost_high), _bar(p.merit, p.merit_low, p.merit_high)
            axes.errorbar(
                p.cost, p.merit, xerr=across, yerr=up, color=colour, elinewidth=0.7, capsize=1.5, capthick=0.5,
                zorder=2,
            )  # fmt: skip
            fill = {"frontier": "full", "tie": "left", "dominated": "none"}[place.verdict]
            (drawn,) = axes.plot(
                p.cost, p.merit, marker=marker, markersize=4.5, color=colour, fillstyle=fill, linestyle="", zorder=3,
                markerfacecoloralt="none",
            )  # fmt: skip
            drawn.set_gid(f"point-{found.index(place)}")
        axes.plot([], [], color=colour, marker=marker, markersize=4, linewidth=0.7, label=one)
    axes.set_xlim(low, high)
    if log:
        style.log_ticks(axes.xaxis, low, high)
    axes.margins(y=0.14)


def table(name: str, title: str, found: Sequence[Place], cost: str, merit: str = "accuracy") -> Table:
    """Return the numbers of the picture, by rising cost."""
    quantity, unit = COSTS[cost]
    headings = (
        Heading("model and resolution"),
        Heading(quantity, unit, True), Heading("low", unit, True), Heading("high", unit, True),
        Heading(merit, "points" if merit == "accuracy" else "", True),
        Heading("merit low", "", True), Heading("merit high", "", True),
        Heading("probability on the frontier", "", True), Heading("verdict"), Heading("tied with"),
    )  # fmt: skip
    rows = []
    for place in sorted(found, key=lambda place: (place.point.cost, place.point.name)):
        p = place.point
        numbers = (p.cost, p.cost_low, p.cost_high, p.merit, p.merit_low, p.merit_high)
        entries = [Entry(wording.number(value, 4), value) for value in map(_size, numbers)]
        rivals = ", ".join(place.rivals) if place.verdict == "tie" else ""
        sure = Entry(f"{place.probability:.2f}", place.probability)
        rows.append((Entry(p.name, p.name, p.hover, p.marks), *entries, sure, Entry(place.verdict), Entry(rivals)))
    return Table(name, f"{title}: the numbers", headings, tuple(rows))


def _bar(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _size(value: float | None) -> float | None:
    """Return the printed number of a merit that counts downwards (parameters)."""
    return None if value is None else abs(value)
