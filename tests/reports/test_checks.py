"""Every doubt is raised where it should be, and nowhere else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reports import checks

QUIET = np.random.default_rng(0).normal(100e6, 1e6, 50)


def names(*arguments: Any, **options: Any) -> list[str]:
    return [doubt.name for doubt in checks.examine(checks.Measured(*arguments, **options))]


def test_a_good_run_raises_no_doubt() -> None:
    assert names(QUIET, QUIET * 0.99, valid=[True] * 50, cold_ns=120e6, host_ns=QUIET, device_ns=QUIET * 0.995) == []


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("unstable", (np.where(np.arange(50) % 2, 100e6, 140e6),), {}),
        ("unstable", (np.where(np.arange(50) == 20, 300e6, QUIET),), {}),
        ("residual", (QUIET, QUIET * 0.93), {}),
        ("residual", (QUIET, QUIET * 1.07), {}),
        ("few_samples", (QUIET[:7],), {}),
        ("imprecise", (np.random.default_rng(1).lognormal(18, 0.4, 30),), {}),
        ("slow_first", (np.where(np.arange(50) == 0, 130e6, QUIET),), {}),
        ("drift", (QUIET * np.linspace(1, 1.1, 50),), {}),
        ("drift", (QUIET * np.linspace(1.1, 1, 50),), {}),
        ("cold_start", (QUIET,), {"cold_ns": 160e6}),
        ("clock_gap", (QUIET,), {"host_ns": QUIET, "device_ns": QUIET * 0.97}),
        ("torn", (QUIET,), {"finished": False}),
        ("refused", (QUIET,), {"valid": [True] * 8 + [False] * 2}),
        ("throttled", (QUIET,), {"valid": [True] * 3 + [False], "reasons": [[], [], [], ["throttled"]]}),
    ],
)
def test_each_doubt_by_name(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    found = checks.examine(checks.Measured(*arguments, **options))
    assert name in [doubt.name for doubt in found]
    assert all(doubt.text and doubt.advice for doubt in found)


def test_a_drift_that_is_small_or_not_significant_is_none() -> None:
    assert checks.drift(QUIET * np.linspace(1, 1.03, 50)) is None
    assert checks.drift([100, 140, 90, 150, 95, 130, 110, 160]) is None
    assert checks.drift(QUIET[:5] * np.linspace(1, 2, 5)) is None
    assert checks.drift(np.tile(QUIET, 40)) is None
    assert checks.drift(np.tile(QUIET, 40) * np.linspace(1, 1.2, 2000)).amount == pytest.approx(0.18, abs=0.02)


def test_false_drift_alarms_are_rare() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(checks.drift(rng.lognormal(18, 0.1, 20)) is not None for _ in range(1000))
    assert alarms <= 20


def test_refusals_are_counted_by_reason() -> None:
    valid = [True] * 4 + [False] * 6
    reasons = [[]] * 4 + [["contended"]] * 4 + [["contended", "throttled"]] * 2
    found = checks.refused(valid, reasons)
    assert [(doubt.name, doubt.amount) for doubt in found] == [("contended", 0.6), ("throttled", 0.2)]


def test_refused_samples_are_not_called_valid() -> None:
    texts = [doubt.text for doubt in checks.examine(checks.Measured(others_ns={"TTFT": [1e8] * 2}, valid=[False] * 2))]
    assert "only 2 refused samples" in texts
    texts = [doubt.text for doubt in checks.examine(checks.Measured(others_ns={"TTFT": [1e8] * 2}, valid=[True] * 2))]
    assert "only 2 valid samples" in texts


def test_many_questions_about_few_images_are_not_precise() -> None:
    images = np.repeat(np.arange(8), 6)
    values = 90e6 + 20e6 / 7 * images
    assert checks.few_samples(values) is None
    assert checks.few_samples(values, clusters=images).name == "imprecise"
    measured = checks.Measured(values, images={"TTFT": images})
    assert "imprecise" in [doubt.name for doubt in checks.examine(measured)]


def test_a_doubt_about_conditions_names_a_few_and_counts_the_rest() -> None:
    assert checks.mixed({}, 2) is None
    told = checks.mixed({f"p{number}": ("1", "2") for number in range(8)}, 3)
    assert "p5 1, then 2; and 2 more" in told.text
    assert told.amount == 8


def test_processes_far_apart_are_doubted() -> None:
    assert checks.apart(8.0).text.startswith("the medians of its processes spread over 8 %")
    assert checks.apart(4.0) is None
    assert checks.apart(None) is None


def test_a_slow_first_sample_that_is_not_the_slowest_is_only_scatter() -> None:
    values = np.where(np.arange(50) == 0, 130e6, QUIET)
    assert checks.slow_first(values).amount == pytest.approx(1.3, abs=0.01)
    assert checks.slow_first(np.where(np.arange(50) == 20, 140e6, values)) is None


def test_two_speeds_of_one_shape_are_a_doubt() -> None:
    rng = np.random.default_rng(0)
    fast, slow = rng.normal(100e6, 1e6, 20), rng.normal(115e6, 1e6, 12)
    assert checks.two_speeds([[*fast, *slow]]).name == "two_speeds"
    assert "38% near" in checks.two_speeds([[*fast, *slow]]).text
    assert checks.two_speeds([fast, slow]) is None, "pages of two sizes"
    assert checks.two_speeds([rng.lognormal(18, 0.1, 40)]) is None


def test_percentiles_say_what_the_gate_left_out() -> None:
    told = checks.left_out([100e6] * 80, [353e6] * 20)
    assert "20 refused samples" in told.text
    assert "353 ms instead of 100 ms" in told.text
    assert checks.left_out([100e6] * 80, []) is None
    assert checks.left_out([100e6] * 80, [100e6] * 20) is None


def test_a_handful_of_images_is_a_doubt_unless_there_are_no_more() -> None:
    assert checks.few_images(4, 12, 8).text == "timed on 4 of 12 distinct images"
    assert checks.few_images(4, 4, 8) is None
    assert checks.few_images(8, 12, 8) is None


def test_residual_says_which_way() -> None:
    outside, longer = checks.residual([110.0] * 9, [100.0] * 9), checks.residual([90.0] * 9, [100.0] * 9)
    assert outside.amount == pytest.approx(0.0909, abs=1e-3)
    assert outside.text == "stage times do not add up to TTFT: 9.1% lies outside every stage"
    assert "their sum is 11.1% longer" in longer.text


def test_nothing_measured_is_no_crash() -> None:
    assert names() == ["few_samples"]
    assert names(others_ns={}) == []
    assert checks.refused([]) == []
    assert checks.cold(1e9, []) is None
    assert checks.cold(None, QUIET) is None


@given(st.lists(st.floats(1, 1e12), max_size=30), st.floats(1e-3, 1e3))
def test_doubts_do_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    assert names(values) == names([value * factor for value in values]) or _at_an_edge(values)


def _at_an_edge(values: list[float]) -> bool:
    """Rounding may tip a value that lies exactly on a threshold."""
    return any(
        abs(doubt.amount - limit) < 1e-9
        for doubt in checks.examine(checks.Measured(values))
        if doubt.amount is not None
        for limit in (checks.UNSTABLE_CV, checks.PRECISION, checks.SLOW_FIRST, checks.DRIFT)
    )
