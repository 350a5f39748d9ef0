"""Which points are worth having: lower cost, higher merit. The frontier, and how sure each point's place on it is.

A point is dominated when another costs no more, is worth no less, and is strictly better in one of the two. This is
decided anew in every bootstrap draw; a point that is on the frontier in some draws and off it in others is a tie and
is called one, whichever side the point estimates fall on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness import stats

DRAWS = 2000
SURE = 0.95
"""A place is sure when so many draws agree on it."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate. `cost` (say TTFT in ms) and `merit` (say ANLS) are estimates, with 95 % bounds where there are any.

    `cost_parts` are the samples whose medians add up to `cost`, drawn as wide as its bounds; `scores` and `clusters`
    the per-question scores whose mean is `merit`. Points with equal `questions` answered the same questions: clusters
    are drawn for them together, so what makes a question hard for everyone cancels. Without samples the bounds are
    taken as a normal distribution's; without bounds the value is taken as certain.
    """

    name: str
    series: str
    cost: float
    merit: float
    cost_low: float | None = None
    cost_high: float | None = None
    merit_low: float | None = None
    merit_high: float | None = None
    cost_parts: tuple[tuple[float, ...], ...] = ()
    scores: tuple[float, ...] = ()
    clusters: tuple[str, ...] = ()
    questions: str = ""
    label: str = ""
    hover: str = ""
    marks: tuple[str, ...] = ()
    best: float = 1.0
    """The most that a score can be: 1, or 100 where they are points."""
    unbounded: bool = False
    """It was measured too few times for an interval: its place is that of its point estimate, and not known better."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a point stands. `probability`: in how many draws no other point dominates it; None: not known."""

    point: Point
    on_frontier: bool
    probability: float | None
    rivals: tuple[str, ...]
    """Those that dominate it in some draws and not in others, the likeliest first."""

    @property
    def verdict(self) -> str:
        """`frontier`, `dominated`, `tie` when the data do not decide, or `no interval` when they cannot tell."""
        if self.probability is None:
            return "no interval"
        if SURE > self.probability > 1 - SURE:
            return "tie"
        return "frontier" if self.probability >= SURE else "dominated"

    @property
    def sure(self) -> str:
        """The verdict with its probability, in words."""
        return self.verdict if self.probability is None else f"{self.verdict}, {self.probability:.0%}"


def frontier(costs: Sequence[float], merits: Sequence[float]) -> list[int]:
    """Return the positions of the points that no other dominates, by rising cost; equal points are both kept."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -merits[i]))
    kept: list[int] = []
    best: tuple[float, float] | None = None
    for i in order:
        if best is None or merits[i] > best[1] or (costs[i], merits[i]) == best:
            kept.append(i)
            best = (costs[i], merits[i])
    return kept


def places(points: Sequence[Point], seed: int = 0, draws: int = DRAWS) -> list[Place]:
    """Return the place of every point, in the order given.

    A point without an interval has no probability, and neither has one whose place hangs on such a point.
    """
    if not points:
        return []
    on = set(frontier([p.cost for p in points], [p.merit for p in points]))
    costs, merits = draw(points, seed, draws)
    dominated = np.zeros((len(points), len(points)))  # [i, j]: how often j dominates i
    ever = np.zeros((draws, len(points)), dtype=bool)
    bounded = np.array([not point.unbounded for point in points])
    known = bounded.copy()
    for i in range(len(points)):
        no_worse = (costs <= costs[:, [i]]) & (merits >= merits[:, [i]])
        better = no_worse & ((costs < costs[:, [i]]) | (merits > merits[:, [i]]))
        dominated[i] = better.mean(axis=0)
        ever[:, i] = better.any(axis=1)
        known[i] &= bool((ever[:, i] == better[:, bounded].any(axis=1)).all())
    out = []
    for i, point in enumerate(points):
        unsure = [j for j in np.argsort(-dominated[i], kind="stable") if 1 - SURE < dominated[i, j] < SURE]
        probability = float(1 - ever[:, i].mean()) if known[i] else None
        out.append(Place(point, i in on, probability, tuple(points[j].name for j in unsure)))
    return out


def draw(points: Sequence[Point], seed: int, draws: int) -> tuple[Array, Array]:
    """Return bootstrap draws of all costs and merits, each of shape (draws, points)."""
    rng = np.random.default_rng(seed)
    costs = np.column_stack([_costs(point, rng, draws) for point in points])
    merits = np.empty((draws, len(points)))
    together: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        if point.scores:
            together.setdefault(point.questions or f"\0{i}", []).append(i)
        else:
            merits[:, i] = _normal(point.merit, point.merit_low, point.merit_high, rng, draws)
    for members in together.values():
        names = sorted({cluster for i in members for cluster in points[i].clusters})
        wider = _wider(len(names))
        position = {name: k for k, name in enumerate(names)}
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(float)
        for i in members:
            index = [position[cluster] for cluster in points[i].clusters]
            total = weights @ np.bincount(index, weights=points[i].scores, minlength=len(names))
            count = weights @ np.bincount(index, minlength=len(names)).astype(float)
            mean = float(np.mean(points[i].scores))
            drawn = np.where(count > 0, total / np.maximum(count, 1), mean)
            merits[:, i] = mean + wider * (drawn - mean)
            if len(names) == 1:  # one image says nothing about the next one
                merits[:, i] = rng.uniform(0, max(points[i].best, mean), size=draws)
    return costs, merits


def _wider(clusters: int) -> float:
    """Return by how much draws of so few clusters must spread further: a bootstrap of 5 images is too sure by a third.

    Its variance is (clusters - 1) / clusters of the true one on average, and is itself an estimate: Student's t.
    """
    if clusters < 2:
        return 1.0
    return stats.student_t((1 + SURE) / 2, clusters - 1) / 1.96 * math.sqrt(clusters / (clusters - 1))


def _costs(point: Point, rng: np.random.Generator, draws: int) -> Array:
    if not point.cost_parts:
        return _normal(point.cost, point.cost_low, point.cost_high, rng, draws)
    return _as_wide(stats.drawn_sums(point.cost_parts, rng, draws), point)


def _as_wide(drawn: Array, point: Point) -> Array:
    """Return draws at least as wide as the cost's bounds, which know that two samples of an image are not two."""
    if point.cost_low is None or point.cost_high is None:
        return drawn
    low, high = np.quantile(drawn, [(1 - SURE) / 2, (1 + SURE) / 2])
    less, more = point.cost - float(low), float(high) - point.cost
    down = max(1.0, (point.cost - point.cost_low) / less) if less > 0 else 1.0
    up = max(1.0, (point.cost_high - point.cost) / more) if more > 0 else 1.0
    return point.cost + np.where(drawn < point.cost, down, up) * (drawn - point.cost)


def _normal(value: float, low: float | None, high: float | None, rng: np.random.Generator, draws: int) -> Array:
    if low is None or high is None:
        return np.full(draws, value)
    return rng.normal(value, max(0.0, high - low) / (2 * 1.96), size=draws)
