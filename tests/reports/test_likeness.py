"""What cells that are compared were not measured alike in: said once for all of them, wherever they are compared."""

from pathlib import Path

import pytest
import synthetic_logs

from harness.reports import candidates, choice, frame, front, likeness, measured, tables
from harness.reports.accuracy import Accuracy
from harness.reports.card import load_report_card
from harness.reports.figures import curves, encoders, pareto
from harness.reports.measured import Measured

OLD = {"package_torch": "2.9.0", "package_transformers": "5.1.0", "package_datasets": "4.0.0"}
SCORED = Accuracy("ANLS", 0.7, 0.6, 0.8, 100)
NEW = {"package_torch": "2.11.0", "package_transformers": "5.24.0", "package_datasets": "5.2.0"}
TOLD = (
    "not measured under the same conditions, which alone may set them apart: torch 2.11.0, transformers 5.24.0 (b at "
    "512 px); torch 2.9.0, transformers 5.1.0 (the other 3 cells)"
)


def material(folder: Path, *about: dict[str, object]) -> Measured:
    """Return cells `a` at 512, 768 and 1024 px and `b` at 512 px, with what `about` says of each, all with a score."""
    known = [("a", 512), ("a", 768), ("a", 1024), ("b", 512)]
    for (model, px), more in zip(known, about, strict=True):
        times = {"preprocess": 1.0, "encode": px / 20, "prefill": 10.0}
        synthetic_logs.write(folder / f"{model}{px}.jsonl", model=model, resolution=px, times_ms=times, **more)  # type: ignore[arg-type]
    return scored(folder)


def scored(folder: Path) -> Measured:
    data = frame.load(folder)
    return measured.gather(data, {each.configuration: SCORED for each in data.cells})


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    same = {"environment": OLD, "of_device": {"driver": "550"}}
    return material(tmp_path_factory.mktemp("logs"), same, same, same, {**same, "environment": NEW})


def test_one_line_names_what_differs_and_between_which_cells(unlike: Measured) -> None:
    assert likeness.notes(unlike.cells) == (TOLD,)
    assert likeness.notes([one for one in unlike.cells if one.cell.model == "a"]) == ()


def test_it_stands_in_the_figure_in_choose_and_on_the_first_screen(unlike: Measured) -> None:
    (drawn,) = pareto.draw(unlike, load_report_card("pareto"))
    assert ("Note:", f"{TOLD}.") in drawn.numbers.notes
    (answer,) = choice.choose(unlike, choice.parse(ttft="10s"))
    assert f"  note: {TOLD}" in choice.text([answer]).splitlines()
    assert choice.as_dict(answer)["notes"] == [TOLD]
    (table,), _ = front.front(unlike, ())
    assert ("Note:", f"{TOLD}.") in table.notes  # type: ignore[union-attr]
    (curve,) = curves.draw(unlike, load_report_card("curves"))
    assert ("Note:", f"{TOLD}.") in curve.numbers.notes


def test_each_way_of_dividing_the_cells_is_a_line(tmp_path: Path) -> None:
    """Not one for each pair, nor one for each fact: alone or in a pool goes with the threads that a pool gives."""
    pool = {"env_HARNESS_POOL": "cuda:0, one of 2; cores 0-7", "env_OMP_NUM_THREADS": "8"}
    other = {"env_HARNESS_POOL": "cuda:1, one of 2; cores 8-15", "env_OMP_NUM_THREADS": "8"}
    data = material(
        tmp_path,
        {"environment": {**pool, "package_torch": "1"}},
        {"environment": {**other, "package_torch": "1"}},
        {"environment": {"package_torch": "1"}, "commit": "def"},
        {"environment": {"package_torch": "2"}, "commit": "ghi"},
    )
    first, second, ours = likeness.notes(data.cells)
    assert first.endswith(
        "HARNESS_POOL one of 2, OMP_NUM_THREADS 8 (a at 512, 768 px); "
        "HARNESS_POOL not set, OMP_NUM_THREADS not set (a at 1024 px, b at 512 px)"
    )
    assert second.endswith("torch 2 (b at 512 px); torch 1 (the other 3 cells)")
    assert ours == "measured by several commits of the harness: abc, def, ghi"


def test_commits_are_named_once_though_the_runs_of_a_cell_have_several(tmp_path: Path) -> None:
    for px, commit in ((512, "abc"), (1024, "abc"), (1024, "def")):
        synthetic_logs.write(tmp_path / f"{px}{commit}.jsonl", model="a", resolution=px, commit=commit)
    (told,) = likeness.notes(measured.gather(frame.load(tmp_path), {}).cells)
    assert told == "measured by several commits of the harness: abc, def"


def test_of_many_facts_the_last_are_only_named(tmp_path: Path) -> None:
    many = {f"package_p{at}": "1" for at in range(8)} | {"package_torch": "1"}
    same = {"environment": many}
    data = material(tmp_path, same, same, same, {"environment": dict.fromkeys(many, "2")})
    (told,) = likeness.notes(data.cells)
    assert "torch 2, p0 2, p1 2, p2 2, p3 2, p4 2 (b at 512 px)" in told
    assert told.endswith("; p5, p6, p7 differ too")


def test_a_score_of_other_conditions_than_the_time_counts_too(tmp_path: Path) -> None:
    """The time is the paper's protocol's, the score its twin's: what the twin ran under decides the answers."""
    synthetic_logs.write(tmp_path / "paper.jsonl", model="a", protocol="paper", environment=OLD)
    synthetic_logs.write(tmp_path / "whole.jsonl", model="a", environment=NEW)
    data = frame.load(tmp_path)
    abouts = [each.configuration for each in data.cells]
    made = measured.gather(data, {about: SCORED for about in abouts if about.protocol == "ttft"})
    found = candidates.of(made, [one for one in made.cells if one.cell.protocol == "paper"], "ttft")
    (told,) = candidates.notes(found)
    assert "(a paper at 1024 px)" in told
    assert "(a at 1024 px)" in told


def paper(folder: Path, **other: object) -> Measured:
    """Return the sides of the claim of 85 times, the slower one with `other`."""
    for model, px, more in (("fastvlm-0.5b", 1024, {}), ("llava-onevision-0.5b", 1152, other)):
        times = {"preprocess": 1.0, "encode": px / 10, "prefill": px / 20}
        about = {"environment": OLD, **more}
        synthetic_logs.write(folder / f"{model}.jsonl", model=model, resolution=px, times_ms=times, **about)  # type: ignore[arg-type]
    return measured.gather(frame.load(folder), {})


def test_claims_and_published_tables_say_whose_sides_are_unlike(tmp_path: Path) -> None:
    data = paper(tmp_path, environment=NEW, commit="def")
    told = [text for label, text in tables.claims(load_report_card("claims"), data).notes if label == "Note:"]
    (facts,) = [text for text in told if "conditions" in text]
    assert facts.startswith("the two sides of 85x")
    assert facts.endswith("torch 2.11.0, transformers 5.24.0 against torch 2.9.0, transformers 5.1.0.")
    assert any(text.endswith("were measured by different commits or versions of the harness.") for text in told)
    (first, *_) = tables.published(load_report_card("fastvlm-table6"), data)
    assert any("the two sides of R2 were not measured under the same" in text for _, text in first.notes)


def test_the_encoders_figure_says_it_too(tmp_path: Path) -> None:
    for px, about in ((256, OLD), (1024, NEW)):
        synthetic_logs.write(tmp_path / f"{px}.jsonl", model="fastvlm-0.5b", resolution=px, environment=about)
    (drawn,) = encoders.draw(measured.gather(frame.load(tmp_path), {}), load_report_card("pareto-encoders"))
    ((label, told),) = drawn.numbers.notes
    assert label == "Note:"
    assert "transformers 5.1.0 (fastvlm-0.5b at 256 px); torch 2.11.0" in told


def test_what_is_alike_says_nothing(tmp_path: Path) -> None:
    data = paper(tmp_path)
    assert not any("the two sides" in text for _, text in tables.claims(load_report_card("claims"), data).notes)
    assert likeness.notes(data.cells) == ()
