"""How things look in a terminal: what is said of several things at once is each one's own."""

from dataclasses import asdict, replace

import pytest

from harness import console
from harness.measure.asked import Asked
from harness.models.counts import Row


def test_each_counted_card_is_shown_with_its_own_text_tokens() -> None:
    one = Row("a", "A", "fastvlm", 1024, (1024, 1024), 1, 256, 22, {"llm": 500_000_000}, bf16_bytes=10**9)
    other = Row("b", "B", "llava", 336, (336, 336), 1, 576, 61, {"llm": 7_000_000_000}, bf16_bytes=14 * 10**9)
    lines = console.architectures([asdict(one), asdict(other)]).splitlines()
    head = next(line for line in lines if "model" in line).split()
    shown = {words[0]: words for line in lines if (words := line.split()) and words[0] in ("a", "b")}
    assert [shown[name][head.index("text")] for name in ("a", "b")] == ["22", "61"]


def test_cells_of_a_plan_that_differ_in_a_setting_do_not_look_alike() -> None:
    plain = Asked(model="fake", device="fake", suite="pages")
    told = console.plan([plain, replace(plain, settings={"encode_ms": 5.0}), replace(plain, res=512)])
    assert told.count("encode_ms=5.0") == 1
    assert "encode_ms" not in console.plan([plain, replace(plain, res=512)])


def test_a_plan_fits_80_columns_and_says_once_what_all_cells_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plain = Asked(model="fastvlm-nano", device="fake", suite="pages", limit=24)
    told = console.plan([replace(plain, res=256), replace(plain, res=512)])
    assert [line.split()[:2] for line in told.splitlines() if "fastvlm-nano" in line] == [
        ["fastvlm-nano", "256"],
        ["fastvlm-nano", "512"],
    ]
    assert "2 cells, suite pages, device fake, protocol ttft; loading" in told
    both = console.plan([plain, replace(plain, protocol="paper")])
    assert "protocol" in both.splitlines()[1]
    assert "protocol ttft" not in both


def test_a_plan_says_what_its_time_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = console.plan([Asked(model="fastvlm-nano", device="fake", suite="pages", res=256, limit=24)]).splitlines()
    head, row = (next(line for line in told if word in line) for word in ("timing", "fastvlm-nano"))
    assert row[head.index("answers") :].split()[0] == "24"
    assert "answering, untimed, what else is scored" in told[-1]
