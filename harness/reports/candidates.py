"""Cells as points: what each costs (TTFT, an encoder's time, tokens) and what its answers are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from harness import stats
from harness.reports import likeness, marks, resizing, wording
from harness.reports.accuracy import Accuracy
from harness.reports.configuration import Configuration
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
    """A cell with a cost and a score."""

    cell: CellSummary
    scored: CellSummary
    """The cell that has the score: itself, or its twin that was run whole."""
    point: Point
    questions: int
    """On so many questions its score is compared with the others'."""
    apart: str = ""
    """Why its score is compared with none: too few questions were answered by it and by the others."""

    @property
    def accuracy(self) -> Accuracy:
        """Its score on everything that it answered."""
        return self.scored.accuracy

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes its time or its score doubtful."""
        twins = () if self.scored is self.cell else self.scored.doubts
        return (*self.cell.doubts, *(f"{self.scored.cell.title}, whose accuracy it has: {doubt}" for doubt in twins))


def of(data: Measured, cells: Sequence[CellSummary], cost: str) -> list[Candidate]:
    """Return those of `cells` (of one suite's data) that have this cost and a score, compared on the same questions."""
    pairs = [(one, _scored(data, one)) for one in cells if _cost(one, cost) is not None]
    pairs = [(one, twin) for one, twin in pairs if twin.accuracy.value is not None]
    common, apart = _common([twin.accuracy for _, twin in pairs])
    series = _series([one.cell for one, _ in pairs])
    found = []
    for (one, twin), why in zip(pairs, apart, strict=True):
        score = twin.accuracy if why else _on(twin.accuracy, common)
        point = _point(one, twin, cost, score, bool(why), series[one.cell])
        found.append(Candidate(one, twin, point, score.n, why))
    return found


def _series(cells: Sequence[Configuration]) -> dict[Configuration, str]:
    """Return what the line is called on which each cell lies: its label, with its weights where there are several.

    A line joins what one checkpoint does at several resolutions, never two checkpoints under one name.
    """
    digests: dict[str, set[str]] = {}
    for one in cells:
        digests.setdefault(one.label, set()).add(one.weights_digest or one.weights)
    return {
        one: f"{one.label} ({one.weights} {one.weights_digest[:8]}".rstrip() + ")"
        if len(digests[one.label]) > 1
        else one.label
        for one in cells
    }


def notes(found: Sequence[Candidate]) -> tuple[str, ...]:
    """Say what the cells of one comparison differ in: the questions, the library that resized, other conditions."""
    compared = {one.questions for one in found if not one.apart}
    most = max((one.accuracy.n for one in found), default=0)
    told = []
    if any(one.questions != one.accuracy.n for one in found):
        told.append(f"scores are compared on the {min(compared)} questions, of {most}, that all of them answered")
    named = (f"{one.point.name} is compared with none: {one.apart}" for one in found if one.apart)
    unlike = likeness.notes(cell for one in found for cell in (one.cell, one.scored))
    return (*told, *named, *resizing.notes([one.cell for one in found]), *unlike)


FEWEST = 0.5
"""Of the questions that the fullest cell answered: who answered less is compared with none, rather than all on less."""


def _common(scores: Sequence[Accuracy]) -> tuple[frozenset[str], list[str]]:
    """Return the questions that all answered, and for each cell why it is left out of this, or nothing."""
    most = max((one.n for one in scores), default=0)
    apart = [f"it answered {one.n} of {most} questions" if one.n < FEWEST * most else "" for one in scores]
    kept = [frozenset(one.examples) for one, why in zip(scores, apart, strict=True) if one.examples and not why]
    common = frozenset.intersection(*kept) if kept else frozenset()
    if kept and len(common) < FEWEST * most:
        told = f"only {len(common)} of {most} questions were answered by all"
        apart = [why or told for why in apart]
    whole = all(len(one) == len(common) for one in kept)
    for at, one in enumerate(scores):  # without a score for each question, it is that of all of them or of none
        if not one.examples and not apart[at] and (one.n < most or not whole):
            apart[at] = f"it answered {one.n} of {most} questions, and {one.metric} is no mean over them"
    return common, apart


def _on(score: Accuracy, common: frozenset[str]) -> Accuracy:
    """Return the score on these questions alone."""
    kept = [at for at, example in enumerate(score.examples) if example in common]
    if len(kept) == len(score.examples):
        return score
    scores, clusters = tuple(score.scores[at] for at in kept), tuple(score.clusters[at] for at in kept)
    mean = stats.mean_interval_clustered(scores, clusters)
    examples = tuple(score.examples[at] for at in kept)
    return msgspec.structs.replace(
        score, value=mean.value, low=mean.low, high=mean.high, n=len(kept), scores=scores, clusters=clusters,
        examples=examples,
    )  # fmt: skip


TWIN = (
    "model", "model_digest", "weights", "weights_digest", "questions", "resolution", "settings", "machine", "device",
    "engine", "endpoint", "dtype", "threads",
)  # fmt: skip
"""What a cell shares with the one that has its accuracy: all that an answer depends on."""


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


def _point(one: CellSummary, twin: CellSummary, cost: str, accuracy: Accuracy, apart: bool, series: str) -> Point:
    """Return a cell as a point of a `series`; `accuracy` is what of its twin's is compared with the others'."""
    title, unit = COSTS[cost]
    timed, about = unit == "ms", one.cell
    scale = 1e-6 if timed else 1.0
    found = _cost(one, cost)
    assert found is not None
    assert found.value is not None
    assert accuracy.value is not None
    own = series.removeprefix(about.label)
    whose = f", of {accuracy.n} questions" if accuracy.n != twin.accuracy.n else ""
    whose += f", as measured in {twin.cell.title}" if twin is not one else ""
    tokens = "–" if one.tokens.visual is None else f"{one.tokens.visual:.0f}"
    return Point(
        name=f"{about.model} {about.resolution} px {about.settings}".strip() + own,
        series=series,
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
        hover=f"{about.model}{own} at {about.resolution} px, {tokens} visual tokens: {title} "
        f"{wording.estimate(found, scale)} {unit}, {accuracy.metric} {wording.estimate(accuracy.estimate, 100)}{whose}",
        marks=marks.of_all((one.marks, twin.marks, ("doubted",) if one.doubts or twin.doubts else ())),
        best=100.0,
        unbounded=apart or (timed and found.low is None) or accuracy.low is None,
    )
