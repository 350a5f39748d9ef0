"""The measuring loop in virtual time: the fake device and model say what is true, the log must say the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from harness.clock import Monotonic, Scripted
from harness.errors import ExampleError, OutputError
from harness.images import blank, png
from harness.machine import backend
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.machine.energy import Counter
from harness.measure.gate import Gate
from harness.measure.loop import MAXIMUM_ATTEMPTS, MAXIMUM_CONSECUTIVE_FAILURES, Plan, measure
from harness.measure.passes import Bench, time_stages, time_whole
from harness.measure.stopping import Rule, Stopping
from harness.models.card import load_model_card
from harness.models.families.fake import FakeModel
from harness.models.protocol import Answered, Done, Event, Options, Piece, Request
from harness.runlog.records import Counted, Failure, Footer, Sample
from harness.suites.examples import Example

MS = 1_000_000
PAGE = png(blank((64, 48)).image)


@pytest.fixture
def clock() -> Iterator[Scripted]:
    scripted = Scripted()
    fake.reset(scripted)
    yield scripted
    fake.reset()


def examples(count: int) -> list[Example]:
    return [
        Example(str(n), n, (PAGE,), f"Which number is {n}?", 4, (str(n),), ("page",), {"n": n}) for n in range(count)
    ]


def model(clock: Scripted | Monotonic, **settings: float | str) -> FakeModel:
    card = load_model_card("fake")
    return FakeModel(card, Options(side=1024, settings={**card.settings, **settings}))


def run(clock: Scripted | Monotonic, plan: Plan, **settings: float | str) -> list[Sample | Failure | Counted | Footer]:
    gate = Gate(backend.of("fake").probes(), clock)
    return list(measure(model(clock, **settings), fake.Fake("fake"), clock, gate, plan))


def plan(count: int, rule: Rule | None = None, **options: object) -> Plan:
    patient = Rule(minimum_samples=count, minimum_seconds=0, maximum_samples=1000, maximum_seconds=1e6, precision=0)
    return Plan(examples(count), Stopping(rule or patient), **options)  # type: ignore[arg-type]


def timed(records: list[Sample | Failure | Counted | Footer]) -> list[Sample]:
    return [r for r in records if isinstance(r, Sample) and r.phase == "timed"]


def test_stage_and_whole_passes_are_the_models_truth(clock: Scripted) -> None:
    records = run(clock, plan(4))
    for sample in timed(records):
        assert sample.stages
        assert sample.whole
        assert sample.stages.stage_ns == {
            "preprocess": 2 * MS,
            "encode": 10 * MS,
            "project": 1 * MS,
            "prefill": 20 * MS,
        }
        assert sample.whole.ttft_ns == 33_000_000
        assert sample.stages.output_tokens == 16
        assert sample.stages.piece_ns == tuple(33_000_000 + 2 * MS * n for n in range(16))
        assert (sample.visual_tokens, sample.text_tokens, sample.clock) == (256, 4, "scripted")
        assert sample.valid
    assert [s.answer for s in timed(records)] == ["0", "1", "2", "3"]
    assert [s.phase for s in records if isinstance(s, Sample)] == ["cold", "warmup"] + ["timed"] * 4
    assert records[-1] == replace_ended(records[-1], Footer(ended_at="", samples=4, failures=0, stopped="examples"))


def replace_ended(footer: object, like: Footer) -> Footer:
    assert isinstance(footer, Footer)
    return Footer(**{f: getattr(like, f) for f in like.__struct_fields__} | {"ended_at": footer.ended_at})


def test_a_residual_that_no_stage_owns_shows_between_the_passes(clock: Scripted) -> None:
    late = timed(run(clock, plan(2), sample_ms=5.0))[0]
    assert late.stages
    assert late.whole
    assert late.whole.ttft_ns is not None
    assert late.whole.ttft_ns - sum(late.stages.stage_ns.values()) == 5 * MS


def test_overlap_that_syncs_destroy_is_a_negative_residual(clock: Scripted) -> None:
    sample = timed(run(clock, plan(2), launch_ms=1.0))[0]
    assert sample.stages
    assert sample.whole
    assert sample.whole.ttft_ns is not None
    assert sample.whole.ttft_ns < sum(sample.stages.stage_ns.values())


def test_a_slow_first_run_stays_out_of_the_timed_samples(clock: Scripted) -> None:
    records = run(clock, plan(3), slow_first=9.0)
    cold = next(r for r in records if isinstance(r, Sample) and r.phase == "cold")
    assert cold.whole
    assert cold.whole.ttft_ns == 9 * 33_000_000
    assert {s.whole.ttft_ns for s in timed(records) if s.whole} == {33_000_000}


def test_a_throttled_sample_is_kept_marked_and_measured_again(clock: Scripted) -> None:
    warm_ns = 3 * 70 * MS
    fake.EPISODES.append(Episode(warm_ns, warm_ns + 150 * MS, factor=3.0, reason="throttled"))
    records = run(clock, plan(6))
    bad = [s for s in timed(records) if not s.valid]
    assert bad
    assert {reason for s in bad for reason in s.reasons} == {"throttled"}
    for each in bad:
        again = [s for s in timed(records) if s.example == each.example]
        assert [s.attempt for s in again] == list(range(1, len(again) + 1))
        assert again[-1].valid
    footer = records[-1]
    assert isinstance(footer, Footer)
    assert footer.refused == len(bad)


def test_a_drift_is_named(clock: Scripted) -> None:
    reasons = {reason for s in timed(run(clock, plan(40), drift=0.02)) for reason in s.reasons}
    assert reasons == {"drift"}


def test_a_machine_that_is_never_quiet_still_finishes(clock: Scripted) -> None:
    fake.EPISODES.append(Episode(0, 10**15, factor=2.0, reason="contended"))
    records = run(clock, plan(3))
    assert len(timed(records)) == 3 * MAXIMUM_ATTEMPTS
    assert not any(s.valid for s in timed(records))


def test_timing_stops_when_it_is_precise_and_the_rest_is_only_answered(clock: Scripted) -> None:
    rule = Rule(minimum_samples=8, minimum_seconds=0, maximum_samples=100, maximum_seconds=1e6, precision=0.02)
    records = run(clock, plan(20, rule))
    assert len([s for s in timed(records) if s.stages]) == 8
    assert [s.answer for s in timed(records)] == [str(n) for n in range(20)]
    unscored = run(clock, plan(20, rule, score=False))
    assert len(timed(unscored)) == 8
    footer = unscored[-1]
    assert isinstance(footer, Footer)
    assert footer.stopped == "precision"


def test_examples_that_were_measured_before_are_left_alone(clock: Scripted) -> None:
    records = run(clock, plan(4, finished=frozenset({"0", "2"})))
    assert [s.example for s in timed(records)] == ["1", "3"]


def test_a_corrupt_image_is_a_failure_and_never_a_score(clock: Scripted) -> None:
    torn = [replace(e, images=(b"",)) if e.id == "1" else e for e in examples(3)]
    records = run(clock, replace(plan(3), examples=torn))
    failure = next(r for r in records if isinstance(r, Failure))
    assert (failure.example, failure.error) == ("1", "ExampleError")
    assert "Traceback" in failure.traceback
    assert [s.example for s in timed(records)] == ["0", "2"]


class Broken(FakeModel):
    """Runs out of memory on every request but the first three."""

    def answer(self, request: Request, /) -> Iterator[Event]:
        if self._answered >= 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield from super().answer(request)


def test_errors_that_keep_coming_end_the_cell_with_a_record_each(clock: Scripted) -> None:
    card = load_model_card("fake")
    broken = Broken(card, Options(side=1024, settings=card.settings))
    gate = Gate(backend.of("fake").probes(), clock)
    records = list(measure(broken, fake.Fake("fake"), clock, gate, plan(20)))
    failures = [r for r in records if isinstance(r, Failure)]
    assert len(failures) == MAXIMUM_CONSECUTIVE_FAILURES
    assert "out of memory" in failures[0].message
    assert "next: --isolate-stages" in failures[0].message
    footer = records[-1]
    assert isinstance(footer, Footer)
    assert footer.stopped == "failures"


def test_the_papers_protocol_has_no_text_and_no_whole_pass(clock: Scripted) -> None:
    for sample in timed(run(clock, plan(3, protocol="paper", score=False))):
        assert sample.whole is None
        assert sample.text_tokens == 0
        assert sample.stages
        assert sample.stages.output_tokens == 1


def test_the_devices_own_clock_is_kept_beside_the_hosts(clock: Scripted) -> None:
    fake.STATE.clock_rate = 0.98
    measured, _ = time_stages(model(clock), Request((PAGE,), "What?"), Bench(fake.Fake("fake"), clock))
    assert measured.device_ns == {name: round(ns * 0.98) for name, ns in measured.stage_ns.items()}


def test_peak_memory_is_each_stages_own(clock: Scripted) -> None:
    measured, _ = time_stages(model(clock), Request((PAGE,), "What?"), Bench(fake.Fake("fake"), clock))
    mib = 2**20
    assert measured.stage_peak_bytes["preprocess"] == 100 * mib
    assert measured.stage_peak_bytes["encode"] == 150 * mib


def test_a_whole_pass_counts_its_tokens_and_their_times(clock: Scripted) -> None:
    measured, seen, answer = time_whole(
        model(clock, answer="one two three"), Request((PAGE,), "What?"), Bench(fake.Fake("fake"), clock)
    )
    assert answer == "one two three"
    assert measured.piece_ns == (33_000_000, 35_000_000, 37_000_000)
    assert measured.total_ns == 37_000_000
    assert seen
    assert seen.original_px == (64, 48)


def test_an_example_error_says_what_to_do() -> None:
    with pytest.raises(ExampleError, match="next:"):
        next(
            iter(
                FakeModel(load_model_card("fake"), Options(side=64, settings=load_model_card("fake").settings)).answer(
                    Request((), "?")
                )
            )
        )


class TwoEncoders(FakeModel):
    """Two encoders of 4 and 6 ms, one after the other, and 1 ms to put their features side by side."""

    def answer(self, request: Request, /) -> Iterator[Event]:
        for part, duration_ms in (("a", 4), ("b", 6), ("", 1)):
            fake.host_work(duration_ms * MS)
            yield Done("encode", part)
        yield Piece("x")


def test_a_stage_of_parts_is_the_sum_of_them_on_every_counter(clock: Scripted) -> None:
    """Time, CPU time and energy alike: here a watt is drawn, so a millisecond is a millijoule."""
    card = load_model_card("fake")
    meter = Counter(lambda: clock.now_ns() / MS, "scripted", "1 ns", 1)
    both = TwoEncoders(card, Options(side=1024, settings=card.settings))
    measured, _ = time_stages(both, Request((PAGE,), "What?"), Bench(fake.Fake("fake"), clock, meter))
    expected = {"encode.a": 4, "encode.b": 6, "encode": 11}
    assert measured.stage_ns == {name: ms * MS for name, ms in expected.items()}
    assert {name: measured.stage_cpu_ns[name] for name in expected} == measured.stage_ns
    assert measured.stage_energy_mj == pytest.approx(expected)


def test_a_first_example_that_fails_leaves_the_first_request_to_the_next(clock: Scripted) -> None:
    torn = [replace(e, images=(b"",)) if e.id == "0" else e for e in examples(4)]
    records = run(clock, replace(plan(4), examples=torn), slow_first=3)
    assert [r.example for r in records if isinstance(r, Failure)] == ["0"]
    assert [(s.example, s.phase) for s in records if isinstance(s, Sample)] == [
        ("1", "cold"), ("1", "warmup"), ("1", "timed"), ("2", "timed"), ("3", "timed")
    ]  # fmt: skip


class Breaking(FakeModel):
    """A fake model that runs out of memory right after some event."""

    after: object = None

    def answer(self, request: Request, /) -> Iterator[Event]:
        if self.after is None:
            raise MemoryError
        for event in super().answer(request):
            yield event
            if event == self.after:
                raise MemoryError


@pytest.mark.parametrize(
    ("after", "stage"),
    [
        (None, "preprocess"),
        (Done("preprocess"), "encode"),
        (Done("encode"), "project"),
        (Done("project"), "prefill"),
        (Done("prefill"), "decode"),
        (Piece("0"), "decode"),
    ],
)
def test_a_failure_is_told_with_the_stage_that_was_being_worked_on(
    clock: Scripted, after: Event | None, stage: str
) -> None:
    card = load_model_card("fake")
    broken = Breaking(card, Options(side=1024, settings=card.settings))
    broken.after = after
    gate = Gate(backend.of("fake").probes(), clock)
    failure = next(r for r in measure(broken, fake.Fake("fake"), clock, gate, plan(1)) if isinstance(r, Failure))
    assert (failure.stage, failure.error) == (stage, "MemoryError")


class Panicking(FakeModel):
    """A library's panic is no `Exception`: it must not take the cell with it."""

    def answer(self, request: Request, /) -> Iterator[Event]:
        if "number is 1" in request.question:
            raise Panic("index out of bounds")
        yield from super().answer(request)


class Panic(BaseException):
    pass


def test_a_librarys_panic_is_a_failure_of_its_example(clock: Scripted) -> None:
    card = load_model_card("fake")
    model = Panicking(card, Options(side=1024, settings=card.settings))
    records = list(measure(model, fake.Fake("fake"), clock, Gate(backend.of("fake").probes(), clock), plan(3)))
    assert [(r.example, r.error) for r in records if isinstance(r, Failure)] == [("1", "Panic")]
    assert [s.example for s in timed(records)] == ["0", "2"]


class Unverified(FakeModel):
    """A fake model that finds out after its passes, in each phase, that what it said rests on NaN."""

    def verify(self) -> None:
        raise OutputError("logits that are not finite", "decode")


def test_a_pass_on_numbers_that_are_not_finite_is_a_failure_in_every_phase(clock: Scripted) -> None:
    card = load_model_card("fake")
    model = Unverified(card, Options(side=1024, settings=card.settings))
    for options in ({}, {"protocol": "paper", "score": False}):
        records = list(
            measure(model, fake.Fake("fake"), clock, Gate(backend.of("fake").probes(), clock), plan(3, **options))
        )
        assert [(r.example, r.stage, r.error) for r in records if isinstance(r, Failure)] == [
            (str(number), "decode", "OutputError") for number in range(3)
        ]
        assert not [r for r in records if isinstance(r, Sample)]


class Watched(FakeModel):
    """A fake model that writes down what it was asked."""

    def __init__(self) -> None:
        card = load_model_card("fake")
        super().__init__(card, Options(side=1024, settings=card.settings))
        self.asked: list[Request] = []
        self.breaks: set[str] = set()

    def answer(self, request: Request, /) -> Iterator[Event]:
        self.asked.append(request)
        if request.question in self.breaks:
            raise RuntimeError("broken")
        return super().answer(request)


def measured_with(watched: Watched, clock: Scripted, plan: Plan) -> list[Sample | Failure | Counted | Footer]:
    return list(measure(watched, fake.Fake("fake"), clock, Gate(fake.probes("fake"), clock), plan))


def test_the_passes_alternate_so_that_neither_always_finds_warm_caches(clock: Scripted) -> None:
    watched = Watched()
    measured_with(watched, clock, plan(6))
    first = {}
    for request in watched.asked[-12:]:
        first.setdefault(request.question, "stages" if request.ignore_eos else "whole")
    orders = list(first.values())
    assert sorted(orders) == ["stages"] * 3 + ["whole"] * 3


def test_failures_that_are_not_in_a_row_do_not_end_the_cell(clock: Scripted) -> None:
    watched = Watched()
    count = 2 * MAXIMUM_CONSECUTIVE_FAILURES + 2
    wanted = plan(count)
    watched.breaks = {example.question for example in wanted.examples if example.index % 2}
    records = measured_with(watched, clock, wanted)
    assert len([r for r in records if isinstance(r, Failure)]) == count // 2
    assert len(timed(records)) == count // 2
    assert records[-1].stopped != "failures"  # type: ignore[union-attr]


def test_an_answer_that_nobody_scores_ends_at_its_first_token(clock: Scripted) -> None:
    lengths = {}
    for score in (True, False):
        watched = Watched()
        measured_with(watched, clock, plan(3, score=score))
        lengths[score] = {request.max_new_tokens for request in watched.asked if not request.ignore_eos}
    assert lengths == {True: {4}, False: {1}}


def test_a_cell_of_one_part_logs_its_own_stages_only(clock: Scripted) -> None:
    for part, stages in (("llm", {"project", "prefill"}), ("eye", {"preprocess", "encode"})):
        for sample in timed(measured_with(Watched(), clock, plan(2, part=part))):
            assert sample.stages
            assert set(sample.stages.stage_ns) == stages


# --- answers for their score alone ---


class Sharing(FakeModel):
    """A fake model that answers all questions about an image at once, in no time of the clock."""

    together: list[tuple[str, ...]]

    def answer_all(self, requests: Sequence[Request]) -> list[Answered]:
        self.together = [*getattr(self, "together", []), tuple(one.question for one in requests)]
        if any(one.images[0] == b"" for one in requests):
            raise ExampleError("no image")
        return [
            Answered(None, "", 0, "", ValueError("odd")) if "13" in one.question else Answered(None, "x", 1, "features")
            for one in requests
        ]


def scored(clock: Scripted, count: int = 14, **options: object) -> tuple[Sharing, list[Sample | Failure]]:
    card = load_model_card("fake")
    sharing = Sharing(card, Options(side=1024, settings=dict(card.settings)))
    three = Rule(minimum_samples=3, minimum_seconds=0, maximum_samples=3, maximum_seconds=1e6, precision=0)
    shown = [replace(one, image_ids=(f"page {one.index % 3}",)) for one in examples(count)]
    shown[7] = replace(shown[7], images=(b"",), image_ids=("empty",))
    wanted = Plan(shown, Stopping(three), **options)  # type: ignore[arg-type]
    gate = Gate(backend.of("fake").probes(), clock)
    records = list(measure(sharing, fake.Fake("fake"), clock, gate, wanted))
    return sharing, [one for one in records if isinstance(one, Sample | Failure)]


def test_after_timing_questions_are_answered_image_by_image_and_marked_as_scored(clock: Scripted) -> None:
    sharing, records = scored(clock)
    asked = [[int(question.split()[-1].strip("?")) for question in each] for each in sharing.together]
    assert asked == [[3, 6, 9, 12], [4, 10, 13], [5, 8, 11], [7]]
    samples = {one.index: one for one in records if isinstance(one, Sample) and one.phase == "timed"}
    assert sorted(samples) == [*range(7), *range(8, 13)]
    assert [samples[n].timed for n in range(7)] == [True] * 3 + [False] * 4
    assert {samples[n].shared for n in range(3, 13) if n in samples} == {"features"}
    assert all(samples[n].whole is None and samples[n].answer_tokens == 1 for n in range(3, 7))
    assert {one.index: one.error for one in records if isinstance(one, Failure)} == {
        7: "ExampleError",
        13: "ValueError",
    }


def test_what_was_answered_before_is_not_asked_again(clock: Scripted) -> None:
    sharing, _ = scored(clock, finished=frozenset({"3", "4", "10", "13"}))
    assert [len(each) for each in sharing.together] == [3, 3, 1]


def test_a_shard_answers_its_own_examples_alone(clock: Scripted) -> None:
    _, records = scored(clock, mine=frozenset({4, 5, 10}), timing=False)
    assert sorted(one.index for one in records if isinstance(one, Sample)) == [4, 5, 10]
    sharing, records = scored(clock, mine=frozenset({0, 3, 6}))  # the first shard times, too
    assert sharing.together == [("Which number is 3?", "Which number is 6?")]


def test_an_image_that_breaks_is_one_failure_in_a_row_however_many_ask_about_it(clock: Scripted) -> None:
    """Else a page with five questions ends the cell, and the score of all others is lost."""

    class Overflowing(Sharing):
        def answer_all(self, requests: Sequence[Request]) -> list[Answered]:
            if any("number is 4" in one.question for one in requests):
                raise OutputError("logits are not finite", "prefill")
            return super().answer_all(requests)

    card = load_model_card("fake")
    three = Rule(minimum_samples=3, minimum_seconds=0, maximum_samples=3, maximum_seconds=1e6, precision=0)
    shown = [replace(one, image_ids=(f"page {one.index % 3}",)) for one in examples(30)]
    overflowing = Overflowing(card, Options(side=1024, settings=dict(card.settings)))
    records = list(
        measure(
            overflowing,
            fake.Fake("fake"),
            clock,
            Gate(backend.of("fake").probes(), clock),
            Plan(shown, Stopping(three)),
        )
    )
    failed = [one.index for one in records if isinstance(one, Failure) and one.error == "OutputError"]
    assert failed == [*range(4, 30, 3)]
    assert len(failed) > MAXIMUM_CONSECUTIVE_FAILURES
    assert isinstance(records[-1], Footer)
    assert records[-1].stopped != "failures"
    assert {one.index for one in records if isinstance(one, Sample)} >= set(range(5, 30, 3))


def test_every_pass_over_an_example_asks_for_the_same_room(clock: Scripted) -> None:
    for score, room in ((True, 16), (False, 16)):
        watched = Watched()
        measured_with(watched, clock, plan(3, score=score))
        assert {request.room for request in watched.asked} == {room}
    watched = Watched()
    longer = replace(plan(3), examples=[replace(one, max_new_tokens=40) for one in examples(3)])
    measured_with(watched, clock, longer)
    assert {request.room for request in watched.asked} == {40}


def test_answers_that_nobody_scores_are_not_asked_for(clock: Scripted) -> None:
    sharing, records = scored(clock, score=False)
    assert not hasattr(sharing, "together")
    assert len([one for one in records if isinstance(one, Sample) and one.phase == "timed"]) == 3
