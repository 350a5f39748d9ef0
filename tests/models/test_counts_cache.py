"""What was counted before is read from the cache folder, as long as nothing that counts has changed."""

from pathlib import Path

import msgspec
import pytest

from harness.errors import WeightsError
from harness.models import counts_cache
from harness.models.card import ModelCard, load_model_card
from harness.models.counts import Row


class Counter:
    """Counts how often it is asked to count."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Row:
        self.asked += 1
        return Row("m", "M", "encoder", 256, (256, 256), params={"tower": self.asked}, ratio={"tower": 1 / 3})


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path))
    return tmp_path / "counts"


@pytest.fixture
def card() -> ModelCard:
    return load_model_card("encoder-fastvithd")


def test_a_card_and_side_are_counted_once_and_read_back_as_they_were(card: ModelCard) -> None:
    count = Counter()
    first = counts_cache.remembered(card, 256, Row, count)
    assert counts_cache.remembered(card, 256, Row, count) == first
    assert (first.params, first.processed_px, count.asked) == ({"tower": 1}, (256, 256), 1)
    assert counts_cache.remembered(card, 512, Row, count).params == {"tower": 2}


@pytest.mark.parametrize("changed", ["card", "code", "library", "torn"])
def test_whatever_counts_and_changes_is_counted_anew(
    card: ModelCard, kept: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    count = Counter()
    counts_cache.remembered(card, 256, Row, count)
    if changed == "card":
        card = msgspec.structs.replace(card, settings={**card.settings, "layer": -3})
    elif changed == "torn":
        (path,) = kept.iterdir()
        path.write_bytes(path.read_bytes()[:40])
    else:
        before, name = counts_cache._code(), counts_cache.LIBRARIES[0]
        other = [f"{name} 9.9", *before[1:]] if changed == "library" else [*before[:-1], "0" * 32]
        monkeypatch.setattr(counts_cache, "_code", lambda: other)
    assert counts_cache.remembered(card, 256, Row, count).params == {"tower": 2}


def test_what_else_counts_is_in_the_code_that_is_digested() -> None:
    digested = counts_cache._code()
    assert [one.partition(" ")[0] for one in digested[:-1]] == list(counts_cache.LIBRARIES)
    assert not any(one.endswith(" None") for one in digested)


@pytest.mark.parametrize("change", [{"folder": "checkpoint"}, {"name": "somebody/elses"}])
def test_a_checkpoint_that_may_change_is_counted_each_time(card: ModelCard, kept: Path, change: dict[str, str]) -> None:
    count = Counter()
    for _ in range(2):
        counts_cache.remembered(msgspec.structs.replace(card, **change), 256, Row, count)
    assert (count.asked, kept.exists()) == (2, False)


def test_a_refusal_is_not_remembered_and_a_cache_that_cannot_be_written_costs_time_alone(
    card: ModelCard, kept: Path
) -> None:
    def refuse() -> Row:
        raise WeightsError("no")

    with pytest.raises(WeightsError):
        counts_cache.remembered(card, 256, Row, refuse)
    kept.write_text("a file where the folder would be")
    count = Counter()
    for _ in range(2):
        counts_cache.remembered(card, 256, Row, count)
    assert count.asked == 2
