"""A cell's answers split over shards: the whole log reads as that of a run in one piece, and scores alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import LogError, SettingError
from harness.measure import cell, job, request, run, shards
from harness.measure.asked import Asked
from harness.reports import accuracy, frame
from harness.runlog import log

COUNT = 3


@pytest.fixture(autouse=True)
def cache(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))


def wish(out: Path, data: Path, checkpoint: object, **more: object) -> Asked:
    one = Asked(
        model=str(checkpoint.card),  # type: ignore[attr-defined]
        weights=str(checkpoint.weights),  # type: ignore[attr-defined]
        suite="docvqa", data=str(data), res=64, minimum_samples=3, minimum_seconds=0.0, maximum_samples=4, limit=9,
        out=str(out),
    )  # fmt: skip
    return replace(one, **more)  # type: ignore[arg-type]


def measure(asked: Asked) -> Path:
    """Measure one shard, or a whole cell, in this process."""
    one = job.prepare(asked)
    if not one.finished:
        list(run.run_job(one, lambda text: None))
    return one.path


def answers(path: Path) -> list[tuple[str, str | None]]:
    """Return the answers that count, in their order: a machine that is not quiet refuses some samples at first."""
    return [(one.example, one.answer) for one in accuracy.answers([log.read(path)])]


def test_shards_are_stretches_of_the_order() -> None:
    order = [4, 2, 0, 1, 3, 5, 6]
    parts = [shards.share(order, number, COUNT) for number in (1, 2, 3)]
    assert parts == [{4, 2}, {0, 1}, {3, 5, 6}]


def test_the_whole_log_reads_as_a_run_in_one_piece_though_a_shard_was_killed(
    tmp_path: Path, shared: Path, tiny_fastvlm: object
) -> None:
    data = shared / "data" / "docvqa_mini"
    alone = measure(wish(tmp_path / "alone", data, tiny_fastvlm))
    asked = wish(tmp_path / "out", data, tiny_fastvlm, shards=COUNT)
    wanted = job.split(asked)
    assert shards.count(wanted) == 1
    killed = job.prepare(wanted[1])
    for record in run.run_job(killed, lambda text: None):  # dies in the middle, with half a line written
        if getattr(record, "phase", "") == "timed":
            break
    del record
    part = killed.path.with_name(killed.path.name + ".part")
    with part.open("ab") as file:
        file.write(b'{"kind":"sample","exam')
    paths = [measure(one) for one in wanted]
    assert list(log.find(tmp_path / "out")) == []  # no report reads a shard
    timed = [[one.timed for one in log.read(path).samples if one.phase == "timed"] for path in paths]
    assert any(timed[0])
    assert not any(timed[1] + timed[2])
    assert all(log.read(path).header.key == log.read(alone).header.key for path in paths)
    path = shards.merge(list(reversed(paths)), request.of(asked))
    assert list(log.find(tmp_path / "out")) == [path]
    assert path.name == alone.name
    assert answers(path) == answers(alone)
    both = [accuracy.of(frame.load(one)) for one in (alone, path)]
    assert list(both[0].values()) == list(both[1].values())
    whole = log.read(path)
    assert whole.footer
    assert whole.footer.samples == len([one for one in whole.samples if one.phase == "timed"])
    assert [one.shard for one in whole.resumed if one.shard] == ["2/3", "3/3"]
    assert "--shard" not in whole.header.command
    assert job.prepare(wanted[2]).log == path  # nothing is left to do


def test_what_is_not_all_the_shards_of_one_cell_is_refused(tmp_path: Path, shared: Path, tiny_fastvlm: object) -> None:
    data = shared / "data" / "docvqa_mini"
    wanted = job.split(wish(tmp_path, data, tiny_fastvlm, shards=2, limit=4))
    first = measure(wanted[0])
    with pytest.raises(LogError, match="1 of 2 shards"):
        shards.merge([first], "")
    second = measure(replace(wanted[1], seed=1))
    with pytest.raises(LogError, match="of another cell"):
        shards.merge([first, second], "")
    assert first.is_file()
    assert second.is_file()


def test_shards_that_cannot_be_are_refused() -> None:
    base = Asked(model="fake", device="fake", suite="pages")
    with pytest.raises(SettingError, match="--shards 2"):
        cell.settle(replace(base, shards=2, shard=3))
    assert job.split(replace(base, shards=3, protocol="paper")) == [replace(base, protocol="paper")]
    assert request.of(replace(base, shards=3, shard=1)) != request.of(base)
