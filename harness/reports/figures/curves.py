"""TTFT against resolution or visual tokens, a curve per model, both axes logarithmic, with 95 % intervals."""

from collections.abc import Sequence

from harness.reports import canvas, measured, resizing, style, wording
from harness.reports.canvas import Canvas, Look
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and protocol.

    Settings of the card: `quantity` is `ttft` or a stage, `against` is `resolution` or `visual_tokens`.
    """
    quantity, against = str(card.settings.get("quantity", "ttft")), str(card.settings.get("against", "resolution"))
    cells = [one for one in measured.chosen(data, card) if one.times.of(quantity) and _x(one, against)]
    groups = [
        (wording.platform(at, protocol), measured.one_each(mine)) for at, protocol, mine in measured.by_platform(cells)
    ]

    def one(name: str, title: str, group: tuple[list[CellSummary], dict[str, str]]) -> Picture:
        drawn = canvas.saying(picture(name, title, group[0], quantity, against), *group)
        return canvas.noted(drawn, resizing.notes(_resized(group[0], quantity)))

    return canvas.pictures(card, groups, one)


def _resized(cells: Sequence[CellSummary], quantity: str) -> list[CellSummary]:
    """Return the cells in whose quantity resizing has a part: the paper's TTFT has none."""
    return [one for one in cells if quantity == "preprocess" or (quantity == "ttft" and one.cell.protocol == "ttft")]


AXES = {"resolution": "resolution (px of a side, log scale)", "visual_tokens": "visual tokens (median, log scale)"}


def _x(one: CellSummary, against: str) -> float:
    return float(one.cell.resolution if against == "resolution" else one.tokens.visual or 0)


def picture(name: str, title: str, cells: Sequence[CellSummary], quantity: str, against: str = "resolution") -> Picture:
    """Draw one curve per model and setting."""
    series: dict[str, list[CellSummary]] = {}
    for one in sorted(cells, key=lambda one: (one.cell.label, one.cell.resolution)):
        series.setdefault(one.cell.label, []).append(one)
    what = "TTFT" if quantity == "ttft" else quantity
    carriers = {label: {_name(one): one.marks for one in mine} for label, mine in series.items()}
    with canvas.canvas(2.1, carriers, resized=resizing.short(_resized(cells, quantity))) as drawn:
        axes = drawn.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (label, mine) in enumerate(series.items()):
            _curve(drawn, label, mine, (quantity, against), canvas.series_style(number))
        sides = sorted({_x(one, against) for one in cells})
        axes.set_xlim(sides[0] / 1.1, sides[-1] * 1.1)
        shown = style.apart(sides, lambda side: f"{side:,.0f}" if against != "resolution" else f"{side:.0f}")
        axes.set_xticks([*shown], [*shown.values()])
        axes.set_xticks([], minor=True)
        style.log_ticks(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel(AXES[against])
        axes.set_ylabel(f"{what} (ms, log scale)")
    told = [f"{label} {_span(mine, quantity)}" for label, mine in series.items()]
    alt = f"{title}. {what} against {against.replace('_', ' ')}: {'; '.join(told)}."
    caption = "Vertical bars: 95 % intervals; a cross: measured too few times for one."
    marks = frozenset(mark for one in cells for mark in one.marks)
    numbers = table(name, title, cells, quantity)
    return Picture(name, title, alt, drawn.figure, numbers, caption, drawn.hovers, marks)


def _curve(drawn: Canvas, label: str, mine: Sequence[CellSummary], shown: tuple[str, str], look: Look) -> None:
    quantity, against = shown
    axes, what = drawn.axes, "TTFT" if quantity == "ttft" else quantity
    times = [one.times.median_ns[quantity] for one in mine]
    ys = [(time.value or 0.0) / 1e6 for time in times]
    axes.plot([_x(one, against) for one in mine], ys, color=look["color"], linestyle=look["linestyle"])
    for one, time, y in zip(mine, times, ys, strict=True):
        bounded = time.low is not None and time.high is not None
        if time.low is not None and time.high is not None:
            axes.vlines(_x(one, against), time.low / 1e6, time.high / 1e6, color=look["color"], linewidth=1.4)
        marker = look["marker"] if bounded else "x"
        (dot,) = axes.plot(_x(one, against), y, marker=marker, markersize=3.5, color=look["color"])
        said = f"{label} at {one.cell.resolution} px: {what} {wording.estimate(time, 1e-6)} ms"
        drawn.hover(dot, f"dot-{len(drawn.hovers)}", said)
    axes.plot([], [], markersize=3.5, label=label, **look)


def _span(mine: Sequence[CellSummary], quantity: str) -> str:
    def said(one: CellSummary) -> str:
        return f"{wording.number((one.times.ns(quantity) or 0.0) / 1e6)} ms at {one.cell.resolution} px"

    return said(mine[0]) if len(mine) == 1 else f"from {said(mine[0])} to {said(mine[-1])}"


def _name(one: CellSummary) -> str:
    return f"{one.cell.label} {one.cell.resolution} px"


def table(name: str, title: str, cells: Sequence[CellSummary], quantity: str) -> Table:
    """Return the numbers of the curves."""
    headings = (
        Heading("model"),
        Heading("resolution", "px", True),
        Heading("visual tokens", "", True),
    )
    lines = []
    for one in cells:
        entries = (
            Entry(one.cell.label, None, one.cell.name, one.marks),
            Entry(str(one.cell.resolution), one.cell.resolution),
            Entry(wording.count(one.tokens.visual), one.tokens.visual),
            Entry(str(one.times.n), one.times.n),
        )
        lines.append((*entries, wording.milliseconds(one, quantity)))
    what = "TTFT" if quantity == "ttft" else quantity
    data = wording.long_form(name, title, cells, (quantity,))
    head = (*headings, Heading("n", "", True), Heading(what, "ms", True))
    return Table(name, f"{title}: the numbers", head, tuple(lines), data=data)
