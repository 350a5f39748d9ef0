"""How often each interval that a user is shown holds the truth: simulated, with the real code. 95 % is said everywhere.

Run: python benchmarks/coverage.py [--draws 4000]; its table stands in docs/statistics.md.
"""

import argparse
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from harness import stats
from harness.stats import Estimate

RNG = np.random.default_rng(1)


def share(draw: Callable[[], Estimate], truth: float, draws: int) -> float:
    """Return how many of the intervals hold `truth`; one without bounds holds nothing."""
    found = [draw() for _ in range(draws)]
    return sum(e.low is not None and e.high is not None and e.low <= truth <= e.high for e in found) / draws


def medians(draws: int) -> None:
    for n in (6, 8, 12, 20, 40):
        print(
            f"median, {n} normal values: {share(lambda n=n: stats.median_interval(RNG.normal(size=n)), 0, draws):.1%}"
        )  # type: ignore[misc]
        skewed = share(lambda n=n: stats.median_interval(RNG.exponential(size=n)), math.log(2), draws)  # type: ignore[misc]
        print(f"median, {n} exponential values: {skewed:.1%}")
    for n in (8, 12, 40):

        def two_speeds(n: int = n) -> Estimate:
            return stats.median_interval(np.where(RNG.random(n) < 0.7, 1.0, 1.3) * RNG.lognormal(0, 0.01, n))

        # The median of the mixture is the 0.5 / 0.7 quantile of the faster speed.
        truth = math.exp(0.01 * NormalDist().inv_cdf(0.5 / 0.7))
        print(f"median, two speeds 70:30, {n} values: {share(two_speeds, truth, draws):.1%}")
    for groups, size in ((6, 2), (8, 3), (30, 3)):
        names = np.repeat(np.arange(groups), size)

        def clustered(groups: int = groups, size: int = size, names: np.ndarray = names) -> Estimate:
            pages = RNG.normal(size=groups)[:, None] + RNG.normal(size=(groups, size))
            return stats.median_interval(pages.ravel(), clusters=names)

        print(f"median, {groups} images of {size} questions: {share(clustered, 0, draws):.1%}")


def pairs(draws: int) -> None:
    for n in (6, 8, 12):

        def ratio(n: int = n) -> Estimate:
            weather = RNG.lognormal(sigma=0.2, size=n)
            return stats.ratio_of_medians(weather * RNG.lognormal(0, 0.02, n), weather, pairs=True)

        print(f"ratio of {n} pairs: {share(ratio, 1, draws):.1%}")

        def total(n: int = n) -> Estimate:
            return stats.sum_of_medians([RNG.normal(100, 5, n), RNG.normal(50, 5, n)])

        print(f"sum of two medians of {n}: {share(total, 150, draws):.1%}")


def scores(draws: int) -> None:
    for name, sizes in (
        ("5 images of 8", [8] * 5),
        ("half on one of 11", [20] + [2] * 10),
        ("half on one of 21", [40] + [2] * 20),
        ("20 images of 3", [3] * 20),
    ):
        index = np.repeat(np.arange(len(sizes)), sizes)

        def mean(index: np.ndarray = index, groups: int = len(sizes), level: float = 0.95) -> Estimate:
            right = RNG.random(len(index)) < RNG.beta(1.63, 0.7, groups)[index]  # 70 % right, correlation 0.3 in a page
            return stats.mean_interval_clustered(right.astype(float), index, level)

        print(f"accuracy, {name}: {share(mean, 1.63 / 2.33, draws):.1%}")
        if len(sizes) == 5:
            print(f"accuracy, 90 % interval, {name}: {share(lambda: mean(level=0.90), 1.63 / 2.33, draws):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    asked = parser.parse_args()
    medians(asked.draws)
    pairs(asked.draws)
    scores(asked.draws)
