"""One answer, timed: what a pass keeps of each stage, and of each stage alone."""

from collections.abc import Iterator

import pytest

from harness.clock import Scripted
from harness.machine.devices import fake
from harness.measure.passes import Bench, keep_part, time_stages
from harness.models.card import load_model_card
from harness.models.families.fake import FakeModel
from harness.models.protocol import Done, Event, Options, Piece, Request
from harness.runlog.records import Pass

MIB = 2**20
REQUEST = Request((b"",), "What?")


@pytest.fixture
def clock() -> Iterator[Scripted]:
    scripted = Scripted()
    fake.reset(scripted)
    yield scripted
    fake.reset()


class Breathing(FakeModel):
    """A model that takes much memory in one stage and gives it back: 300 MiB, then 20, then 60."""

    def answer(self, request: Request, /) -> Iterator[Event]:
        for stage, mib in (("encode", 300), ("project", 20), ("prefill", 60)):
            fake.allocate(mib * MIB)
            fake.allocate(-mib * MIB)
            yield Done(stage)
        yield Piece("yes")


def test_each_stage_has_a_peak_of_its_own(clock: Scripted) -> None:
    card = load_model_card("fake")
    model = Breathing(card, Options(side=1024, settings=card.settings))
    measured, _ = time_stages(model, REQUEST, Bench(fake.Fake("fake"), clock))
    held = min(measured.stage_peak_bytes.values()) - 20 * MIB
    above = {stage: (peak - held) // MIB for stage, peak in measured.stage_peak_bytes.items()}
    assert above == {"encode": 300, "project": 20, "prefill": 60}


@pytest.mark.parametrize(
    ("part", "kept"), [("tower", {"preprocess", "encode", "encode.tower"}), ("llm", {"project", "prefill"})]
)
def test_an_isolated_part_keeps_its_own_stages(part: str, kept: set[str]) -> None:
    names = ("preprocess", "encode", "encode.tower", "project", "prefill")
    every = Pass(stage_ns=dict.fromkeys(names, 1), stage_cpu_ns=dict.fromkeys(names, 1), total_ns=5)
    mine = keep_part(every, part)
    assert set(mine.stage_ns) == set(mine.stage_cpu_ns) == kept
    assert mine.total_ns == 5


class Library(FakeModel):
    """A model whose stages end inside one call of a library: it tells them, and yields only what comes after."""

    hear = None

    def answer(self, request: Request, /) -> Iterator[Event]:
        for stage, milliseconds in (("encode", 7), ("project", 2)):
            fake.enqueue(milliseconds * 1e6)
            if self.hear is not None:
                self.hear(Done(stage))
        fake.enqueue(5e6)
        yield Done("prefill")
        yield Piece("yes")


def test_what_a_model_tells_is_timed_like_what_it_yields_and_only_in_the_stage_pass(clock: Scripted) -> None:
    card = load_model_card("fake")
    model = Library(card, Options(side=1024, settings=card.settings))
    measured, _ = time_stages(model, REQUEST, Bench(fake.Fake("fake"), clock))
    assert measured.stage_ns == {"encode": 7_000_000, "project": 2_000_000, "prefill": 5_000_000}
    assert model.hear is None
