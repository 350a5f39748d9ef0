"""How all figures look: a paper column's width, readable type, colours that colour-blind readers can tell apart."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reports.marks import MARKS

COLUMN_IN = 3.3
"""Width of one column of a two-column paper, inches."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#767676")
"""Okabe and Ito's palette without black and yellow, which vanish on a dark or a white page."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STAGE_COLOURS = {"preprocess": "#767676", "encode": "#0072b2", "project": "#009e73", "prefill": "#e69f00"}
STAGE_HATCHES = {"preprocess": "....", "encode": "", "project": "xxxx", "prefill": "////"}
INK = "#000000"
QUIET = "#767676"

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "vlm-pareto",
    "pdf.fonttype": 42,  # real type, as journals ask
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings, whatever the user's are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def new(height_in: float = 2.6, width_in: float = COLUMN_IN) -> tuple[Figure, Axes]:
    """Return an empty figure of one column's width; pyplot, and with it any window, is never touched."""
    figure = Figure(figsize=(width_in, height_in))
    return figure, figure.add_subplot()


def legend_of_marks(figure: Figure, marks: Iterable[str]) -> None:
    """Print below the figure what its marks mean."""
    present = set(marks)
    lines = [f"{mark.symbol} {mark.short}" for name, mark in MARKS.items() if name in present]
    if lines:
        rows = [" · ".join(lines[i : i + 2]) for i in range(0, len(lines), 2)]
        figure.supxlabel("\n".join(rows), fontsize=5.5, x=0.02, ha="left", color=QUIET)


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Put plain numbers (1, 2, 5, 10 ...) on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    ticks = [m * 10.0**e for e in range(-4, 8) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each label where it covers the fewest others: right, left, above, below its point, or further off."""
    figure = axes.get_figure(root=True)
    assert figure
    figure.draw_without_rendering()
    transform = axes.transData
    at = [tuple(transform.transform((x, y))) for x, y, _ in points]
    scale = figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    box = axes.get_window_extent()
    for (x, y), (_, _, text) in zip(at, points, strict=True):
        lines = text.split("\n")
        width, height = max(map(len, lines)) * 3.1 * scale, len(lines) * 6.4 * scale
        best: tuple[float, float, float, str, str] | None = None
        for rank, (dx, dy, ha, va) in enumerate(OFFSETS):
            left = x + dx * scale - {"left": 0, "right": width, "center": width / 2}[ha]
            bottom = y + dy * scale - {"bottom": 0, "top": height, "center": height / 2}[va]
            mine = (left, bottom, left + width, bottom + height)
            outside = max(0, box.x0 - mine[0]) + max(0, mine[2] - box.x1) + max(0, box.y0 - mine[1])
            outside += max(0, mine[3] - box.y1)
            cost = sum(_overlap(mine, other) for other in taken) + 4 * outside * height + rank
            if best is None or cost < best[0]:
                best, chosen = (cost, dx, dy, ha, va), mine
        assert best
        taken.append(chosen)
        axes.annotate(
            text, points[at.index((x, y))][:2], best[1:3], textcoords="offset points", ha=best[3], va=best[4],
            fontsize=5.5, linespacing=0.95,
        )  # fmt: skip


OFFSETS = (
    (4, 3, "left", "bottom"), (4, -3, "left", "top"), (-4, 3, "right", "bottom"), (-4, -3, "right", "top"),
    (0, 6, "center", "bottom"), (0, -6, "center", "top"), (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (6, 12, "left", "bottom"), (6, -12, "left", "top"), (-6, 12, "right", "bottom"), (-6, -12, "right", "top"),
)  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def render(figure: Figure, kind: str, text: str = "path") -> bytes:
    """Return the figure as `png`, `svg` or `pdf`, the same bytes every time: no date, no random ids.

    `text`: "path" draws letters as shapes, "none" keeps them as text (for pages, where the reader may select them).
    """
    out = io.BytesIO()
    dates = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    with style():
        if figure.get_layout_engine() is not None:  # every format shows the same layout, however often it is rendered
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        mpl.rcParams["svg.fonttype"] = text
        transparent = kind == "svg" and text == "none"
        figure.savefig(out, format=kind, dpi=300, transparent=transparent, metadata=dates.get(kind, {"Software": None}))
    return out.getvalue()
