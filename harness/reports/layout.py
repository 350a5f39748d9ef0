"""Where the words of a figure go: boxes are measured as drawn, and no label lies on a line, point or label."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

LABEL_PT = 6.5
NEAR = [(dx, dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))]
DISTANCES_PT = (3.5, 6.0, 9.0)
SLACK_PX = 0.5
"""Boxes of text have a little room of their own around the letters."""


class Label(NamedTuple):
    """A word beside a point, in the axes' own units."""

    x: float
    y: float
    text: str


class Obstacles(NamedTuple):
    """What a label may not cover, in pixels."""

    boxes: list[Bbox]
    lines: list[Path]


def place(axes: Axes, labels: Sequence[Label]) -> list[Label]:
    """Write each label at the nearest free spot beside its point, the first ones first; return those without one."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    taken, left_out = obstacles(axes), []
    frame, scale = axes.get_window_extent(), figure.dpi / 72
    for label in labels:
        at = axes.transData.transform((label.x, label.y))
        for dx, dy in ((r * dx, r * dy) for r in DISTANCES_PT for dx, dy in NEAR):
            words = axes.annotate(
                label.text, (label.x, label.y), (dx, dy), textcoords="offset points", fontsize=LABEL_PT,
                ha={-1: "right", 0: "center", 1: "left"}[int(np.sign(dx))],
                va={-1: "top", 0: "center", 1: "bottom"}[int(np.sign(dy))],
                annotation_clip=False,
            )  # fmt: skip
            box = words.get_window_extent(renderer)
            near = np.hypot(*(np.clip(at, box.min, box.max) - at)) <= 1.5 * max(DISTANCES_PT) * scale
            if near and _inside(box, frame) and not _hits(box, taken):
                taken.boxes.append(box)
                break
            words.remove()
        else:
            left_out.append(label)
    return left_out


def obstacles(axes: Axes) -> Obstacles:
    """Return the boxes of the points and bars, and the lines, that are drawn in `axes`."""
    boxes: list[Bbox] = []
    lines: list[Path] = []
    scale = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    for line in axes.lines:
        path = line.get_transform().transform_path(line.get_path())
        points = np.asarray(path.vertices)
        if not len(points) or not np.isfinite(points).all():
            continue
        if line.get_linestyle() not in ("None", "", " ") and len(points) > 1:
            lines.append(path)
        if line.get_marker() not in ("None", None, "", " "):
            half = line.get_markersize() * scale / 2
            boxes += [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in points]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            lines += [collection.get_transform().transform_path(Path(part)) for part in collection.get_segments()]
        elif isinstance(collection, PathCollection):
            half = float(np.sqrt(collection.get_sizes()[0])) * scale / 2
            points = collection.get_offset_transform().transform(collection.get_offsets())
            boxes += [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in np.asarray(points)]
    boxes += [patch.get_window_extent() for patch in axes.patches]
    return Obstacles(boxes, lines)


def overlaps(figure: Figure) -> list[str]:
    """Return what lies on what in a finished figure: words on words, on points, bars and lines, or outside of it."""
    figure.draw_without_rendering()
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    words = [(text.get_text(), text.get_window_extent(renderer)) for text in _texts(figure)]
    found = [
        f"{one!r} on {other!r}"
        for number, (one, a) in enumerate(words)
        for other, b in words[number + 1 :]
        if _overlap(a, b)
    ]
    found += [f"{word!r} leaves the figure" for word, box in words if not _inside(box, figure.bbox, 1.0)]
    for axes in figure.axes:
        things = obstacles(axes)
        found += [f"{word!r} on a point or bar" for word, box in words if any(_overlap(box, b) for b in things.boxes)]
        found += [f"{word!r} on a line" for word, box in words if _hits(box, Obstacles([], things.lines))]
    return found


def _texts(figure: Figure) -> Iterator[Text]:
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _unseen(axis)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text


def _unseen(axis: object) -> Iterator[Text]:
    """Yield the labels of ticks that lie outside the axis' range: matplotlib keeps them and does not draw them."""
    low, high = sorted(axis.get_view_interval())  # type: ignore[attr-defined]
    for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:  # type: ignore[attr-defined]
        if not low <= tick.get_loc() <= high:
            yield from (tick.label1, tick.label2)


def _overlap(a: Bbox, b: Bbox) -> bool:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return bool(min(width, height) > SLACK_PX)


def _hits(box: Bbox, things: Obstacles) -> bool:
    if any(_overlap(box, other) for other in things.boxes):
        return True
    inner = Bbox.from_extents(box.x0 + SLACK_PX, box.y0 + SLACK_PX, box.x1 - SLACK_PX, box.y1 - SLACK_PX)
    return any(path.intersects_bbox(inner, filled=False) for path in things.lines)


def _inside(box: Bbox, frame: BboxBase, slack: float = 0.0) -> bool:
    low, high = np.asarray(frame.min) - slack, np.asarray(frame.max) + slack
    return bool((np.asarray(box.min) >= low).all() and (np.asarray(box.max) <= high).all())
