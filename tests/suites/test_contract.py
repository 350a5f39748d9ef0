"""What a row must have: references in every shape that the published data have, everything else by row and column."""

import json
from typing import Any

import pytest

from harness.suites import contract
from harness.suites.contract import RowProblem, Unlabelled

VQA = [{"answer": "M6", "answer_confidence": "yes"}] * 10
OPTIONS = {"choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4"}


def read(task: str, **row: Any) -> Any:
    """Return a row's references as its task's scorer takes them."""
    mine = contract.of(task)
    full = {"question": "What?", **row}
    assert mine.references
    return mine.labelled(mine.asked(full))[mine.references]


@pytest.mark.parametrize(
    "given",
    [["M6", "m-6"], ("M6", "m-6"), '["M6", "m-6"]', "['M6', 'm-6']", ["M6", None, "m-6"]],
    ids=["list", "tuple", "JSON text", "Python text", "with a null"],
)
def test_references_of_documents_are_a_list_whatever_they_come_in(given: Any) -> None:
    assert read("docvqa_val", answers=given) == ["M6", "m-6"]


@pytest.mark.parametrize(
    ("given", "wanted"), [("M6", ["M6"]), ('"M6"', ["M6"]), (7, ["7"]), ([7.0], ["7"]), ("[3]", ["[3]"])]
)
def test_one_reference_is_a_list_of_one(given: Any, wanted: list[str]) -> None:
    assert read("infovqa_val", answers=given) == wanted


@pytest.mark.parametrize("given", [None, [], "", " ", "[]", [None], [""], '[""]', "[null]"])
@pytest.mark.parametrize("task", ["docvqa_val", "textvqa_val", "vqav2_val"])
def test_no_references_are_said_to_be_none(task: str, given: Any) -> None:
    with pytest.raises(Unlabelled, match="column answers: no references"):
        read(task, answers=given)
    with pytest.raises(Unlabelled, match=r"column answers: is not there \(there is a column answer,"):
        read(task, answer=["M6"])


def test_few_references_count_as_ten_would() -> None:
    assert read("textvqa_val", answers=["Juneau"]) == ["Juneau"] * 10
    assert read("textvqa_val", answers=["a", "a", "b"]) == ["a", "a", "b"] * 4
    assert read("textvqa_val", answers=VQA) == ["M6"] * 10
    assert contract.of("textvqa_val").votes({"answers": ["Juneau"]}) == 1
    assert contract.of("textvqa_val").votes({"answers": VQA}) == 10
    assert contract.of("docvqa_val").votes({"answers": ["Juneau"]}) == 0


@pytest.mark.parametrize("count", range(4, 11))
def test_enough_references_are_left_to_the_scorer_as_they_are(count: int) -> None:
    given = [*"abcdefghij"][:count]
    assert read("textvqa_val", answers=given) == given
    assert [one["answer"] for one in read("vqav2_val", answers=given)] == given
    assert len({one["answer_id"] for one in read("vqav2_val", answers=given)}) == count


@pytest.mark.parametrize("task", ["textvqa_val", "vqav2_val"])
def test_references_that_an_older_builder_repeated_are_as_they_were(task: str) -> None:
    """Its logs have nine references as eighteen, and three as twelve."""
    nine, three = [*"abcdefghi"], [*"aab"]
    assert len(read(task, answers=nine * 2)) == 9
    assert read(task, answers=three * 4) == read(task, answers=three)
    assert len(read(task, answers=[*"abcdefghijkl"])) == 12, "and what nobody repeated is left alone"


def test_a_null_hint_is_no_hint() -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "hint": None}
    assert contract.of("scienceqa_img").asked(row)["hint"] == ""
    assert contract.of("scienceqa_img").asked({**row, "hint": "Look."})["hint"] == "Look."


@pytest.mark.parametrize(
    "given",
    [VQA, json.dumps(VQA), ["M6"] * 10, {"answer": ["M6"] * 10, "answer_confidence": ["yes"] * 10}, ["M6"], "M6"],
    ids=["structs", "JSON text", "texts", "struct of lists", "one text in a list", "one text"],
)
def test_equal_answers_of_ten_people_are_ten(given: Any) -> None:
    made = read("vqav2_val", answers=given)
    assert [one["answer"] for one in made] == ["M6"] * 10
    assert len({one["answer_id"] for one in made}) == 10


def test_references_of_vqav2_that_are_whole_are_left_alone() -> None:
    whole = [{**one, "answer_id": 5 + at} for at, one in enumerate(VQA)]
    assert read("vqav2_val", answers=whole) == whole


@pytest.mark.parametrize(
    ("task", "row", "wanted"),
    [
        ("chartqa", {"type": "human_test", "answer": ["3"]}, "3"),
        ("chartqa", {"type": "human_test", "answer": 3}, "3"),
        ("chartqa", {"type": "human_test", "answer": "[Yes, No]"}, "[Yes, No]"),
        ("gqa", {"answer": '["yes"]'}, "yes"),
        ("ai2d", {"options": ["a", "b"], "answer": "1"}, "1"),
        ("ai2d", {"options": '["a", "b"]', "answer": 1.0}, "1"),
        ("scienceqa_img", {"choices": ["a", "b"], "answer": "1"}, 1),
        ("seedbench", {**OPTIONS, "data_type": "image", "answer": "b"}, "B"),
        ("mmbench_en_dev_static", {"index": 1, "A": "x", "B": "y", "C": None, "answer": "a"}, "A"),
        ("mmmu_val", {"question_type": "multiple-choice", "options": "['1', '2']", "answer": "B"}, "B"),
        ("mmmu_val", {"question_type": "open", "options": "[]", "answer": "2.5"}, "2.5"),
        ("ocrbench", {"question_type": "Doc-oriented VQA", "dataset": "x", "answer": "10"}, ["10"]),
    ],
)
def test_a_reference_has_the_form_its_scorer_takes(task: str, row: dict[str, Any], wanted: Any) -> None:
    assert read(task, **row) == wanted


@pytest.mark.parametrize(
    ("task", "row", "told"),
    [
        ("docvqa_val", {"answers": ["x"], "question": None}, "column question: is null"),
        ("docvqa_val", {"answers": ["x"], "question": " "}, "column question: is empty"),
        ("docvqa_val", {"answers": "['a' 'b']"}, "column answers: .* looks like a list and cannot be read"),
        ("docvqa_val", {"answers": [{"text": "x"}]}, "column answers: .* is no text"),
        ("chartqa", {"type": "human_test", "answer": ["3", "4"]}, "2 references where the task takes one"),
        ("chartqa", {"answer": "3"}, "column type: is not there"),
        ("ai2d", {"options": ["a", "b"], "answer": "C"}, "'C' is no index of the options"),
        ("ai2d", {"options": ["a", "b"], "answer": "7"}, "index 7 is out of range: there are 2"),
        ("ai2d", {"options": ["a", "b"], "answer": "-2"}, "index -2 is out of range"),
        ("ai2d", {"options": ["a", None], "answer": "0"}, "column options: an option is null"),
        ("scienceqa_img", {"choices": ["a", "b"], "answer": 5}, "index 5 is out of range"),
        ("scienceqa_img", {"choices": None, "answer": 0}, "column choices: is null"),
        ("pope", {"answer": "maybe"}, "'maybe' is neither yes nor no"),
        ("pope", {"answer": True}, "column answer: True is no text"),
        ("seedbench", {**OPTIONS, "data_type": "image", "answer": "E"}, "'E' is none of the options A, B, C, D"),
        ("seedbench", {**OPTIONS, "choice_c": None, "data_type": "image", "answer": "A"}, "column choice_c: is null"),
        (
            "mmbench_en_dev_static",
            {"index": 1, "A": "x", "B": "y", "C": None, "answer": "C"},
            "none of the options A, B",
        ),
        ("mmmu_val", {"question_type": "multiple-choice", "options": "['3', '4'", "answer": "B"}, "column options: "),
        ("mmmu_val", {"question_type": "multiple-choice", "options": "['3' '4']", "answer": "A"}, "column options: "),
        ("mmmu_val", {"question_type": "Multiple", "options": "['3', '4']", "answer": "B"}, "column question_type: "),
        ("ocrbench", {"question_type": "Text Recognition", "dataset": "x", "answer": ["1"]}, "none of OCRBench's 10"),
    ],
)
def test_what_the_scorer_would_get_wrong_is_refused_by_its_column(task: str, row: dict[str, Any], told: str) -> None:
    with pytest.raises(RowProblem, match=told) as caught:
        read(task, **row)
    assert not isinstance(caught.value, Unlabelled)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("ai2d", {"options": ["a"], "answer": "-1"}),
        ("mmmu_val", {"question_type": "open", "answer": "?"}),
        ("scienceqa_img", {"choices": ["a"], "answer": -1}),
    ],
)
def test_what_data_sets_write_for_a_withheld_answer_is_no_reference(task: str, row: dict[str, Any]) -> None:
    with pytest.raises(Unlabelled):
        read(task, **row)


def test_a_task_that_is_not_known_here_has_its_own_column_of_references() -> None:
    mine = contract.of("mme", "answer")
    assert mine.labelled({"answer": "Yes"}) == {"answer": "Yes"}
    with pytest.raises(Unlabelled):
        mine.labelled({"answer": None})
    with pytest.raises(RowProblem, match="column question: is null"):
        mine.asked({"question": None})
