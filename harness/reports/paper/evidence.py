"""What was measured here that a published figure may be compared with: ratios on one machine, scores, counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.reports import material
from harness.reports.card import Match, Side
from harness.reports.material import Material, Row
from harness.stats import Estimate

RESAMPLES = 2000
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PAPER = ("ttft", "paper")
"""The protocols, in the order they are shown: our end-to-end TTFT, and the paper's additive one."""

Platform = tuple[str, ...]
Subject = Match | Side
"""Which model card at which resolution a published row, or a side of a claim, is."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Finds in the material what one model at one resolution did."""

    data: Material

    def platforms(self, wanted: Sequence[Subject]) -> list[Platform]:
        """Return the platforms on which any of these was timed, the richest first."""
        counts: dict[Platform, set[int]] = {}
        for row in self.data.rows:
            hits = {number for number, subject in enumerate(wanted) if row["n"] and _is(row, subject)}
            if hits:
                counts.setdefault(material.platform(row), set()).update(hits)
        return sorted(counts, key=lambda platform: (-len(counts[platform]), platform))

    def rows(self, subject: Subject, platform: Platform, protocol: str, stages: Sequence[str] = ()) -> list[Row]:
        """Return a subject's timed rows that have these stages: its own card, whole runs and many samples first."""
        found = [
            row
            for row in self.data.rows
            if _is(row, subject)
            and material.platform(row) == platform
            and row["protocol"] == protocol
            and row["n"]
            and all(row.get(f"{stage}_ns") is not None for stage in stages)
        ]
        own = subject.model
        return sorted(found, key=lambda r: (bool(r["isolate"]), r["model"] != own, -r["n"], str(r["cell"])))

    def pair(self, upper: Sequence[Row], lower: Sequence[Row]) -> tuple[Row, Row] | None:
        """Return two rows over the same questions if there are such, else the best of both, else None."""
        if not upper or not lower:
            return None
        for a in upper:
            for b in lower:
                if all(a[name] == b[name] for name in ("suite", "data_digest", "isolate")):
                    return a, b
        return upper[0], lower[0]

    def ratio(self, upper: Row, lower: Row, stages: tuple[str, ...]) -> Estimate | None:
        """Return the ratio of two rows' (added) medians with a bootstrap interval, or None where a time is missing."""
        first, second = self.data.series_ns(upper, stages), self.data.series_ns(lower, stages)
        if not first or not second:
            return None
        value = sum(float(np.median(part)) for part in first) / sum(float(np.median(part)) for part in second)
        n = min(len(part) for part in (*first, *second))
        if n < 6:
            return Estimate(value, None, None, n)
        rng = np.random.default_rng(0)
        low, high = np.quantile(_sums(first, rng) / _sums(second, rng), [0.025, 0.975])
        return Estimate(value, float(low), float(high), n)

    def score(self, subject: Subject, suites: Sequence[str]) -> tuple[Estimate | None, str, Row | None]:
        """Return the score in points of 100 (of several suites: the mean), or None and why there is none."""
        found = []
        for suite in suites:
            mine = [
                r for r in self.data.rows if r["suite"] == suite and r["model"] == subject.model and _is(r, subject)
            ]
            scored = sorted(
                (r for r in mine if r["accuracy"] is not None), key=lambda r: (-r["accuracy_n"], str(r["cell"]))
            )
            if not scored:
                reasons = sorted({str(r["not_scored"]) for r in mine if r["not_scored"] and r["protocol"] == "ttft"})
                return None, reasons[0] if reasons else f"{suite} was not run", None
            found.append(scored[0])
        values = [100 * row["accuracy"] for row in found]
        bounded = [row for row in found if row["accuracy_low"] is not None]
        n = sum(row["accuracy_n"] for row in found)
        mean = float(np.mean(values))
        if len(bounded) < len(found):
            return Estimate(mean, None, None, n), "", found[0]
        if len(found) == 1:
            return Estimate(mean, 100 * found[0]["accuracy_low"], 100 * found[0]["accuracy_high"], n), "", found[0]
        halves = [50 * (row["accuracy_high"] - row["accuracy_low"]) for row in found]
        half = float(np.sqrt(np.sum(np.square(halves)))) / len(found)  # different questions: independent errors
        return Estimate(mean, mean - half, mean + half, n), "", found[0]

    def params_m(self, subject: Subject) -> float | None:
        """Return the parameters of a subject's encoders in millions, from the weight bytes counted in its logs."""
        for row in self.data.rows:
            if row["model"] not in _models(subject) or row["isolate"] or row["dtype"] not in DTYPE_BYTES:
                continue
            for name in row["logs"]:
                for counted in self.data.frame.records[name].counted:
                    # Of one tile only: tiles run in one batch read the weights once, one by one each time.
                    if counted.weight_bytes.get("encode") and counted.tiles == 1:
                        return counted.weight_bytes["encode"] / DTYPE_BYTES[str(row["dtype"])] / 1e6
        return None

    def tokens(self, subject: Subject) -> float | None:
        """Return the visual tokens that a subject made of an image (the median)."""
        for row in self.data.rows:
            if _is(row, subject) and row["visual_tokens"] is not None:
                return float(row["visual_tokens"])
        return None


def _models(subject: Subject) -> tuple[str, ...]:
    return (subject.model, *subject.alike) if subject.model else ()


def _is(row: Row, subject: Subject) -> bool:
    right = subject.resolution is None or row["resolution"] == subject.resolution
    return right and row["model"] in _models(subject) and str(row["settings"] or "") == subject.settings


def _sums(parts: list[list[float]], rng: np.random.Generator) -> np.ndarray:  # type: ignore[type-arg]
    total = np.zeros(RESAMPLES)
    for part in parts:
        values = np.asarray(part, dtype=float)
        total += np.median(values[rng.integers(len(values), size=(RESAMPLES, len(values)))], axis=1)
    return total
