"""The examples that are timed stand for the suite: which ones, in which order, and what the loop makes of it."""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import images
from harness.clock import Scripted
from harness.machine.devices import fake
from harness.measure import sampling
from harness.measure.gate import Gate
from harness.measure.loop import MeasureRecord, Plan, measure
from harness.measure.stopping import Rule, Stopping
from harness.models.card import load_model_card
from harness.models.families.llava_onevision import LlavaOnevision
from harness.models.protocol import Done, Event, Foreseen, Options, Piece, Request, Seen, Work
from harness.models.weights import Source
from harness.runlog.records import Footer, Sample
from harness.suites.examples import Example

MS = 1_000_000


@pytest.fixture
def clock() -> Iterator[Scripted]:
    scripted = Scripted()
    fake.reset(scripted)
    yield scripted
    fake.reset()


def page(width: int, height: int = 8, number: int = 0) -> bytes:
    return images.png(images.blank((width, height)).image) + bytes([number])


def suite(widths: Sequence[int], questions: int = 1, words: int = 3) -> list[Example]:
    """Return `questions` about each of the pages, in the data's order."""
    found = []
    for number, width in enumerate(widths):
        for _ in range(questions):
            at = len(found)
            question = " ".join(["word"] * words)
            found.append(Example(str(at), at, (page(width, number=number),), question, 4, (), (f"page {number}",), {}))
    return found


class Pages:
    """A model whose work depends on the page, on a machine with `cores`: decoding uses one of them.

    `dearer_first` is what the first request of a shape costs, as a factor on encoding and prefill.
    """

    def __init__(
        self, clock: Scripted, encode_ms: Mapping[int, float], cores: int = 1, dearer_first: float = 1
    ) -> None:
        self.clock, self.encode_ms, self.cores, self.dearer_first = clock, encode_ms, cores, dearer_first
        self.met: set[tuple[int, int]] = set()
        self.decode_ms: Mapping[int, float] = {}
        self.order: list[str] = []

    def _spend(self, ms: float, cores: int) -> None:
        self.clock.advance(round(ms * MS), round(ms * MS * cores))

    def answer(self, request: Request, /) -> Iterator[Event]:
        width, height = images.size_of(request.images[0])
        words = len(request.question.split())
        self.order.append("stages" if request.ignore_eos and request.max_new_tokens > 1 else "whole")
        factor = 1.0 if (width, words) in self.met else self.dearer_first
        self.met.add((width, words))
        self._spend(self.decode_ms.get(width, 1.0), 1)
        yield Done("preprocess")
        self._spend(self.encode_ms[width] * factor, self.cores)
        yield Done("encode")
        yield Seen((width, height), (width, height), width * height, 1, width, words)
        self._spend(5.0 * factor, self.cores)
        yield Done("prefill")
        for _ in range(request.max_new_tokens):
            yield Piece("x")

    def foresee(self, sizes: Sequence[tuple[int, int]], question: str) -> Foreseen:
        return Foreseen(1, sizes[0][0], len(question.split()))

    def describe(self) -> dict[str, str]:
        return {}

    def work(self, seen: Seen, /) -> dict[str, Work]:
        return {}

    def close(self) -> None:
        pass


def run(
    clock: Scripted, model: Pages, examples: list[Example], drawn: bool = True, **rule: float
) -> list[MeasureRecord]:
    least = 8 if rule.get("precision") else len(examples)
    settings = {"minimum_samples": least, "minimum_seconds": 0.0, "maximum_samples": 200, "maximum_seconds": 1e6} | rule
    plan = Plan(
        examples,
        Stopping(Rule(**settings)),  # type: ignore[arg-type]
        decode_tokens=2,
        score=False,
        drawn=sampling.draw(examples, 0, model.foresee) if drawn else None,
    )
    return list(measure(model, fake.Fake("fake"), clock, Gate([], clock), plan))


def timed(records: list[MeasureRecord]) -> list[Sample]:
    return [record for record in records if isinstance(record, Sample) and record.phase == "timed"]


def ttft_ms(records: list[MeasureRecord]) -> float:
    return median(s.whole.ttft_ns for s in timed(records) if s.valid and s.whole and s.whole.ttft_ns) / MS


def footer(records: list[MeasureRecord]) -> Footer:
    last = records[-1]
    assert isinstance(last, Footer)
    return last


# --- the order ---


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(0, 5))
def test_every_example_is_asked_once(kinds: list[int], seed: int) -> None:
    looks = [sampling.Look(str(k), (str(kind),), ((kind, kind),), 3) for k, kind in enumerate(kinds)]
    order = sampling.even(list(range(len(looks))), seed / 6)
    assert sorted(order) == list(range(len(looks)))


def test_the_order_is_the_seeds_and_another_seed_has_another() -> None:
    examples = suite([8, 16, 24, 32] * 8)
    first = sampling.draw(examples, 0).order
    assert sampling.draw(examples, 0).order == first
    assert sampling.draw(examples, 1).order != first
    assert first != tuple(range(len(examples)))


def test_small_and_large_pages_take_turns_and_images_are_distinct() -> None:
    examples = suite([8] * 16 + [800] * 16, questions=4)
    first = [examples[at] for at in sampling.draw(examples, 0).order[:16]]
    assert len({example.image_ids for example in first}) == 16
    sizes = Counter(images.size_of(example.images[0])[0] for example in first)
    assert sizes == {8: 8, 800: 8}


def test_a_limit_is_drawn_from_as_well() -> None:
    """`--limit 12` takes the first 12 examples; which of them are timed first is drawn among these."""
    examples = suite([8, 16, 24], questions=4)
    assert {examples[at].image_ids for at in sampling.draw(examples, 0).order[:4]} == {
        ("page 0",),
        ("page 1",),
        ("page 2",),
    }


def test_files_that_cannot_be_read_are_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [*suite([8, 16]), Example("broken", 2, (b"no image",), "q", 4, (), ("b",), {})]
    assert sorted(sampling.draw(examples, 0).order) == [0, 1, 2]
    monkeypatch.setattr(sampling, "MOST_LOOKED_AT", 2)
    drawn = sampling.draw(examples, 0)
    assert sorted(drawn.order) == [0, 1, 2]
    assert len(drawn.looks) == 2


def test_a_header_says_how_an_image_stands() -> None:
    turned = images.blank((6, 4)).image
    exif = turned.getexif()
    exif[images.ORIENTATION] = 6
    import io

    out = io.BytesIO()
    turned.save(out, "JPEG", exif=exif)
    assert images.size_of(out.getvalue()) == (4, 6)
    assert images.size_of(b"") == (0, 0)


# --- real documents: the sample's medians are the suite's ---


@pytest.fixture(scope="module")
def onevision() -> LlavaOnevision:
    card = load_model_card("llava-onevision-0.5b")
    return LlavaOnevision(card, Source("random"), Options(side=1152, device="meta"))


@pytest.mark.parametrize("name", ["docvqa_mini", "textvqa_mini", "sroie_mini"])
@pytest.mark.parametrize("fixed", [True, False])
def test_median_tokens_and_pixels_are_the_suites(
    shared: Path, name: str, fixed: bool, onevision: LlavaOnevision
) -> None:
    """At the first moment at which precision may end the timing, for FastVLM (always 256 tokens) and OneVision."""
    (file,) = (shared / "data" / name).glob("*.parquet")
    rows = parquet.read_table(file).to_pylist()
    files = [row["image"]["bytes"] for row in rows]
    examples = [
        Example(str(k), k, (data,), rows[k]["question"], 4, (), (str(hash(data)),), {}) for k, data in enumerate(files)
    ]
    visual = (lambda size: None) if fixed else onevision.foresee_visual

    def foresee(sizes: Sequence[tuple[int, int]], question: str) -> Foreseen:
        found = visual(sizes[0])
        return Foreseen(1, 256, None) if found is None else Foreseen(*found, None)

    for seed in range(5):
        drawn = sampling.draw(examples, seed, foresee)
        so_far = sampling.Timed(drawn)
        for count, at in enumerate(drawn.order, 1):
            so_far.add(examples[at].id)
            if count >= 8 and so_far.represents:
                break
        facts = so_far.facts()
        assert facts["median_px"] == pytest.approx(facts["suite_median_px"], rel=0.03), (seed, count)
        tokens = facts["median_visual_tokens"], facts["suite_median_visual_tokens"]
        assert tokens[0] == pytest.approx(tokens[1], rel=0.03), (seed, count)
        assert facts["images"] >= min(6, facts["suite_images"])
        assert count < 64


def test_onevision_foresees_what_it_sees(onevision: LlavaOnevision) -> None:
    for size in [(1700, 2200), (640, 480), (300, 1200), (2000, 700)]:
        prepared = onevision.prepare([images.blank(size)])
        assert onevision.foresee_visual(size) == (prepared.tiles, prepared.geometry.visual_tokens)


def test_the_square_image_of_the_reports_is_onevisions(onevision: LlavaOnevision) -> None:
    """The cards of the paper's tables say 7371 (`square_tokens`), where the paper leaves out the newlines."""
    assert onevision.foresee_visual((1152, 1152)) == (10, 7371)


# --- the loop ---


def test_small_and_large_pages_give_the_suites_median(clock: Scripted) -> None:
    """In the data's order the small pages come first: timing used to stop there, sure of 26 ms."""
    examples = suite([20] * 24 + [50] * 36)
    encode_ms = {20: 20.0, 50: 50.0}
    before = run(clock, Pages(clock, encode_ms), examples, drawn=False, precision=0.02)
    assert (ttft_ms(before), footer(before).stopped) == (26.0, "precision")
    records = run(clock, Pages(clock, encode_ms), examples, precision=0.02)
    assert ttft_ms(records) == 56.0
    facts = footer(records).rests_on
    assert facts["suite_examples"] == 60
    assert facts["share_of_suite_of_these_shapes"] == 1.0
    assert facts["median_visual_tokens"] == facts["suite_median_visual_tokens"] == 50


def test_questions_about_one_page_are_one_cluster(clock: Scripted) -> None:
    """Eight questions on two of many pages are two samples of pages: no precision yet."""
    examples = suite([20 + k for k in range(40)], questions=6)
    records = run(clock, Pages(clock, {20 + k: 20.0 for k in range(40)}), examples, precision=0.02)
    assert footer(records).stopped == "precision"
    assert footer(records).rests_on["images"] >= 8


def test_the_first_request_of_a_shape_is_made_before_one_that_counts(clock: Scripted) -> None:
    examples = suite([20, 30, 40, 50] * 4)
    model = Pages(clock, dict.fromkeys((20, 30, 40, 50), 20.0), dearer_first=1.5)
    records = run(clock, model, examples, precision=0.0)
    for sample in timed(records):
        assert sample.stages
        assert sample.whole
        assert sample.stages.stage_ns["encode"] == 20 * MS
        assert sample.whole.ttft_ns == 26 * MS
    first = [s for s in records if isinstance(s, Sample) and s.new_shape]
    assert len(first) == 3, "the cold start has met one of the four"
    assert {s.phase for s in first} == {"warmup"}
    assert {s.whole.ttft_ns for s in first if s.whole} == {round((1 + 1.5 * 25) * MS)}


def test_a_shape_that_nobody_foresaw_is_kept_apart_too(clock: Scripted) -> None:
    examples = suite([20, 30, 40, 50] * 4)
    model = Pages(clock, dict.fromkeys((20, 30, 40, 50), 20.0), dearer_first=1.5)
    records = run(clock, model, examples, drawn=False, precision=0.0)
    assert {s.whole.ttft_ns for s in timed(records) if s.whole} == {26 * MS}
    assert len(timed(records)) == 16


def test_a_server_is_not_asked_in_advance(clock: Scripted) -> None:
    examples = suite([20, 30, 40, 50] * 4)
    model = Pages(clock, dict.fromkeys((20, 30, 40, 50), 20.0))
    model.minds_shapes = False  # type: ignore[attr-defined]
    records = run(clock, model, examples, precision=0.0)
    assert not any(s.new_shape for s in records if isinstance(s, Sample))


def test_a_quiet_machine_is_not_refused_for_its_pages(clock: Scripted) -> None:
    """Sixteen cores, large pages that one core decodes for long: today's gate called that starved, and a drift."""
    widths = [10 + k % 5 for k in range(60)] + [200 + k % 5 for k in range(60)]
    model = Pages(clock, {width: 20.0 if width < 100 else 60.0 for width in widths}, cores=12)
    model.decode_ms = {width: 2.0 if width < 100 else 90.0 for width in widths}
    for drawn in (True, False):
        records = run(clock, model, suite(widths), drawn=drawn, precision=0.0)
        assert footer(records).refused == 0
        assert len(timed(records)) == 120


def test_starving_is_seen_among_samples_of_one_shape(clock: Scripted) -> None:
    model = Pages(clock, {20: 20.0, 200: 20.0}, cores=12)
    examples = suite([20, 200] * 20)
    plenty = run(clock, model, examples[:30], precision=0.0)
    assert footer(plenty).refused == 0
    starving = Pages(clock, {20: 20.0, 200: 20.0}, cores=12)
    answered = starving.answer

    def answer(request: Request, /) -> Iterator[Event]:
        if len(starving.order) > 40:
            starving.cores = 6
        yield from answered(request)

    starving.answer = answer  # type: ignore[method-assign]
    records = run(clock, starving, examples, precision=0.0)
    assert {reason for s in timed(records) for reason in s.reasons} == {"cpu_starved"}


def test_no_garbage_is_collected_inside_a_pass(clock: Scripted) -> None:
    collections: list[str] = []
    model = Pages(clock, {20: 20.0})
    answered = model.answer

    def answer(request: Request, /) -> Iterator[Event]:
        assert not gc.isenabled()
        collections.append("in")
        litter = [[[] for _ in range(100)] for _ in range(100)]  # enough to set the collector off, were it on
        yield from answered(request)
        del litter
        collections.append("out")

    model.answer = answer  # type: ignore[method-assign]
    inside: list[bool] = []

    def seen(phase: str, info: dict[str, int]) -> None:
        inside.append(bool(collections) and collections[-1] == "in")

    gc.callbacks.append(seen)
    try:
        run(clock, model, suite([20] * 12), precision=0.0)
    finally:
        gc.callbacks.remove(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert inside
    assert not any(inside)
