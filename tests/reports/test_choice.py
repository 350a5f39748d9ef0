"""The choice for a budget: the winner is right at least as often as it says, and what cannot be said is not."""

import importlib.util
import json
import os
from pathlib import Path

import grids
import numpy as np
import nursery
import pytest

from harness.errors import SettingError
from harness.reports import choice, frame, measured

ROOT = Path(__file__).parents[2]


def simulation() -> object:
    path = ROOT / "benchmarks" / "choose_calibration.py"
    spec = importlib.util.spec_from_file_location("choose_calibration", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_winner_is_right_at_least_as_often_as_it_says() -> None:
    found = np.array(list(simulation().played(400)))  # type: ignore[attr-defined]
    said, right = found[:, 0], found[:, 1]
    assert right.mean() >= said.mean()
    for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01)):
        mine = (said >= low) & (said < high)
        error = np.sqrt(np.mean(said[mine] * (1 - said[mine])) / mine.sum())
        assert right[mine].mean() >= said[mine].mean() - 2 * error, (low, high)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> measured.Measured:
    return grids.grid(tmp_path_factory.mktemp("logs"), 3, 1.6)


def test_only_what_fits_wins_and_all_are_told_apart(cells: measured.Measured) -> None:
    (answer,) = choice.choose(cells, choice.parse(ttft="60ms"))
    assert answer.winner
    assert answer.winner.fit == "surely"
    assert answer.winner.cell.times.ns("ttft") < 60e6
    assert sum(one.best for one in answer.contenders) == pytest.approx(1)
    assert {one.fit for one in answer.contenders} >= {"surely", "not"}
    assert all(one.best < 0.05 for one in answer.contenders if one.fit == "not")
    told = choice.text([answer])
    assert "TTFT at most 60" in told
    assert "‡" in told
    assert "do not fit: " in told
    (named,) = [choice.as_dict(answer)]
    assert named["winner"] == answer.winner.cell.cell.name
    assert json.dumps(named)


def test_with_an_accuracy_the_fastest_is_named(cells: measured.Measured) -> None:
    (answer,) = choice.choose(cells, choice.parse(accuracy="50%"))
    assert answer.winner
    assert answer.winner.candidate.point.merit >= 50
    surely = [one for one in answer.contenders if one.fit == "surely"]
    assert answer.winner.candidate.point.cost <= min(one.candidate.point.cost for one in surely)


def test_equals_are_told_what_would_decide_between_them(cells: measured.Measured) -> None:
    (answer,) = choice.choose(cells, choice.parse(ttft="10s"))
    assert answer.winner
    assert answer.runner_up
    assert answer.winner.best < choice.SURE
    assert answer.advice
    assert "more questions" in answer.advice[0] or "treat them as equal" in answer.advice[0]


def test_what_the_logs_cannot_say_is_said(cells: measured.Measured) -> None:
    (answer,) = choice.choose(cells, choice.parse(ttft="1ms"))
    assert answer.winner is None
    assert "no cell fits: the fastest takes" in answer.nothing
    (answer,) = choice.choose(cells, choice.parse(energy="1J"))
    assert "no cell's energy was measured" in answer.nothing
    (answer,) = choice.choose(measured.gather(cells.frame, {}), choice.parse(ttft="1s"))
    assert "none of them scored: scores were not asked for" in answer.nothing
    assert choice.choose(measured.gather(frame.frame({}, {}), {}), choice.parse(ttft="1s")) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("ttft", "200"), ("ttft", "0ms"), ("ttft", "fast"), ("accuracy", "70"), ("memory", "8"), ("energy", "5W")],
)
def test_a_quantity_without_its_unit_is_refused(option: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"--{option} {value}: "):
        choice.parse(**{option: value})
    with pytest.raises(SettingError, match="no budget was named"):
        choice.parse()


def test_the_command(tmp_path: Path) -> None:
    """On the reference logs: at 100 ms the small model at 512 px, surely; no more can be had for 20 ms."""
    logs = ROOT / "results" / "reference"
    if not logs.is_dir():
        pytest.skip(f"no reference logs in {logs}: not a checkout of the repository")
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: nothing can be scored")
    command = ["choose", "--logs", str(logs), "--figure", str(tmp_path / "c.png")]
    environment = {**os.environ, "VLM_PARETO_CACHE": str(tmp_path / "cache")}
    done = nursery.opened().run([*command, "--ttft", "100ms"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert "choose  fastvlm-nano at 512 px‡" in done.stdout
    assert (tmp_path / "c.png").is_file()
    done = nursery.opened().run([*command, "--ttft", "20ms"], tmp_path, environment)
    assert done.returncode == 1
    assert "no cell fits: the fastest takes" in done.stdout


def test_a_memory_from_which_a_part_is_missing_fits_no_budget(tmp_path: Path) -> None:
    """Core ML tells nothing of its own: MLX's share alone would always win a budget for memory."""
    told = {"peak_memory": "MLX's allocator", "memory_not_told": "Core ML's"}
    older = {"of_device": {"peak_memory": "MLX's allocator"}, "of_cell": {"engine": "coreml+mlx"}}
    for number, about in enumerate(({"of_device": told}, older)):
        cells = grids.grid(tmp_path / str(number), 2, 1.6, **about)
        (answer,) = choice.choose(cells, choice.parse(memory="1TB"))
        assert answer.winner is None
        assert "Core ML's share is not told" in choice.text([answer])
