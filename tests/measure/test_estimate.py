"""What a cell will probably take: what is not predicted is said, not left at nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.measure.asked import Asked
from harness.measure.estimate import estimate

NANO = Asked(model="fastvlm-nano", suite="pages", res=256)


@pytest.mark.parametrize(
    ("changed", "answers"),
    [
        ({}, "160"),
        ({"limit": 12}, "12"),
        ({"limit": 1000}, "160"),
        ({"suite": "docvqa", "limit": 300}, "300"),
        ({"weights": "random"}, ""),
        ({"protocol": "paper"}, ""),
        ({"limit": 12, "shards": 4, "shard": 2}, "12 / 4"),
        ({"model": "fake"}, ""),
    ],
)
def test_the_questions_that_are_answered_for_their_score_are_counted(changed: dict[str, object], answers: str) -> None:
    assert estimate(replace(NANO, **changed), None).answers == answers  # type: ignore[arg-type]


def test_data_that_nobody_has_built_are_all_of_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path))
    assert estimate(replace(NANO, suite="docvqa"), None).answers == "all"


def test_no_time_is_predicted_where_no_work_is_known() -> None:
    assert estimate(NANO, None).seconds is None
    assert (estimate(NANO, 1e12).seconds or 0) > 0
    own = Asked(model="smolvlm2-256m", suite="pages", weights="random")
    assert estimate(own, 1e12).seconds is None


def test_a_model_whose_weights_cannot_be_had_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    there = Asked(model="smolvlm2-256m", suite="pages")
    assert estimate(there, None).answers == "160"
    assert estimate(replace(there, offline=True), None).answers == ""
