"""What is said while it goes on: a counter that ends at its total, time left, a sign of life; names are completed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_logs
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from harness import cli, console
from harness.measure.executor import Ended
from harness.reports import result
from harness.runlog import log
from harness.runlog.records import Failure, Sample

AT = "2026-11-25T12:00:00+00:00"


def sample(example: str, phase: str = "timed", attempt: int = 0, valid: bool = True) -> Sample:
    return Sample(example=example, index=0, attempt=attempt, phase=phase, at=AT, clock="fake", valid=valid)


def failure(example: str) -> Failure:
    return Failure(example=example, index=0, stage="decode", error="ExampleError", message="x", traceback="", at=AT)


def test_the_counter_ends_at_its_total_whatever_was_refused_or_failed() -> None:
    now = iter(range(0, 1000, 3))
    count = console.Counted(4, lambda: float(next(now)))
    count.add(sample("warm", phase="warmup"))
    count.add(sample("a", valid=False))
    count.add(sample("a", attempt=1))
    assert "1/4, about 9 s left" in count.text
    for record in (sample("b"), failure("c"), sample("d")):
        count.add(record)
    assert count.text.endswith("4/4")


def test_what_an_earlier_process_measured_is_counted_and_says_nothing_of_the_pace() -> None:
    now = iter(range(0, 1000, 3))
    count = console.Counted(4, lambda: float(next(now)), frozenset({"a", "b"}))
    count.add(sample("c"))
    assert "3/4, about 3 s left" in count.text


def test_cells_that_were_measured_already_say_nothing_of_a_sweeps_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now_s[0])

    def cells() -> Iterator[Ended]:
        for number, (took_s, already) in enumerate([(1, True), (1, True), (50, False), (50, False)]):
            now_s[0] += took_s
            yield Ended(f"cell {number}", None, 0, "measured", already=already)

    console.Progress().follow_all(cells(), 5)
    left = [line.partition("about ")[2] for line in capsys.readouterr().err.splitlines()]
    assert left == ["", "", "100 s left", "50 s left"]


def test_long_times_are_said_in_minutes_and_hours() -> None:
    assert [console._duration(seconds) for seconds in (5, 119, 600, 9000)] == ["5 s", "119 s", "10 min", "2.5 h"]


def test_a_ticker_tells_until_it_is_stopped_and_no_longer() -> None:
    told, twice = [], threading.Event()

    def tell(seconds: float) -> None:
        told.append(seconds)
        if len(told) == 2:
            twice.set()

    ticker = console.Ticker(tell, every_s=0.001)
    assert twice.wait(10)
    ticker.stop()
    assert not ticker._thread.is_alive()
    assert told == sorted(told)


def test_a_line_ends_the_waiting_before_anything_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress() as progress:
        progress._hear("building a model (random weights)")
        ticker = progress._ticker
        assert ticker
        progress._hear("warming up")
        assert progress._ticker is None
        assert not ticker._thread.is_alive()
    assert "building a model" in capsys.readouterr().err


def test_what_ends_at_once_says_nothing_of_waiting_where_no_terminal_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now_s)
    progress = console.Progress()
    now_s = 101.0
    progress._update("[    1 s] looking")
    assert capsys.readouterr().err == ""
    now_s = 112.0
    progress._update("[   12 s] looking")
    assert capsys.readouterr().err == "[   12 s] looking\n"


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["run", "--model"], "fastvlm-n", ["fastvlm-nano"]),
        (["run", "--suite"], "docv", ["docvqa"]),
        (["sweep", "--model"], "fastvlm-nano,llava-onevision-0", ["fastvlm-nano,llava-onevision-0.5b"]),
        (["report"], "fastvlm-table6", ["fastvlm-table6"]),
        (["models"], "fastvlm-n", ["fastvlm-nano"]),
        (["track", "--model"], "fastvlm-n", ["fastvlm-nano"]),
    ],
)
def test_names_of_cards_are_completed(words: list[str], begun: str, expected: list[str]) -> None:
    asked = ShellComplete(cli.program, {}, "harness", "_HARNESS_COMPLETE")
    assert [item.value for item in asked.get_completions(words, begun)] == expected


def test_the_list_is_compact_and_says_how_to_get_all() -> None:
    short, long = (CliRunner().invoke(cli.program, ["list", "suites", *more]).output for more in ([], ["--long"]))
    assert "docvqa" in short
    assert "docvqa" in long
    assert "title" not in short.split("\n")[1]
    assert "title" in long.split("\n")[1]
    assert "--long" in short
    assert "--long" not in long


def test_no_number_of_a_compact_table_is_broken_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"preprocess": 4.0, "encode": 12_345.0, "prefill": 50.5}
    for model in ("llava-onevision-0.5b", "pair-siglip-so400m-384-qwen2-0.5b"):
        synthetic_logs.write(
            tmp_path / f"{model}.jsonl", model=model, times_ms=times, weights="random", data="embedded"
        )
    results, _ = result.of(list(log.find(tmp_path)))
    ttft = [one.as_line()["TTFT ms"] for one in results]
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        told = console.compact(results)
        assert max(map(len, told.splitlines()[:6])) <= columns
        assert all(any(number in line for line in told.splitlines()) for number in ttft)
