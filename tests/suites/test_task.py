"""Each suite's lmms-eval task, on made-up rows in the columns of its data set: question, images, references, score."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from harness import cards
from harness.errors import DataError, MissingPackage, UnknownName
from harness.images import png
from harness.suites import contract, definitions, score
from harness.suites import task as tasks
from harness.suites.card import load_suite_card
from harness.suites.contract import RowProblem
from harness.suites.pictures import Encoded

BLANK = {"A": "nan", "B": "nan", "C": "nan", "D": "nan", "E": "nan"}


class Case(NamedTuple):
    """Rows of one task; answers with their scores by the suite's quoted metric; the question's end; the images."""

    rows: list[dict[str, Any]]
    answers: list[tuple[str, float | None]]
    """One answer per row, and what it must score."""
    suffix: str
    images: list[str]
    """Image columns; one ending in `[]` holds a list."""
    references: tuple[str, ...]
    """Of the first row."""


WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def _docvqa(answers: list[str], question: str = "What is the total?") -> dict[str, Any]:
    return {
        "questionId": "7",
        "question": question,
        "question_types": ["form"],
        "docId": 1,
        "ucsf_document_id": "x",
        "ucsf_document_page_no": "1",
        "answers": answers,
        "data_split": "val",
    }


def _seed(kind: str, answer: str) -> dict[str, Any]:
    choices = {f"choice_{letter}": f"thing {letter}" for letter in "abcd"}
    return {"question": "What is it?", **choices, "answer": answer, "data_type": kind, "question_id": "1_0"}


def _mmbench(index: int, answer: str) -> dict[str, Any]:
    options = {**BLANK, "A": "a cat", "B": "a dog", "C": "a cow"}
    facts = {"category": "object", "L2-category": "perception", "source": "x", "split": "dev", "hint": "nan"}
    return {"index": index, "question": "What is shown?", "answer": answer, **options, **facts}


def _mmmu(number: int, kind: str, answer: str, options: str) -> dict[str, Any]:
    row: dict[str, Any] = {f"image_{at}": None for at in range(3, 8)}
    facts = {"id": f"validation_Math_{number}", "question_type": kind, "options": options, "answer": answer}
    return {**row, **facts, "question": "Compare <image 1> with <image 2>."}


VQA = [{"answer": word, "answer_confidence": "yes", "answer_id": at} for at, word in enumerate(["two"] * 2 + ["3"] * 8)]

CASES = {
    "docvqa": Case(
        [_docvqa(["$318.50", "318.50"]), _docvqa(["Leeds"]), _docvqa(["Leeds"])],
        [("$318.5", 6 / 7), ("LEEDS ", 1.0), ("Paris", 0.0)],
        WORD,
        ["image"],
        ("$318.50", "318.50"),
    ),
    "infovqa": Case([_docvqa(["1978"])] * 2, [("1978", 1.0), ("1", 0.0)], WORD, ["image"], ("1978",)),
    "pages": Case([_docvqa(["1978"])] * 2, [("1978", 1.0), ("1", 0.0)], WORD, ["image"], ("1978",)),
    "textvqa": Case(
        [{"question": "WHAT brand?", "question_id": 1, "answers": ["pepsi"] * 2 + ["coke"] * 8, "ocr_tokens": []}] * 3,
        [("Pepsi.", 0.6), ("coke", 1.0), ("tea", 0.0)],
        WORD,
        ["image"],
        ("pepsi", "coke"),
    ),
    "chartqa": Case(
        [{"type": kind, "question": "How much?", "answer": "10"} for kind in ("human_test", "augmented_test")],
        [("10.4", 1.0), ("11", 0.0)],
        "Answer the question with a single word.",
        ["image"],
        ("10",),
    ),
    "ocrbench": Case(
        [{"dataset": "x", "question": " What? ", "question_type": "Doc-oriented VQA", "answer": ["10", "ten"]}] * 3,
        [("It is TEN", 1.0), ("10442", 1.0), ("11", 0.0)],
        "What?",
        ["image"],
        ("10", "ten"),
    ),
    "gqa": Case(
        [{"id": "1", "imageId": "n1", "question": "Is it red?", "answer": "yes"}] * 2,
        [("Yes.", 1.0), ("no", 0.0)],
        WORD,
        ["image"],
        ("yes",),
    ),
    "scienceqa": Case(
        [{"question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": "Look.", "lecture": ""}] * 3,
        [("b", 1.0), ("B. dog", 1.0), ("dog", 0.0)],
        LETTER,
        ["image"],
        ("B",),
    ),
    "pope": Case(
        [{"id": "1", "question_id": "1", "question": "Is there a cat?", "answer": "yes", "category": "random"}] * 2,
        [("Yes", 1.0), ("Yes.", 0.0)],
        WORD,
        ["image"],
        ("yes",),
    ),
    "vqav2": Case(
        [{"question": "How many?", "question_id": 1, "multiple_choice_answer": "3", "answers": VQA}] * 3,
        [("2", 0.6), ("3", 1.0), ("no", 0.0)],
        WORD,
        ["image"],
        ("two", "3"),
    ),
    "mmmu": Case(
        [
            _mmmu(1, "multiple-choice", "B", "['1', '2']"),
            _mmmu(2, "open", "2.5", "[]"),
            _mmmu(3, "multiple-choice", "B", "['1', '2']"),
        ],
        [("(B)", 1.0), ("It is 2.50", 1.0), ("A", 0.0)],
        LETTER,
        ["image_1", "image_2"],
        ("B",),
    ),
    "seedbench": Case(
        [_seed("image", "A"), _seed("image", "A"), _seed("video", "A")],
        [("A. thing", 1.0), ("b", 0.0), ("A", None)],
        LETTER,
        ["image[]"],
        ("A",),
    ),
    "ai2d": Case(
        [{"question": "Which?", "options": ["cat", "dog"], "answer": "1"}] * 3,
        [("B. dog", 1.0), ("b", 1.0), ("A", 0.0)],
        LETTER,
        ["image"],
        ("B",),
    ),
    "realworldqa": Case(
        [
            {"question": "Which? A. x B. y", "answer": "B"},
            {"question": "How?", "answer": "Downhill"},
            {"question": "?", "answer": "B"},
        ],
        [("The answer is B", 1.0), ("downhill.", 1.0), ("A", 0.0)],
        "Which? A. x B. y",
        ["image"],
        ("B",),
    ),
    "mmbench": Case(
        [_mmbench(5, "A"), _mmbench(1_000_005, "B"), _mmbench(2_000_005, "C")],
        [("A", 1.0), ("A", 0.0), ("It is a cow.", 1.0)],
        LETTER,
        ["image"],
        ("A",),
    ),
    "mmvet": Case(
        [{"question_id": "v1", "question": "Why?", "answer": "because", "capability": "rec"}],
        [],
        "Why?",
        ["image"],
        ("because",),
    ),
    "llava_in_the_wild": Case(
        [{"question_id": 1, "question": "Why?", "gpt_answer": "because", "category": "conv", "caption": "x"}],
        [],
        "Why?",
        ["image"],
        ("because",),
    ),
    "mathvista": Case(
        [
            {
                "pid": "1",
                "question": "How many?",
                "image": "images/1.jpg",
                "choices": None,
                "unit": None,
                "precision": 1.0,
                "answer": "3",
                "question_type": "free_form",
                "answer_type": "integer",
                "metadata": {"split": "testmini"},
                "query": "How many?",
            }
        ],
        [],
        "Answer the question using a single integer number.",
        ["decoded_image"],
        ("3",),
    ),
}


@dataclass(frozen=True)
class Answered:
    """A sample as the run log has it, without what scoring does not read."""

    example: str
    doc: dict[str, Any]
    answer: str | None


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run where nothing may be written, offline; lmms-eval's tasks leave files in the working directory."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str) -> tasks.Task:
    """Load a suite's task on its first made-up row."""
    try:
        return tasks.Task(load_suite_card(name).task, CASES[name].rows[0])
    except MissingPackage as error:
        assert name == "mathvista"
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CASES)
def test_question_images_and_references_come_from_the_task(name: str) -> None:
    case = CASES[name]
    row = case.rows[0]
    task = load(name)
    assert task.question(row).endswith(case.suffix)
    assert task.references(row) == case.references
    files = [f"file of {column}".encode() for column in case.images]
    images = {
        column.removesuffix("[]"): [Encoded(file)] * 2 if column.endswith("[]") else Encoded(file)
        for column, file in zip(case.images, files, strict=True)
    }
    shown = task.visuals({**row, **images})
    assert shown == (files * 2 if case.images[0].endswith("[]") else files), "the data set's own bytes, untouched"
    assert task.max_new_tokens or load_suite_card(name).max_new_tokens


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.answers])
def test_every_suite_scores_its_own_columns(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name]
    samples = [
        Answered(f"{at}", row, answer)
        for at, (row, (answer, _)) in enumerate(zip(case.rows, case.answers, strict=True))
    ]
    before = [dict(row) for row in case.rows]
    first = score.score([*samples, Answered("failed", case.rows[0], None)], load_suite_card(name))
    second = score.score([*samples, Answered("failed", case.rows[0], None)], load_suite_card(name))
    wanted = [value for _, value in case.answers]
    assert first.values == (*(None if value is None else pytest.approx(value, abs=1e-9) for value in wanted), None)
    assert (first.n, first.failures) == (sum(value is not None for value in wanted), 1)
    assert first == second, "a task that keeps sums must not add the second scoring to the first"
    assert case.rows == before, "a task that changes rows must not change ours"
    assert not list(tmp_path.iterdir()), "a task that writes files must not write them here"


@pytest.mark.parametrize("name", cards.names("suites"))
def test_every_card_names_a_task_and_one_of_its_metrics(name: str) -> None:
    assert name in CASES, "a made-up row of a new suite belongs into CASES"
    task = load(name)
    assert load_suite_card(name).metric in task.metrics
    assert task.joins_images == (name == "gqa")
    definition = definitions.find(load_suite_card(name).task)
    assert definition.repo in load_suite_card(name).sources[0] or load_suite_card(name).origin == "embedded"
    assert f"split {definition.split}" in load_suite_card(name).sources[0] or load_suite_card(name).origin == "embedded"


def test_an_image_that_the_task_changes_is_a_png_of_what_it_made() -> None:
    file = png(Image.new("RGB", (8, 4), (10, 20, 30)))
    task = load("chartqa")
    task._task.config.doc_to_visual = lambda doc: [doc["image"].convert("RGB"), doc["image"].crop((0, 0, 2, 2))]
    whole, cropped = task.visuals({"image": Encoded(file)})
    assert whole is file
    assert cropped == png(Image.new("RGB", (2, 2), (10, 20, 30)))


def test_a_missing_image_is_a_problem_of_its_row() -> None:
    with pytest.raises(RowProblem, match="column image: no picture"):
        load("docvqa").visuals({**CASES["docvqa"].rows[0], "image": None})
    with pytest.raises(RowProblem, match="column image_2: is not there"):
        load("mmmu").visuals({**CASES["mmmu"].rows[0], "image_1": Encoded(b"x")})


def test_a_task_that_may_go_without_an_image_goes_without() -> None:
    assert load("scienceqa").visuals({**CASES["scienceqa"].rows[0], "image": None}) == []


def test_a_null_hint_is_not_written_into_the_question() -> None:
    row = CASES["scienceqa"].rows[0]
    asked = contract.of("scienceqa_img").asked
    task = load("scienceqa")
    assert task.question(asked({**row, "hint": None})) == task.question({**row, "hint": ""})


def test_a_task_that_chooses_its_rows_is_refused_by_its_function() -> None:
    """Also where only the loaded task says so: a log of an older version is not scored under a name that is not its."""
    row = {"question": "What?", "answer": "A", "stage": "x"}
    with pytest.raises(DataError, match="task corecognition_stage_sensorimotor passes its table through process_docs"):
        tasks.Task("corecognition_stage_sensorimotor", row)


def test_rows_are_split_into_what_json_holds_and_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    row = {
        "n": 3,
        "nan": float("nan"),
        "nested": [{"x": (1, 2)}],
        "image": {"bytes": b"raw", "path": "x.png"},
        "by_path": {"bytes": None, "path": "a.png"},
        "none": {"bytes": None, "path": None},
        "frames": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}],
        "bare": b"\x89PNG",
        "words": b"words",
    }
    doc, images = tasks.encoded(row, tmp_path)
    assert doc == {"n": 3, "nan": None, "nested": [{"x": [1, 2]}], "words": "words"}
    data = {
        name: [i.data for i in image] if isinstance(image, list) else image and image.data
        for name, image in images.items()
    }
    assert data == {
        "image": b"raw",
        "by_path": b"file",
        "none": None,
        "frames": [b"1", b"2"],
        "bare": b"\x89PNG",
    }


def test_a_row_that_does_not_fit_names_its_columns_and_the_data_set() -> None:
    with pytest.raises(
        DataError, match=r"KeyError: 'question'; it has the columns colour; next: .*lmms-lab-encoder/ChartQA"
    ):
        tasks.Task("chartqa", {"colour": "red"})


def test_an_unknown_task_is_guessed() -> None:
    with pytest.raises(UnknownName, match="did you mean 'docvqa_val'"):
        definitions.find("docvqa_vall")


def test_a_task_is_found_where_its_name_stands_in_an_included_file() -> None:
    assert definitions.find("vstar_bench").path.name == "vstar_bench.yaml"


def test_loading_leaves_the_random_state_and_the_environment_alone() -> None:
    import os

    state = random.getstate()
    before = dict(os.environ)
    load("mmvet")
    assert dict(os.environ) == before
    assert random.getstate() == state
