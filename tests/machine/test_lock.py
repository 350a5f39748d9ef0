"""The lock of a device: of the host, of the physical device, and never an accusation where there are no locks."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import files
from harness.errors import DeviceError
from harness.machine import lock
from harness.machine.devices import fake

HOLDER = """
import sys, time
from harness.machine import lock
with lock.hold("fake"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_PARETO_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(lock, "WAIT_S", 0.0)
    return tmp_path / "locks"


@pytest.fixture
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the fake device until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "held\n"
        yield process
        if not process.stdin.closed:
            process.stdin.close()


def test_who_holds_it_is_named_and_waiting_is_offered(holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(DeviceError, match=rf"fake is held by process {holder.pid}; next: add --wait"),
        lock.hold("fake"),
    ):
        pass


def test_waiting(holder: subprocess.Popen[str]) -> None:
    said: list[str] = []

    def notify(text: str) -> None:
        said.append(text)
        assert holder.stdin
        holder.stdin.close()
        holder.wait()

    with lock.hold("fake", True, notify) as doubt:
        assert doubt == ""
    assert said == [f"waiting for fake, which is held by process {holder.pid}"]


def test_the_same_process_may_hold_it_again(folder: Path) -> None:
    with lock.hold("fake"), lock.hold("fake") as doubt:
        assert doubt == ""
    assert not lock.HELD


def test_two_names_of_one_device_are_one_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "lock_name", lambda name: "GPU-1", raising=False)
    with lock.hold("fake"), lock.hold("fake:0"):
        assert [path.name for path in folder.iterdir()] == ["GPU-1.lock"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_doubt(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with lock.hold("fake") as doubt:
        assert "was not locked" in doubt
        assert "VLM_PARETO_LOCKS" in doubt
        assert "held by" not in doubt


def test_a_folder_that_cannot_be_is_a_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_PARETO_LOCKS", str(tmp_path / "file" / "locks"))
    with lock.hold("fake") as doubt:
        assert "was not locked" in doubt


def test_it_lies_on_the_host_and_not_in_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_PARETO_LOCKS")
    monkeypatch.setenv("VLM_PARETO_CACHE", "/somewhere/shared")
    assert not str(lock.folder()).startswith(("/somewhere", str(Path.home()) + "/"))
