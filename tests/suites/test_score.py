"""Our scores equal those of lmms-eval's own evaluator on the same answers; what cannot be scored says so."""

import functools
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.suites import definitions, score
from harness.suites.card import load_suite_card

SETS = {
    "docvqa_mini": "docvqa",
    "sroie_mini": "docvqa",
    "fara_mini": "docvqa",
    "textvqa_mini": "textvqa",
    "chartqa_mini": "chartqa",
    "charxiv_mini": "chartqa",
    "visonlyqa_charts_mini": "chartqa",
}


REASONING = (
    "<think>It says so.</think>{}",
    "<think>\nIt may be 7.\n</think>\n\n<think>No.</think> {}\n",
    "<analysis>Seen.</analysis>{}",
    "The template opened it.</think>{}",
    "<think>Cut off at the limit: {}",
    "</think>{}<think>",
    "<thinking>Other tags.</thinking>{}",
)
"""What models that reason put around an answer; `{}` is where it stands."""


@dataclass(frozen=True)
class Answered:
    """A sample as the run log has it, without what scoring does not read."""

    example: str
    doc: dict[str, Any]
    answer: str | None


def invent(reference: str, at: int) -> str:
    """Return an answer that is right, right in other letters, half right, nearly the number, wrong or empty."""
    rng = random.Random(f"{reference} {at}")
    half = reference[: max(1, (2 * len(reference)) // 3)]
    said = rng.choice([reference, f" {reference.upper()}. ", half, f"{reference}x", _near(reference), "no idea", ""])
    return rng.choice(["{}", "{}", "{}", *REASONING]).replace("{}", said)


def _near(reference: str) -> str:
    try:
        return str(float(reference.rstrip("%")) * 1.03)
    except ValueError:
        return reference.lower()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run where nothing may be written, offline; lmms-eval's tasks leave files in the working directory."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Read a set's rows without its images."""
    from pyarrow import parquet

    names = [name for name in parquet.read_schema(file).names if name != "image"]
    return list(parquet.read_table(file, columns=names).to_pylist())


def right(row: dict[str, Any]) -> str:
    """Return one right answer of a row of docvqa, textvqa or chartqa."""
    return str(row["answers"][0] if "answers" in row else row["answer"])


@functools.cache
def command() -> Any:
    """Return what lmms-eval's own command passes on where the user gives it no options."""
    from lmms_eval.__main__ import parse_eval_args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lmms-eval"])
        return parse_eval_args()[1]


def evaluate(task: str, file: Path, answers: list[str], **config: Any) -> dict[str, Any]:
    """Let lmms-eval's own evaluator score `answers` on the rows of `file`, as its command calls it."""
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    class Replay(lmms):  # type: ignore[misc]
        is_simple = False

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [answers[request.args[3]] for request in requests]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    definition = definitions.find(task)
    manager = TaskManager(include_path=str(definition.path.parent), include_defaults=False)
    files = {"data_files": {definition.split: str(file)}}
    local = {"task": task, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": files, **config}
    loaded = list(manager.load_task_or_group([local], "chat").values())
    for one in loaded:  # pixels play no part in the score, and decoding them takes a minute
        for name, split in one.dataset.items():
            one.dataset[name] = split.remove_columns("image")
        one.task_docs = one.dataset[definition.split]
        one.config.doc_to_visual = None
    found = simple_evaluate(
        model=Replay(),
        tasks=loaded,
        task_manager=manager,
        bootstrap_iters=0,
        process_docs_parallel=1,
        cli_args=command(),
    )
    return dict(found)


@pytest.mark.parametrize("data", SETS)
def test_our_scores_are_lmms_evals_own(data: str, shared: Path) -> None:
    card = load_suite_card(SETS[data])
    (file,) = (shared / "data" / data).glob("*.parquet")
    rows = rows_of(file)
    answers = [invent(right(row), at) for at, row in enumerate(rows)]
    ours = score.score([Answered(str(at), row, answers[at]) for at, row in enumerate(rows)], card)

    theirs = evaluate(card.task, file, answers)

    results = theirs["results"][card.task]
    for metric, value in ours.aggregates.items():
        assert value == pytest.approx(results[f"{metric},none"], abs=1e-9)
    assert set(ours.aggregates) == {
        key.removesuffix(",none")
        for key, value in results.items()
        if key.endswith(",none") and "stderr" not in key and "submission" not in key and isinstance(value, float)
    }
    each = {sample["doc_id"]: sample[card.metric] for sample in theirs["samples"][card.task]}
    assert ours.values == pytest.approx(tuple(each[at] for at in range(len(rows))), abs=1e-9)
    assert ours.value == pytest.approx(results[f"{card.metric},none"], abs=1e-9)
    assert 0 < (ours.value or 0) < 1, "the answers must be a mixture, or equality says little"
    assert any("answers had reasoning, which is no part of what is scored" in note for note in ours.notes)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({}, (1.0, 1.0, 0.0)),
        ({"reasoning_tags": "none"}, (0.0, 0.0, 0.0)),
        ({"reasoning_tags": '[["<r>", "</r>"]]'}, (0.0, 0.0, 1.0)),
        ({"reasoning_tags": "none", "auto_strip_thinking": True}, (1.0, 0.0, 0.0)),
        ({"auto_strip_thinking": True}, (1.0, 1.0, 0.0)),
    ],
)
def test_a_tasks_own_word_on_reasoning_counts_as_it_does_in_lmms_eval(
    config: dict[str, Any], values: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is DocVQA's with these lines in its file."""
    kind = "<think>a long way to it</think>", "<analysis>a long way to it</analysis>", "<r>a long way to it</r>"
    answers = [f"{block}Leeds" for block in kind]
    rows = [{"questionId": "1", "question": "Where?", "answers": ["Leeds"]}] * 3
    theirs = _evaluate_rows("docvqa_val", rows, answers, tmp_path, **config)
    found = definitions.find("docvqa_val")
    lines = [f"include: {found.path}", *(f"{name}: {json.dumps(value)}" for name, value in config.items())]
    (tmp_path / "docvqa_val.yaml").write_text("\n".join(lines))
    monkeypatch.setattr(definitions, "find", lambda _: replace(found, path=tmp_path / "docvqa_val.yaml"))
    ours = score.score([Answered(str(at), row, answers[at]) for at, row in enumerate(rows)], load_suite_card("docvqa"))
    assert ours.values == tuple(theirs) == pytest.approx(values)


def test_reasoning_that_never_ends_is_scored_as_it_is_and_said() -> None:
    row = {"question": "Where?", "answers": ["Leeds"]}
    answers = ["<think>It says Leeds", "Leeds", "<think>Hm.</think>Leeds"]
    scores = score.score([Answered(str(at), row, text) for at, text in enumerate(answers)], load_suite_card("docvqa"))
    assert scores.values == (0.0, 1.0, 1.0)
    assert scores.notes == (
        "1 answers had reasoning, which is no part of what is scored",
        "1 answers never end their reasoning: scored with all of it, as lmms-eval does",
    )


@pytest.mark.parametrize("count", [4, 7, 9, 10])
def test_few_references_count_as_lmms_eval_counts_them(count: int, tmp_path: Path) -> None:
    rows = [_vqa([*"bcdefghijk"][:count]), _vqa(["b", *"bcdefghijk"][:count]), _vqa(["b"] * count)]
    theirs = _evaluate_rows("textvqa_val", rows, ["b"] * 3, tmp_path)
    ours = score.score([Answered(str(at), row, "b") for at, row in enumerate(rows)], load_suite_card("textvqa"))
    assert ours.values == pytest.approx(tuple(theirs))
    assert ours.values[2] == 1.0
    assert (ours.values[0] or 0) < 1 / 3, "one of so many, and not two"


def _evaluate_rows(task: str, rows: list[dict[str, Any]], answers: list[str], folder: Path, **config: Any) -> list[Any]:
    """Return each answer's score by lmms-eval's own evaluator."""
    import pyarrow as pa
    from pyarrow import parquet

    file = folder / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([{**row, "image": None} for row in rows]), file)
    theirs = evaluate(task, file, answers, **config)
    metric = next(name for name in ("anls", "exact_match") if name in theirs["samples"][task][0])
    return [sample[metric] for sample in sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])]


def test_ocrbench_divides_by_the_answers_there_are() -> None:
    row = {"dataset": "x", "question": "What?", "question_type": "Doc-oriented VQA", "answer": ["10", "ten"]}
    samples = [Answered(str(at), row, answer) for at, answer in enumerate(["It is TEN", "10442", "11"])]
    scores = score.score(samples, load_suite_card("ocrbench"))
    assert scores.aggregates["ocrbench_accuracy"] == pytest.approx(2 / 1000)
    assert scores.value == pytest.approx(2 / 3)
    assert "1000" in scores.notes[0]


def test_mmmus_guess_is_the_same_each_time_and_leaves_the_random_state_alone() -> None:
    row = {"question": "Which?", "question_type": "multiple-choice", "options": "['1', '2']", "answer": "B"}
    samples = [Answered(f"{at}", {**row, "id": f"validation_Math_{at}"}, "no letter") for at in range(40)]
    state = random.getstate()
    scores = score.score(samples, load_suite_card("mmmu"))
    assert random.getstate() == state
    assert scores.values == score.score(samples, load_suite_card("mmmu")).values
    assert scores.values[7:] == score.score(samples[7:], load_suite_card("mmmu")).values
    assert 0 < sum(value or 0 for value in scores.values) < 40


@pytest.mark.parametrize("name", ["mmvet", "llava_in_the_wild", "mathvista"])
def test_what_needs_a_judge_says_so(name: str) -> None:
    scores = score.score([Answered("1", {}, "x")], load_suite_card(name))
    assert (scores.scored, scores.value) == (False, None)
    assert "needs a judge" in scores.reason


def test_nothing_answered_is_no_score_and_not_zero() -> None:
    scores = score.score([Answered("1", {}, None)], load_suite_card("docvqa"))
    assert (scores.value, scores.failures, scores.reason) == (None, 1, score.NO_ANSWERS)


def _vqa(answers: Any) -> dict[str, Any]:
    return {"question": "What?", "question_id": 1, "answers": answers}


@pytest.mark.parametrize(
    ("suite", "rows"),
    [
        ("docvqa", [{"question": "What?", "answers": shape} for shape in (["M6"], "M6", '["M6"]')]),
        ("textvqa", [_vqa(["M6"]), _vqa('["M6", "M6"]'), _vqa(["M6"] * 10)]),
        ("vqav2", [_vqa([{"answer": "M6", "answer_confidence": "yes"}] * 10), _vqa(["M6"]), _vqa("M6")]),
    ],
)
def test_a_right_answer_is_right_in_every_shape_of_its_references(suite: str, rows: list[dict[str, Any]]) -> None:
    scores = score.score([Answered(str(at), row, "M6") for at, row in enumerate(rows)], load_suite_card(suite))
    assert scores.values == (1.0,) * 3
    wrong = score.score([Answered(str(at), row, "X9") for at, row in enumerate(rows)], load_suite_card(suite))
    assert wrong.values == (0.0,) * 3


def test_a_row_without_references_is_left_out_and_all_without_are_not_scored() -> None:
    rows = [{"question": "What?", "answers": answers} for answers in (["x"], None, ["x"])]
    samples = [Answered(str(at), row, "x") for at, row in enumerate(rows)]
    scores = score.score(samples, load_suite_card("docvqa"))
    assert (scores.value, scores.values, scores.n, scores.left_out) == (1.0, (1.0, None, 1.0), 2, 1)
    assert scores.notes == ("1 answers left out: example 1, column answers: no references",)
    none = score.score(samples[1:2], load_suite_card("docvqa"))
    assert (none.value, none.reason) == (None, "not scored: no references")


def _rotation(index: int, answer: str) -> dict[str, Any]:
    facts = {"category": "c", "L2-category": "l", "source": "x", "split": "dev", "hint": None, "C": None, "D": None}
    return {"index": index, "question": "Q?", "A": "x", "B": "y", "answer": answer, **facts}


@pytest.mark.parametrize("lost", [0, 1])
def test_a_question_without_one_of_its_rotations_is_left_out(lost: int) -> None:
    rows = [_rotation(1, "A"), _rotation(1_000_001, "B"), _rotation(2, "A"), _rotation(1_000_002, "B")]
    samples = [Answered(str(at), row, None if at == lost else row["answer"]) for at, row in enumerate(rows)]
    scores = score.score(samples, load_suite_card("mmbench"))
    assert (scores.value, scores.n, scores.left_out) == (1.0, 2, 1), "the other question is right, and is all there is"
    assert scores.values[1 - lost] is None
    assert scores.questions == 1, "two rows, which are one question"
    assert "question 1: 1 of its 2 rotations are answered" in scores.notes[-1]
    alone = score.score(samples[:2], load_suite_card("mmbench"))
    assert (alone.value, alone.reason) == (None, "not scored: question 1: 1 of its 2 rotations are answered")


def test_rows_without_any_rotation_count_by_themselves_and_say_so() -> None:
    samples = [Answered("0", _rotation(1, "A"), "A"), Answered("1", _rotation(2, "A"), "B")]
    scores = score.score(samples, load_suite_card("mmbench"))
    assert (scores.value, scores.n, scores.questions) == (0.5, 2, 2)
    assert "no rotations" in scores.notes[0]


def test_guesses_are_counted_and_the_score_without_them_is_said() -> None:
    row = {"question": "Which?", "question_type": "multiple-choice", "options": "['1', '2']", "answer": "B"}
    answers = ["B", "(B)", "A", "no letter", "none"]
    samples = [Answered(str(at), {**row, "id": f"validation_Math_{at}"}, answer) for at, answer in enumerate(answers)]
    scores = score.score(samples, load_suite_card("mmmu"))
    assert scores.guesses == 2
    assert scores.notes[-1].startswith("2 of 5 answers by chance")
    assert scores.notes[-1].endswith("without them 0.667 over 3")
    only = score.score(samples[3:], load_suite_card("mmmu"))
    assert only.value is None
    assert "2 of 2 answers by chance" in only.reason


def test_an_aggregate_of_points_is_no_share(tmp_path: Path) -> None:
    card = tmp_path / "mme.toml"
    card.write_text('title = "MME"\ntask = "mme"\nmetric = "mme_perception_score"\nunit = "points"\n')
    row = {"question": "White?", "question_id": "a.png", "category": "color"}
    rows = [{**row, "answer": "Yes"}, {**row, "answer": "No"}, {**row, "question_id": "b.png", "answer": "No"}]
    samples = [Answered(str(at), one, one["answer"]) for at, one in enumerate(rows)]
    scores = score.score(samples, load_suite_card(str(card)))
    assert (scores.value, scores.own, scores.left_out) == (None, 200.0, 1)
    assert scores.reason == "points 200.0 in its own unit, no share of the questions"


@pytest.mark.parametrize(
    ("task", "metric", "row", "right"),
    [
        (
            "multihopspatial",
            "mcq_acc",
            {"question": "Which?", "answer": "(a) left", "bbox": [0, 0, 1, 1], "hop": 1, "view": "x"},
            "Answer: (a) left",
        ),
        (
            "mmsu",
            "accuracy",
            {"question": "Which?", **{f"choice_{letter}": f"thing {letter}" for letter in "abcd"}, "answer": "A"},
            "A",
        ),
    ],
    ids=["rows in percent", "rows as shares"],
)
def test_a_percentage_below_one_is_no_share(
    task: str, metric: str, row: dict[str, Any], right: str, tmp_path: Path
) -> None:
    """Three right of four hundred are 0.75 %: neither 0.75 nor 1 of 1."""
    card = tmp_path / "mine.toml"
    card.write_text(f'title = "T"\ntask = "{task}"\nmetric = "{metric}"\nunit = "accuracy"\n')
    samples = [Answered(str(at), row, right if at < 3 else "B") for at in range(400)]
    scores = score.score(samples, load_suite_card(str(card)))
    assert (scores.value, scores.own, scores.n) == (None, 0.75, 400)
    assert scores.reason == "accuracy 0.75 in its own unit, no share of the questions"


def test_a_row_that_is_no_share_is_enough_where_no_row_can_be_aggregated_alone() -> None:
    card = load_suite_card("docvqa")
    assert score._headline(card, {"anls": 0.75}, [0.0, None, 75.0], None) == (None, 0.75, "")
    assert score._headline(card, {"anls": 0.5}, [0.0, None, 1.0], None) == (0.5, None, "")


def test_a_metric_of_which_less_is_better_is_not_quoted_first_but_may_stand_beside(tmp_path: Path) -> None:
    card = tmp_path / "mine.toml"
    row = {"prompt": "How many legs?", "ground_truth": "5", "expected_bias": "4", "topic": "x"}
    samples = [Answered("0", row, "4"), Answered("1", row, "5"), Answered("2", row, "4")]
    card.write_text('title = "T"\ntask = "vlms_are_biased"\nmetric = "bias_ratio"\n')
    with pytest.raises(
        DataError, match=r"suite mine: of bias_ratio of task vlms_are_biased less is better.*next: name"
    ):
        score.score(samples, load_suite_card(str(card)))
    card.write_text('title = "T"\ntask = "vlms_are_biased"\nmetric = "accuracy"\n[also]\nbias_ratio = "bias"\n')
    scores = score.score(samples, load_suite_card(str(card)))
    assert scores.value == pytest.approx(1 / 3)
    assert scores.aggregates["bias_ratio"] == pytest.approx(2 / 3)


def test_what_a_tasks_code_raises_costs_one_row_and_never_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.suites.task import Task

    results = Task.results

    def broken(task: Task, doc: Any, answer: Any) -> dict[str, Any]:
        if answer == "boom":
            raise ZeroDivisionError("inside the task")
        return results(task, doc, answer)

    monkeypatch.setattr(Task, "results", broken)
    row = {"question": "What?", "answers": ["x"]}
    samples = [Answered(str(at), row, answer) for at, answer in enumerate(["x", "boom", "y"])]
    scores = score.score(samples, load_suite_card("docvqa"))
    assert (scores.value, scores.n) == (0.5, 2)
    assert scores.notes == ("1 answers left out: example 1: ZeroDivisionError: inside the task",)
    monkeypatch.setattr(Task, "aggregate", lambda *_: float("nan"))
    lost = score.score(samples[:1], load_suite_card("docvqa"))
    assert (lost.value, lost.reason) == (None, "not scored: anls: the task's aggregate is nan")


def test_a_row_of_another_data_set_names_its_columns() -> None:
    with pytest.raises(DataError, match=r"columns colour.*next: give data with the columns of lmms-lab-encoder/DocVQA"):
        score.score([Answered("1", {"colour": "red"}, "x")], load_suite_card("docvqa"))
