"""The frontier: nothing on it is dominated, what the data do not decide is called a tie."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reports.pareto import Point, draw, frontier, places

candidates = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=15)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(candidates)
def test_no_frontier_point_is_dominated_and_every_other_is(points: list[tuple[float, float]]) -> None:
    on = set(frontier([p[0] for p in points], [p[1] for p in points]))
    for i, point in enumerate(points):
        assert any(dominates(other, point) for other in points) == (i not in on)


@given(candidates)
@settings(max_examples=30, deadline=None)
def test_without_noise_places_are_certain(points: list[tuple[float, float]]) -> None:
    found = places([Point(str(i), "s", cost, merit) for i, (cost, merit) in enumerate(points)], draws=20)
    for place in found:
        assert place.on_frontier == (place.verdict == "frontier")
        assert place.probability in (0.0, 1.0)
        assert place.rivals == ()


def measured(name: str, cost_ms: float, right: float, rng: random.Random, n: int = 60) -> Point:
    parts = tuple(cost_ms * rng.lognormvariate(0, 0.05) for _ in range(n))
    scores = tuple(float(rng.random() < right) for _ in range(n))
    return Point(
        name, name, float(np.median(parts)), float(np.mean(scores)), cost_parts=(parts,), scores=scores,
        clusters=tuple(f"{name}{i // 2}" for i in range(n)), questions=name,
    )  # fmt: skip


def test_a_tie_that_flips_with_the_seed_is_reported_as_a_tie() -> None:
    on, verdicts = set(), []
    for seed in range(12):
        rng = random.Random(seed)
        twins = [measured("a", 100, 0.6, rng), measured("b", 100, 0.6, rng)]
        found = places(twins)
        on.add(tuple(place.on_frontier for place in found))
        verdicts.append({place.verdict for place in found})
        flipped = [place for place in found if not place.on_frontier]
        assert all(place.verdict == "tie" and place.rivals for place in flipped)
    assert len(on) > 1, "the frontier of the point estimates flips"
    assert all("tie" in each for each in verdicts)


def test_a_clear_winner_is_no_tie() -> None:
    rng = random.Random(1)
    found = places([measured("fast and right", 50, 0.95, rng), measured("slow and wrong", 100, 0.2, rng)])
    assert [place.verdict for place in found] == ["frontier", "dominated"]


def test_the_same_questions_are_drawn_together() -> None:
    scores = tuple(float(i % 3 == 0) for i in range(30))
    better = tuple(max(score, float(i == 1)) for i, score in enumerate(scores))
    clusters = tuple(str(i) for i in range(30))
    common = {"cost": 1.0, "clusters": clusters, "questions": "same"}
    first = Point("a", "a", merit=float(np.mean(scores)), scores=scores, **common)
    second = Point("b", "b", merit=float(np.mean(better)), scores=better, **common)
    _, merits = draw([first, second], 0, 500)
    # Draws of few clusters are spread wider around each point's own mean, and the difference with them.
    assert (merits[:, 1] >= merits[:, 0]).mean() > 0.6, "what b has more is seldom lost to the draw"
    second_alone = Point("b", "b", merit=second.merit, scores=better, cost=1.0, clusters=clusters, questions="other")
    _, apart = draw([first, second_alone], 0, 500)
    assert (merits[:, 1] - merits[:, 0]).std() < 0.5 * (apart[:, 1] - apart[:, 0]).std()


def test_dominated_is_seldom_wrong_with_five_images() -> None:
    """Two models of equal merit, one dearer: 16 % of the dearer ones were called dominated, where 5 % was said."""
    rng, wrong = np.random.default_rng(0), 0
    clusters = tuple(str(k) for k in range(5) for _ in range(4))
    for number in range(80):
        shared = rng.beta(2, 1.2, 5)
        points = []
        for name, cost in (("a", 100.0), ("b", 120.0)):
            chance = np.clip(shared + rng.normal(0, 0.25, 5), 0, 1)
            scores = tuple((rng.random((5, 4)) < chance[:, None]).astype(float).ravel().tolist())
            points.append(
                Point(
                    name, name, cost=cost, merit=float(np.mean(scores)), scores=scores, clusters=clusters, questions="q"
                )
            )
        wrong += places(points, number, 300)[1].verdict == "dominated"
    assert wrong / 80 <= 0.06


def test_one_image_says_nothing_of_a_score_in_points_either() -> None:
    """Of 60 points on one page the next page may have 0 or 100: draws up to 60 called the better ones dominated."""
    page = {"scores": (60.0,) * 4, "clusters": ("page",) * 4, "best": 100.0}
    _, merits = draw([Point("a", "a", cost=1.0, merit=60.0, **page)], seed=0, draws=500)
    assert merits.max() > 95
    assert abs(merits.mean() - 50) < 5


def test_the_same_seed_gives_the_same_places() -> None:
    rng = random.Random(2)
    points = [measured("a", 100, 0.6, rng), measured("b", 101, 0.62, rng)]
    assert places(points, seed=3) == places(points, seed=3)


def test_a_point_without_an_interval_has_no_probability() -> None:
    """And neither has one that it dominates: two samples of 8 seconds are no certainty."""
    fast = Point("fast", "s", 1.0, 60.0, cost_low=0.9, cost_high=1.1, merit_low=55, merit_high=65)
    few = Point("few", "s", 2.0, 80.0, unbounded=True)
    worse = Point("worse", "s", 3.0, 70.0, cost_low=2.9, cost_high=3.1, merit_low=69, merit_high=71)
    found = {place.point.name: place for place in places([fast, few, worse])}
    assert [found[name].verdict for name in ("fast", "few", "worse")] == ["frontier", "no interval", "no interval"]
    assert found["few"].on_frontier
    assert found["few"].probability is None


def test_bounds_without_samples_are_taken_as_normal() -> None:
    points = [Point("a", "a", 1.0, 50.0, merit_low=40, merit_high=60), Point("b", "b", 1.0, 50.5)]
    assert {place.verdict for place in places(points)} == {"tie"}


def test_a_published_interval_is_drawn_as_wide_as_it_is() -> None:
    """A 95 % interval of ±1.96 sd: 95 % of the draws lie inside it, no more and no fewer."""
    point = Point("a", "a", 100.0, 50.0, cost_low=90.0, cost_high=110.0, merit_low=48.0, merit_high=52.0)
    costs, merits = draw([point], seed=1, draws=20_000)
    assert abs(np.mean((costs > 90) & (costs < 110)) - 0.95) < 0.01
    assert abs(np.mean((merits > 48) & (merits < 52)) - 0.95) < 0.01


def test_the_likeliest_rival_is_named_first() -> None:
    def near(name: str, cost: float) -> Point:
        return Point(name, name, cost, 50.0, cost_low=cost - 10, cost_high=cost + 10)

    found = places([near("mine", 100), near("far", 106), near("close", 95), near("middle", 101)])
    assert found[0].rivals == ("close", "middle", "far")
