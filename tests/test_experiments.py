"""Experiments on the instrument, in virtual time: what is planted is found where it was planted."""

from collections.abc import Iterator

import pytest

from harness import cards, experiments, trials
from harness.adapters.fake import FakeModel
from harness.clock import Scripted
from harness.devices import fake
from harness.examples import Example
from harness.images import blank, png
from harness.model import Options
from harness.trials import Ratio

EXAMPLES = [Example("a", 0, (png(blank((64, 48)).image),), "Which one?", 4, ("one",), ("page",), {})]


@pytest.fixture
def clock() -> Iterator[Scripted]:
    scripted = Scripted()
    fake.reset(scripted)
    yield scripted
    fake.reset()


def conduct(
    clock: Scripted, kind: str, stage: str = "prefill", share: float = 0.05, **settings: float
) -> tuple[list[Ratio], bool]:
    card = cards.model("fake")
    model = FakeModel(card, Options(side=1024, settings={**card.settings, **settings}))
    rounds = list(experiments.pairs(kind, model, fake.Fake("fake"), clock, EXAMPLES, 20, stage, share))
    ratios = [
        trials.ratio(name, [p.a_ns[name] for p in rounds], [p.b_ns[name] for p in rounds]) for name in rounds[0].a_ns
    ]
    return ratios, trials.judge(kind, tuple(ratios), stage, share)[0]


@pytest.mark.parametrize("stage", ["preprocess", "encode", "project", "prefill"])
def test_a_planted_delay_is_found_in_its_stage_and_nowhere_else(clock: Scripted, stage: str) -> None:
    ratios, passed = conduct(clock, "injection", stage, jitter=0.01)
    assert passed
    found = {each.name: each.value for each in ratios}
    assert found[stage] == pytest.approx(1.05, abs=0.01)
    assert all(value == pytest.approx(1, abs=0.01) for name, value in found.items() if name not in (stage, "ttft"))


def test_the_same_twice_cannot_be_told_apart(clock: Scripted) -> None:
    ratios, passed = conduct(clock, "aa", jitter=0.03)
    assert passed
    assert all(each.half_width_percent and each.half_width_percent < 3 for each in ratios)


def test_a_delay_too_small_for_the_noise_is_not_claimed(clock: Scripted) -> None:
    _, passed = conduct(clock, "injection", share=0.002, jitter=0.05)
    assert not passed


def test_in_virtual_time_the_instrument_costs_nothing(clock: Scripted) -> None:
    ratios, passed = conduct(clock, "overhead")
    assert passed
    assert ratios[0].value == 1


def test_overhead_beyond_the_bound_fails() -> None:
    dear = Ratio("ttft", 0.97, 0.96, 0.98, 20, 1.0)  # the bare loop takes 97 % of the instrumented one
    assert not trials.judge("overhead", (dear,), "prefill", 0.05)[0]
