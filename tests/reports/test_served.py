"""A served model's time per token, against answers in virtual time; and what is doubted of how they came."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
import synthetic_logs

from harness.clock import Scripted
from harness.machine.devices import fake
from harness.measure.passes import Bench, time_whole
from harness.models.protocol import Event, Piece, Request, Seen, Thought, Told, Work
from harness.reports import frame, result, served, summary
from harness.runlog.records import Pass

PACE_MS = 20
REQUEST = Request((b"",), "?")


class Paced:
    """A server that makes a token every 20 ms after 100 ms, and sends after these tokens: (number, event)."""

    def __init__(
        self, clock: Scripted, sent: list[tuple[int, Event]], counted: int | None, finish: str = "stop"
    ) -> None:
        self._clock, self._sent, self._counted, self._finish = clock, sent, counted, finish

    def answer(self, request: Request, /) -> Iterator[Event]:
        self._clock.advance(80_000_000)
        made = 0
        for number, event in self._sent:
            self._clock.advance((number - made) * PACE_MS * 1_000_000)
            made = number
            yield event
        self._clock.advance(PACE_MS * 1_000_000)
        yield Told(self._counted, lambda: {"finish": self._finish, "prompt_tokens": 100})

    def describe(self) -> Mapping[str, str]:
        return {}

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        return {}

    def close(self) -> None: ...


def answered(sent: list[tuple[int, Event]], counted: int | None, finish: str = "stop") -> Pass:
    clock = Scripted()
    fake.reset(clock)
    try:
        return time_whole(Paced(clock, sent, counted, finish), REQUEST, Bench(fake.Fake("fake"), clock))[0]
    finally:
        fake.reset()


def texts(*numbers: int) -> list[tuple[int, Event]]:
    """Return a chunk of text after each of these tokens."""
    return [(number, Piece("x")) for number in numbers]


def thoughts(*numbers: int) -> list[tuple[int, Event]]:
    return [(number, Thought("x")) for number in numbers]


EVERY = range(1, 31)
REASONING = [*thoughts(*range(2, 202)), *texts(*range(203, 213))]
"""A mark, 200 tokens of reasoning, a mark, 10 of an answer; and an end token."""


@pytest.mark.parametrize(
    ("sent", "counted", "finish"),
    [
        (texts(1, 2), 3, "stop"),
        (texts(1, 2), 2, "length"),
        (texts(*EVERY), 31, "stop"),
        (texts(*EVERY), 30, "stop"),  # this server counts no end token
        (REASONING, 213, "stop"),
        (texts(*[16] * 16, *[30] * 14), 31, "stop"),  # held back on the way, sixteen at a time
    ],
)
def test_the_time_per_token_is_the_planted_one(sent: list[tuple[int, Event]], counted: int, finish: str) -> None:
    """Not too small for the end token, nor for reasoning that came before the answer's text."""
    one = answered(sent, counted, finish)
    found = served.pace(one, served.ends_counted([one]))
    assert found.ns == pytest.approx(PACE_MS * 1e6, rel=0.015)


@pytest.mark.parametrize(
    ("sent", "counted", "finish", "why"),
    [
        (texts(*EVERY), None, "stop", "the server counts no tokens"),
        (texts(30), 31, "stop", "one chunk holds all"),
        (texts(1), 2, "stop", "one chunk holds all"),
        (texts(5, 10, 15, 20, 25, 30), 31, "stop", "a chunk holds several tokens"),
        (texts(1, 3), 3, "length", "a chunk holds several tokens"),
        (texts(*[30] * 30), 31, "stop", "one burst"),
        (texts(3, 3, 3), 4, "stop", "one burst"),
        (texts(*EVERY), 20, "length", "more chunks came"),
        ([*texts(1, 2), *thoughts(3, 4)], 5, "stop", "reasoning came after"),
    ],
)
def test_there_is_none_where_the_interval_has_no_known_number_of_tokens(
    sent: list[tuple[int, Event]], counted: int | None, finish: str, why: str
) -> None:
    found = served.pace(answered(sent, counted, finish))
    assert found.ns is None
    assert why in found.reason


def test_whether_end_tokens_are_counted_is_told_by_all_answers_together() -> None:
    """Two chunks of three tokens: with an end token one step lies between them, without one perhaps two."""
    short, plain = answered(texts(1, 3), 3), answered(texts(*EVERY), 30)
    assert served.ends_counted([short])
    assert not served.ends_counted([short, plain])
    assert served.pace(short, ends_counted=False).ns is None


def test_older_logs_know_the_first_time_of_reasoning_alone() -> None:
    older = msgspec.structs.replace(answered(REASONING, 213), thoughts_ns=())
    assert "older" in served.pace(older).reason


def log(folder: Path, passes: list[Pass]) -> Path:
    """Write a served cell's log with these answers."""
    path = synthetic_logs.write(folder / "a.jsonl", n=len(passes), endpoint="http://localhost:1/v1", engine="openai")
    header, *lines = path.read_bytes().splitlines()
    left = iter(passes)
    changed = []
    for line in lines:
        told = msgspec.json.decode(line)
        if told["kind"] == "sample":
            del told["stages"]
            told |= {
                "counts": True,
                "whole": msgspec.to_builtins(next(left) if told["phase"] == "timed" else passes[0]),
            }
        changed.append(msgspec.json.encode(told))
    path.write_bytes(b"\n".join([header, *changed]) + b"\n")
    return path


def test_a_report_says_which_answers_have_no_time_per_token(tmp_path: Path) -> None:
    path = log(tmp_path, [answered(texts(*EVERY), 31)] * 8 + [answered(texts(1), 2)] * 2)
    ((one,), _) = result.of([path])
    assert one.as_dict()["also"]["decode"] == (  # type: ignore[index]
        "20.0 ms per token (the server's count of tokens; none for 2 of 10 answers: one chunk holds all of the answer)"
    )
    path = log(tmp_path, [answered(texts(*EVERY), None)] * 8)
    ((one,), _) = result.of([path])
    assert one.cell.times.of("tpot") is None
    assert one.as_dict()["also"]["decode"] == (  # type: ignore[index]
        "no time per token for 8 of 8 answers: the server counts no tokens"
    )


def of(folder: Path, passes: list[Pass]) -> str:
    (one,) = summary.summaries(frame.load(log(folder, passes)))
    return "; ".join(one.doubts)


def test_reasoning_that_ttft_waits_for_is_a_doubt_and_no_burst(tmp_path: Path) -> None:
    found = of(tmp_path, [answered(REASONING, 213)] * 8)
    assert "TTFT waits for 4020 ms of reasoning (median of 8 of 8 answers)" in found
    assert "a chunk holds" not in found
    assert "burst" not in found


def test_an_end_token_is_in_no_chunk(tmp_path: Path) -> None:
    """Answers of one word are two tokens: no server held two tokens back for them."""
    assert "a chunk holds" not in of(tmp_path, [answered(texts(1), 2)] * 8)
    assert "a chunk holds 5.0 tokens" in of(tmp_path, [answered(texts(5, 10, 15, 20, 25, 30), 31)] * 8)


def test_chunks_that_come_together_are_a_doubt_of_ttft(tmp_path: Path) -> None:
    assert "the first 16 chunks come together" in of(tmp_path, [answered(texts(*[16] * 16, *[30] * 14), 31)] * 8)
    assert "come together" not in of(tmp_path, [answered(texts(*EVERY), 31)] * 8)
