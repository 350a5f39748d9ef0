"""Where the time to first token goes: stacked stages by resolution and model (the FastVLM paper's Figure 5)."""

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.models.protocol import STAGES
from harness.reports import canvas, measured, resizing, style, wording
from harness.reports.canvas import Canvas
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and protocol, a bar per model and resolution; see `measured.chosen`."""
    chosen = measured.chosen(data, card)
    joined = [one for one in chosen if any("+" in name for name in one.times.median_ns)]
    cells = [one for one in chosen if one not in joined and one.times.of("prefill")]
    groups: list[tuple[str, tuple[list[CellSummary], dict[str, str]]]] = []
    for at, protocol, mine in measured.by_platform(cells):
        kept, left_out = measured.one_each(mine)
        groups += [(wording.platform(at, protocol) + told, (some, left_out)) for told, some in _pages(kept)]

    def one(name: str, title: str, group: tuple[list[CellSummary], dict[str, str]]) -> Picture:
        return canvas.noted(canvas.saying(picture(name, title, group[0]), *group), resizing.notes(group[0]))

    pictures = canvas.pictures(card, groups, one)
    # A bar would show an encoder that takes nothing.
    named = sorted({f"{_name(one)} on {wording.platform(one.cell.platform)}" for one in joined})
    told = [f"not drawn, for encode is timed there together with what follows it: {', '.join(named)}"] if named else []
    return [canvas.noted(each, told) for each in pictures]


MOST_BARS = 40
"""In one picture: a page's height."""
SPAN = 12.0
"""The longest bar of a panel over its shortest: beyond that the short ones cannot be read any more."""


def _pages(cells: Sequence[CellSummary]) -> list[tuple[str, list[CellSummary]]]:
    """Return the cells in portions that fit a page, each with what it is called; a model is never divided."""
    pages: list[list[CellSummary]] = [[]]
    for _, mine in groupby(cells, key=lambda one: one.cell.label):
        model = list(mine)
        if pages[-1] and len(pages[-1]) + len(model) > MOST_BARS:
            pages.append([])
        pages[-1] += model
    if len(pages) == 1:
        return [("", pages[0])]
    return [(f", {some[0].cell.label} to {some[-1].cell.label}", some) for some in pages]


def picture(name: str, title: str, cells: Sequence[CellSummary]) -> Picture:
    """Draw the bars, lying, so that names can be read; models of very different speed in panels of their own scale."""
    stages = [stage for stage in STAGES if any(one.times.of(stage) for one in cells)]
    panels = _panels(cells, stages)
    lines = [len(panel) + len({one.cell.label for one in panel}) for panel in panels]
    carriers: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in cells:
        carriers.setdefault(one.cell.label, {})[_name(one)] = one.marks
    height_in = 0.58 + 0.136 * sum(lines) + 0.28 * (len(panels) - 1)  # legend, scale and its name; bars; gaps
    shown, resized = dict(list(carriers.items())[: canvas.FEW]), resizing.short(cells)
    with canvas.canvas(height_in, shown, len(panels), lines, resized) as drawn:
        for number, (axes, panel) in enumerate(zip(drawn.figure.axes, panels, strict=True)):
            _panel(drawn, axes, panel, stages, [one for before in panels[:number] for one in before])
        drawn.figure.axes[-1].set_xlabel("median time (ms)" + "; each panel has its own scale" * (len(panels) > 1))
    parts = [
        f"{_name(one)} {wording.number(_sum_ms(one, stages))} ms, encode {_share(one, stages):.0%}" for one in cells
    ]
    alt = f"{title}. Stacked bars of {', '.join(stages)}. Sum of stages: {'; '.join(parts)}."
    caption = "Medians of each stage, stacked; at the end their sum, and what share of it the encoder takes."
    marks = frozenset(mark for one in cells for mark in one.marks)
    numbers = table(name, title, cells, stages)
    return Picture(name, title, alt, drawn.figure, numbers, caption, drawn.hovers, marks)


def _panels(cells: Sequence[CellSummary], stages: Sequence[str]) -> list[list[CellSummary]]:
    """Return the models by speed, so many together that the shortest bar of a panel still has a length."""
    models = [list(mine) for _, mine in groupby(cells, key=lambda one: one.cell.label)]
    spans = [[_sum_ms(one, stages) for one in mine] for mine in models]
    if max(map(max, spans)) <= SPAN * min(map(min, spans)):
        return [list(cells)]
    panels: list[list[CellSummary]] = []
    shortest = 0.0
    for span, mine in sorted(zip(spans, models, strict=True), key=lambda pair: (max(pair[0]), pair[1][0].cell.label)):
        if panels and max(span) <= SPAN * shortest:
            panels[-1] += mine
        else:
            panels.append(list(mine))
            shortest = max(span) / 2
    return panels


def _panel(
    drawn: Canvas, axes: Axes, panel: Sequence[CellSummary], stages: Sequence[str], before: Sequence[CellSummary]
) -> None:
    longest = max(_sum_ms(one, stages) for one in panel)
    at, ticks, last = 0.0, [], None
    for number, one in enumerate(panel, len(before)):
        at += 1.0
        if last != one.cell.label:
            at += 1.0
            axes.text(longest * 0.01, at - 0.95, one.cell.label, va="center", fontsize=6.5, weight="bold")
        last, left = one.cell.label, 0.0
        for stage in stages:
            width = (one.times.ns(stage) or 0.0) / 1e6
            bars = axes.barh(
                at, width, left=left, height=0.72, edgecolor="white", linewidth=0.3, color=style.STAGE_COLOURS[stage],
                hatch=style.STAGE_HATCHES[stage], label=stage if number == 0 else None,
            )  # fmt: skip
            said = f"{_name(one)}: {stage} {wording.milliseconds(one, stage).text} ms"
            drawn.hover(bars[0], f"bar-{number}-{stage}", said)
            left += width
        text = f"{wording.number(left)} ms, encode {_share(one, stages):.0%}"
        axes.text(left + longest * 0.015, at, text, va="center", fontsize=6.5)
        ticks.append((at, f"{one.cell.resolution} px"))
    axes.set_yticks([where for where, _ in ticks], [text for _, text in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at + 0.6, 0.5)
    axes.set_xlim(0, longest * 1.62)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _sum_ms(one: CellSummary, stages: Sequence[str]) -> float:
    return sum(one.times.ns(stage) or 0.0 for stage in stages) / 1e6


def _share(one: CellSummary, stages: Sequence[str]) -> float:
    whole = _sum_ms(one, stages)
    return (one.times.ns("encode") or 0.0) / 1e6 / whole if whole else 0.0


def table(name: str, title: str, rows: Sequence[CellSummary], stages: Sequence[str]) -> Table:
    """Return the numbers of the bars, and TTFT for comparison."""
    headings = (
        Heading("model and resolution"), Heading("visual tokens", "", True),
        *(Heading(stage, "ms", True) for stage in stages), Heading("TTFT", "ms", True), Heading("residual", "%", True),
    )  # fmt: skip
    lines = []
    for row in rows:
        tokens = Entry(wording.count(row.tokens.visual), row.tokens.visual)
        times = [wording.milliseconds(row, stage) for stage in (*stages, "ttft")]
        lines.append((Entry(_name(row), None, row.cell.name, row.marks), tokens, *times, wording.residual(row)))
    data = wording.long_form(name, title, rows, (*stages, "ttft"))
    return Table(name, f"{title}: the numbers", headings, tuple(lines), data=data)


def _name(row: CellSummary) -> str:
    return f"{row.cell.label} {row.cell.resolution} px"
