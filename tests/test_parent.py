"""A child runs the package of the process that started it, and ends with that process, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import parent as parents

CHILD = "from harness import parent; import time; parent.follow(); print('ready', flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
from harness import parent
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=parent.environment(), stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_parent_takes_its_child_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it lives
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(600):
        if not alive(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} outlives its parent")


def alive(number: int) -> bool:
    """Return whether the process runs; one that only waits to be buried does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def test_a_folder_of_our_name_where_a_child_starts_is_not_imported(tmp_path: Path) -> None:
    """A checkout is such a folder: what runs from an installed copy would measure by other code than it says."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise SystemExit('a stranger')\n")
    code = "import harness, subprocess, sys; print(harness.__file__, flush=True); "
    code += "subprocess.run([sys.executable, '-c', 'import harness; print(harness.__file__)'], check=True)"
    told = subprocess.run(
        [*parents.python(), "-c", code], cwd=tmp_path, env={**os.environ, **parents.paths()}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    own = str(Path(parents.__file__).with_name("__init__.py"))
    assert told.stdout.split("\n") == [own, own, ""]  # its own children too
    assert parents.program() == [*parents.python(), "-m", "harness"]


def test_pythons_own_folder_is_not_put_before_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/else")
    monkeypatch.setattr(parents, "__file__", str(tmp_path / "harness" / "parent.py"))
    assert parents.paths()["PYTHONPATH"] == os.pathsep.join([str(tmp_path), "/else"])
    monkeypatch.setattr(parents.site, "getsitepackages", lambda: [str(tmp_path)])
    assert parents.paths()["PYTHONPATH"] == "/else"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in parents.paths()
