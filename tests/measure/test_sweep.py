"""Sweeps: plans are read as options are, a cell that fails stops no other, and measuring again never means less."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import program
from harness.errors import CardError, UnknownName
from harness.measure import executor, sweep
from harness.measure.asked import Asked
from harness.measure.command import interpreter
from harness.measure.executors import local
from harness.models.families.fake import FakeModel
from harness.runlog import log


def test_a_plans_numbers_are_those_of_the_command_line(tmp_path: Path) -> None:
    """0 and 0.0 would be two keys: the child's log would not be the one that the sweep looks for."""
    plan = tmp_path / "plan.toml"
    plan.write_text('minimum_seconds = 0\n[[grid]]\nmodel = "fake"\nres = [256, 512]\nmaximum_seconds = 5\n')
    [(axes, options)] = sweep.read_plan(plan)
    assert axes == {"model": ["fake"], "res": [256, 512]}
    assert {name: type(value) for name, value in options.items()} == {
        "minimum_seconds": float,
        "maximum_seconds": float,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('limit = "3"', "Expected `int | null`, got `str` - at `$.limit`"),
        ('[[grid]]\nres = ["256"]', "`$.res`"),
        ('[[grid]]\nprotocol = "papers"', "papers"),
    ],
)
def test_a_plan_with_a_wrong_value_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(CardError) as caught:
        sweep.read_plan(plan)
    assert said in str(caught.value)
    assert str(plan) in str(caught.value)


def test_a_misspelt_option_of_a_plan_is_guessed(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("limits = 3")
    with pytest.raises(UnknownName, match="did you mean 'limit'"):
        sweep.read_plan(plan)


@pytest.mark.slow
def test_a_cell_that_cannot_be_prepared_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    good = Asked(model="fake", device="fake", suite="pages", limit=2, minimum_seconds=0.0, out=str(tmp_path / "out"))
    ended = list(sweep.run_all([replace(good, device="fake:7"), good]))
    assert [(one.code, one.path is None) for one in ended] == [(2, True), (0, False)]
    assert "the fake devices are fake:0" in ended[0].message
    again = list(sweep.run_all([good, replace(good, repetition=1)], again=True))
    assert len({one.path for one in again} | {ended[1].path}) == 3  # two processes asked for, two new logs
    assert len([path for path in log.find(tmp_path / "out") if log.read(path).finished]) == 3


def test_a_sweep_whose_examples_failed_ends_with_1(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `harness run` does, though each cell has its log."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))

    def answer(model: FakeModel, *given: object) -> Iterator[object]:
        asked.append(model)
        if len(asked) == 4:
            raise ValueError("no such layer")
        yield from whole(model, *given)  # type: ignore[arg-type]

    def submit(commands: list[list[str]], *_: object) -> Iterator[tuple[int, int]]:
        for position, command in enumerate(commands):
            program.main(command[len(interpreter()) :], standalone_mode=False)
            yield position, 0

    asked: list[FakeModel] = []
    whole = FakeModel.answer
    monkeypatch.setattr(FakeModel, "answer", answer)
    monkeypatch.setattr(local, "submit", submit)
    asks = ["sweep", "--model", "fake", "--device", "fake", "--suite", "pages", "--limit", "3", "--res", "64"]
    asks += ["--min-samples", "3", "--min-seconds", "0", "--out", str(tmp_path)]
    assert program.main(asks, standalone_mode=False) == 1
    assert "measured: 1 example failed, the last by ValueError: no such layer" in capsys.readouterr().err
    assert program.main(asks, standalone_mode=False) == 1


def test_a_process_that_the_system_killed_says_what_to_try() -> None:
    assert "--isolate-stages" in executor.in_words(-9, "cpu")
