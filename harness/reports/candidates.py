"""Cells as points: what each costs (TTFT, an encoder's time, tokens) and what its answers are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.reports import wording
from harness.reports.accuracy import Accuracy
from harness.reports.measured import Measured
from harness.reports.pareto import Point
from harness.reports.summary import CellSummary
from harness.stats import Estimate

COSTS = {
    "ttft": ("TTFT", "ms"),
    "encode": ("encoder latency", "ms"),
    "visual_tokens": ("visual tokens", ""),
}


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A cell with a cost and a score; `accuracy` is its own, or that of its twin's whole run."""

    cell: CellSummary
    accuracy: Accuracy
    point: Point


def of(data: Measured, cells: Sequence[CellSummary], cost: str) -> list[Candidate]:
    """Return those of `cells` that have this cost and a score."""
    found = []
    for one in cells:
        twin = _scored(data, one)
        if twin.accuracy.value is not None and _cost(one, cost) is not None:
            found.append(Candidate(one, twin.accuracy, _point(one, twin, cost)))
    return found


TWIN = ("model", "weights", "weights_digest", "questions", "resolution", "settings", "machine")
"""What a cell shares with the one that has its accuracy."""


def _scored(data: Measured, one: CellSummary) -> CellSummary:
    """Return the cell with its accuracy: itself, or the whole run of an isolated or additive one; else itself."""
    if one.accuracy.value is not None:
        return one
    wanted = [getattr(one.cell, name) for name in TWIN]
    twins = (t for t in data.cells if t.accuracy.value is not None and [getattr(t.cell, n) for n in TWIN] == wanted)
    return next(twins, one)


def _cost(one: CellSummary, cost: str) -> Estimate | None:
    if cost != "visual_tokens":
        return one.times.of(cost)
    return None if one.tokens.visual is None else Estimate(one.tokens.visual, None, None, one.times.n)


def _point(one: CellSummary, twin: CellSummary, cost: str) -> Point:
    """Return a cell as a point; `twin` has its accuracy."""
    title, unit = COSTS[cost]
    timed, accuracy, about = unit == "ms", twin.accuracy, one.cell
    scale = 1e-6 if timed else 1.0
    found = _cost(one, cost)
    assert found is not None
    assert found.value is not None
    assert accuracy.value is not None
    tokens = "–" if one.tokens.visual is None else f"{one.tokens.visual:.0f}"
    return Point(
        name=f"{about.model} {about.resolution} px {about.settings}".strip(),
        series=about.label,
        cost=found.value * scale,
        merit=100 * accuracy.value,
        cost_low=None if found.low is None else found.low * scale,
        cost_high=None if found.high is None else found.high * scale,
        merit_low=None if accuracy.low is None else 100 * accuracy.low,
        merit_high=None if accuracy.high is None else 100 * accuracy.high,
        cost_parts=tuple(tuple(v / 1e6 for v in part) for part in one.times.parts_ns((cost,))) if timed else (),
        scores=tuple(100 * score for score in accuracy.scores),
        clusters=accuracy.clusters,
        questions=" ".join(about.questions),
        label=str(about.resolution),
        hover=f"{about.model} at {about.resolution} px, {tokens} visual tokens: {title} "
        f"{wording.estimate(found, scale)} {unit}, {accuracy.metric} {wording.estimate(accuracy.estimate, 100)}",
        marks=one.marks,
        unbounded=(timed and found.low is None) or accuracy.low is None,
    )
