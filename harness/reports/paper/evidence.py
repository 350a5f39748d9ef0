"""What was measured here that a published figure may be compared with: ratios on one machine, scores, counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
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
        """Return two cells over the same questions if there are such, else the best of both, else None."""
        if not upper or not lower:
            return None
        for a in upper:
            for b in lower:
                if all(getattr(a.cell, name) == getattr(b.cell, name) for name in ("suite", "data_digest", "isolate")):
                    return a, b
        return upper[0], lower[0]

    def ratio(self, upper: CellSummary, lower: CellSummary, stages: tuple[str, ...]) -> Estimate | None:
        """Return the ratio of two cells' (added) medians with a bootstrap interval, or None where a time is missing."""
        first, second = upper.times.parts_ns(stages), lower.times.parts_ns(stages)
        return stats.ratio_of_sums(first, second) if first and second else None

    def score(self, subject: Subject, suites: Sequence[str]) -> tuple[Estimate | None, str, CellSummary | None]:
        """Return the score in points of 100 (of several suites: the mean), or None and why there is none."""
        found = []
        for suite in suites:
            mine = [
                one
                for one in self.data.cells
                if one.cell.suite == suite and one.cell.model == subject.model and _is(one, subject)
            ]
            scored = sorted(
                (one for one in mine if one.accuracy.value is not None), key=lambda o: (-o.accuracy.n, o.cell.name)
            )
            if not scored:
                reasons = sorted({o.accuracy.reason for o in mine if o.accuracy.reason and o.cell.protocol == "ttft"})
                return None, reasons[0] if reasons else f"{suite} was not run", None
            found.append(scored[0])
        values = [100 * (one.accuracy.value or 0.0) for one in found]
        bounds = [
            (100 * one.accuracy.low, 100 * one.accuracy.high)
            for one in found
            if one.accuracy.low is not None and one.accuracy.high is not None
        ]
        n = sum(one.accuracy.n for one in found)
        mean = float(np.mean(values))
        if len(bounds) < len(found):
            return Estimate(mean, None, None, n), "", found[0]
        if len(found) == 1:
            return Estimate(mean, *bounds[0], n), "", found[0]
        halves = [(high - low) / 2 for low, high in bounds]
        half = float(np.sqrt(np.sum(np.square(halves)))) / len(found)  # different questions: independent errors
        return Estimate(mean, mean - half, mean + half, n), "", found[0]

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


def _models(subject: Subject) -> tuple[str, ...]:
    return (subject.model, *subject.alike) if subject.model else ()


def _is(one: CellSummary, subject: Subject) -> bool:
    about = one.cell
    right = subject.resolution is None or about.resolution == subject.resolution
    return right and about.model in _models(subject) and about.settings == subject.settings
