"""Numbers that nobody can mean are refused, whoever says them: the command line, a plan, a program."""

import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import cli
from harness.errors import CardError, SettingError
from harness.measure import command, sweep
from harness.measure.asked import FIELDS, RANGES, Asked
from harness.models.card import check_settings, load_model_card


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -(10**30), 10**30])
def test_a_number_out_of_all_proportion_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=r"--[a-z-]+ .*: must be from"):
        Asked(**{name: value})


def test_only_a_server_is_sent_pictures_as_they_are() -> None:
    assert Asked(res=0, endpoint="http://localhost:8000/v1").res == 0
    with pytest.raises(SettingError, match="--res -1: must be from 0"):
        Asked(res=-1, endpoint="http://localhost:8000/v1")
    with pytest.raises(SettingError, match="--res 0: must be from 1"):
        Asked(res=0)


@pytest.mark.parametrize("text", ["٢٥٦", "1_000", "1e3", "0x10", "9" * 5000])
def test_a_whole_number_is_in_plain_digits(text: str) -> None:
    done = CliRunner().invoke(cli.program, ["run", "--res", text])
    assert done.exit_code == 2
    assert "is not a whole number" in done.output


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-1", "x"])
def test_a_share_is_a_finite_number_above_0(text: str) -> None:
    done = CliRunner().invoke(cli.program, ["compare", "a", "b", "--min-effect", text])
    assert done.exit_code == 2
    assert "must be a finite number above 0" in done.output


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-1", "soon", "[1]", "[" * 20000, "9" * 5000, "true"])
def test_a_setting_is_of_the_cards_type(text: str) -> None:
    card = load_model_card("fake")
    with pytest.raises(SettingError, match=r"encode_ms"):
        check_settings(card, dict([cli._setting(f"encode_ms={text}")]))
    assert check_settings(card, {"encode_ms": 3, "answer": 5})["encode_ms"] == 3.0
    assert check_settings(card, {"answer": 5})["answer"] == "5"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'suite = "p\xe4ges"', "not TOML"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "not TOML"),
        (b"grid = 5", "grid must be"),
        (b"grid = [1, 2]", "grid must be"),
        (b"maximum_seconds = nan", "must be from"),
        (b"seed = 1" + b"0" * 5000, "not TOML"),
    ],
)
def test_a_plan_that_cannot_be_is_named(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "plan.toml").write_bytes(text)
    with pytest.raises(CardError, match=rf"plan\.toml.*{told}"):
        sweep.read_plan(tmp_path / "plan.toml")


def test_a_grid_without_end_is_refused_before_it_is_counted_out() -> None:
    with pytest.raises(SettingError, match="1000000 cells"):
        sweep.grid({"res": list(range(1, 1001)), "model": ["fake"] * 1000}, Asked())


@pytest.mark.parametrize("name", FIELDS)
def test_a_child_process_understands_every_wish(name: str) -> None:
    """What a plan asks of a cell reaches its process as an option of `harness run`."""
    options = {option for param in cli.run.params for option in param.opts}
    assert command.flag(name) in options
