"""Cells as points: whose accuracy a point has, on which questions it is compared, and how sure its cost is."""

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic_logs

from harness.reports import candidates, choice, frame, measured, pareto
from harness.reports.accuracy import Accuracy
from harness.reports.candidates import Candidate
from harness.runlog import log as runlog
from harness.runlog.records import Sample
from harness.stats import mean_interval_clustered


def score(wrong: Set[int] = frozenset(), skipped: Set[int] = frozenset(), n: int = 100) -> Accuracy:
    """Return the accuracy of who answers questions 0 to n but `skipped` (which failed), and all but `wrong` rightly."""
    asked = [k for k in range(n) if k not in skipped]
    scores = tuple(float(k not in wrong) for k in asked)
    clusters = tuple(f"i{k}" for k in asked)
    mean = mean_interval_clustered(scores, clusters)
    return Accuracy(
        "ANLS", mean.value, mean.low, mean.high, len(asked), "", scores, clusters, tuple(f"e{k}" for k in asked),
        asked=n, failed=len(skipped),
    )  # fmt: skip


def material(folder: Path, scores: dict[str, Accuracy], **more: object) -> measured.Measured:
    """Return a log for each model with a score, `b` twice as slow as `a` and so on."""
    for number, name in enumerate(scores, 1):
        times = {"preprocess": 1.0, "encode": 20.0 * number, "prefill": 10.0 * number}
        synthetic_logs.write(folder / f"{name}.jsonl", model=name, times_ms=times, n=30, **more)  # type: ignore[arg-type]
    data = frame.load(folder)
    return measured.gather(data, {each.configuration: scores[each.configuration.model] for each in data.cells})


def twins(folder: Path, **other: object) -> list[Candidate]:
    """Return the points of a cell by the paper's protocol, which answers nothing, beside one run end to end."""
    common = {"model": "a", "data": "local", "n": 12}
    synthetic_logs.write(folder / "paper.jsonl", protocol="paper", **common)  # type: ignore[arg-type]
    synthetic_logs.write(folder / "whole.jsonl", **{**common, **other})  # type: ignore[arg-type]
    data = frame.load(folder)
    scored = {each.configuration: score() for each in data.cells if each.configuration.protocol == "ttft"}
    made = measured.gather(data, scored)
    return candidates.of(made, [one for one in made.cells if one.cell.protocol == "paper"], "ttft")


def test_a_cell_that_answers_nothing_has_its_twins_accuracy_and_marks(tmp_path: Path) -> None:
    (found,) = twins(tmp_path, finished=False, effective={"route": "auto"})
    assert found.point.merit == 100
    assert found.point.marks == ("paper", "auto", "torn", "doubted")
    assert "ANLS 100 [96.2, 100], as measured in a 1024 px pages cpu float32" in found.point.hover
    assert any(doubt.startswith("a 1024 px pages cpu float32, whose accuracy it has: ") for doubt in found.doubts)


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda"}, {"engine": "mlx"}, {"dtype": "bfloat16"}, {"model_digest": "m1"}, {"threads": 1},
        {"weights_digest": "w1"}, {"limit": 12}, {"data_digest": "d1"}, {"suite_digest": "s1"},
        {"machine": "elsewhere"},
    ],
)  # fmt: skip
def test_accuracy_is_not_borrowed_from_another_computation(tmp_path: Path, other: dict[str, object]) -> None:
    assert twins(tmp_path, **other) == []


def test_scores_are_compared_on_what_all_answered(tmp_path: Path) -> None:
    """`a` failed at the hard third, where `b` is wrong: on what both answered they are equals."""
    hard = set(range(33))
    data = material(tmp_path, {"a": score(skipped=hard), "b": score(wrong=hard)})
    found = candidates.of(data, data.cells, "ttft")
    assert [one.point.merit for one in found] == [100, 100]
    assert [one.questions for one in found] == [67, 67]
    assert [one.accuracy.n for one in found] == [67, 100]
    told = "scores are compared on the 67 questions, of 100, that all of them answered"
    assert candidates.notes(found) == (told,)
    (answer,) = choice.choose(data, choice.parse(ttft="10s"))
    text = choice.text([answer])
    assert f"note: {told}" in text
    assert "ANLS 1.00 [0.944, 1.00] over 67 questions" in text
    assert "accuracy: 33 of 100 failed and are left out" in text
    cells = {cell["model"]: cell for cell in choice.as_dict(answer)["cells"]}  # type: ignore[attr-defined]
    assert cells["a"]["questions"] == 67
    assert cells["a"]["remarks"] == ["33 of 100 failed and are left out"]
    assert cells["b"]["compared_on_questions"] == 67
    assert cells["b"]["compared_accuracy"] == 1
    assert cells["b"]["accuracy"] == pytest.approx(0.67)


def test_who_answered_few_questions_is_compared_with_none(tmp_path: Path) -> None:
    data = material(tmp_path, {"a": score(skipped=set(range(60))), "b": score({1, 2}), "c": score({1, 2, 3, 4, 5})})
    found = candidates.of(data, data.cells, "ttft")
    assert [one.questions for one in found if not one.apart] == [100, 100]
    assert candidates.notes(found) == ("a 1024 px is compared with none: it answered 40 of 100 questions",)
    assert pareto.places([one.point for one in found])[0].probability is None
    (answer,) = choice.choose(data, choice.parse(ttft="10s"))
    assert answer.winner
    assert answer.winner.cell.cell.model == "b"
    assert [(one.fit, one.best, one.why) for one in answer.contenders if one.candidate.apart] == [
        ("unknown", 0.0, "it answered 40 of 100 questions")
    ]


def test_halves_without_a_common_question_are_compared_with_none(tmp_path: Path) -> None:
    first, second = set(range(50)), set(range(50, 100))
    data = material(tmp_path, {"a": score(skipped=first), "b": score(skipped=second)})
    (answer,) = choice.choose(data, choice.parse(ttft="10s"))
    assert answer.winner is None
    assert answer.nothing == "no two cells answered enough of the same questions"


def test_costs_are_drawn_as_wide_as_the_tables_interval(tmp_path: Path) -> None:
    """120 samples of 8 pages, each with a speed of its own, are no 120 samples: the table's interval knows it."""
    path = synthetic_logs.write(tmp_path / "a.jsonl", model="a", n=120, images=8)
    log = runlog.read(path)
    samples = tuple(slower(one, 1 + 0.1 * int(one.image_ids[0][1:])) for one in log.samples)
    data = frame.frame({"a": replace(log, samples=samples)}, {"a": "a"})
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    (found,) = candidates.of(made, made.cells, "ttft")
    point = found.point
    costs, _ = pareto.draw([point], seed=0, draws=4000)
    low, high = np.quantile(costs, [0.025, 0.975])
    assert low == pytest.approx(point.cost_low, rel=0.01)
    assert high == pytest.approx(point.cost_high, rel=0.01)
    plain, _ = pareto.draw([replace(point, cost_low=None, cost_high=None)], seed=0, draws=4000)
    assert costs.std() > 1.3 * plain.std()


def test_cells_resized_by_different_libraries_are_not_compared_without_a_word(tmp_path: Path) -> None:
    """FastVLM by PIL beside Qwen-VL by torchvision: most of TTFT on a fast card is the resizing."""
    told = {"a": "PIL bicubic", "b": "torchvision, by Qwen2VLImageProcessor", "c": "PIL bicubic"}
    for name, how in told.items():
        synthetic_logs.write(tmp_path / f"{name}.jsonl", model=name, n=30, effective={"image_backend": how})
    data = frame.load(tmp_path)
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    (answer,) = choice.choose(made, choice.parse(ttft="10s"))
    (line,) = [line for line in choice.text([answer]).splitlines() if "resized" in line]
    assert line.startswith("  note: images were resized by different libraries")
    assert "(by PIL: a, c; by torchvision: b)" in line
    assert "`--set image_backend=pil`, or all with `--set image_backend=torchvision`" in line
    assert choice.as_dict(answer)["notes"] == [line.removeprefix("  note: ")]
    (tmp_path / "b.jsonl").unlink()
    data = frame.load(tmp_path)
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    assert candidates.notes(candidates.of(made, made.cells, "ttft")) == ()


def test_a_doubt_goes_with_the_cell_that_is_chosen(tmp_path: Path) -> None:
    """Six samples and an unfinished run: who is told to take the cell is told so too."""
    synthetic_logs.write(tmp_path / "a.jsonl", model="a", n=30)
    synthetic_logs.write(tmp_path / "b.jsonl", model="b", n=30, failures=2)
    data = frame.load(tmp_path)
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    found = {one.cell.cell.model: one for one in candidates.of(made, made.cells, "ttft")}
    doubted = found["b"].doubts
    assert "2 examples failed" in doubted
    assert "doubted" in found["b"].point.marks
    assert ("doubted" in found["a"].point.marks) == bool(found["a"].doubts)
    (answer,) = choice.choose(made, choice.parse(ttft="10s"))
    lines = choice.text([answer]).splitlines()
    at = next(number for number, line in enumerate(lines) if " b at 1024 px" in line)
    assert " b at 1024 px?: TTFT" in lines[at]
    assert "          doubt: 2 examples failed" in lines[at : at + 6]
    assert any(line.startswith("  ? there are doubts") for line in lines)


def slower(sample: Sample, factor: float) -> Sample:
    assert sample.whole
    assert sample.whole.ttft_ns
    whole = msgspec.structs.replace(sample.whole, ttft_ns=int(factor * sample.whole.ttft_ns))
    return msgspec.structs.replace(sample, whole=whole)


@pytest.mark.parametrize(
    ("spent", "fits"),
    [
        ({"preprocess": 100.0, "encode": 2000.0, "project": 10.0, "prefill": 1000.0}, "surely"),
        ({"encode": 2000.0, "prefill": 1000.0}, "unknown"),  # the counter's steps are longer than the other stages
        ({}, "unknown"),
    ],
)
def test_a_partial_sum_of_energy_keeps_no_budget(tmp_path: Path, spent: dict[str, float], fits: str) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", model="a", n=30, energy_mj=spent)
    data = frame.load(tmp_path)
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    (answer,) = choice.choose(made, choice.parse(energy="5J"))
    assert [one.fit for one in answer.contenders] == [fits]
    assert bool(answer.winner) == (fits == "surely")


def test_two_checkpoints_under_one_name_are_two_series(tmp_path: Path) -> None:
    """The line of a figure joins what one checkpoint does at several resolutions."""
    for digest, resolution in (("w0aaaaaaaaaaaa", 512), ("w0aaaaaaaaaaaa", 1024), ("w1bbbbbbbbbbbb", 1024)):
        synthetic_logs.write(
            tmp_path / f"{digest}-{resolution}.jsonl", model="a", resolution=resolution, n=12,
            of_cell={"weights_digest": digest},
        )  # fmt: skip
    synthetic_logs.write(tmp_path / "b.jsonl", model="b", n=12)
    data = frame.load(tmp_path)
    made = measured.gather(data, {each.configuration: score() for each in data.cells})
    points = [one.point for one in candidates.of(made, made.cells, "ttft")]
    assert sorted({one.series for one in points}) == ["a (local w0aaaaaa)", "a (local w1bbbbbb)", "b"]
    assert len({one.name for one in points}) == 4
