"""What was measured here that a published figure may be compared with: ratios on one machine, scores, counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.models.card import load_model_card
from harness.reports import marks
from harness.reports.accuracy import Accuracy
from harness.reports.card import Match, Side
from harness.reports.configuration import Platform
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary
from harness.stats import Estimate

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PAPER = ("ttft", "paper")
"""The protocols, in the order they are shown: our end-to-end TTFT, and the paper's additive one."""

Subject = Match | Side
"""Which model card at which resolution a published row, or a side of a claim, is."""
APART = "never timed on the same questions, both whole or both isolated"
RELEASED = ("hub", "cache", "shipped")
"""Where the weights that a model card names come from; a folder may hold any training under the card's name."""
MOST_UNSCORED = 0.01
"""Of a suite's questions: a score that leaves out more (they failed, or the run ended) is another suite's."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score in points of 100 with the cells it rests on, or why there is none."""

    estimate: Estimate | None = None
    sources: tuple[CellSummary, ...] = ()
    why_not: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks of all sources."""
        return marks.of_all(one.marks for one in self.sources)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Finds in the material what one model at one resolution did."""

    data: Measured

    def platforms(self, wanted: Sequence[Subject]) -> list[Platform]:
        """Return the platforms on which any of these was timed, the richest first."""
        counts: dict[Platform, set[int]] = {}
        for one in self.data.cells:
            hits = {number for number, subject in enumerate(wanted) if one.times.n and _is(one, subject)}
            if hits:
                counts.setdefault(one.cell.platform, set()).update(hits)
        return sorted(counts, key=lambda platform: (-len(counts[platform]), platform))

    def cells(
        self, subject: Subject, platform: Platform, protocol: str, stages: Sequence[str] = ()
    ) -> list[CellSummary]:
        """Return a subject's timed cells that have these stages: its own card, whole runs and many samples first."""
        found = [
            one
            for one in self.data.cells
            if _is(one, subject)
            and one.cell.platform == platform
            and one.cell.protocol == protocol
            and one.times.n
            and all(one.times.of(stage) for stage in stages)
        ]
        own = subject.model
        return sorted(found, key=lambda o: (o.cell.isolate, o.cell.model != own, -o.times.n, o.cell.name))

    def pair(
        self, upper: Sequence[CellSummary], lower: Sequence[CellSummary]
    ) -> tuple[CellSummary, CellSummary] | None:
        """Return the first two cells that were timed on the same questions in the same way, or None.

        By the paper's protocol both are sums of the same stages: one of them may be isolated, as its mark says.
        """
        alike = [(a, b) for a in upper for b in lower if a.cell.questions == b.cell.questions]
        same = [(a, b) for a, b in alike if a.cell.isolate == b.cell.isolate]
        mixed = [(a, b) for a, b in alike if a.cell.protocol == b.cell.protocol == "paper"]
        return next(iter([*same, *mixed]), None)

    def ratio(self, upper: CellSummary, lower: CellSummary, name: str) -> Estimate | None:
        """Return the ratio of one time of two cells, as sure as both tables' intervals; None where it is missing."""
        first, second = upper.times.of(name), lower.times.of(name)
        return stats.ratio(first, second) if first and second else None

    def score(self, subject: Subject, suites: Sequence[str]) -> Score:
        """Return the released model's score in points of 100 (of several suites: the mean), or why there is none."""
        found: list[CellSummary] = []
        for suite in suites:
            mine = [
                one
                for one in self.data.cells
                if one.cell.suite == suite and one.cell.model == subject.model and _is(one, subject)
            ]
            scored = [one for one in mine if one.accuracy.value is not None]
            kept = [one for one in scored if not _unlike_released(one)]
            if not kept:
                reasons = sorted({o.accuracy.reason for o in mine if o.accuracy.reason and o.cell.protocol == "ttft"})
                told = [f"{suite}: {_unlike_released(one)}" for one in scored] or reasons or [f"{suite} was not run"]
                return Score(why_not=told[0])
            found.append(min(kept, key=lambda o: (-o.accuracy.n, o.cell.name)))
        return Score(_mean([one.accuracy for one in found]), tuple(found))

    def params_m(self, subject: Subject) -> float | None:
        """Return the parameters of a subject's encoders in millions, from the weight bytes counted in its logs."""
        for one in self.data.cells:
            about = one.cell
            if about.model not in _models(subject) or about.isolate or about.dtype not in DTYPE_BYTES:
                continue
            for name in one.logs:
                for counted in self.data.frame.records[name].counted:
                    # Of one tile only: tiles run in one batch read the weights once, one by one each time.
                    if counted.weight_bytes.get("encode") and counted.tiles == 1:
                        return counted.weight_bytes["encode"] / DTYPE_BYTES[about.dtype] / 1e6
        return None

    def tokens(self, subject: Subject) -> float | None:
        """Return the visual tokens that a subject made of an image (the median)."""
        found = (one.tokens.visual for one in self.data.cells if _is(one, subject))
        return next((tokens for tokens in found if tokens is not None), None)


BEYOND_SCATTER = 2.0
"""By such a factor no scatter of a few samples on one machine explains a difference: it needs no interval to be one."""


def fits(near: bool, ratio: Estimate, published: float) -> bool | None:
    """Return whether a published ratio fits ours; None where it is not near and nobody knows how sure ours is."""
    if near or ratio.low is not None:
        return near
    assert ratio.value is not None
    times = ratio.value / published
    return None if 1 / BEYOND_SCATTER <= times <= BEYOND_SCATTER else False


def _unlike_released(one: CellSummary) -> str:
    """Say why a scored cell does not tell the released model's score on the suite, or nothing where it does."""
    about, scored = one.cell, one.accuracy
    if about.weights not in RELEASED:
        return f"scored with {about.weights or 'unknown'} weights, which need not be those that {about.model} names"
    card = load_model_card(about.model)
    mine = card.hub.repo if card.hub else ""
    other = next((name for name in one.process.repositories if name.partition("@")[0] != mine), "")
    if other:  # by a card of one's own under this name
        return f"scored with the weights of {other.partition('@')[0]}, which are not {about.model}'s ({mine or 'none'})"
    if about.limit is not None:
        return f"scored on the first {about.limit} examples alone"
    left = scored.asked - scored.n
    if left > MOST_UNSCORED * scored.asked:
        return f"{left} of {scored.asked} questions have no score"
    return ""


def _mean(scores: Sequence[Accuracy]) -> Estimate:
    """Return the mean of scores on different suites, in points of 100: their errors are independent."""
    n = sum(one.n for one in scores)
    values = [100 * one.value for one in scores if one.value is not None]
    bounds = [(100 * one.low, 100 * one.high) for one in scores if one.low is not None and one.high is not None]
    mean = float(np.mean(values))
    if len(bounds) < len(scores):
        return Estimate(mean, None, None, n)
    if len(scores) == 1:
        return Estimate(mean, *bounds[0], n)
    half = float(np.sqrt(np.sum(np.square([(high - low) / 2 for low, high in bounds])))) / len(scores)
    return Estimate(mean, mean - half, mean + half, n)


def _models(subject: Subject) -> tuple[str, ...]:
    return (subject.model, *subject.alike) if subject.model else ()


def _is(one: CellSummary, subject: Subject) -> bool:
    about = one.cell
    right = subject.resolution is None or about.resolution == subject.resolution
    return right and about.model in _models(subject) and about.settings == subject.settings
