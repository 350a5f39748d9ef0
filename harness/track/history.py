"""Change points in the nights' latency: ruptures' PELT with an L1 cost on the scaled logarithm. Pure functions.

Change points are of a level with independent noise around it. Nights that wander by themselves (each near the last one:
a machine that ages, an office that warms up) would be full of them, so the wandering is estimated from the differences
between neighbours, and the noise is taken to be as large as it makes the mean of some nights.

A checkpoint's history is slow to tell (three nights at least) but sees what no single night does. In a comparison of
detectors on simulated nights (our own) PELT was the one that stayed quiet even where throttled nights were kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from harness import stats
from harness.track.ratios import MINIMUM_EFFECT

PENALTY = 8.0
MINIMUM_SEGMENT = 3
"""Nights: two that agree could still be chance."""
SMALLEST_NOISE = 0.002
"""Relative: series of a scripted clock have no noise at all, and dividing by it would make changes of nothing."""
FEWEST_TO_KNOW_NOISE = 6
FEWEST_TO_KNOW_WANDERING = 10
MOST_WANDERING = 0.95
NO_LEVEL = 0.75
"""From this correlation on the nights have no level that could change: a random walk is all changes."""
SUSPICIOUS_SDS = 3.0
TEN_NIGHTS_SDS = 1.45
"""The step that ten nights show every second time: ten times (E|step + z| - E|z|) then equals the penalty."""


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """From night `at` on the level is another: after over before; bounds where both sides have 6 nights."""

    at: int
    ratio: float
    low: float | None
    high: float | None

    @property
    def slower(self) -> bool:
        """The direction."""
        return self.ratio > 1


@dataclass(frozen=True, slots=True)
class Trend:
    """What the history says: `word` is "quiet", "suspicious" or "slower"; `first_bad` the position it began at."""

    word: str
    changes: tuple[ChangePoint, ...]
    first_bad: int | None
    ratio: float | None
    detectable: float | None
    """The step that ten nights would show every second time, given this series' noise; None: too few nights."""
    wandering: float = 0.0
    """Correlation of neighbouring nights beyond chance; 0: independent, as change points assume."""


def change_points(medians_ns: Sequence[float], minimum_effect: float = MINIMUM_EFFECT) -> tuple[ChangePoint, ...]:
    """Return the changes of level in one segment of valid nights, oldest first."""
    if len(medians_ns) < 2 * MINIMUM_SEGMENT:
        return ()
    wanders = wandering(medians_ns)
    if wanders >= NO_LEVEL:
        return ()
    import ruptures

    logs = np.log(np.asarray(medians_ns, dtype=float))
    signal = (logs - np.median(logs)) / (noise(medians_ns) * _inflation(wanders))
    ends = ruptures.Pelt(model="l1", min_size=MINIMUM_SEGMENT, jump=1).fit(signal.reshape(-1, 1)).predict(pen=PENALTY)
    starts = [0, *ends[:-1]]
    found = []
    for before, at, end in zip(starts, starts[1:], ends[1:], strict=False):
        ratio = stats.ratio_of_medians(medians_ns[at:end], medians_ns[before:at])
        if ratio.value is not None and abs(math.log(ratio.value)) >= math.log(1 + minimum_effect):
            found.append(ChangePoint(at, ratio.value, ratio.low, ratio.high))
    return tuple(found)


def noise(medians_ns: Sequence[float]) -> float:
    """Return the nights' relative noise (one sd), from differences of neighbours, which a step hardly changes."""
    steps = np.abs(np.diff(np.log(np.asarray(medians_ns, dtype=float))))
    return max(SMALLEST_NOISE, float(1.4826 * np.median(steps) / math.sqrt(2))) if len(steps) else SMALLEST_NOISE


def wandering(medians_ns: Sequence[float]) -> float:
    """Return the correlation of neighbouring nights, 0 where it may be chance (one-sided 95 %).

    Of independent nights, neighbouring differences correlate by -1/2; of nights that follow one another with
    correlation r, by -(1 - r) / 2. Differences hardly see a step, which the nights themselves would take for wandering;
    the largest are left out, for they may be one.
    """
    steps = np.diff(np.log(np.asarray(medians_ns, dtype=float)))
    if len(medians_ns) < FEWEST_TO_KNOW_WANDERING or not np.any(steps):
        return 0.0
    limit = 4 * 1.4826 * float(np.median(np.abs(steps)))
    kept = np.where(np.abs(steps) <= limit, steps, 0.0) if limit > 0 else steps
    found = 1 + 2 * float(np.dot(kept[1:], kept[:-1]) / np.dot(kept, kept))
    chance = 1.645 * 1.4 / math.sqrt(len(kept))
    return min(MOST_WANDERING, found) if found > chance else 0.0


def _inflation(correlation: float) -> float:
    return math.sqrt((1 + correlation) / (1 - correlation))


def trend(medians_ns: Sequence[float], reference: int = 0, minimum_effect: float = MINIMUM_EFFECT) -> Trend:
    """Say how the last nights compare with the level that the night `reference` belongs to.

    One slow night is "suspicious"; it takes two that agree, or a change point, to be "slower".
    """
    n = len(medians_ns)
    changes = change_points(medians_ns, minimum_effect)
    bounds = [0, *(change.at for change in changes), n]
    pieces = [(a, b) for a, b in pairwise(bounds) if b > a]
    wanders = wandering(medians_ns)
    known = noise(medians_ns) * _inflation(wanders) if n >= FEWEST_TO_KNOW_NOISE else None
    detectable = None if known is None else max(minimum_effect, math.expm1(TEN_NIGHTS_SDS * known))
    if not pieces:
        return Trend("quiet", changes, None, None, detectable, wanders)
    home = next(index for index, (a, b) in enumerate(pieces) if a <= min(reference, n - 1) < b)
    level = median(medians_ns[slice(*pieces[home])])
    last = median(medians_ns[slice(*pieces[-1])])
    if last >= level * (1 + minimum_effect) and home < len(pieces) - 1:
        # The first night since when every piece has been above the baseline's level.
        start = len(pieces) - 1
        while start - 1 > home and median(medians_ns[slice(*pieces[start - 1])]) >= level * (1 + minimum_effect):
            start -= 1
        # A piece has three nights at least, and may have had to take in a good one.
        first = next(i for i in range(pieces[start][0], n) if medians_ns[i] >= level * (1 + minimum_effect))
        return Trend("slower", changes, first, last / level, detectable, wanders)
    if known is None or n < FEWEST_TO_KNOW_NOISE + 1:
        return Trend("quiet", changes, None, last / level, detectable, wanders)
    limit = level * math.exp(max(math.log(1 + minimum_effect), SUSPICIOUS_SDS * known))
    above = [value > limit for value in medians_ns[-2:]]
    if all(above):
        return Trend("slower", changes, n - 2, median(medians_ns[-2:]) / level, detectable, wanders)
    return Trend("suspicious" if above[-1] else "quiet", changes, None, medians_ns[-1] / level, detectable, wanders)
