"""The nightly workflow's own scripts, run by bash with a real git: the first night, the second, and every exit code."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[2] / "docs" / "workflows" / "nightly.yml"
STEPS = {
    step.get("name", step.get("uses")): step for step in yaml.safe_load(WORKFLOW.read_text())["jobs"]["track"]["steps"]
}


def step(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one step as GitHub's runner does with `shell: bash`."""
    known = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=folder / STEPS[name].get("working-directory", "."), env={**known, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    person = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    return subprocess.run(
        ["git", *person, *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def night(folder: Path, remote: Path, log: str) -> None:
    """Check out as the workflow does, leave a run log, keep it."""
    folder.mkdir()
    git(folder, "clone", "-q", str(remote), "history")
    assert step("History branch", folder).returncode == 0
    (folder / "history/results/nightly").mkdir(parents=True, exist_ok=True)
    (folder / "history/results/nightly" / log).write_text("{}\n")
    kept = step("Keep the history", folder)
    assert kept.returncode == 0, kept.stderr


def test_the_first_night_makes_the_branch_and_the_second_adds_to_it(tmp_path: Path) -> None:
    code, remote = tmp_path / "code", tmp_path / "remote.git"
    code.mkdir()
    git(code, "init", "-q", "-b", "main")
    (code / "train.py").write_text("pass\n")
    (code / ".gitignore").write_text("results/\n")
    git(code, "add", ".")
    git(code, "commit", "-qm", "code")
    git(tmp_path, "clone", "-q", "--bare", str(code), str(remote))
    night(tmp_path / "first", remote, "a.jsonl")
    night(tmp_path / "second", remote, "b.jsonl")
    kept = git(remote, "ls-tree", "-r", "--name-only", "latency-history").split()
    assert kept == ["results/nightly/a.jsonl", "results/nightly/b.jsonl"]
    assert git(remote, "rev-list", "--count", "latency-history").strip() == "2"


def test_a_repository_that_cannot_be_asked_is_an_error_and_no_first_night(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    git(tmp_path / "history", "init", "-q")
    git(tmp_path / "history", "remote", "add", "origin", str(tmp_path / "gone.git"))
    assert step("History branch", tmp_path).returncode not in (0, 2)


@pytest.mark.parametrize(
    ("code", "judged", "left", "warned"),
    [(0, True, 0, False), (1, True, 1, False), (2, True, 0, True), (2, False, 2, False), (3, True, 3, False)],
)
def test_could_not_tell_is_a_warning_and_an_error_is_red(
    tmp_path: Path, code: int, judged: bool, left: int, warned: bool
) -> None:
    program = tmp_path / ".venv/bin/harness"
    program.parent.mkdir(parents=True)
    writing = "mkdir -p verdict; echo '# verdict' > verdict/verdict.md\n" if judged else ""
    program.write_text(f"#!/bin/bash\n{writing}exit {code}\n")
    program.chmod(0o755)
    (tmp_path / "verdict").mkdir()
    (tmp_path / "verdict/verdict.md").write_text("# of an earlier night\n")
    done = step("Track", tmp_path, CHECKPOINTS="x")
    assert (done.returncode, "could not tell" in done.stdout) == (left, warned)
    told = tmp_path / "summary.md"
    assert step("Job summary", tmp_path, GITHUB_STEP_SUMMARY=str(told)).returncode == 0
    assert (told.read_text() if told.exists() else "") == ("# verdict\n" if judged else "")


def test_what_is_to_be_installed_is_asked_for() -> None:
    folder = WORKFLOW.parent
    done = step("Install", folder, VLM_PARETO="")
    assert done.returncode != 0
    assert "set this repository variable" in done.stderr


def test_later_steps_run_only_where_tracking_ran() -> None:
    names = list(STEPS)
    later = [STEPS[name] for name in names[names.index("Track") + 1 :]]
    assert len(later) == 3
    assert all("steps.track.outcome != 'skipped'" in step["if"] for step in later)
