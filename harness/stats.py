"""Arrays in, numbers out: medians, means, ratios and percentiles, with intervals that say how sure they are.

Too little data gives None, never a number that looks like one. Nothing is drawn: a report renders the same twice.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Clusters = Sequence[Hashable] | NDArray[np.generic]
"""For each value the cluster (the image, say) that it belongs to."""

Array = NDArray[np.float64]

FEWEST_FOR_MODES = 8
MOST_FOR_EXACT_TOSSES = 60
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


def median_interval(values: ArrayLike, level: float = 0.95, clusters: Clusters | None = None) -> Estimate:
    """Return the median with its order-statistic interval; no bounds below 6 values (or clusters) at 95 %.

    The two pairs of order statistics whose coverage lies around `level` are interpolated (Hettmansperger and Sheather
    1986), because 8 values alone offer 93.0 % or 99.2 % and nothing between; values in two modes keep the wider pair,
    since between the modes there is nothing to interpolate. With `clusters` (the image of each value) the sign test is
    that of whole clusters, so a page with half of the questions bounds nothing; clusters of one value change nothing.
    """
    array = as_values(values)
    n = len(array)
    if not n:
        return Estimate(None, None, None, 0, level)
    order = np.argsort(array, kind="stable")
    ordered, middle = array[order], float(np.median(array))
    names = None if clusters is None else _numbered(clusters, n)
    if names is None or len(set(names)) == n:
        found = median_rank(n, level)
        if found is None:
            return Estimate(middle, None, None, n, level)
        share = 0.0 if modes(ordered) else _share_inwards(n, level)
        low = _between(ordered, found, share)
        high = -_between(-ordered[::-1], found, share)
    else:
        signed = names[order]
        bound = _clustered_end(ordered, signed, level)
        upper = _clustered_end(-ordered[::-1], signed[::-1], level)
        if bound is None or upper is None:
            return Estimate(middle, None, None, n, level)
        low, high = bound, -upper
    return Estimate(middle, min(low, middle), max(high, middle), n, level)


@lru_cache(maxsize=4096)
def _share_inwards(n: int, level: float) -> float:
    """Return how far from the wider pair of order statistics to the narrower one the interval's ends lie, in [0, 1)."""
    rank = median_rank(n, level)
    if rank is None or 2 * (rank + 1) > n + 1:
        return 0.0
    terms = [
        math.exp(math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) - n * math.log(2))
        for j in range(rank + 1)
    ]
    wide, narrow = 1 - 2 * sum(terms[:rank]), 1 - 2 * sum(terms)
    part = (wide - level) / (wide - narrow)
    return max(0.0, min(1.0, (n - rank) * part / (rank + (n - 2 * rank) * part)))


def _between(ordered: Array, rank: int, share: float) -> float:
    outer = float(ordered[rank - 1])
    return outer if not share else (1 - share) * outer + share * float(ordered[min(rank, len(ordered) - 1)])


def _numbered(clusters: Clusters, n: int) -> NDArray[np.intp]:
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster names for {n} values")
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in clusters], dtype=np.intp)


def _clustered_end(ordered: Array, clusters: NDArray[np.intp], level: float) -> float | None:
    """Return the lower end of the median's interval: the sign test with whole clusters' signs, turned around.

    A value is too small for the median when the clusters' surplus of values over it would arise by coin tosses (one a
    cluster) with a probability of at most (1 - level) / 2.
    """
    tail, n = (1 - level) / 2, len(ordered)
    surplus = np.bincount(clusters)  # of a value below all
    before = 0.0
    for rank in range(1, n // 2 + 2):
        chance = _by_tosses(surplus)
        if chance > tail * (1 + 1e-9):
            if rank == 1:
                return None
            part = (tail - before) / (chance - before)
            k = rank - 1
            share = max(0.0, min(1.0, (n - k) * part / (k + (n - 2 * k) * part)))
            return _between(ordered, k, 0.0 if modes(ordered) else share)
        before = chance
        surplus[clusters[rank - 1]] -= 2
    return float(ordered[n // 2])


def _by_tosses(surplus: NDArray[np.intp]) -> float:
    """Return how probable a sum of at least the actual one is when every sign is tossed; exact up to 60 clusters."""
    total, sizes = int(surplus.sum()), np.abs(surplus[surplus != 0])
    if not len(sizes):
        return 1.0
    if len(sizes) > MOST_FOR_EXACT_TOSSES:
        return 0.5 * math.erfc((total - 1) / math.sqrt(2 * float((sizes**2).sum())))
    reach = int(sizes.sum())
    mass = np.zeros(2 * reach + 1)
    mass[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(mass)
        moved[size:] += mass[: len(mass) - size] / 2
        moved[: len(mass) - size] += mass[size:] / 2
        mass = moved
    return float(mass[reach + total :].sum())


def alike(groups: Iterable[Sequence[float]]) -> list[float]:
    """Return the values of each group over its median, in one list: what is left when the groups' sizes are taken out.

    Groups of fewer than `FEWEST_FOR_MODES` values say nothing about what is usual in them and are left out.
    """
    found: list[float] = []
    for group in groups:
        if len(group) >= FEWEST_FOR_MODES and (middle := float(np.median(group))) > 0:
            found += [value / middle for value in group]
    return found


@dataclass(frozen=True, slots=True)
class Modes:
    """Two heaps of values with next to nothing between them: where each lies, and the share of the upper one."""

    lower: float
    upper: float
    share_upper: float


def modes(values: ArrayLike) -> Modes | None:
    """Return the two modes that `values` fall into, or None.

    The best cut into two heaps (each of at least two values and 15 %) counts when their means lie further apart than
    4.5 + 25 / n of the spread within; of samples from one heap (normal, Laplace, exponential, uniform) about 1 % do.
    """
    ordered = np.sort(as_values(values))
    n = len(ordered)
    fewest = max(2, math.ceil(0.15 * n))
    if n < max(FEWEST_FOR_MODES, 2 * fewest):
        return None
    cut = np.arange(fewest, n - fewest + 1)
    centred = ordered - ordered.mean()
    sums, squares = np.cumsum(centred), np.cumsum(centred**2)
    left, right = sums[cut - 1] / cut, (sums[-1] - sums[cut - 1]) / (n - cut)
    within = squares[-1] - cut * left**2 - (n - cut) * right**2
    spread_ = np.sqrt(np.maximum(within, 1e-12 * float(squares[-1]) + 1e-300) / (n - 2))
    best = int(np.argmax((right - left) / spread_))
    apart = float((right - left)[best] / spread_[best])
    if not apart > 4.5 + 25 / n:
        return None
    at = int(cut[best])
    return Modes(float(np.median(ordered[:at])), float(np.median(ordered[at:])), (n - at) / n)


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


def ratio_of_medians(
    a: ArrayLike,
    b: ArrayLike,
    pairs: bool = False,
    level: float = 0.95,
    clusters: Clusters | None = None,
) -> Estimate:
    """Return median(a) / median(b) with its interval; values must be positive.

    With `pairs` (interleaved runs: a[i] was measured next to b[i]) it is the median of the pairs' ratios with its
    order-statistic interval, clustered as `median_interval` is: what slowed both cancels. Without, the two medians'
    intervals are put together on the logarithms (MOVER, Zou and Donner 2008). No bounds below 6 values a side.
    """
    first, second = as_values(a), as_values(b)
    if pairs and len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, not {len(first)} and {len(second)}")
    n = min(len(first), len(second))
    if not n or not np.median(second):
        return Estimate(None, None, None, n, level)
    if pairs:
        kept = second != 0
        mine = None if clusters is None else [name for name, keep in zip(clusters, kept, strict=True) if keep]
        return median_interval(first[kept] / second[kept], level, mine)
    return ratio(median_interval(first, level), median_interval(second, level))


def sum_of_medians(
    parts: Sequence[ArrayLike],
    level: float = 0.95,
    together: bool = False,
    clusters: Clusters | None = None,
) -> Estimate:
    """Return the sum of the parts' medians with its interval; `n` is the shortest part's.

    Parts measured apart (the additive protocol) have their intervals put together; with `together` (stages of
    the same passes, row by row, which wander together) the width is that of the rows' sums.
    """
    arrays = [as_values(part) for part in parts]
    n = min((len(array) for array in arrays), default=0)
    if together and any(len(array) != n for array in arrays):
        raise ValueError("parts of the same passes need equal lengths")
    if not n:
        return Estimate(None, None, None, 0, level)
    value = float(sum(np.median(array) for array in arrays))
    if together:
        rows = median_interval(np.sum(arrays, axis=0), level, clusters)
        if rows.low is None or rows.high is None or rows.value is None:
            return Estimate(value, None, None, n, level)
        return Estimate(value, value - (rows.value - rows.low), value + (rows.high - rows.value), n, level)
    return sum_of_estimates([median_interval(array, level) for array in arrays], level)


def sum_of_estimates(each: Sequence[Estimate], level: float = 0.95) -> Estimate:
    """Return the sum of what was measured apart with its interval; without bounds where one of them has none.

    `n` is the fewest of them; without any, or where one has no value, there is none.
    """
    values = [one.value for one in each if one.value is not None]
    n = min((one.n for one in each), default=0)
    if not values or len(values) < len(each):
        return Estimate(None, None, None, n, level)
    value = float(sum(values))
    down = [one.value - one.low for one in each if one.value is not None and one.low is not None]
    up = [one.high - one.value for one in each if one.value is not None and one.high is not None]
    if len(down) < len(each):
        return Estimate(value, None, None, n, level)
    sizes = [one.n for one in each]
    return Estimate(value, value - _apart(down, sizes, level), value + _apart(up, sizes, level), n, level)


def _apart(widths: Sequence[float], sizes: Sequence[int], level: float) -> float:
    """Return how far the end of a sum lies from it, from how far the ends of its terms lie, measured apart.

    The root of the squares (MOVER), each over the quantile that so few values need, and times the one that the sum
    needs: it has more degrees of freedom than a term (Satterthwaite). Without that, two medians of 6 to 12 values are
    98 % sure where 95 % is said.
    """
    freedom = [max(1, size - 1) for size in sizes]
    tail = (1 + level) / 2
    variances = [(width / student_t(tail, df)) ** 2 for width, df in zip(widths, freedom, strict=True)]
    total = sum(variances)
    if total <= 0:
        return 0.0
    together = total**2 / sum(one**2 / df for one, df in zip(variances, freedom, strict=True))
    return math.sqrt(total) * student_t(tail, together)


def drawn_sums(parts: Sequence[ArrayLike], rng: np.random.Generator, draws: int) -> Array:
    """Return draws of the sum of the parts' medians, each where its order statistics leave it.

    The share of values below the median is Beta((n + 1) / 2, (n + 1) / 2); a bootstrap of 6 values is too sure.
    """
    total = np.zeros(draws)
    for part in parts:
        ordered = np.sort(as_values(part))
        n = len(ordered)
        share = rng.beta((n + 1) / 2, (n + 1) / 2, size=draws)
        total += np.interp(share * (n + 1), np.arange(1, n + 1), ordered)
    return total


def ratio(top: Estimate, bottom: Estimate) -> Estimate:
    """Return the ratio of two positive estimates that were measured apart, with its interval (on logarithms)."""
    n, level = min(top.n, bottom.n), top.level
    if top.value is None or not bottom.value:
        return Estimate(None, None, None, n, level)
    if not top.value:
        return Estimate(0.0, None, None, n, level)
    value = top.value / bottom.value
    ends = (top.low, top.high, bottom.low, bottom.high)
    if any(end is None or end <= 0 for end in ends):
        return Estimate(value, None, None, n, level)
    up, down = ([math.log(x) for x in (each.low, each.value, each.high) if x] for each in (top, bottom))
    sizes = (top.n, bottom.n)
    less = _apart((up[1] - up[0], down[2] - down[1]), sizes, level)
    more = _apart((up[2] - up[1], down[1] - down[0]), sizes, level)
    return Estimate(value, value * math.exp(-less), value * math.exp(more), n, level)


def mean_interval_clustered(scores: ArrayLike, clusters: Clusters, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean score with an interval that knows that questions about one image are not independent.

    The variance is the cluster-robust one with Bell and McCaffrey's correction for few and unequal clusters (CR2, and
    degrees of freedom that a page with half of the questions takes away). Scores within [0, 1] get a Wilson interval at
    the effective sample size that this variance implies, so that 10 right answers of 10 are not "100 %, surely". An
    empty mean is None, not 0.0; one cluster has no bounds. Nothing is drawn: `seed` is there so that every interval is
    called alike.
    """
    values = as_values(scores)
    n = len(values)
    if not n:
        return Estimate(None, None, None, 0, level)
    mean = float(values.mean())
    spread_ = cluster_spread(values, clusters)
    if spread_.groups < 2:
        return Estimate(mean, None, None, n, level)
    t = student_t((1 + level) / 2, spread_.df)
    if values.min() >= 0 and values.max() <= 1:
        within = mean * (1 - mean)
        # Without any variance the clusters, not the questions, are what we have seen.
        size = within / spread_.variance if spread_.variance > 0 and within > 0 else spread_.effective_groups
        low, high = _wilson(mean, size, t)
    else:
        half = t * math.sqrt(spread_.variance)
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, n, level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Clusters | None = None,
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
    spread_ = cluster_spread(difference, np.arange(n) if clusters is None else clusters)
    if spread_.groups < 2:
        return Estimate(mean, None, None, n, level)
    half = student_t((1 + level) / 2, spread_.df) * math.sqrt(spread_.variance)
    return Estimate(mean, mean - half, mean + half, n, level)


def student_t(probability: float, df: float) -> float:
    """Return the quantile of Student's t."""
    from scipy.special import stdtrit  # scores and sums ask for it, after measuring: that must not wait for an import

    return float(stdtrit(df, probability))


@dataclass(frozen=True, slots=True)
class ClusterSpread:
    """How well a mean over clusters is known: the variance of the mean, and the degrees of freedom of its estimate."""

    groups: int
    variance: float
    df: float
    effective_groups: float
    """As many clusters of equal size would say as much: 1 / Σ share²."""


def cluster_spread(values: ArrayLike, clusters: Clusters) -> ClusterSpread:
    """Return the CR2 variance of the mean of `values` and its degrees of freedom.

    Each cluster's sum of residuals is divided by √(1 - its share of the values), which undoes the pull it has on the
    mean. Source: Bell and McCaffrey 2002, with independent errors as the working model.
    """
    array = as_values(values)
    n = len(array)
    index = _numbered(clusters, n)
    sizes = np.bincount(index).astype(float)
    groups = len(sizes)
    if groups < 2:
        return ClusterSpread(groups, 0.0, 1.0, 1.0)
    sums = np.bincount(index, weights=array - array.mean(), minlength=groups)
    share = sizes / n
    weight = 1 / np.sqrt(1 - share) / n
    # The matrix of the quadratic form is weight_g weight_h (size_g [g = h] - size_g size_h / n): its traces by hand.
    own, pull = weight**2 * sizes, weight**2 * sizes**2 / n
    trace = float((own - pull).sum())
    square = float((own**2 - 2 * own * pull).sum() + pull.sum() ** 2)
    return ClusterSpread(
        groups, float(((weight * sums) ** 2).sum()), max(1.0, trace**2 / square), 1 / float((share**2).sum())
    )


def _wilson(share: float, size: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
