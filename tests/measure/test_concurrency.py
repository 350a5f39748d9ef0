"""Several requests at a time: nothing lost, nothing twice, order kept; load is a series of its own."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import hostile
import pytest

from harness.clock import Monotonic
from harness.errors import ServerError
from harness.images import blank, png
from harness.machine.devices import served
from harness.measure import concurrency
from harness.measure.gate import Gate
from harness.measure.loop import MeasureRecord, Plan, measure
from harness.measure.stopping import Rule, Stopping
from harness.models.engines import openai
from harness.models.engines.openai.model import ServedModel
from harness.models.protocol import Options
from harness.models.weights import Source
from harness.reports import accuracy
from harness.runlog.records import Failure, Footer, Loaded, Sample
from harness.suites.examples import Example

PAGE = png(blank((64, 48)).image)


def examples(count: int) -> list[Example]:
    return [
        Example(str(n), n, (PAGE,), f"Which number is {n}?", 8, (str(n),), ("page",), {"n": n}) for n in range(count)
    ]


@contextmanager
def model(server: hostile.Hostile) -> Iterator[ServedModel]:
    options = Options(side=0, endpoint=server.url, settings={"timeout_s": 20})
    made = openai.load(openai.card(hostile.MODEL), Source("served"), options)
    assert isinstance(made, ServedModel)
    yield made
    made.close()


def run(made: ServedModel, count: int, timed: int, **plan: object) -> list[MeasureRecord]:
    clock = Monotonic()
    rule = Rule(minimum_samples=timed, minimum_seconds=0, maximum_samples=timed, maximum_seconds=1e6, precision=0)
    planned = Plan(examples(count), Stopping(rule), stages=False, **plan)  # type: ignore[arg-type]
    return list(measure(made, served.open("served", clock), clock, Gate([], clock), planned))


def test_two_hundred_questions_eight_at_a_time() -> None:
    with hostile.serve() as server, model(server) as made:
        records = run(made, 200, 6, concurrency=8)
    samples = [one for one in records if isinstance(one, Sample) and one.phase == "timed"]
    assert [one.index for one in samples] == list(range(200))
    assert [one.answer for one in samples] == [str(n) for n in range(200)]
    assert Counter(body["messages"][0]["content"][-1]["text"] for body in server.bodies) == Counter(
        {f"Which number is {n}?": 2 if n == 0 else 1 for n in range(200)}  # the first one also warms up
    )
    assert 8 <= server.most_at_once <= 16  # one that is over may still be counted
    assert records[-1] == Footer(ended_at=records[-1].ended_at, samples=200, failures=0, stopped="maximum_samples")  # type: ignore[union-attr]


def test_what_is_answered_beside_others_carries_no_times() -> None:
    with hostile.serve() as server, model(server) as made:
        records = run(made, 12, 4, concurrency=4)
    samples = [one for one in records if isinstance(one, Sample) and one.phase == "timed"]
    assert [one.timed for one in samples] == [True] * 4 + [False] * 8
    assert all(one.whole and one.whole.ttft_ns and one.stages is None for one in samples[:4])
    assert all(one.whole is None and one.stages is None for one in samples[4:])
    assert all(one.asked_tokens for one in samples), "a cut answer is known by it"
    assert all(one.answer_tokens for one in samples[4:])


@pytest.mark.parametrize(("trap", "most"), [("", 1), ("", 2), ("rejects_fields", 1)])
@pytest.mark.parametrize("at_a_time", [1, 4])
def test_cut_answers_are_those_that_the_server_cut(trap: str, most: int, at_a_time: int) -> None:
    """A letter and the end token are two tokens of the two allowed: not cut. Without usage nothing counts them."""
    asked = [replace(one, max_new_tokens=most) for one in examples(8)]
    clock = Monotonic()
    rule = Rule(minimum_samples=2, minimum_seconds=0, maximum_samples=2, maximum_seconds=1e6, precision=0)
    with hostile.serve(trap) as server, model(server) as made:
        made.examine(clock)
        planned = Plan(asked, Stopping(rule), stages=False, concurrency=at_a_time)
        records = list(measure(made, served.open("served", clock), clock, Gate([], clock), planned))
    samples = [one for one in records if isinstance(one, Sample) and one.phase == "timed"]
    assert [one.answer for one in samples] == [str(n) for n in range(8)]
    assert accuracy._counted(samples, [], [])["cut"] == (8 if most == 1 else 0)


def test_one_at_a_time_is_scored_and_not_timed_after_timing_has_stopped() -> None:
    with hostile.serve() as server, model(server) as made:
        records = run(made, 6, 3)
    assert [one.timed for one in records if isinstance(one, Sample) and one.phase == "timed"] == [True] * 3 + [
        False
    ] * 3
    assert server.most_at_once == 1


def test_a_failure_among_others_is_a_record_at_its_place() -> None:
    with hostile.serve("empty", fail_from=20) as server, model(server) as made:
        records = run(made, 40, 3, concurrency=4)
    failures = [one for one in records if isinstance(one, Failure)]
    assert failures
    assert all("empty answer" in one.message and one.error == "ServerError" for one in failures)
    assert isinstance(records[-1], Footer)
    assert records[-1].stopped == "failures"


def test_a_busy_server_is_asked_again_and_nothing_is_lost() -> None:
    with hostile.serve("busy", fail_from=4) as server, model(server) as made:
        records = run(made, 16, 3, concurrency=4)
    samples = [one for one in records if isinstance(one, Sample) and one.phase == "timed"]
    assert [one.answer for one in samples] == [str(n) for n in range(16)]


def test_a_busy_server_is_asked_again_off_the_clock() -> None:
    """The attempt that was turned away is no part of TTFT: the sample says which attempt it is."""
    with hostile.serve("busy") as server, model(server) as made:
        records = run(made, 2, 2)
    samples = [one for one in records if isinstance(one, Sample)]
    assert [one.attempt for one in samples] == [2] * len(samples)
    assert not any(isinstance(one, Failure) for one in records)


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_server_that_goes_away_ends_the_run_and_fails_no_example(at_a_time: int) -> None:
    clock = Monotonic()
    kept: list[MeasureRecord] = []
    with hostile.serve() as server, model(server) as made:
        rule = Rule(minimum_samples=2, minimum_seconds=0, maximum_samples=2, maximum_seconds=1e6, precision=0)
        planned = Plan(examples(200), Stopping(rule), stages=False, concurrency=at_a_time)
        records = measure(made, served.open("served", clock), clock, Gate([], clock), planned)
        for record in records:
            kept.append(record)
            if len(kept) == 8:
                break
        server.die()
        with pytest.raises(ServerError, match="next: start the server"):
            kept += records
    assert not any(isinstance(one, Failure | Footer) for one in kept)
    indices = [one.index for one in kept if isinstance(one, Sample) and one.phase == "timed"]
    assert indices == list(range(len(indices)))


def test_load_is_a_series_of_its_own() -> None:
    with hostile.serve() as server, model(server) as made:
        records = run(made, 5, 5, load=(1, 4))
    loaded = [one for one in records if isinstance(one, Loaded)]
    assert [(one.concurrency, len(one.ttft_ns), len(one.total_ns)) for one in loaded] == [(1, 8, 8), (4, 16, 16)]
    # The server may still count a request whose answer is out when the next one is in: up to one for each of the four.
    assert 4 <= server.most_at_once <= 8
    assert isinstance(records[-1], Footer)
    assert records[-1].samples == 5


def test_examples_are_read_as_they_are_needed() -> None:
    """A suite's pictures must not all be in memory because eight are asked about."""
    taken: list[int] = []

    def source() -> Iterator[Example]:
        for one in examples(100):
            taken.append(one.index)
            yield one

    results = concurrency.in_order(lambda one: one.index, source(), 4)
    assert next(results)[1] == 0
    assert len(taken) <= 8
    results.close()  # type: ignore[attr-defined]
