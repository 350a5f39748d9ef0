"""What all figures share: a paper's width, a legend that fits, one note for the marks, hovers, labels, names."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from harness.reports import layout, likeness, style
from harness.reports.card import ReportCard
from harness.reports.document import Picture
from harness.reports.layout import Label
from harness.reports.marks import MARKS
from harness.reports.summary import CellSummary
from harness.units import some

FEW = 10
"""Series that a column's width bears; more get a page's."""
MOST_NAMED = 3
CHARACTER_PT = 3.75
"""Mean width of a letter of the notes."""


@dataclass(eq=False)
class Canvas:
    """A figure while it is drawn: what hovering says, labels to be placed, and those that found no room."""

    figure: Figure
    axes: Axes
    hovers: dict[str, str] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    unlabelled: list[Label] = field(default_factory=list)

    def hover(self, artist: Artist, name: str, text: str) -> None:
        """Let a point or a bar say `text` to whoever points at it on a page."""
        artist.set_gid(name)
        self.hovers[name] = text


Group = TypeVar("Group")


def pictures(
    card: ReportCard, groups: Iterable[tuple[str, Group]], draw: Callable[[str, str, Group], Picture]
) -> list[Picture]:
    """Draw each group; the first has the card's name, the others a number, and all say in their title what they are."""
    found = []
    for number, (about, group) in enumerate(groups):
        name = f"{card.name}-{number + 1}" if number else card.name
        found.append(draw(name, f"{card.title}: {about}", group))
    return found


SOME = " Of some models not all cells are drawn: see below the numbers."


def saying(drawn: Picture, cells: Iterable[CellSummary], left_out: Mapping[str, str]) -> Picture:
    """Return a picture of `cells` that says what it leaves out of their models (`measured.one_each`).

    And in what they were not measured alike.
    """
    mine = list(cells)
    shown = {one.cell.label for one in mine}
    less = tuple((f"{label}:", text) for label, text in left_out.items() if label in shown)
    if less:
        drawn = replace(drawn, caption=drawn.caption + SOME, numbers=replace(drawn.numbers, notes=less))
    return noted(drawn, likeness.notes(mine))


def noted(drawn: Picture, told: Iterable[str]) -> Picture:
    """Return a picture with these notes below its numbers."""
    notes = (*drawn.numbers.notes, *(("Note:", f"{text}.") for text in told))
    return replace(drawn, numbers=replace(drawn.numbers, notes=notes))


@contextmanager
def canvas(
    height_in: float,
    carriers: Mapping[str, Mapping[str, Iterable[str]]],
    rows: int = 1,
    heights: Sequence[int] = (),
    resized: str = "",
) -> Iterator[Canvas]:
    """Yield an empty canvas, as wide as so many series need; afterwards add legend, note and labels.

    `carriers` say who carries which mark: series → name of its point → marks. `rows` panels lie below each other, of
    these relative `heights`; `axes` is the first one. `resized` says by which libraries images were (`resizing.short`).
    """
    with style.style():
        wide = len(carriers) > FEW
        width_in, height_in = (style.PAGE_IN, height_in * 1.4) if wide else (style.COLUMN_IN, height_in)
        figure = Figure(figsize=(width_in, height_in))
        figure.subplots(rows, 1, gridspec_kw={"height_ratios": list(heights) or [1] * rows})
        one = Canvas(figure, figure.axes[0])
        yield one
        said = [marks_note(carriers), f"images resized {resized}" if resized else ""]
        _finish(one, height_in, " · ".join(filter(None, said)))


def _finish(one: Canvas, height_in: float, said: str) -> None:
    figure, width_in = one.figure, one.figure.get_figwidth()
    note = textwrap.wrap(said, int((width_in * 72 - 8) / CHARACTER_PT))
    if note:
        figure.supxlabel("\n".join(note), fontsize=layout.LABEL_PT, x=0.01, ha="left", color=style.QUIET)
    legend_in = _legend(figure)
    figure.set_figheight(height_in + legend_in + 0.13 * len(note))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed among what is drawn: it must not move any more
    one.unlabelled += layout.place(one.axes, one.labels) if one.labels else []


def _legend(figure: Figure) -> float:
    """Put the legend above the axes, in as many columns as fit; return its height in inches."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not handles:
        return 0.0
    for columns in (4, 3, 2, 1):
        for old in list(figure.legends):
            old.remove()
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.0, handletextpad=0.4,
            handlelength=1.6, borderaxespad=0.2, borderpad=0.2, labelspacing=0.35,
        )  # fmt: skip
        width_in, height_in = _size_in(figure, legend)
        if width_in <= figure.get_figwidth() - 0.05:
            break
    return height_in


def _size_in(figure: Figure, legend: Legend) -> tuple[float, float]:
    box = legend.get_window_extent(figure._get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


def marks_note(carriers: Mapping[str, Mapping[str, Iterable[str]]]) -> str:
    """Say once what the marks mean and who carries them: all, some series, or some points."""
    points = {(series, name): set(marks) for series, mine in carriers.items() for name, marks in mine.items()}
    said = []
    for name, mark in MARKS.items():
        who = [key for key, marks in points.items() if name in marks]
        if not who:
            continue
        if len(who) == len(points):
            said.append(f"{mark.symbol} {mark.short}")
            continue
        whole = [s for s, mine in carriers.items() if all(name in set(marks) for marks in mine.values())]
        names = whole + [point for series, point in who if series not in whole]
        said.append(f"{mark.symbol} {mark.short}: {some(names, MOST_NAMED)}")
    return " · ".join(said)


class Look(TypedDict):
    """How a series is drawn, as arguments of matplotlib."""

    color: str
    marker: str
    linestyle: style.Line


def series_style(number: int) -> Look:
    """Return colour, marker and line of the series with this number; no two of the first 64 look alike."""
    turn = number // len(style.COLOURS)
    return {
        "color": style.COLOURS[number % len(style.COLOURS)],
        "marker": style.MARKERS[(number + turn) % len(style.MARKERS)],
        "linestyle": style.LINES[turn % len(style.LINES)],
    }
