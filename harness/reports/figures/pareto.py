"""Accuracy against TTFT (or visual tokens), a series per model across resolutions, the frontier drawn, ties named."""

from collections.abc import Sequence
from typing import Any

from harness.reports import material, style
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.material import Material, Row
from harness.reports.pareto import Place, Point, places

COSTS = {
    "ttft": ("TTFT", "ms", "ttft_ns"),
    "encode": ("encoder latency", "ms", "encode_ns"),
    "visual_tokens": ("visual tokens", "", "visual_tokens"),
}


def draw(data: Material, card: ReportCard) -> list[Picture]:
    """Return a picture for each suite on each platform and protocol that has scored cells.

    Setting `cost` of the card is `ttft` (default), `encode` or `visual_tokens`.
    """
    cost = str(card.settings.get("cost", "ttft"))
    pictures: list[Picture] = []
    for where, rows in material.by_platform(material.chosen(data, card), "suite", "data_digest", "limit"):
        answered = partners(data, rows)
        points = [p for row in rows if (p := point(data, row, answered.get(row["cell"]), cost)) is not None]
        if points:
            name = f"{card.name}-{len(pictures) + 1}" if pictures else card.name
            title = f"{card.title}: {rows[0]['suite']} on {where}"
            metric = str(answered[rows[0]["cell"]]["metric"] or "accuracy")
            pictures.append(picture(name, title, points, cost, metric))
    return pictures


def partners(data: Material, rows: Sequence[Row]) -> dict[str, Row]:
    """Return for each row the one with its accuracy: itself, or the whole run of an isolated or additive one."""
    out = {}
    same = ("model", "weights", "weights_digest", "suite", "data_digest", "limit", "resolution", "settings", "machine")
    for row in rows:
        twins = [r for r in data.rows if all(r[name] == row[name] for name in same) and r["accuracy"] is not None]
        out[row["cell"]] = row if row["accuracy"] is not None else (twins[0] if twins else row)
    return out


def point(data: Material, row: Row, scored: Row | None, cost: str) -> Point | None:
    """Return the row as a point, or None where it lacks a time or a score."""
    title, unit, column = COSTS[cost]
    if scored is None or scored["accuracy"] is None or row.get(column) is None:
        return None
    timed = unit == "ms"
    parts = tuple(tuple(v / 1e6 for v in part) for part in data.series_ns(row, (cost,))) if timed else ()
    scale = 1e-6 if timed else 1.0
    low, high = (row.get(f"{cost}_low_ns"), row.get(f"{cost}_high_ns")) if timed else (None, None)
    accuracy = data.accuracies[scored["cell"]]
    tokens = "–" if row["visual_tokens"] is None else f"{row['visual_tokens']:.0f}"
    marks = tuple(row["marks"])
    bounds = [None if scored[name] is None else 100 * scored[name] for name in ("accuracy_low", "accuracy_high")]
    return Point(
        name=f"{row['model']} {row['resolution']} px" + (f" {row['settings']}" if row["settings"] else ""),
        series=" ".join(str(part) for part in (row["model"], row["settings"]) if part),
        cost=row[column] * scale,
        merit=100 * scored["accuracy"],
        cost_low=None if low is None else low * scale,
        cost_high=None if high is None else high * scale,
        merit_low=bounds[0],
        merit_high=bounds[1],
        cost_parts=parts,
        scores=tuple(100 * score for score in accuracy.scores),
        clusters=accuracy.clusters,
        questions=f"{row['suite']} {row['data_digest']} {row['limit']}",
        label=f"{row['resolution']}·{tokens}",
        hover=f"{row['model']} at {row['resolution']} px, {tokens} visual tokens: {title} "
        + material.interval(row[column], low, high, scale)
        + f" {unit}, {scored['metric']} "
        + material.interval(scored["accuracy"], scored["accuracy_low"], scored["accuracy_high"], 100),
        marks=marks,
    )


def picture(name: str, title: str, points: list[Point], cost: str, metric: str) -> Picture:
    """Draw `points`, their intervals and the frontier."""
    found = places(points)
    quantity, unit, _ = COSTS[cost]
    marks = frozenset(mark for p in points for mark in p.marks)
    with style.style():
        figure, axes = style.new(2.7)
        plot(axes, found, log=True)
        axes.set_xlabel(f"{quantity} ({unit}, log scale)" if unit else f"{quantity} (log scale)")
        axes.set_ylabel(f"{metric} (points of 100)")
        figure.legend(loc="outside upper center", ncols=2, handletextpad=0.3, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
        style.place_labels(axes, [(p.cost, p.merit, p.label + style.symbols(p.marks)) for p in points])
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
    quantity, unit, _ = COSTS[cost]
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
        entries = [Entry(material.number(value, 4), value) for value in map(_size, numbers)]
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
