"""A cell's answers split over shards: the whole log reads as that of a run in one piece, and scores alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import LogError, SettingError
from harness.measure import cell, job, request, run, shards
from harness.measure.asked import Asked
from harness.measure.executor import Ended
from harness.reports import accuracy, frame
from harness.runlog import log
from harness.runlog.records import SCHEMA, Failure, Footer, Header, Sample

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


def sample(name: str) -> Sample:
    return Sample(example=name, index=0, attempt=1, phase="timed", at="now", clock="scripted", answer=name)


def failure(name: str) -> Failure:
    return Failure(example=name, index=0, stage="encode", error="ValueError", message="m", traceback="", at="now")


def leave(asked: Asked, stopped: str, *records: Sample | Failure, **here: str) -> Path:
    """Write the finished log of one shard; `here` is its environment."""
    one = job.prepare(asked)
    header = Header(
        schema=SCHEMA, cell=one.cell.as_dict(), key=one.cell.key, command="", started_at=f"at {asked.shard}",
        harness={}, environment=here, device={}, requested={"shard": asked.shard, "shards": asked.shards}, effective={},
        cards={}, weights={}, data={}, request=one.request,
    )  # fmt: skip
    with log.Writer(one.path) as writer:
        writer.open()
        for record in (header, *records):
            writer.append(record)
        return writer.finish(Footer(ended_at="later", samples=1, failures=1, stopped=stopped))


def two(out: Path) -> tuple[list[Asked], list[Path]]:
    """Return two shards and their logs; both failed on `b`, and the second gave up."""
    wanted = job.split(Asked(model="fake", device="fake", suite="pages", limit=3, out=str(out), shards=2))
    paths = [leave(wanted[0], "precision", sample("a"), failure("b"))]
    return wanted, [*paths, leave(wanted[1], "failures", sample("c"), failure("b"))]


def ended(wanted: list[Asked], paths: list[Path]) -> list[Ended]:
    return [Ended("", path, 0, "measured", asked) for asked, path in zip(wanted, paths, strict=False)]


def test_what_one_shard_gave_up_the_whole_has_not_and_a_failure_of_two_is_one(tmp_path: Path) -> None:
    (one,) = shards.gathered(ended(*two(tmp_path)), lambda text: None)
    assert one.message == "gave up in 2 shards: too many failures in a row, the last by ValueError: m"
    assert one.code == 1
    assert one.path
    whole = log.read(one.path)
    assert whole.footer
    assert (whole.footer.stopped, whole.footer.failures, len(whole.failures)) == ("failures", 1, 1)
    assert not whole.cut_short


@pytest.mark.parametrize("when", ["before", "after the reading"])
def test_shards_that_another_command_puts_together_meanwhile_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    wanted, paths = two(tmp_path)
    request_, check = request.of(shards.whole(wanted[0])), shards._check
    if when == "before":
        shards.merge(paths, request_)
    else:

        def meanwhile(logs: list[log.Log]) -> None:
            monkeypatch.setattr(shards, "_check", check)
            shards.merge(paths, request_)

        monkeypatch.setattr(shards, "_check", meanwhile)
    (one,) = shards.gathered(ended(wanted, paths), lambda text: None)
    assert one.path
    assert one.path == next(log.find(tmp_path))
    assert "in 2 shards" in one.message
    assert log.read(one.path).finished
    assert list(tmp_path.rglob("*.part")) == []


def test_a_cell_measured_in_one_piece_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    wanted, paths = two(tmp_path)
    alone = leave(shards.whole(wanted[0]), "examples", sample("a"))
    whole = alone.read_bytes()
    assert shards.merge(paths, "") == alone
    assert alone.read_bytes() == whole
    assert all(path.is_file() for path in paths)


def test_a_shard_counts_its_own_examples(tmp_path: Path) -> None:
    wanted = job.split(Asked(model="fake", device="fake", suite="pages", limit=5, out=str(tmp_path), shards=2))
    assert [job.prepare(one).total for one in (*wanted, shards.whole(wanted[0]))] == [2, 3, 5]


def test_a_cell_of_which_some_shards_were_not_heard_is_told(tmp_path: Path) -> None:
    wanted, paths = two(tmp_path)
    (one,) = shards.gathered(ended(wanted, paths[:1]), lambda text: None)
    assert (one.code, one.path) == (1, None)
    assert one.message.startswith("only 1 of 2 shards; next: ")
    assert list(shards.gathered(ended(wanted, paths[:1]), lambda text: None, leave=True)) == []


def test_shards_that_cannot_be_are_refused() -> None:
    base = Asked(model="fake", device="fake", suite="pages")
    with pytest.raises(SettingError, match="--shards 2"):
        cell.settle(replace(base, shards=2, shard=3))
    assert job.split(replace(base, shards=3, protocol="paper")) == [replace(base, protocol="paper")]
    assert request.of(replace(base, shards=3, shard=1)) != request.of(base)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"package_torch": "2.10"}, {"package_torch": "2.11"}, ["torch 2.10, then 2.11"]),
        ({"env_NVIDIA_TF32_OVERRIDE": "1"}, {}, ["NVIDIA_TF32_OVERRIDE 1, then not set"]),
        ({"kernel": "6.1", "env_CUDA_VISIBLE_DEVICES": "0"}, {"kernel": "6.2", "env_CUDA_VISIBLE_DEVICES": "1"}, []),
        ({"package_torch": "2.10"}, {"package_torch": "2.10"}, []),
    ],
)
def test_answers_of_other_packages_are_put_together_with_a_doubt(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], told: list[str]
) -> None:
    wanted = job.split(Asked(model="fake", device="fake", suite="pages", limit=3, out=str(tmp_path), shards=2))
    paths = [leave(wanted[0], "precision", sample("a"), **first), leave(wanted[1], "shard", sample("b"), **second)]
    doubts = log.read(shards.merge(paths, "")).header.effective.get("doubts", [])
    assert doubts == [
        f"its shards answered under different conditions ({one}); next: measure all under the same" for one in told
    ]
