"""By which code a number was made: the commit of its own checkout, and never of one that it only lies in."""

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import synthetic_logs

from harness.measure import conditions
from harness.runlog import log as runlog


@pytest.fixture(autouse=True)
def own_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of this machine's decide, and no repository above the folder."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
        "HOME": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def commit(folder: Path) -> str:
    """Commit everything in a folder that is, or becomes, a repository; return the commit."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    told = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    return told.stdout.strip()


def package(home: Path) -> Path:
    """Put a package into `home` that has the module of this program, and little else."""
    for room in ("measure", "reports"):
        (home / "harness" / room).mkdir(parents=True)
        (home / "harness" / room / "other.py").write_text("x = 1\n")
    text = Path(str(conditions.__file__)).read_bytes()
    (home / "harness" / "measure" / "conditions.py").write_bytes(text)
    return home / "harness"


def told(home: Path) -> dict[str, str]:
    """Return what the package in `home` says of itself."""
    spec = importlib.util.spec_from_file_location("copied", home / "harness" / "measure" / "conditions.py")
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.harness()
    return found


def test_its_own_checkout_tells_the_commit(tmp_path: Path) -> None:
    files = package(tmp_path / "own")
    head = commit(tmp_path / "own")
    assert told(tmp_path / "own")["commit"] == head
    (tmp_path / "own" / "notes.txt").write_text("nothing of the package's")
    assert told(tmp_path / "own")["commit"] == head
    (files / "reports" / "other.py").write_text("x = 2\n")  # any folder of the package, not this module's own alone
    assert told(tmp_path / "own")["commit"] == f"{head}+dirty"


def test_a_copy_in_another_projects_repository_has_no_commit(tmp_path: Path) -> None:
    """Each commit of that project would be a change of the harness, by the name of code that it does not hold."""
    inside = tmp_path / "project" / ".venv" / "lib"
    package(inside)
    (tmp_path / "project" / ".gitignore").write_text(".venv\n")
    commit(tmp_path / "project")
    assert set(told(inside)) == {"version", "code"}


def test_a_copy_that_another_project_has_committed_has_no_commit(tmp_path: Path) -> None:
    """Its commits are that project's: two of them may hold the same harness."""
    inside = tmp_path / "project" / "vendor"
    package(inside)
    commit(tmp_path / "project")
    assert set(told(inside)) == {"version", "code"}


def test_an_old_copy_in_a_new_checkout_has_no_commit(tmp_path: Path) -> None:
    """Installed, then `git pull`: the checkout is newer than the code that runs, which its digest tells."""
    files, old = package(tmp_path / "own"), tmp_path / "own" / ".venv" / "lib"
    package(old)
    (tmp_path / "own" / ".gitignore").write_text(".venv\n")
    (files / "measure" / "other.py").write_text("x = 2\n")
    commit(tmp_path / "own")
    assert "commit" not in told(old)
    assert told(old)["code"] != told(tmp_path / "own")["code"]


def test_files_that_a_repository_only_lies_around_have_no_commit(tmp_path: Path) -> None:
    """Unpacked, or installed with `--target`, at the top of somebody's repository, and never committed to it."""
    (tmp_path / "theirs.txt").write_text("theirs")
    commit(tmp_path)
    package(tmp_path)
    assert "commit" not in told(tmp_path)


def test_a_hooks_repository_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "own")
    head = commit(tmp_path / "own")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert told(tmp_path / "own")["commit"] == head


def test_the_codes_digest_is_of_what_measures(tmp_path: Path) -> None:
    files = package(tmp_path)
    first = told(tmp_path)["code"]
    (files / "reports" / "other.py").write_text("x = 2\n")
    (files / "measure" / "other.py").write_bytes(b"x = 1\r\n")
    assert told(tmp_path)["code"] == first
    (files / "measure" / "other.py").write_text("x = 2\n")
    assert told(tmp_path)["code"] != first


@pytest.mark.parametrize(
    ("was", "found", "since"),
    [
        ({"commit": "aaa", "code": "c1"}, {"commit": "bbb", "code": "c1"}, ""),
        ({"commit": "aaa", "code": "c1"}, {"commit": "bbb", "code": "c2"}, "harness commit aaa → bbb"),
        ({"commit": "aaa", "code": "c1"}, {"code": "c1"}, ""),
        ({"commit": "aaa", "code": "c1"}, {"code": "c2"}, "harness code c1 → c2"),
        ({"commit": "aaa+dirty", "code": "c1"}, {"commit": "aaa+dirty", "code": "c2"}, "harness code c1 → c2"),
        ({"commit": "aaa"}, {"commit": "bbb", "code": "c1"}, "harness commit aaa → bbb"),
    ],
)
def test_a_log_of_other_code_is_told_and_one_of_the_same_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: dict[str, str], found: dict[str, str], since: str
) -> None:
    log = runlog.read(synthetic_logs.write(tmp_path / "a.jsonl", harness=was))
    monkeypatch.setattr(conditions, "harness", lambda: {"version": "0.1.0", **found})
    assert conditions.changed_harness(log) == since
