"""Intervals that hold the truth as often as they say, and the properties that every estimate must have."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import stats

values = st.lists(st.floats(1, 1e9), min_size=1, max_size=60)
scale = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(("q", "needed"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_percentiles_need_what_mlperf_says(q: float, needed: int) -> None:
    assert stats.needed_for(q) == needed
    refused = stats.percentile(np.arange(needed - 1.0), q)
    assert refused.value is None
    assert str(needed) in refused.reason
    given = stats.percentile(np.arange(float(needed)), q)
    assert given.value == pytest.approx(q * (needed - 1))
    assert given.bound == needed - 2, "one value may lie over the bound"


def test_percentile_of_very_few_has_not_even_a_bound() -> None:
    told = stats.percentile([1.0, 2.0, 3.0], 0.9)
    assert (told.value, told.bound) == (None, None)
    assert stats.percentile([], 0.9).value is None


def test_percentile_bound_holds_at_99_percent() -> None:
    rng = np.random.default_rng(1)
    truth = math.log(10)  # p90 of the exponential distribution
    held = sum(stats.percentile(rng.exponential(size=100), 0.9).bound >= truth for _ in range(1000))
    assert held >= 980


def test_median_ranks_are_the_exact_binomial_ones() -> None:
    # Tabulated 95 % ranks (Conover, Practical Nonparametric Statistics): n = 6: 1, 9: 2, 12: 3, 20: 6, 50: 18.
    assert [stats.median_rank(n) for n in (5, 6, 9, 12, 20, 50)] == [None, 1, 2, 3, 6, 18]


@pytest.mark.parametrize("n", [6, 11, 40])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_median_interval_covers(n: int, draw: str) -> None:
    rng = np.random.default_rng([n, 1])
    truth = 0.0 if draw == "normal" else math.log(2)
    found = [stats.median_interval(getattr(rng, draw)(size=n)) for _ in range(1500)]
    assert 0.935 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.965


@given(values, st.randoms())
def test_median_interval_ignores_order_and_holds_its_value(sample: list[float], random: Random) -> None:
    estimate = stats.median_interval(sample)
    shuffled = list(sample)
    random.shuffle(shuffled)
    assert stats.median_interval(shuffled) == estimate
    assert estimate.value == pytest.approx(float(np.median(sample)))
    if len(sample) < 6:
        assert estimate.low is None
        assert estimate.high is None
    else:
        assert estimate.low <= estimate.value <= estimate.high


@given(values, scale)
def test_median_interval_and_spread_scale_with_the_unit(sample: list[float], factor: float) -> None:
    one, other = stats.median_interval(sample), stats.median_interval(np.multiply(sample, factor))
    for a, b in [(one.value, other.value), (one.low, other.low), (one.high, other.high)]:
        assert (a is None and b is None) or b == pytest.approx(a * factor)
    first, second = stats.spread(sample), stats.spread(np.multiply(sample, factor))
    assert second.iqr == pytest.approx(first.iqr * factor, abs=1e-6 * factor * first.maximum)
    if first.cv:
        assert second.cv == pytest.approx(first.cv, rel=1e-6, abs=1e-9)


def test_spread_by_hand() -> None:
    seen = stats.spread([1, 2, 3, 4, 10])
    assert (seen.n, seen.minimum, seen.q1, seen.median, seen.q3, seen.maximum) == (5, 1, 2, 3, 4, 10)
    assert (seen.mean, seen.iqr) == (4, 2)
    assert seen.sd == pytest.approx(np.sqrt(12.5))
    assert stats.spread([]).mean is None
    assert stats.spread([3]).sd is None


def test_nan_is_refused_and_nothing_is_none_not_zero() -> None:
    with pytest.raises(ValueError, match="NaN"):
        stats.median_interval([1.0, float("nan")])
    assert stats.median_interval([]).value is None
    assert stats.mean_interval_clustered([], []).value is None
    assert stats.paired_difference([], []).value is None
    assert stats.sum_of_medians([]).value is None
    assert stats.sum_of_medians([[1.0], []]).value is None
    assert stats.ratio_of_medians([], [1.0]).value is None
    assert stats.ratio_of_medians([1.0], [0.0]).value is None


@given(st.lists(st.floats(0.5, 2), min_size=6, max_size=25), scale)
@settings(max_examples=25, deadline=None)
def test_the_same_cell_twice_has_ratio_one(sample: list[float], factor: float) -> None:
    estimate = stats.ratio_of_medians(np.multiply(sample, factor), sample, pairs=True)
    assert estimate.value == pytest.approx(factor)
    assert estimate.low == pytest.approx(factor)
    assert estimate.high == pytest.approx(factor)


def test_paired_ratio_finds_a_change_that_the_common_noise_hides() -> None:
    rng = np.random.default_rng(5)
    weather = rng.lognormal(sigma=0.3, size=40)
    a, b = weather * rng.normal(1.05, 0.01, 40), weather * rng.normal(1.0, 0.01, 40)
    paired, apart = stats.ratio_of_medians(a, b, pairs=True), stats.ratio_of_medians(a, b)
    assert paired.low > 1.0
    assert paired.low < 1.05 < paired.high
    assert apart.low < 1.0 < apart.high
    assert stats.ratio_of_medians(a, b, pairs=True) == paired, "the same seed, the same interval"
    with pytest.raises(ValueError, match="equal lengths"):
        stats.ratio_of_medians([1, 2], [1], pairs=True)


def test_ratio_and_sum_cover() -> None:
    rng = np.random.default_rng(6)
    ratio = sum_ = 0
    for _ in range(150):
        a, b = rng.normal(2, 0.2, 25), rng.normal(1, 0.1, 25)
        r, s = stats.ratio_of_medians(a, b), stats.sum_of_medians([a, b])
        ratio += r.low <= 2 <= r.high
        sum_ += s.low <= 3 <= s.high
    assert ratio >= 135
    assert sum_ >= 135


def test_sum_of_medians_knows_what_was_measured_together() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 1, 60)
    opposite = [10 + noise, 10 - noise]
    apart, together = stats.sum_of_medians(opposite), stats.sum_of_medians(opposite, together=True)
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
    assert stats.sum_of_medians([[1, 2, 3], [10, 20]]).value == 17
    assert stats.sum_of_medians([[1, 2, 3], [10, 20]]).low is None


def test_clustering_widens_the_interval_as_it_must() -> None:
    rng = np.random.default_rng(8)
    image = np.repeat(np.arange(30), 10)
    right = np.repeat(rng.random(30) < 0.6, 10).astype(float)  # all questions about an image share their fate
    clustered = stats.mean_interval_clustered(right, image)
    naive = stats.mean_interval_clustered(right, np.arange(300))
    alone = stats.mean_interval_clustered(right[::10], np.arange(30))
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_clustered_mean_covers() -> None:
    rng = np.random.default_rng(9)
    held = 0
    for _ in range(400):
        chance = rng.beta(4, 2, 25)
        scores = (rng.random((25, 4)) < chance[:, None]).astype(float).ravel()
        estimate = stats.mean_interval_clustered(scores, np.repeat(np.arange(25), 4))
        held += estimate.low <= 4 / 6 <= estimate.high
    assert held >= 370


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40))
def test_mean_interval_stays_in_range_and_is_never_certain(scores: list[float]) -> None:
    estimate = stats.mean_interval_clustered(scores, range(len(scores)))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high > estimate.low


def test_all_right_is_not_surely_all_right() -> None:
    estimate = stats.mean_interval_clustered([1.0] * 10, range(10))
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low < 0.75


def test_one_cluster_has_no_bounds() -> None:
    estimate = stats.mean_interval_clustered([1.0, 0.0, 1.0], ["same"] * 3)
    assert estimate.value == pytest.approx(2 / 3)
    assert (estimate.low, estimate.high) == (None, None)
    assert stats.paired_difference([1, 2], [1, 1], ["same"] * 2).low is None
    with pytest.raises(ValueError, match="cluster names"):
        stats.mean_interval_clustered([1.0], ["a", "b"])


def test_scores_beyond_one_use_students_t() -> None:
    scores = [0.0, 10.0, 20.0, 30.0]
    estimate = stats.mean_interval_clustered(scores, range(4))
    half = 3.182446 * np.std(scores, ddof=1) / 2  # t(0.975, 3)
    assert (estimate.low, estimate.high) == pytest.approx((15 - half, 15 + half), rel=1e-4)


@pytest.mark.parametrize(("df", "t"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30, 2.04227), (1000, 1.96234)])
def test_student_t_by_the_table(df: float, t: float) -> None:
    assert stats.student_t(0.975, df) == pytest.approx(t, rel=1e-4)


def test_a_ratio_is_as_wide_as_its_two_estimates() -> None:
    top, bottom = stats.Estimate(4.0, 2.0, 8.0, 9), stats.Estimate(2.0, 2.0, 2.0, 7)
    found = stats.ratio(top, bottom)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2.0, 1.0, 4.0, 7))
    assert stats.ratio(top, stats.Estimate(2.0, None, None, 7)) == stats.Estimate(2.0, None, None, 7)
    assert stats.ratio(stats.Estimate(None, None, None, 0), bottom).value is None


def test_paired_difference_finds_what_separate_intervals_cannot() -> None:
    rng = np.random.default_rng(10)
    a = rng.random(200)
    b = np.clip(a - 0.02 + rng.normal(0, 0.01, 200), 0, 1)
    estimate = stats.paired_difference(a, b, np.repeat(np.arange(100), 2))
    assert 0 < estimate.low < 0.03
    flipped = stats.paired_difference(b, a, np.repeat(np.arange(100), 2))
    assert (flipped.low, flipped.high) == pytest.approx((-estimate.high, -estimate.low))


@given(st.permutations(range(12)))
@settings(max_examples=20)
def test_clustered_mean_ignores_order(order: list[int]) -> None:
    scores, image = np.array([0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1.0]), np.repeat(np.arange(4), 3)
    one, other = (
        stats.mean_interval_clustered(scores, image),
        stats.mean_interval_clustered(scores[order], image[order]),
    )
    assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high))


def test_long_series_are_quick() -> None:
    import time

    sample = np.random.default_rng(0).random(5000)
    start = time.process_time()
    stats.median_interval(sample)
    stats.percentile(sample, 0.99)
    stats.ratio_of_medians(sample, sample)
    assert time.process_time() - start < 8


def test_a_sum_of_few_values_is_as_sure_as_it_says() -> None:
    """Two medians of six values each: the sum has twice a term's degrees of freedom. Of many, it is Pythagoras."""
    few = stats.sum_of_estimates([stats.Estimate(100.0, 90.0, 110.0, 6, 0.95)] * 2)
    assert few.high == pytest.approx(200 + 10 * 2**0.5 * 2.2281 / 2.5706, abs=0.01)
    many = stats.sum_of_estimates([stats.Estimate(100.0, 90.0, 110.0, 10**6, 0.95)] * 2)
    assert many.low == pytest.approx(200 - 10 * 2**0.5, abs=0.01)
    alone = stats.sum_of_estimates(
        [stats.Estimate(100.0, 90.0, 115.0, 6, 0.95), stats.Estimate(1.0, 1.0, 1.0, 40, 0.95)]
    )
    assert (alone.low, alone.high) == (pytest.approx(91.0), pytest.approx(116.0)), "an exact term changes nothing"


def test_sums_and_ratios_of_few_values_cover_what_they_say() -> None:
    rng = np.random.default_rng(5)
    sums = ratios = 0
    for _ in range(400):
        a, b = (stats.median_interval(rng.normal(100, 10, 8)) for _ in range(2))
        total, share = stats.sum_of_estimates([a, b]), stats.ratio(a, b)
        sums += total.low <= 200 <= total.high
        ratios += share.low <= 1 <= share.high
    assert 0.93 < sums / 400 < 0.98
    assert 0.93 < ratios / 400 < 0.98
