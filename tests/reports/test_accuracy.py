"""What stands beside a score: how many questions it is over, what failed, what was cut off; and whose card scored."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic_logs

from harness.errors import CardError
from harness.reports import accuracy, frame, measured, wording
from harness.reports.accuracy import Accuracy
from harness.runlog.records import Pass, Sample
from harness.suites.card import load_suite_card, logged_suite_card


def answered(asked_tokens: int | None, made: int) -> Sample:
    """Return a sample whose answer has so many tokens of those it was allowed."""
    facts: dict[str, Any] = {"example": "1", "index": 0, "attempt": 1, "phase": "timed", "at": "", "clock": "x"}
    return Sample(**facts, whole=Pass(output_tokens=made), answer="x", asked_tokens=asked_tokens)


LATER = "2026-11-24T12:00:00.000+00:00"


def test_answers_that_used_up_their_tokens_are_counted() -> None:
    samples = [answered(8, 7), answered(8, 8), answered(None, 8)]
    assert accuracy._counted(samples, [], []) == {"asked": 3, "failed": 0, "cut": 1}


@pytest.mark.parametrize(
    ("made", "finish", "cut"),
    [(8, "stop", 0), (0, "length", 1), (8, "length", 1), (8, "", 1), (0, "", 0)],
)
def test_a_server_says_whether_an_answer_was_cut(made: int, finish: str, cut: int) -> None:
    """It may count no tokens; and the token that ends an answer may be the last one that was allowed."""
    timed = answered(8, made)
    timed = msgspec.structs.replace(timed, whole=Pass(output_tokens=made, server={"finish": finish}))
    untimed = msgspec.structs.replace(timed, whole=None, answer_tokens=made or None, finish=finish)
    assert accuracy._counted([timed], [], [])["cut"] == cut
    assert accuracy._counted([untimed], [], [])["cut"] == cut


def test_what_is_missing_and_what_was_cut_stands_beside_the_value() -> None:
    found = Accuracy("ANLS", 0.5, n=6, asked=10, failed=3, cut=2, also={"F1": 0.25}, notes=("a note",))
    assert found.remarks == (
        "F1 0.250",
        "3 of 10 failed and are left out",
        "1 of 10 not scored",
        "2 answers were cut off at the most tokens allowed",
        "a note",
    )
    assert Accuracy("ANLS", 0.5, n=10, asked=10).remarks == ()


def test_the_card_that_the_log_carries_scores_and_not_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "chartqa.toml"
    file.write_text('title = "T"\ntask = "chartqa"\nmetric = "relaxed_human_split"\n')
    card = load_suite_card(str(file))
    content = card.as_dict()
    file.unlink()
    assert logged_suite_card(content, "chartqa") == card
    assert logged_suite_card({}, "chartqa") == load_suite_card("chartqa")
    with pytest.raises(CardError, match=r"the log's suite card chartqa: .*next: measure again"):
        logged_suite_card({"task": 3}, "chartqa")


def test_the_latest_run_answers_and_what_differs_is_said(tmp_path: Path) -> None:
    """Read first or not: the run that was begun last counts, as far as it came."""
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: nothing can be scored")
    doc = {"questionId": 1, "question": "?", "answers": ["yes"]}
    common: dict[str, Any] = {"suite": "docvqa", "doc": doc}
    synthetic_logs.write(tmp_path / "a.jsonl", n=20, answers=["no"], commit="aaa", **common)
    synthetic_logs.write(tmp_path / "b.jsonl", n=15, answers=["yes"], commit="bbb", started_at=LATER, **common)
    data = frame.load(tmp_path)
    (found,) = accuracy.of(data, remember=False).values()
    assert (found.value, found.n) == (0.75, 20)
    assert found.remarks == (
        "15 of 15 questions got different answers from its runs: the latest counts",
        "5 of 20 answers are of earlier runs, under other conditions",
    )
    synthetic_logs.write(tmp_path / "b.jsonl", n=15, answers=["no"], started_at=LATER, commit="aaa", **common)
    (found,) = accuracy.of(frame.load(tmp_path), remember=False).values()
    assert (found.value, found.remarks) == (0.0, ())


def test_two_suites_that_the_same_pages_stand_in_for_keep_their_own_accuracy(tmp_path: Path) -> None:
    """They were keyed by a name that both had: each row showed the accuracy of the last."""
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: nothing can be scored")
    doc = {"questionId": 1, "question": "?", "answers": ["yes"]}
    for asked, answer in (("docvqa", "yes"), ("infovqa", "no")):
        cell = {"asked_suite": asked}
        synthetic_logs.write(
            tmp_path / f"{asked}.jsonl", suite="docvqa", doc=doc, answers=[answer], of_cell=cell, commit=asked
        )
    data = frame.load(tmp_path)
    cells = measured.gather(data, accuracy.of(data, remember=False)).cells
    assert {one.cell.asked_suite: one.accuracy.value for one in cells} == {"docvqa": 1.0, "infovqa": 0.0}


def test_rows_that_are_rotations_of_one_question_are_not_called_questions(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", suite="docvqa")
    (cell,) = frame.load(tmp_path).cells
    found = Accuracy("accuracy", 0.5, n=8, asked=12, failed=4, questions=2)
    (one,) = measured.gather(frame.load(tmp_path), {cell.configuration: found}).cells
    ((_, note),) = wording.remarks([(one, found)])
    assert note == "over 2 questions, which are 8 of 12 rows; 4 of 12 failed and are left out."
    assert (
        wording.accuracy(one).hover == "accuracy over 2 questions (8 rows) of docvqa; 4 of 12 failed and are left out"
    )
    assert found.estimate.n == 2
    assert Accuracy("accuracy", 0.5, n=8).over == "8 questions"
