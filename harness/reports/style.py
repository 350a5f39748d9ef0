"""How all figures look: a paper column's width, readable type, colours that colour-blind readers can tell apart."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import log
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

COLUMN_IN = 3.3
PAGE_IN = 7.0
"""Width of one column of a two-column paper, and of both, inches."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#767676")
"""Okabe and Ito's palette without black and yellow, which vanish on a dark or a white page."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Line = str | tuple[int, tuple[int, ...]]
"""A line's dashes, as matplotlib takes them."""
LINES: tuple[Line, ...] = ("-", (0, (3, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)))
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


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Put plain numbers on a logarithmic axis, as many as its range needs: 1, 2, 5, 10 ..., or finer ones."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    ):
        ticks = [m * 10.0**e for e in range(-4, 9) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:.6g}")
    axis.set_minor_formatter(NullFormatter())


def apart(values: Sequence[float], text: Callable[[float], str], width_in: float = COLUMN_IN) -> dict[float, str]:
    """Return those of ascending `values` whose texts have room under a logarithmic axis, the last one first."""
    shown: dict[float, str] = {}
    axis_in, span = 0.72 * width_in, log(values[-1] / values[0]) or 1.0
    left_in = axis_in
    for value in reversed(values):
        at_in, label = axis_in * log(value / values[0]) / span, text(value)
        half_in = LETTER_IN * len(label) / 2
        if not shown or at_in + half_in + LETTER_IN < left_in:
            shown[value], left_in = label, at_in - half_in
    return dict(reversed(shown.items()))


LETTER_IN = 0.06
"""Width of a digit of a tick's label."""
FEWEST_TICKS = 3
TICKS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9))
"""Multiples of a power of ten, coarse to fine."""


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
