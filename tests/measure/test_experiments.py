"""Experiments on the instrument, in virtual time: what is planted is found where it was planted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny_vlms

from harness.clock import Scripted
from harness.errors import OutputError, SettingError
from harness.images import blank, png
from harness.machine.devices import fake
from harness.measure import experiments
from harness.measure.experiments import Design, PairRatio
from harness.measure.passes import Bench, time_stages
from harness.models.card import ModelCard, Resolution, load_model_card
from harness.models.families.auto.answering import SETTINGS, AnyModel
from harness.models.families.fake import FakeModel
from harness.models.protocol import Done, Event, Options, Request
from harness.models.weights import Source
from harness.suites.examples import Example

EXAMPLES = [Example("a", 0, (png(blank((64, 48)).image),), "Which one?", 4, ("one",), ("page",), {})]


@pytest.fixture
def clock() -> Iterator[Scripted]:
    scripted = Scripted()
    fake.reset(scripted)
    yield scripted
    fake.reset()


def conduct(
    clock: Scripted, kind: str, stage: str = "prefill", share: float = 0.05, **settings: float
) -> tuple[list[PairRatio], bool]:
    card = load_model_card("fake")
    model = FakeModel(card, Options(side=1024, settings={**card.settings, **settings}))
    design = Design(20, stage, share)
    rounds = list(experiments.pairs(kind, model, Bench(fake.Fake("fake"), clock), EXAMPLES, design))
    ratios = experiments.of_rounds(kind, rounds, stage)
    return list(ratios), experiments.judge(kind, ratios, stage, share)[0]


@pytest.mark.parametrize("stage", ["preprocess", "encode", "project", "prefill"])
def test_a_planted_delay_is_found_in_its_stage_and_nowhere_else(clock: Scripted, stage: str) -> None:
    ratios, passed = conduct(clock, "injection", stage, jitter=0.01)
    assert passed
    found = {each.name: each.value for each in ratios}
    assert found[stage] == pytest.approx(1.05, abs=0.01)
    assert all(value == pytest.approx(1, abs=0.01) for name, value in found.items() if name not in (stage, "ttft"))


class Hurried(AnyModel):
    """A model by transformers' own code whose parts take virtual time; what they compute takes none."""

    clock: Scripted

    def prepare(self, request: Request) -> Any:
        self.clock.advance(5_000_000)
        return super().prepare(request)

    def takes(self, modules: dict[str, int]) -> None:
        for path, time_ms in modules.items():
            module = self.model.get_submodule(path)
            module.register_forward_hook(lambda *_, ns=time_ms * 1_000_000: self.clock.advance(ns), prepend=True)


ROUTE_AUTO = {
    "llava": (
        {"model.vision_tower": 100, "model.multi_modal_projector": 10, "model.language_model": 50},
        ["preprocess", "encode", "project", "prefill"],
    ),
    "mllama": (
        {"model.vision_model": 100, "model.multi_modal_projector": 10, "model.language_model": 50},
        ["preprocess", "encode", "project", "prefill"],
    ),
    "phi4_multimodal": (
        {"model.embed_tokens_extend.image_embed": 110, "lm_head": 50},
        ["preprocess", "encode+project", "prefill"],
    ),
}
"""Families that yield the end of project, that are told it, and that divide nothing: what their parts take in ms."""


@pytest.mark.parametrize("name", ROUTE_AUTO)
def test_a_planted_delay_is_found_in_every_stage_of_the_route_auto(name: str, clock: Scripted, tmp_path: Path) -> None:
    """Also where a stage ends inside a library's call; and what was not planted is not found."""
    times, stages = ROUTE_AUTO[name]
    side = tiny_vlms.FAMILIES[name].side
    rule = Resolution(rule="any", default=side)
    card = ModelCard(name=name, title=name, adapter="auto", license="none", resolution=rule, settings=SETTINGS)
    model = Hurried(card, Source("local", tiny_vlms.write(tmp_path, name)), Options(side, settings=SETTINGS))
    model.clock = clock
    model.takes(times)
    bench = Bench(fake.Fake("fake"), clock)
    for stage in stages:
        for share in (0.05, 0.0):
            design = Design(6, stage, share, answers=1)
            rounds = list(experiments.pairs("injection", model, bench, EXAMPLES, design))
            ratios = experiments.of_rounds("injection", rounds, stage)
            assert [each.name for each in ratios] == [*stages, "ttft"]
            passed, verdict = experiments.judge("injection", ratios, stage, share)
            assert passed is bool(share), verdict
            found = {each.name: each.value for each in ratios if each.name != "ttft"}
            assert found == pytest.approx({**dict.fromkeys(stages, 1.0), stage: 1 + share})
    assert model.hear is None


def test_a_delayed_answer_that_is_not_finite_is_refused(clock: Scripted) -> None:
    class Broken(FakeModel):
        def verify(self) -> None:
            raise OutputError("not finite", "prefill")

    card = load_model_card("fake")
    delayed = experiments.Delayed(
        Broken(card, Options(side=1024, settings=card.settings)), fake.Fake("fake"), clock, "prefill", 1
    )
    with pytest.raises(OutputError, match="not finite"):
        time_stages(delayed, Request(EXAMPLES[0].images, "?", 1), Bench(fake.Fake("fake"), clock))


def test_arms_that_show_other_stages_are_not_compared(clock: Scripted) -> None:
    class Fickle(FakeModel):
        answers = 0

        def answer(self, request: Request, /) -> Iterator[Event]:
            self.answers += 1
            for event in super().answer(request):
                if self.answers < 6 or event != Done("project"):
                    yield event

    card = load_model_card("fake")
    model = Fickle(card, Options(side=1024, settings=card.settings))
    with pytest.raises(SettingError, match=r"do not show the same stages \(preprocess, encode, project, prefill"):
        list(experiments.pairs("aa", model, Bench(fake.Fake("fake"), clock), EXAMPLES, Design(6, answers=1)))


def test_a_stage_that_not_every_example_has_is_named(clock: Scripted) -> None:
    apart, joined = {"encode": 1, "project": 1, "ttft": 3}, {"encode+project": 2, "ttft": 3}
    rounds = [experiments.Pair(0, apart, apart), experiments.Pair(1, joined, joined)]
    with pytest.raises(SettingError, match="not every example has a stage encode"):
        experiments.of_rounds("injection", rounds, "encode")
    assert [one.name for one in experiments.of_rounds("aa", rounds, "encode")] == ["ttft"]


@pytest.mark.parametrize(("project", "holds"), [(1.3, True), (0.7, True), (8.0, False)])
def test_what_moved_elsewhere_is_judged_as_time_of_what_was_planted(project: float, holds: bool) -> None:
    """50 ms planted in encode: 0.3 ms of threads that wake up in project are nothing, 7 ms there are the sleep's."""
    encode = PairRatio("encode", 1.5, 1.45, 1.55, 20, 100.0, True)
    other = PairRatio("project", project, project - 0.05, project + 0.05, 20, 1.0, True)
    assert experiments.judge("injection", (encode, other), "encode", 0.5)[0] is holds


def test_the_same_twice_cannot_be_told_apart(clock: Scripted) -> None:
    ratios, passed = conduct(clock, "aa", jitter=0.03)
    assert passed
    assert all(each.half_width_percent and each.half_width_percent < 3 for each in ratios)


def test_several_answers_in_turns_resolve_more(clock: Scripted) -> None:
    """Half-widths on a machine that is noisy from answer to answer."""
    card, widths = load_model_card("fake"), {}
    for answers in (1, 9):
        model = FakeModel(card, Options(side=1024, settings={**card.settings, "jitter": 0.2}))
        bench = Bench(fake.Fake("fake"), clock)
        rounds = list(experiments.pairs("aa", model, bench, EXAMPLES, Design(20, answers=answers)))
        found = experiments.ratio("p", [r.a_ns["prefill"] for r in rounds], [r.b_ns["prefill"] for r in rounds])
        widths[answers] = found.half_width_percent
    assert 0 < widths[9] < 0.75 * widths[1]


def test_the_first_request_of_a_shape_is_paid_by_no_arm(clock: Scripted) -> None:
    """Else whose turn it is would look slower: of 20 pages, each pair's first arm pays once."""

    class Dearer(FakeModel):
        met: set[str] = set()

        def answer(self, request: Request, /) -> Iterator[Event]:
            if request.question not in self.met:
                self.met.add(request.question)
                fake.host_work(50_000_000)
            yield from super().answer(request)

    card = load_model_card("fake")
    pages = [replace(EXAMPLES[0], id=str(k), question="word " * (k + 1)) for k in range(8)]
    model = Dearer(card, Options(side=1024, settings=card.settings))
    bench = Bench(fake.Fake("fake"), clock)
    rounds = list(experiments.pairs("aa", model, bench, pages, Design(8, answers=1)))
    assert len(model.met) == 8
    assert all(pair.a_ns == pair.b_ns for pair in rounds)


def test_a_delay_too_small_for_the_noise_is_not_claimed(clock: Scripted) -> None:
    _, passed = conduct(clock, "injection", share=0.002, jitter=0.05)
    assert not passed


def test_in_virtual_time_the_instrument_costs_nothing(clock: Scripted) -> None:
    ratios, passed = conduct(clock, "overhead")
    assert passed
    assert ratios[0].value == 1


def test_overhead_beyond_the_bound_fails() -> None:
    dear = PairRatio("ttft", 0.97, 0.96, 0.98, 20, 1.0)  # the bare loop takes 97 % of the instrumented one
    assert not experiments.judge("overhead", (dear,), "prefill", 0.05)[0]


def test_a_stage_that_the_model_has_not_is_named(clock: Scripted) -> None:
    with pytest.raises(SettingError, match="no sampling to look at"):
        conduct(clock, "injection", "sampling")


def test_freeing_what_the_model_held_is_outside_the_bare_loops_time(clock: Scripted) -> None:
    """Else the bare loop looks slower than it is, and the instrument cheaper."""

    class Heavy(FakeModel):
        def answer(self, request: Request, /) -> Iterator[Event]:
            try:
                yield from super().answer(request)
            finally:
                fake.host_work(5_000_000)

    card = load_model_card("fake")
    model = Heavy(card, Options(side=1024, settings=card.settings))
    rounds = list(experiments.pairs("overhead", model, Bench(fake.Fake("fake"), clock), EXAMPLES, Design(6)))
    assert all(pair.a_ns == pair.b_ns for pair in rounds)


def test_five_ratios_of_a_perfect_machine_seldom_raise_a_false_alarm() -> None:
    """At 95 % each, about one experiment in five would say that this machine is not to be trusted."""
    random = Random(1)
    alarms = 0
    for _ in range(400):
        pairs = [[round(random.gauss(1e6, 1e4)) for _ in range(20)] for _ in range(10)]
        ratios = tuple(experiments.ratio(str(n), pairs[2 * n], pairs[2 * n + 1], 5) for n in range(5))
        alarms += not experiments.judge("aa", ratios, "prefill", 0.05)[0]
    assert alarms / 400 < 0.07
