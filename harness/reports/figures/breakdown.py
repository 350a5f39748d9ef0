"""Where the time to first token goes: stacked stages by resolution and model (the FastVLM paper's Figure 5)."""

from collections.abc import Sequence

from harness.models.protocol import STAGES
from harness.reports import measured, style, wording
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary


def draw(data: Measured, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and protocol, a bar per model and resolution; see `measured.chosen`."""
    rows = [row for row in measured.chosen(data, card) if row.times.of("prefill")]
    pictures = []
    for number, (where, protocol, mine) in enumerate(measured.by_platform(rows)):
        name = f"{card.name}{f'-{number + 1}' if number else ''}"
        pictures.append(picture(name, f"{card.title}: {wording.platform(where, protocol)}", one_each(mine)))
    return pictures


def one_each(rows: Sequence[CellSummary]) -> list[CellSummary]:
    """Return one row for each model, setting and resolution: whole before isolated, then the one with most samples."""
    best: dict[tuple[str, str, int], CellSummary] = {}
    for row in sorted(rows, key=lambda row: (row.cell.isolate, -row.times.n, row.cell.suite)):
        best.setdefault((row.cell.model, row.cell.settings, row.cell.resolution), row)
    return [best[key] for key in sorted(best)]


def picture(name: str, title: str, rows: Sequence[CellSummary]) -> Picture:
    """Draw the bars, lying, so that names can be read."""
    marks = frozenset(mark for row in rows for mark in row.marks)
    stages = [stage for stage in STAGES if any(row.times.of(stage) for row in rows)]
    hovers: dict[str, str] = {}
    with style.style():
        names = [row.cell.label for row in rows]
        figure, axes = style.new(0.85 + 0.19 * len(rows) + 0.2 * len(set(names)))
        at, last = 0.0, None
        ticks: list[tuple[float, str]] = []
        longest = max(sum(row.times.ns(stage) or 0 for stage in stages) for row in rows)
        for number, row in enumerate(rows):
            at += 1.0
            if last != names[number]:
                at += 1.0
                axes.text(longest / 1e6 * 0.01, at - 0.95, names[number], va="center", fontsize=6.5, weight="bold")
            last, left = names[number], 0.0
            for stage in stages:
                width = (row.times.ns(stage) or 0) / 1e6
                bars = axes.barh(
                    at, width, left=left, height=0.8, edgecolor="white", linewidth=0.3,
                    color=style.STAGE_COLOURS[stage], hatch=style.STAGE_HATCHES[stage],
                    label=stage if number == 0 else None,
                )  # fmt: skip
                bars[0].set_gid(f"bar-{number}-{stage}")
                spoken = wording.milliseconds(row, stage)
                hovers[f"bar-{number}-{stage}"] = f"{_name(row)}: {stage} {spoken.text} ms"
                left += width
            share = (row.times.ns("encode") or 0) / 1e6 / left if left else 0
            text = f"{wording.number(left)}{row.mark} ms, encode {share:.0%}"
            axes.text(left + longest / 1e6 * 0.015, at, text, va="center", fontsize=5.5)
            ticks.append((at, f"{row.cell.resolution} px"))
        axes.set_yticks([where for where, _ in ticks], [text for _, text in ticks])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, longest / 1e6 * 1.4)
        axes.set_xlabel("median time (ms)")
        figure.legend(loc="outside upper center", ncols=4, handlelength=1.4, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
    parts = [f"{_name(row)} {wording.number(sum(row.times.ns(s) or 0 for s in stages) / 1e6)} ms" for row in rows]
    alt = f"{title}. Stacked bars of {', '.join(stages)}. Sum of stages: {'; '.join(parts)}."
    caption = "Medians of each stage, stacked; at the end their sum, and what share of it the encoder takes."
    return Picture(name, title, alt, figure, table(name, title, rows, stages), caption, hovers, marks)


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
