"""The answers of tonight against the baseline's: a paired test over the same questions, and which answers changed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.reports import accuracy
from harness.reports import frame as logs_
from harness.reports.frame import Frame
from harness.runlog.records import Failure
from harness.stats import student_t

Word = Literal["SAME", "BETTER", "WORSE", "NOT SCORED"]
LEVEL = 0.995
"""Of the interval: one harmless night in 400 may look worse, as answers cannot be measured twice to make sure."""
POWER = 0.80
"""With this probability a drop of the size that is called detectable would have been seen."""
POWER_DRAWS = 400
SMALLEST_DROP = 0.001
MOST_EXAMPLES = 20
QUESTIONS = ("suite", "suite_digest", "data_digest")
"""What must be equal for an example's name to mean the same question."""


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
    lost: int = 0
    """Questions that the baseline answered and at which tonight's checkpoint failed, for reasons that do not pass."""
    lost_why: str = ""
    """The most frequent of these failures."""
    missed: int = 0
    """Those at which it failed for reasons that may pass: no memory, a device, a disk."""
    open: bool = False
    """Whether trained weights answered, not all as before, and no score says which answers are better."""

    @property
    def worse(self) -> bool:
        """Whether tonight's answers are worse: by their scores, or because there are none any more."""
        return self.word == "WORSE" or self.lost > 0

    @property
    def lost_text(self) -> str:
        """What was lost in one sentence."""
        return f"{self.lost} questions that the baseline answers fail tonight, most often with: {self.lost_why}"

    @property
    def text(self) -> str:
        """The finding in one sentence."""
        if self.word == "NOT SCORED":
            return f"accuracy not compared: {self.reason}"
        bounds = f" [{self.low:+.3f}, {self.high:+.3f}]" if self.low is not None and self.high is not None else ""
        seen = f"; a drop of {self.detectable:.3f} would have been seen 8 times in 10" if self.detectable else ""
        if self.difference == 0 and not self.detectable:
            seen = "; every question has the score it had"
        return (
            f"{self.metric} {self.before:.3f} → {self.after:.3f}, difference {self.difference:+.3f}{bounds} over "
            f"{self.n} questions on {self.images} images{seen}; {self.answers_changed} answers changed"
        )


def compare(baseline: Frame, candidate: Frame) -> Accuracy:
    """Compare the answers of one cell with another's, question by question, clustered by image.

    Questions that only one of them answered are in no mean: those that tonight's checkpoint lost are counted apart.
    """
    trained = all(logs_.trained(log) for side in (baseline, candidate) for log in side.records.values())
    unlike = _unlike(baseline, candidate)
    if unlike:
        return Accuracy("NOT SCORED", reason=f"not the same questions ({unlike})", open=trained)
    said_a, said_b = _answers(baseline), _answers(candidate)
    known = _measured(baseline)
    failed = _failed(known, candidate)
    lost = [failure for failure in failed if not failure.passing]
    why = Counter(f"{failure.stage}: {failure.message}" for failure in lost).most_common(1)
    changed = not known or any(said_b.get(key) != text for key, text in said_a.items())
    found = _scores(baseline, candidate, said_a if trained else {}, said_b)
    return replace(
        found,
        lost=len(lost),
        lost_why=why[0][0] if why else "",
        missed=len(failed) - len(lost),
        open=found.word == "NOT SCORED" and trained and changed,
    )


def _unlike(baseline: Frame, candidate: Frame) -> str:
    first, second = (
        {name: {log.header.cell.get(name) for log in side.records.values()} for name in QUESTIONS}
        for side in (baseline, candidate)
    )
    return ", ".join(f"another {name}" for name in QUESTIONS if first[name] != second[name])


def _measured(frame: Frame) -> set[str]:
    return {sample.example for log in frame.records.values() for sample in log.samples if sample.phase == "timed"}


def _failed(before: set[str], candidate: Frame) -> list[Failure]:
    """Return the failure of each question that was answered before: an answer in any of tonight's runs mends it."""
    open_ = before - _measured(candidate)
    logs = candidate.records.values()
    last = {failure.example: failure for log in logs for failure in log.failures if failure.example in open_}
    return list(last.values())


def _scores(baseline: Frame, candidate: Frame, said_a: Mapping[str, str], said_b: Mapping[str, str]) -> Accuracy:
    """Compare the scores of the questions that both answered; what random weights say is nothing that could change."""
    a, b = _scored(baseline), _scored(candidate)
    scores_a, scores_b = dict(zip(a.examples, a.scores, strict=True)), dict(zip(b.examples, b.scores, strict=True))
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
        detectable = detectable_drop(before, after, clusters)
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


def detectable_drop(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[str], seed: int = 0
) -> float | None:
    """Return the smallest drop of the mean that the test would have found with a probability of 80 %; None: none.

    Found by trying: tonight's own changes, each image's with a tossed sign, and on top of them right answers that turn
    wrong by chance until the mean has dropped by as much. A formula from tonight's spread promises too much: where
    few answers changed the spread is small, but a drop brings its own.
    """
    first, change = np.asarray(before, dtype=float), np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    mean = float(first.mean())
    if mean <= 0:
        return None
    known: dict[str, int] = {}
    index = np.array([known.setdefault(name, len(known)) for name in clusters])
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(POWER_DRAWS, len(known)))[:, index]
    fates = rng.random((POWER_DRAWS, len(first)))
    test = _Test(index)

    def power(drop: float) -> float:
        return float(np.mean(test.worse(np.where(fates < drop / mean, -first, signs * change))))

    if len(known) < 2 or power(mean) < POWER:
        return None
    low, high = 0.0, mean
    while high - low > max(SMALLEST_DROP, 0.02 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


class _Test:
    """The paired test of `stats.paired_difference` for many tables of changes over the same images at once."""

    def __init__(self, index: NDArray[np.intp]) -> None:
        self._order = np.argsort(index, kind="stable")
        sizes = np.bincount(index)
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._sizes = sizes.astype(float)
        self._n = len(index)
        self._quantile = student_t((1 + LEVEL) / 2, stats.cluster_spread(np.zeros(self._n), index).df)

    def worse(self, changes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return for each row whether its mean is surely below 0."""
        means = changes.mean(axis=1)
        sums = np.add.reduceat(changes[:, self._order], self._starts, axis=1) - means[:, None] * self._sizes
        weight = 1 / np.sqrt(1 - self._sizes / self._n) / self._n
        worse: NDArray[np.bool_] = means + self._quantile * np.sqrt(((sums * weight) ** 2).sum(axis=1)) < 0
        return worse


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
