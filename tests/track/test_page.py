"""The history's picture: a line stands where side-by-side nights say, and is grey where the machine changed."""

import random
from pathlib import Path
from typing import Any

import pytest
import synthetic_logs
from invented_nights import judge, night

from harness.reports import style
from harness.track import compare, nights, outputs, page
from harness.track.nights import Reading, Series

SERIES = Series("box", "cpu", "torch", "float32", 1024, "fastvlm-0.5b", "pages", "ttft")


def lines(*readings: Reading) -> list[tuple[int, str]]:
    made = judge(*readings)
    return page._lines(made.verdict(), made)


def noisy(number: int, ms: float, **more: Any) -> Reading:
    """A night as nights are: a series without any noise has no scale to see a change on."""
    return night(str(number), ms * random.Random(number).lognormvariate(0, 0.005), **more)


def test_a_change_stands_before_the_first_triangle() -> None:
    readings = [noisy(n, 156) for n in range(1, 10)]
    # Night 10 is slower side by side, but by chance no slower than the nights before it: history sees it at 11.
    readings += [noisy(10, 157, encode=1.5)] + [noisy(n, 200, encode=1.5) for n in range(11, 17)]
    assert lines(*readings) == [(10, style.COLOURS[1])]


def test_a_machine_that_became_slower_is_grey() -> None:
    readings = [noisy(n, 156) for n in range(1, 12)] + [noisy(n, 200) for n in range(12, 18)]
    assert lines(*readings) == [(12, style.QUIET)]


def test_history_alone_keeps_its_own_place_and_colour() -> None:
    readings = [noisy(n, 156, rounds=0) for n in range(1, 12)] + [noisy(n, 200, rounds=0) for n in range(12, 18)]
    assert lines(*readings) == [(12, style.COLOURS[1])]


def test_the_description_says_what_is_drawn() -> None:
    made = judge(*[night(str(n)) for n in range(1, 10)], night("10", ms=200, encode=1.5))
    drawn = page.picture(made.verdict(), made, SERIES, page.table(made, SERIES))
    assert "156 ms to 200 ms" in drawn.alt
    assert drawn.alt.endswith("Slower than the baseline: 10.")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    for name in ("a", "b"):
        synthetic_logs.write(
            folder / f"{name}.jsonl", weights="random", data="embedded", seed=ord(name), residual_ms=40
        )
    return folder


def test_every_output_carries_marks_and_doubts(marked: Path) -> None:
    verdict = compare.of_logs(marked / "a.jsonl", marked / "b.jsonl", 0.03)
    assert {"random", "embedded"} <= set(verdict.signs.marks)
    assert len([doubt for doubt in verdict.signs.doubts if "do not add up to TTFT" in doubt]) == 2
    text = outputs.text(verdict)
    assert "†‡" in text.splitlines()[0]
    assert "do not add up to TTFT" in text
    assert "do not add up to TTFT" in outputs.summary_text(verdict, "x")
    assert "† random weights" in outputs.summary_text(verdict, "x")
    assert any("do not add up to TTFT" in line for line in outputs.annotations(verdict))
    assert "† random weights" in outputs.annotations(verdict)[0]
    junit = outputs.junit(verdict, "x")
    assert 'value="random embedded"' in junit
    assert "do not add up to TTFT" in junit
    assert verdict.as_dict()["marks"][:2] == ["random", "embedded"]
    made = judge(nights.reading("1", verdict_frame(marked), None))
    assert page.table(made, SERIES).marks == {"random", "embedded"}


def verdict_frame(marked: Path) -> nights.Frame:
    return compare._load(marked / "b.jsonl")
