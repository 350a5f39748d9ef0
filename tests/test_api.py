"""The Python face: its page's code runs, and what it returns has units and marks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_logs

import harness
from harness import api, cli
from harness.errors import HarnessError, LogError, SettingError
from harness.reports import accuracy

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_pages_code_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "emulated" in done.stdout


def test_a_text_a_folder_and_many(tmp_path: Path) -> None:
    first = synthetic_logs.write(tmp_path / "a.jsonl", resolution=256)
    second = synthetic_logs.write(tmp_path / "b.jsonl", resolution=512)
    (tmp_path / "junk.jsonl").write_text("x")
    whole = harness.load(str(tmp_path))
    assert len(whole) == len(harness.load([first, str(second)])) == len(harness.load(first, second))
    assert "junk.jsonl: skipped" in whole.attrs["skipped"][0]
    cells = harness.summary(tmp_path, scores=False)
    assert list(cells["resolution"]) == [256, 512]
    assert (cells["ttft_low_ms"] <= cells["ttft_ms"]).all()
    assert list(cells["not_scored"]) == ["scores were not asked for"] * 2
    with pytest.raises(LogError, match="no such file"):
        harness.load(tmp_path / "nowhere")


def test_an_accuracy_comes_with_its_count_and_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "of", lambda logs: {each.configuration: SCORED for each in logs.cells})
    synthetic_logs.write(tmp_path / "a.jsonl")
    (row,) = harness.summary(tmp_path).to_dict("records")
    assert (row["accuracy"], row["accuracy_n"]) == (0.7, 50)
    assert row["accuracy_remarks"] == ("3 of 53 failed and are left out",)


SCORED = accuracy.Accuracy("ANLS", 0.7, 0.6, 0.8, 50, asked=53, failed=3)


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="unknown model"):
        harness.run("no-such-model", out=str(tmp_path))


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ({"tiles": 1, "compile": True, "order": "1"}, ["tiles=1", "compile=true", 'order="1"']),
        (["tiles=1", "compile=true"], ["tiles=1", "compile=true"]),
        ("tiles=1", ["tiles=1"]),
        ({}, []),
    ],
)
def test_several_settings_are_several_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: api.Settings, arguments: list[str]
) -> None:
    """And the command reads from them what was meant: a text of digits stays a text."""
    asked: list[list[str]] = []

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 2, "", "harness: enough")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(HarnessError, match="enough"):
        harness.run("fake", set=said, out=str(tmp_path))
    (command,) = asked
    assert [command[at + 1] for at, part in enumerate(command) if part == "--set"] == arguments
    if isinstance(said, dict):
        assert dict(map(cli._setting, arguments)) == said


def test_several_values_of_another_option_are_refused(tmp_path: Path) -> None:
    """The command would take the last of them, and say nothing of the others."""
    with pytest.raises(SettingError, match=r"harness.run\(device=\['cpu', 'mps'\]\): takes one value"):
        harness.run("fake", device=["cpu", "mps"], out=str(tmp_path))


def test_importing_it_is_cheap() -> None:
    code = "import harness, sys; print([name for name in ('pandas', 'torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
