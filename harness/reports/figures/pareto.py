"""Accuracy against TTFT (or visual tokens), a series per model across resolutions, the frontier drawn, ties named."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import SettingError
from harness.reports import candidates, canvas, measured, resizing, style, wording
from harness.reports.candidates import COSTS, Candidate
from harness.reports.canvas import Canvas, Look
from harness.reports.card import ReportCard
from harness.reports.choice import Answer
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.layout import Label
from harness.reports.measured import Measured
from harness.reports.pareto import Place, Point, places


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each suite on each platform and protocol that has scored cells.

    Setting `cost` of the card is `ttft` (default), `encode` or `visual_tokens`.
    """
    cost = str(card.settings.get("cost", "ttft"))
    groups = []
    platforms = measured.by_platform(measured.chosen(data, card), suites=True)
    for about, (_, _, cells) in zip(wording.abouts(platforms), platforms, strict=True):
        found = candidates.of(data, cells, cost)
        if found:
            groups.append((about, found))

    def one(name: str, title: str, found: Sequence[Candidate]) -> Picture:
        notes = wording.remarks((each.cell, each.accuracy) for each in found)
        points, metric = [each.point for each in found], found[0].accuracy.metric or "accuracy"
        resized = resizing.short([each.cell for each in found])
        return canvas.noted(picture(name, title, points, cost, metric, notes, resized), candidates.notes(found))

    return canvas.pictures(card, groups, one)


def picture(
    name: str,
    title: str,
    points: Sequence[Point],
    cost: str,
    metric: str,
    notes: tuple[tuple[str, str], ...] = (),
    resized: str = "",
) -> Picture:
    """Draw `points`, their intervals and the frontier."""
    found = places(points)
    quantity, unit = COSTS[cost]
    with canvas.canvas(2.1, carriers(points), resized=resized) as drawn:
        plot(drawn, found)
        drawn.axes.set_xlabel(f"{quantity} ({unit}, log scale)" if unit else f"{quantity} (log scale)")
        drawn.axes.set_ylabel(f"{metric} (points of 100)")
    caption = f"{LABELS} {READ}"
    marks = frozenset(mark for p in points for mark in p.marks)
    alt = described(title, found, unit, metric)
    numbers = replace(table(name, title, found, cost), notes=notes)
    return Picture(name, title, alt, drawn.figure, numbers, caption, drawn.hovers, marks)


LABELS = "Labels: resolution in px, at points of the frontier and at the ends of a model's line where there is room."
READ = (
    "Bars: 95 % intervals. Dashed line: the frontier of the point estimates. Filled: on it in at least 95 % of "
    "bootstrap draws; half filled: a tie; empty: dominated; cross: measured too few times for an interval."
)
FILLS: dict[str, Literal["full", "left", "none"]] = {"frontier": "full", "tie": "left", "dominated": "none"}


def write_choice(answers: Sequence[Answer], path: Path) -> list[Path]:
    """Draw each answer with its budget into `path` (a second one into `<name>-2`); return the files."""
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise SettingError(f"--figure {path}: draws png, svg or pdf; next: name such a file")
    written: list[Path] = []
    for one in answers:
        if one.contenders:
            file = path.with_stem(f"{path.stem}-{len(written) + 1}") if written else path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(style.render(_choice(one), kind))
            written.append(file)
    return written


def _choice(answer: Answer) -> Figure:
    points = [one.candidate.point for one in answer.contenders]
    budget, winner = answer.budget, answer.winner
    resized = resizing.short([one.cell for one in answer.contenders])
    with canvas.canvas(2.1, carriers(points), resized=resized) as drawn:
        plot(drawn, places(points))
        if budget.ttft_ns is not None:
            drawn.axes.axvline(budget.ttft_ns / 1e6, color="black", linewidth=0.8, label="budget")
        if budget.accuracy is not None:
            drawn.axes.axhline(100 * budget.accuracy, color="black", linewidth=0.8, label="budget")
        if winner is not None:
            p = winner.candidate.point
            sure = winner.probability
            chosen = (
                "chosen, p not known" if sure is None else f"chosen, p {'> 0.99' if sure > 0.99 else f'= {sure:.2f}'}"
            )
            drawn.axes.plot(
                p.cost, p.merit, "o", markersize=9, markerfacecolor="none", color="black", linestyle="", label=chosen
            )
        drawn.axes.set_xlabel("TTFT (ms, log scale)")
        drawn.axes.set_ylabel(f"{answer.contenders[0].candidate.accuracy.metric or 'accuracy'} (points of 100)")
    return drawn.figure


def carriers(points: Sequence[Point]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return who carries which marks, by series and name."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for p in points:
        found.setdefault(p.series, {})[p.name] = p.marks
    return found


def described(title: str, found: Sequence[Place], unit: str, metric: str) -> str:
    """Return in words what the picture shows: the frontier from left to right, ties, and what has no interval."""
    names = {verdict: [p.point.name for p in found if p.verdict == verdict] for verdict in ("tie", "no interval")}
    line = sorted((p.point for p in found if p.on_frontier), key=lambda p: p.cost)
    steps = [f"{p.name} ({wording.number(p.cost)} {unit}, ".replace(" ,", ",") + f"{abs(p.merit):.3g})" for p in line]
    alt = f"{title}. {len(found)} points of {len({p.point.series for p in found})} models, {metric} against cost. "
    alt += f"The frontier of the point estimates, from left to right: {', '.join(steps)}."
    alt += f" Ties, which the data do not decide: {', '.join(names['tie'])}." if names["tie"] else ""
    return alt + (f" Without an interval: {', '.join(names['no interval'])}." if names["no interval"] else "")


def plot(drawn: Canvas, found: Sequence[Place]) -> None:
    """Draw points, bars and the frontier's steps, and ask for labels: the frontier's first, then the ends of lines."""
    axes = drawn.axes
    axes.set_xscale("log")
    ends = [v for p in found for v in (p.point.cost_low or p.point.cost, p.point.cost_high or p.point.cost)]
    low, high = min(ends) / 1.3, max(ends) * 1.4
    _frontier(axes, [p.point for p in found if p.on_frontier], high)
    labels = [p.point for p in found if p.on_frontier]
    for number, series in enumerate(sorted({place.point.series for place in found})):
        mine = sorted((p for p in found if p.point.series == series), key=lambda p: p.point.cost)
        look = canvas.series_style(number)
        costs, merits = [p.point.cost for p in mine], [p.point.merit for p in mine]
        axes.plot(costs, merits, color=look["color"], linestyle=look["linestyle"], linewidth=0.7, zorder=2)
        for place in mine:
            _point(drawn, place, look, f"point-{found.index(place)}")
        axes.plot([], [], markersize=4, linewidth=0.7, label=series, **look)
        labels += [mine[0].point, mine[-1].point]
    axes.set_xlim(low, high)
    style.log_ticks(axes.xaxis, low, high)
    axes.margins(y=0.14)
    drawn.labels += [Label(p.cost, p.merit, p.label) for p in dict.fromkeys(labels)]


def _frontier(axes: Axes, line: Sequence[Point], high: float) -> None:
    xs: list[float] = []
    ys: list[float] = []
    for p in sorted(line, key=lambda p: p.cost):
        xs += [p.cost, p.cost] if ys else [p.cost]
        ys += [ys[-1], p.merit] if ys else [p.merit]
    axes.plot(
        [*xs, high], [*ys, ys[-1]], color=style.QUIET, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1, label="frontier"
    )


def _point(drawn: Canvas, place: Place, look: Look, name: str) -> None:
    p, colour = place.point, look["color"]
    across, up = _bar(p.cost, p.cost_low, p.cost_high), _bar(p.merit, p.merit_low, p.merit_high)
    drawn.axes.errorbar(
        p.cost, p.merit, xerr=across, yerr=up, color=colour, elinewidth=0.7, capsize=1.5, capthick=0.5, zorder=2
    )
    (dot,) = drawn.axes.plot(
        p.cost, p.merit, marker=look["marker"] if place.probability is not None else "x", markersize=4.0, color=colour,
        fillstyle=FILLS.get(place.verdict, "full"), linestyle="", zorder=3, markerfacecoloralt="none",
    )  # fmt: skip
    drawn.hover(dot, name, f"{p.hover}; {place.sure}")


def table(name: str, title: str, found: Sequence[Place], cost: str, merit: str = "accuracy") -> Table:
    """Return the numbers of the picture, by rising cost."""
    quantity, unit = COSTS[cost]
    headings = (
        Heading("model and resolution"),
        Heading(quantity, unit, True), Heading(f"{quantity} low", unit, True), Heading(f"{quantity} high", unit, True),
        Heading(merit, "points" if merit == "accuracy" else "", True),
        Heading(f"{merit} low", "", True), Heading(f"{merit} high", "", True),
        Heading("probability on the frontier", "", True), Heading("verdict"), Heading("tied with"),
    )  # fmt: skip
    rows = []
    for place in sorted(found, key=lambda place: (place.point.cost, place.point.name)):
        p = place.point
        numbers = (p.cost, p.cost_low, p.cost_high, p.merit, p.merit_low, p.merit_high)
        entries = [Entry(wording.number(value, 4), value) for value in map(_size, numbers)]
        rivals = ", ".join(place.rivals) if place.verdict == "tie" else ""
        sure = Entry("–" if place.probability is None else f"{place.probability:.2f}", place.probability)
        rows.append((Entry(p.name, p.name, p.hover, p.marks), *entries, sure, Entry(place.verdict), Entry(rivals)))
    return Table(name, f"{title}: the numbers", headings, tuple(rows))


def _bar(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _size(value: float | None) -> float | None:
    """Return the printed number of a merit that counts downwards (parameters)."""
    return None if value is None else abs(value)
