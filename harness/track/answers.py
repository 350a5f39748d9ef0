"""The answers of tonight against the baseline's: a paired test over the same questions, and which answers changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness import stats
from harness.reports import accuracy
from harness.reports import frame as logs_
from harness.reports.frame import Frame
from harness.stats import student_t

Word = Literal["SAME", "BETTER", "WORSE", "NOT SCORED"]
LEVEL = 0.995
"""Of the interval: one harmless night in 400 may look worse, as answers cannot be measured twice to make sure."""
POWER_Z = 0.84
"""Of the normal distribution, for a power of 80 %."""
MOST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Changed:
    """One question that is answered otherwise tonight; scores are shares."""

    example: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What layer 3 found: `difference` is candidate minus baseline, as shares, with its interval at `LEVEL`.

    `detectable` is the smallest drop that a night like this would have shown with a probability of 80 %.
    """

    word: Word
    metric: str = ""
    before: float | None = None
    after: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    n: int = 0
    images: int = 0
    changed: tuple[Changed, ...] = ()
    answers_changed: int = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """The finding in one sentence."""
        if self.word == "NOT SCORED":
            return f"accuracy not compared: {self.reason}"
        bounds = f" [{self.low:+.3f}, {self.high:+.3f}]" if self.low is not None and self.high is not None else ""
        seen = f"; a drop of {self.detectable:.3f} would have been seen" if self.detectable else ""
        if self.difference == 0 and not self.detectable:
            seen = "; every question has the score it had"
        return (
            f"{self.metric} {self.before:.3f} → {self.after:.3f}, difference {self.difference:+.3f}{bounds} over "
            f"{self.n} questions on {self.images} images{seen}; {self.answers_changed} answers changed"
        )


def compare(baseline: Frame, candidate: Frame) -> Accuracy:
    """Compare the answers of one cell with another's, question by question, clustered by image."""
    a, b = _scored(baseline), _scored(candidate)
    said_a, said_b = _answers(baseline), _answers(candidate)
    scores_a, scores_b = dict(zip(a.examples, a.scores, strict=True)), dict(zip(b.examples, b.scores, strict=True))
    if not all(logs_.trained(log) for side in (baseline, candidate) for log in side.records.values()):
        said_a = {}  # what random weights say is nothing that could change
    changed = _changed(said_a, said_b, scores_a, scores_b)
    moved = sum(said_a[key] != said_b[key] for key in said_a if key in said_b)
    for side, name in ((a, "the baseline"), (b, "tonight's checkpoint")):
        if not side.scores:
            reason = f"{name}: {side.reason or f'{side.metric} is no mean over questions'}"
            return Accuracy("NOT SCORED", changed=changed, answers_changed=moved, reason=reason)
    shared = [key for key in scores_a if key in scores_b]
    if not shared:
        return Accuracy("NOT SCORED", reason="no question was answered by both")
    clusters_by = dict(zip(a.examples, a.clusters, strict=True))
    first, second = [scores_a[key] for key in shared], [scores_b[key] for key in shared]
    found = difference(first, second, [clusters_by[key] for key in shared])
    return replace(found, metric=a.metric, changed=changed, answers_changed=moved)


def difference(before: Sequence[float], after: Sequence[float], clusters: Sequence[str]) -> Accuracy:
    """Compare the scores of the same questions; `clusters` are their images."""
    change = stats.paired_difference(after, before, clusters, level=LEVEL)
    detectable = None
    images = len(set(clusters))
    if change.low is not None and change.high is not None:
        quantile = student_t((1 + LEVEL) / 2, images - 1)
        error = (change.high - change.low) / 2 / quantile
        detectable = (quantile + POWER_Z) * error or None
    word: Word = "SAME"
    if change.high is not None and change.high < 0:
        word = "WORSE"
    elif change.low is not None and change.low > 0:
        word = "BETTER"
    return Accuracy(
        word,
        before=sum(before) / len(before),
        after=sum(after) / len(after),
        difference=change.value,
        low=change.low,
        high=change.high,
        detectable=detectable,
        n=len(before),
        images=images,
    )


def _scored(frame: Frame) -> accuracy.Accuracy:
    found = list(accuracy.of(frame).values())
    return found[0] if len(found) == 1 else accuracy.Accuracy("", reason=f"{len(found)} cells, not one")


def _answers(frame: Frame) -> dict[str, str]:
    return {sample.example: sample.answer or "" for sample in accuracy.answers(frame.records.values())}


def _changed(
    before: Mapping[str, str], after: Mapping[str, str], a: Mapping[str, float], b: Mapping[str, float]
) -> tuple[Changed, ...]:
    """Return the questions that are answered otherwise: those that lost most first."""
    found = [
        Changed(key, before[key], after[key], a.get(key), b.get(key))
        for key in before
        if key in after and before[key] != after[key]
    ]
    found.sort(key=lambda one: ((one.score_after or 0.0) - (one.score_before or 0.0), one.example))
    return tuple(found[:MOST_EXAMPLES])
