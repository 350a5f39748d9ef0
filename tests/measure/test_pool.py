"""The pool on four fake devices: one cell on each at a time, and a worker that dies takes no other with it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import SettingError
from harness.machine import pool as machine
from harness.machine.devices import fake
from harness.measure import sweep
from harness.measure.asked import Asked
from harness.measure.executor import Executor
from harness.measure.executors import pool
from harness.runlog import log

SAY = "import os, sys, pathlib; d = os.environ['HARNESS_FAKE_DEVICES']; f = pathlib.Path(sys.argv[1], d + '.busy'); "
ALONE = SAY + "f.touch(exist_ok=False); import time; time.sleep(0.3); f.unlink(); print(d, file=open(sys.argv[2], 'w'))"


@pytest.fixture(autouse=True)
def unlooked() -> Iterator[None]:
    """Processes that have not looked at the devices yet."""
    fake.reset()
    yield
    fake.reset()


def test_one_process_on_each_device_at_a_time(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", ALONE, str(tmp_path), str(tmp_path / f"{index}.txt")] for index in range(6)]
    ended = dict(pool.submit(commands, tmp_path, {"devices": "fake:0,fake:2"}))
    assert ended == dict.fromkeys(range(6), 0)  # a second one on the same device would have failed
    assert {(tmp_path / f"{index}.txt").read_text().strip() for index in range(6)} == {"0", "2"}


def test_a_worker_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    die = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"]
    live = [sys.executable, "-c", "pass"]
    assert dict(pool.submit([live, die, live, live], tmp_path, {"devices": "fake:0,fake:1"})) == {
        0: 0,
        1: -9,
        2: 0,
        3: 0,
    }


def test_whoever_stops_reading_ends_the_workers(tmp_path: Path) -> None:
    wait = [
        sys.executable,
        "-c",
        f"import time, pathlib; pathlib.Path({str(tmp_path)!r}, 'up').touch(); time.sleep(60)",
    ]
    running = pool.submit([[sys.executable, "-c", "pass"], wait], tmp_path, {"devices": "fake:0,fake:1"})
    assert next(running) == (0, 0)
    running.close()  # type: ignore[attr-defined]  # returns when they have ended: no minute passes


def test_a_pool_is_said_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_FAKE_DEVICES", "0,1,2,3")
    by, device, grids = sweep.pooled(Executor(), "fake:1,fake:3", [({"device": ["cuda"], "res": [64]}, {})])
    assert (by.name, by.options, device) == ("pool", {"devices": "fake:all"}, "fake")
    assert grids == [({"res": [64]}, {})]
    assert os.environ["HARNESS_FAKE_DEVICES"] == "1,3"
    # What looks at devices keeps to what it saw first, as CUDA does: the look at all four was another process's.
    assert [one.environment["HARNESS_FAKE_DEVICES"] for one in machine.members("fake:all")] == ["1", "3"]
    fake.reset()
    monkeypatch.setenv("HARNESS_FAKE_DEVICES", "0,1,2,3")
    by, device, _ = sweep.pooled(Executor(), None, [({}, {"device": "fake:all"})])
    assert (by.name, device) == ("pool", "fake")
    assert sweep.pooled(Executor(), "fake", []) == (Executor(), "fake", [])
    with pytest.raises(SettingError, match="no 'fake:9' here; known: fake:0"):
        sweep.pooled(Executor(), "fake:9,fake:1", [])
    with pytest.raises(SettingError, match="a pool goes by itself"):
        sweep.pooled(Executor("submitit"), "fake:all", [])
    with pytest.raises(SettingError, match="a pool goes by itself"):
        sweep.pooled(Executor(), None, [({"device": ["fake:all", "cpu"]}, {})])
    with pytest.raises(SettingError, match="which devices"):
        list(pool.submit([], Path(), {}))


@pytest.mark.slow
def test_a_killed_worker_loses_its_unfinished_sample_alone(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker kills itself in its third sample; the same command goes on with its log, and the others stay."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    common = Asked(
        model="fake", device="fake", suite="pages", limit=5, minimum_samples=5, minimum_seconds=0.0, res=64,
        settings={"prefill_ms": 300}, out=str(tmp_path / "out"),
    )  # fmt: skip
    wanted, _ = sweep.grid({"res": [64, 128]}, common)
    by = Executor("pool", {"devices": "fake:0,fake:1"})
    start = pool._start

    def killing(command: list[str], member: object) -> object:
        """Kill the first worker when its log has three samples."""
        child = start(command, member)  # type: ignore[arg-type]
        if "64" in command:
            while (
                not (parts := list((tmp_path / "out").rglob("*-64px-*.part")))
                or parts[0].read_text().count('"timed"') < 3
            ):
                assert child.poll() is None
            child.kill()
        return child

    monkeypatch.setattr(pool, "_start", killing)
    ended = {one.title.split()[2]: one for one in sweep.run_all(wanted, by=by)}
    assert (ended["64px"].code, ended["128px"].code) == (-9, 0)
    assert "killed" in ended["64px"].message
    (part,) = (tmp_path / "out").rglob("*.part")
    kept = [one.at for one in log.read(part).samples]
    monkeypatch.setattr(pool, "_start", start)
    again = {one.title.split()[2]: one for one in sweep.run_all(wanted, by=by)}
    assert (again["64px"].message, again["128px"].message) == ("measured", "measured already")
    assert again["64px"].path
    whole = log.read(again["64px"].path)
    assert [one.at for one in whole.samples][: len(kept)] == kept
    assert len({one.example for one in whole.samples if one.phase == "timed"}) == 5
