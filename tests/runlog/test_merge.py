"""Logs of several machines come together; what is there twice is named, and nothing is overwritten."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import program
from harness.errors import LogError
from harness.measure import job, run
from harness.measure.asked import Asked
from harness.runlog import log, merge


@pytest.fixture
def measured(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    asked = Asked(
        model="fake", device="fake", suite="pages", res=64, limit=2, minimum_samples=1, minimum_seconds=0.0,
        settings={"prefill_ms": 0.1, "encode_ms": 0.1}, out=str(tmp_path / "a"),
    )  # fmt: skip
    for one in (asked, replace(asked, out=str(tmp_path / "b"), res=128)):
        list(run.run_job(job.prepare(one), lambda text: None))
    return tmp_path


def words(*sources: Path, out: Path) -> list[str]:
    return [one.what for one in merge.merge(sources, out)]


def test_logs_come_into_their_machines_folders_once(measured: Path) -> None:
    out = measured / "out"
    assert words(measured / "a", measured / "b", out=out) == [merge.CAME, merge.CAME]
    assert len(list(log.find(out))) == 2
    assert {path.parent.name for path in log.find(out)} == {log.read(next(log.find(out))).header.environment["machine"]}
    assert words(measured / "a", measured / "b", out, out=out) == [merge.SAME, merge.SAME]


def test_the_fuller_state_of_a_run_stays(measured: Path) -> None:
    (whole,) = log.find(measured / "a")
    early = measured / "early" / whole.parent.name / (whole.name + ".part")
    early.parent.mkdir(parents=True)
    early.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:3]))
    out = measured / "out"
    assert words(early, measured / "a", out=out) == [merge.CAME, merge.CAME]
    assert [path.name for path in log.find(out)] == [whole.name]
    assert words(early, out=out) == [merge.OLDER]


def test_another_run_of_the_cell_is_named_and_not_overwritten(measured: Path) -> None:
    out = measured / "out"
    list(merge.merge([measured / "a"], out))
    (there,) = log.find(out)
    before = there.read_bytes()
    (mine,) = log.find(measured / "a")
    lines = mine.read_bytes().splitlines(keepends=True)
    started = log.read(mine).header.started_at.encode()
    mine.write_bytes(b"".join([lines[0].replace(started, b"2026-01-01T00:00:00.000+00:00"), *lines[1:]]))
    done = CliRunner().invoke(program, ["merge", str(measured / "a"), "--out", str(out)], standalone_mode=False)
    assert done.return_value == 1
    assert "is another run of this cell" in done.output
    assert there.read_bytes() == before
    (measured / "a" / "bad.jsonl").write_text("{}\n{}\n")
    assert merge.UNREADABLE in words(measured / "a", out=out)
    with pytest.raises(LogError, match="no such file or folder"):
        words(measured / "nowhere", out=out)
