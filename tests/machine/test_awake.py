"""A Mac is kept awake while its device is held; by a made-up caffeinate, for no Mac was at hand."""

import os
from pathlib import Path

import pytest

from harness.machine import awake, environment, lock


@pytest.fixture
def on_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_PARETO_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(awake, "ON_A_MAC", True)
    monkeypatch.setattr(awake, "CAFFEINATE", str(tmp_path / "caffeinate"))
    return tmp_path / "caffeinate"


def test_it_is_kept_awake_as_long_as_the_device_is_held(on_a_mac: Path) -> None:
    on_a_mac.write_text("#!/bin/sh\nexec sleep 60\n")
    on_a_mac.chmod(0o755)
    assert awake.kept() == "no"
    with lock.hold("fake") as doubt, lock.hold("fake"):
        assert doubt == ""
        (keeper,) = awake.KEEPERS
        assert keeper.args == [str(on_a_mac), "-is", "-w", str(os.getpid())]
        assert awake.kept() == environment.describe("cpu")["kept_awake"] == "caffeinate -is"
        keeper.kill()
        keeper.wait()
        assert awake.kept() == "no"
    assert keeper.returncode is not None
    assert not awake.KEEPERS


def test_where_nothing_does_so_it_is_a_doubt(on_a_mac: Path) -> None:
    with lock.hold("fake") as doubt:
        assert "nothing keeps this Mac awake" in doubt
        assert "next: caffeinate -is" in doubt


def test_elsewhere_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLM_PARETO_LOCKS", str(tmp_path))
    monkeypatch.setattr(awake, "ON_A_MAC", False)
    with lock.hold("fake") as doubt:
        assert (doubt, awake.KEEPERS, awake.kept()) == ("", [], None)
