"""A server under load: TTFT against the number of requests at a time, a curve per model, with 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import stats
from harness.reports import canvas, measured, style, wording
from harness.reports.canvas import Canvas, Look
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary
from harness.runlog.records import Loaded
from harness.stats import Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One cell at one number of requests at a time."""

    cell: CellSummary
    load: Loaded
    ttft_ms: Estimate

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return 1e9 * len(self.load.ttft_ns) / self.load.wall_ns if self.load.wall_ns else 0.0


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and suite that has cells under load."""
    groups = []
    platforms = measured.by_platform(measured.chosen(data, card), suites=True)
    for about, (_, _, cells) in zip(wording.abouts(platforms), platforms, strict=True):
        levels = [level for one in cells for level in _levels(data, one)]
        if levels:
            groups.append((about, levels))
    return canvas.pictures(card, groups, picture)


def _levels(data: Measured, one: CellSummary) -> list[Level]:
    found = [load for name in one.logs for load in data.frame.records[name].loaded if load.ttft_ns]
    times = [Level(one, load, stats.median_interval([ns / 1e6 for ns in load.ttft_ns])) for load in found]
    return sorted(times, key=lambda level: level.load.concurrency)


def picture(name: str, title: str, levels: Sequence[Level]) -> Picture:
    """Draw one curve per cell."""
    series: dict[str, list[Level]] = {}
    for level in levels:
        about = level.cell.cell
        series.setdefault(f"{about.label} {about.resolution} px", []).append(level)
    carriers = {label: {label: mine[0].cell.marks} for label, mine in series.items()}
    with canvas.canvas(2.1, carriers) as drawn:
        axes = drawn.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (label, mine) in enumerate(series.items()):
            _curve(drawn, label, mine, canvas.series_style(number))
        counts = sorted({one.load.concurrency for one in levels})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xticks([], minor=True)
        style.log_ticks(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel("requests at a time (log scale)")
        axes.set_ylabel("TTFT (ms, log scale)")
    told = [f"{label} {_told(mine[0])} to {_told(mine[-1])}" for label, mine in series.items()]
    alt = f"{title}. TTFT against requests at a time: {'; '.join(told)}."
    caption = (
        "Medians over a closed loop of so many requests at a time. Bars: 95 % intervals, as if requests were "
        "independent, which requests at one server are not. A cross: too few for one."
    )
    marked = frozenset(mark for one in levels for mark in one.cell.marks)
    return Picture(name, title, alt, drawn.figure, table(name, title, levels), caption, drawn.hovers, marked)


def _curve(drawn: Canvas, label: str, mine: Sequence[Level], look: Look) -> None:
    axes = drawn.axes
    xs, ys = [one.load.concurrency for one in mine], [one.ttft_ms.value or 0.0 for one in mine]
    axes.plot(xs, ys, color=look["color"], linestyle=look["linestyle"])
    for x, y, one in zip(xs, ys, mine, strict=True):
        low, high = one.ttft_ms.low, one.ttft_ms.high
        if low is not None and high is not None:
            axes.vlines(x, low, high, color=look["color"], linewidth=1.4)
        marker = look["marker"] if low is not None else "x"
        (dot,) = axes.plot(x, y, marker=marker, markersize=3.5, color=look["color"])
        said = f"{label}, {x} at a time: TTFT {wording.estimate(one.ttft_ms)} ms, {one.per_second:.3g} answers a second"
        drawn.hover(dot, f"load-{len(drawn.hovers)}", said)
    axes.plot([], [], markersize=3.5, label=label, **look)


def _told(level: Level) -> str:
    return f"{wording.number(level.ttft_ms.value)} ms at {level.load.concurrency}"


def table(name: str, title: str, levels: Sequence[Level]) -> Table:
    """Return the numbers of the curves."""
    headings = (
        Heading("model"), Heading("resolution", "px", True), Heading("requests at a time", "", True),
        Heading("TTFT", "ms", True), Heading("slowest", "ms", True), Heading("answers a second", "", True),
        Heading("answered", "", True), Heading("failed", "", True),
    )  # fmt: skip
    lines = []
    for one in levels:
        about, load, slowest_ms = one.cell.cell, one.load, max(one.load.ttft_ns) / 1e6
        lines.append(
            (
                Entry(about.label, about.label, about.name, one.cell.marks),
                Entry(str(about.resolution), about.resolution),
                Entry(str(load.concurrency), load.concurrency),
                Entry(wording.estimate(one.ttft_ms), one.ttft_ms.value),
                Entry(wording.number(slowest_ms), slowest_ms),
                Entry(wording.number(one.per_second), one.per_second),
                Entry(str(len(load.ttft_ns)), len(load.ttft_ns)),
                Entry(str(len(load.failures)), len(load.failures)),
            )
        )
    return Table(name, f"{title}: the numbers", headings, tuple(lines))
