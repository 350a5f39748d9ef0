"""TTFT against resolution, a curve per model, both axes logarithmic, with 95 % intervals."""

from collections.abc import Sequence

from harness.reports import measured, style, wording
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.figures.breakdown import one_each
from harness.reports.marks import symbols
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and protocol; the card's setting `quantity` is `ttft` or a stage."""
    quantity = str(card.settings.get("quantity", "ttft"))
    rows = [row for row in measured.chosen(data, card) if row.times.of(quantity)]
    pictures = []
    for number, (where, protocol, mine) in enumerate(measured.by_platform(rows)):
        name = f"{card.name}{f'-{number + 1}' if number else ''}"
        pictures.append(picture(name, f"{card.title}: {wording.platform(where, protocol)}", one_each(mine), quantity))
    return pictures


def picture(name: str, title: str, rows: Sequence[CellSummary], quantity: str) -> Picture:
    """Draw one curve per model and setting."""
    marks = frozenset(mark for row in rows for mark in row.marks)
    series: dict[str, list[CellSummary]] = {}
    for row in rows:
        series.setdefault(row.cell.label, []).append(row)
    what = "TTFT" if quantity == "ttft" else quantity
    hovers: dict[str, str] = {}
    with style.style():
        figure, axes = style.new(2.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (one, mine) in enumerate(sorted(series.items())):
            mine = sorted(mine, key=lambda row: row.cell.resolution)
            colour, marker = style.COLOURS[number % 8], style.MARKERS[number % 8]
            label = f"{one}{symbols(mark for row in mine for mark in row.marks)}"
            times = [row.times.median_ns[quantity] for row in mine]
            xs, ys = [row.cell.resolution for row in mine], [(time.value or 0.0) / 1e6 for time in times]
            axes.plot(xs, ys, color=colour, marker=marker, markersize=3.5, label=label)
            for row, time, y in zip(mine, times, ys, strict=True):
                if time.low is not None and time.high is not None:
                    axes.vlines(row.cell.resolution, time.low / 1e6, time.high / 1e6, color=colour, linewidth=1.4)
                (dot,) = axes.plot(row.cell.resolution, y, marker=marker, markersize=3.5, color=colour)
                dot.set_gid(f"dot-{len(hovers)}")
                said = wording.estimate(time, 1e-6)
                hovers[f"dot-{len(hovers)}"] = f"{one} at {row.cell.resolution} px: {what} {said} ms"
        sides = sorted({row.cell.resolution for row in rows})
        shown = [side for i, side in enumerate(sides) if i + 1 == len(sides) or sides[i + 1] / side > 1.2]
        axes.set_xticks(shown, [str(side) for side in shown])
        axes.set_xticks([], minor=True)
        low, high = axes.get_ylim()
        style.log_ticks(axes.yaxis, low, high)
        axes.set_xlabel("resolution (px of a side, log scale)")
        axes.set_ylabel(f"{what} (ms, log scale)")
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
    alt = f"{title}. {what} against resolution for {', '.join(sorted(series))}; the numbers are in the table."
    return Picture(name, title, alt, figure, table(name, title, rows, quantity), "", hovers, marks)


def table(name: str, title: str, rows: Sequence[CellSummary], quantity: str) -> Table:
    """Return the numbers of the curves."""
    headings = (
        Heading("model"),
        Heading("resolution", "px", True),
        Heading("visual tokens", "", True),
    )
    lines = []
    for row in rows:
        entries = (
            Entry(row.cell.label, None, row.cell.name, row.marks),
            Entry(str(row.cell.resolution), row.cell.resolution),
            Entry(wording.count(row.tokens.visual), row.tokens.visual),
            Entry(str(row.times.n), row.times.n),
        )
        lines.append((*entries, wording.milliseconds(row, quantity)))
    what = "TTFT" if quantity == "ttft" else quantity
    data = wording.long_form(name, title, rows, (quantity,))
    head = (*headings, Heading("n", "", True), Heading(what, "ms", True))
    return Table(name, f"{title}: the numbers", head, tuple(lines), data=data)
