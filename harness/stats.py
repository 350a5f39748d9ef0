"""Arrays in, numbers out: medians, means, ratios and percentiles, with intervals that say how sure they are.

Too little data gives None, never a number that looks like one. Bootstraps take a seed: a report renders the same twice.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
"""Bootstrap repetitions: the end of a 95 % interval then rests on 50 resamples."""
FEWEST_FOR_BOOTSTRAP = 6
"""With fewer values a bootstrap only shuffles a handful; 6 is also where a 95 % median interval begins to exist."""
LARGEST_BLOCK = 4_000_000
"""Values drawn at a time, so that resampling never needs more than some tens of megabytes."""
PERCENTILE_CONFIDENCE = 0.99
"""MLPerf inference rules, early stopping: a percentile is claimed at 99 % confidence."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that holds the truth with probability `level`; None where the data cannot bound it."""

    low: float | None
    high: float | None
    level: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval, in the unit of the values it came from. `value` is None when there were none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    level: float = 0.95

    @property
    def interval(self) -> Interval:
        return Interval(self.low, self.high, self.level)

    @property
    def relative_half_width(self) -> float | None:
        """Half the interval's width over the value: 0.02 is "plus or minus 2 %"."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile, if the data bear it. `value` is None when they do not; `reason` then says why.

    `bound` lies above the true percentile with 99 % confidence (None when not even the largest value does).
    `needed` is the fewest values with which `value` is given.
    """

    q: float
    value: float | None
    bound: float | None
    n: int
    needed: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """How far values lie apart; all but `cv` (sd over mean) and `n` in the values' unit."""

    n: int
    minimum: float | None
    q1: float | None
    median: float | None
    q3: float | None
    maximum: float | None
    mean: float | None
    sd: float | None
    iqr: float | None
    cv: float | None


def as_values(values: ArrayLike) -> Array:
    """Return `values` as a flat float array; raises `ValueError` for NaN and infinity, which no statistic survives."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        raise ValueError("NaN or infinite values: drop what was not measured before asking for statistics")
    return array


@lru_cache(maxsize=4096)
def median_rank(n: int, level: float = 0.95) -> int | None:
    """Return k so that [k-th smallest, k-th largest] of `n` values holds the median at `level`; None: n is too small.

    Exact for any distribution: the number of values below the median is binomial(n, 1/2).
    """
    tail, total = (1 - level) / 2, 0.0
    for below in range(n // 2 + 1):
        total += math.exp(math.lgamma(n + 1) - math.lgamma(below + 1) - math.lgamma(n - below + 1) - n * math.log(2))
        if total > tail * (1 + 1e-12):
            return below or None
    return n // 2 or None


def median_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the median with its exact order-statistic interval; no bounds below 6 values at 95 %."""
    ordered = np.sort(as_values(values))
    n = len(ordered)
    if not n:
        return Estimate(None, None, None, 0, level)
    rank = median_rank(n, level)
    low, high = (None, None) if rank is None else (float(ordered[rank - 1]), float(ordered[n - rank]))
    return Estimate(float(np.median(ordered)), low, high, n, level)


@lru_cache(maxsize=4096)
def allowed_over(n: int, q: float, confidence: float = PERCENTILE_CONFIDENCE) -> int | None:
    """Return how many of `n` values may lie over a limit that is still at or above the `q` quantile with `confidence`.

    The largest t with P(binomial(n, 1 - q) <= t) <= 1 - confidence: MLPerf's early stopping. None: not even 0.
    """
    total, over = 0.0, 0
    while over <= n:
        log_choose = math.lgamma(n + 1) - math.lgamma(over + 1) - math.lgamma(n - over + 1)
        total += math.exp(log_choose + over * math.log(1 - q) + (n - over) * math.log(q))
        if total > (1 - confidence) * (1 + 1e-12):
            break
        over += 1
    return over - 1 if over else None


@lru_cache(maxsize=256)
def needed_for(q: float, confidence: float = PERCENTILE_CONFIDENCE) -> int:
    """Return the fewest values that bear the `q` quantile, one over the limit allowed (p90 64, p95 130, p99 662)."""
    n = 2
    while (allowed_over(n, q, confidence) or 0) < 1:
        n += 1
    return n


def percentile(values: ArrayLike, q: float) -> Percentile:
    """Return the `q` quantile (0.9 is p90) if 99 % confidence bears it, else only what bounds it, and the reason.

    Source of the rule: MLPerf inference, early stopping.
    """
    if not 0 < q < 1:
        raise ValueError(f"q = {q}: a share between 0 and 1, p90 is 0.9")
    ordered = np.sort(as_values(values))
    n, needed = len(ordered), needed_for(q)
    over = allowed_over(n, q) if n else None
    bound = None if over is None else float(ordered[n - 1 - over])
    if n >= needed:
        return Percentile(q, float(np.quantile(ordered, q)), bound, n, needed)
    told = f"p{100 * q:g} needs {needed} values at {PERCENTILE_CONFIDENCE:.0%} confidence, there are {n}"
    return Percentile(q, None, bound, n, needed, told)


def spread(values: ArrayLike) -> Spread:
    """Return how far the values lie apart; sd and cv need two of them."""
    array = as_values(values)
    n = len(array)
    if not n:
        return Spread(0, None, None, None, None, None, None, None, None, None)
    q1, median, q3 = (float(x) for x in np.quantile(array, [0.25, 0.5, 0.75]))
    mean = float(array.mean())
    sd = float(array.std(ddof=1)) if n > 1 else None
    cv = sd / abs(mean) if sd is not None and mean else None
    return Spread(n, float(array.min()), q1, median, q3, float(array.max()), mean, sd, q3 - q1, cv)


def ratio_of_medians(a: ArrayLike, b: ArrayLike, pairs: bool = False, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return median(a) / median(b) with a percentile-bootstrap interval.

    With `pairs` (interleaved runs: a[i] was measured next to b[i]) whole pairs are drawn, so what slowed both cancels.
    """
    first, second = as_values(a), as_values(b)
    if pairs and len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, not {len(first)} and {len(second)}")
    n = min(len(first), len(second))
    if not n or not np.median(second):
        return Estimate(None, None, None, n, level)
    value = float(np.median(first) / np.median(second))
    if n < FEWEST_FOR_BOOTSTRAP:
        return Estimate(value, None, None, n, level)
    rng = np.random.default_rng(seed)
    ratios = []
    for rows in _blocks(max(len(first), len(second))):
        top = rng.integers(len(first), size=(rows, len(first)))
        bottom = top if pairs else rng.integers(len(second), size=(rows, len(second)))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.median(first[top], axis=1) / np.median(second[bottom], axis=1))
    low, high = _ends(np.concatenate(ratios), level)
    return Estimate(value, low, high, n, level)


def sum_of_medians(parts: Sequence[ArrayLike], level: float = 0.95, seed: int = 0, together: bool = False) -> Estimate:
    """Return the sum of the parts' medians with a percentile-bootstrap interval; `n` is the shortest part's.

    Parts are drawn independently (the additive protocol measures encoder and prefill apart), or row by row with
    `together` (stages of the same passes).
    """
    arrays = [as_values(part) for part in parts]
    n = min((len(array) for array in arrays), default=0)
    if together and any(len(array) != n for array in arrays):
        raise ValueError("parts of the same passes need equal lengths")
    if not n:
        return Estimate(None, None, None, 0, level)
    value = float(sum(np.median(array) for array in arrays))
    if n < FEWEST_FOR_BOOTSTRAP:
        return Estimate(value, None, None, n, level)
    low, high = _ends(drawn_sums(arrays, np.random.default_rng(seed), together=together), level)
    return Estimate(value, low, high, n, level)


def ratio_of_sums(a: Sequence[ArrayLike], b: Sequence[ArrayLike], level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the ratio of two sums of medians with a percentile-bootstrap interval, all parts drawn independently."""
    first, second = [as_values(part) for part in a], [as_values(part) for part in b]
    n = min((len(part) for part in (*first, *second)), default=0)
    bottom = sum(float(np.median(part)) for part in second) if n else 0.0
    if not first or not bottom:
        return Estimate(None, None, None, n, level)
    value = sum(float(np.median(part)) for part in first) / bottom
    if n < FEWEST_FOR_BOOTSTRAP:
        return Estimate(value, None, None, n, level)
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _ends(drawn_sums(first, rng) / drawn_sums(second, rng), level)
    return Estimate(value, low, high, n, level)


def drawn_sums(
    parts: Sequence[ArrayLike], rng: np.random.Generator, draws: int = RESAMPLES, together: bool = False
) -> Array:
    """Return bootstrap draws of the sum of the parts' medians; see `sum_of_medians` for `together`."""
    arrays = [as_values(part) for part in parts]
    sums = []
    for rows in _blocks(max(len(array) for array in arrays), draws):
        drawn = rng.integers(len(arrays[0]), size=(rows, len(arrays[0]))) if together else None
        total = np.zeros(rows)
        for array in arrays:
            index = rng.integers(len(array), size=(rows, len(array))) if drawn is None else drawn
            total += np.median(array[index], axis=1)
        sums.append(total)
    return np.concatenate(sums)


def mean_interval_clustered(
    scores: ArrayLike, clusters: Sequence[Any] | NDArray[Any], level: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the mean score with an interval that knows that questions about one image are not independent.

    The variance is the cluster-robust one (CR1, Student's t with clusters - 1 degrees of freedom). Scores within [0, 1]
    get a Wilson interval at the effective sample size that this variance implies, so that 10 right answers of 10 are
    not "100 %, surely". An empty mean is None, not 0.0; one cluster has no bounds. Nothing is drawn: `seed` is there so
    that every interval is called alike.
    """
    values = as_values(scores)
    n = len(values)
    if not n:
        return Estimate(None, None, None, 0, level)
    mean = float(values.mean())
    groups, variance = _cluster_variance(values, clusters)
    if groups < 2:
        return Estimate(mean, None, None, n, level)
    t = student_t((1 + level) / 2, groups - 1)
    if values.min() >= 0 and values.max() <= 1:
        within = mean * (1 - mean)
        # Without any variance the clusters, not the questions, are what we have seen.
        size = within / variance if variance > 0 and within > 0 else float(groups)
        low, high = _wilson(mean, size, t)
    else:
        half = t * math.sqrt(variance)
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, n, level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return mean(a - b) over the same examples, cluster-robust; an interval without 0 is a difference at `level`.

    With fewer than two clusters there are no bounds. `seed` as in `mean_interval_clustered`.
    """
    first, second = as_values(a), as_values(b)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, not {len(first)} and {len(second)}")
    difference = first - second
    n = len(difference)
    if not n:
        return Estimate(None, None, None, 0, level)
    mean = float(difference.mean())
    groups, variance = _cluster_variance(difference, np.arange(n) if clusters is None else clusters)
    if groups < 2:
        return Estimate(mean, None, None, n, level)
    half = student_t((1 + level) / 2, groups - 1) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half, n, level)


@lru_cache(maxsize=1024)
def student_t(probability: float, df: int) -> float:
    """Return the quantile of Student's t: with x = sqrt(df) tan(u) its density is cos(u)^(df - 1), summed on a grid."""
    if df > 2000:  # the normal quantile is then within 0.1 %, and a fixed grid would grow coarse
        df = 2000
    edges = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    middle = (edges[1:] + edges[:-1]) / 2
    mass = np.cumsum(np.cos(middle) ** (df - 1))
    share = np.concatenate([[0.0], mass / mass[-1]])
    return float(math.sqrt(df) * math.tan(np.interp(probability, share, edges)))


def _cluster_variance(values: Array, clusters: Sequence[Any] | NDArray[Any]) -> tuple[int, float]:
    """Return the number of clusters and the CR1 variance of the mean: G/(G-1) Σ_g (Σ_i residual)² / n²."""
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} cluster names for {len(values)} values")
    known: dict[Any, int] = {}
    index = np.array([known.setdefault(name, len(known)) for name in clusters], dtype=np.intp)
    groups = len(known)
    if groups < 2:
        return groups, 0.0
    sums = np.bincount(index, weights=values - values.mean(), minlength=groups)
    return groups, float(groups / (groups - 1) * np.sum(sums**2) / len(values) ** 2)


def _wilson(share: float, size: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _blocks(width: int, draws: int = RESAMPLES) -> Iterator[int]:
    rows, left = max(1, LARGEST_BLOCK // max(1, width)), draws
    while left > 0:
        yield min(rows, left)
        left -= rows


def _ends(drawn: Array, level: float) -> tuple[float | None, float | None]:
    low, high = (float(x) for x in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)
