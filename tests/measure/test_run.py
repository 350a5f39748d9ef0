"""Runs of cells: commands that can be run again, logs that are resumed and then read as one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness import cards, cli
from harness.clock import Scripted
from harness.errors import CardError, DeviceError, SettingError, UnknownName
from harness.machine import backend, lock
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.measure import command, run
from harness.measure.asked import Asked
from harness.measure.job import afresh, prepare
from harness.models.families.fake import FakeModel
from harness.runlog import log as runlog
from harness.runlog.records import Sample

ASKED = Asked(
    model="fake", device="fake", suite="pages", limit=6, precision=0, minimum_seconds=0, decode_tokens=2, offline=True
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def asked(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(cache))
    yield replace(ASKED, out=str(tmp_path))
    fake.reset()
    lock.HELD.clear()


@pytest.mark.parametrize("best", ["cuda", "cpu"])
def test_a_cells_command_asks_for_this_very_cell_on_any_machine(best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back by the command line's own parser: also where another device would be the default."""
    asked = Asked(device="cpu", settings={"decode": True, "answer": "5", "jitter": 0.5}, limit=3, threads=2)
    monkeypatch.setattr(backend, "best", lambda: best)
    context = cli.program.commands["run"].make_context("run", command.arguments(asked)[1:])
    left = {"protocol", "processes", "again", "as_json", "bare"}
    given = {name: value for name, value in context.params.items() if name not in left}
    assert cli._asked(given) == asked


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"model": "fastvlm-0.5b"}, "--no-stand-in: .*random weights of the exact .*; next: --weights FOLDER, or `--w"),
        ({"suite": "docvqa"}, "--no-stand-in: docvqa: .* the embedded suite `pages` stands in for it, .*--data PATH"),
        ({"model": "fastvlm-0.5b", "weights": "random"}, ""),
        ({}, ""),
    ],
)
def test_what_stands_in_is_refused_where_that_was_asked_for(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str], told: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    device = "cpu" if "model" in wanted else "fake"
    asked = replace(asked, device=device, **wanted)  # type: ignore[arg-type]
    assert prepare(asked).cell.model == asked.model  # without the wish it stands in, and says so in a note
    if not told:
        assert prepare(replace(asked, no_stand_in=True)).cell.model == asked.model
        return
    with pytest.raises(SettingError, match=told):
        prepare(replace(asked, no_stand_in=True))


def test_a_resumed_log_reads_as_one(asked: Asked) -> None:
    fake.reset()
    fake.EPISODES[:] = [Episode(0, 400_000_000, 1.0, "throttled")]
    job = prepare(asked)
    first = run.run_job(job, lambda _: None, Scripted())
    timed = 0
    for record in first:
        timed += isinstance(record, Sample) and record.phase == "timed"
        if timed == 3:
            break
    first.close()  # as an interrupt would
    before = runlog.read(job.path.with_name(job.path.name + ".part"))
    refused = [s for s in before.samples if s.phase == "timed" and not s.valid]
    assert refused
    assert job.begun == {s.example for s in before.samples if s.phase == "timed" and s.valid} != set()
    fake.EPISODES.clear()
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    log = runlog.read(job.path)
    assert log.footer
    measured = [s for s in log.samples if s.phase == "timed"]
    assert log.footer.samples == len(measured)
    assert log.footer.refused == len(refused)
    assert len({s.example for s in measured if s.valid}) == len([s for s in measured if s.valid]) == 6


def test_a_resumed_run_counts_what_was_timed_before_whatever_the_protocol(asked: Asked) -> None:
    """Ten samples are asked for; nine are there: one more is measured, not ten."""
    job = prepare(replace(asked, protocol="paper", limit=20, minimum_samples=10, maximum_samples=10))
    first = run.run_job(job, lambda _: None, Scripted())
    timed = 0
    for record in first:
        timed += isinstance(record, Sample) and record.phase == "timed"
        if timed == 9:
            break
    first.close()
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    log = runlog.read(job.path)
    assert len([s for s in log.samples if s.phase == "timed"]) == 10


def test_a_model_that_does_not_fit_is_one_line(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("harness.models.families.fake.load", load)
    with pytest.raises(DeviceError, match=r"fake in float32 does not fit into .* of fake; next: --isolate-stages"):
        list(run.run_job(prepare(replace(asked, limit=1)), lambda _: None, Scripted()))


def test_a_run_that_ran_out_of_memory_is_not_measured_already(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command goes on with its log: the failures stay in it, but are told no more."""
    with monkeypatch.context() as short:
        short.setattr(FakeModel, "answer", out_of_memory)
        for _ in run.run_job(prepare(asked), lambda _: None, Scripted()):
            pass
    job = prepare(asked)
    assert runlog.read(job.path).failures
    assert not job.finished
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    log = runlog.read(job.path)
    assert prepare(asked).finished
    assert len([sample for sample in log.samples if sample.phase == "timed"]) == 6
    assert log.failures
    assert not log.lasting
    assert log.footer
    assert log.footer.failures == len(log.failures)


def out_of_memory(*_: object) -> Iterator[None]:
    raise MemoryError
    yield


def test_a_run_that_died_at_its_last_step_is_measured_already(asked: Asked) -> None:
    """Between the footer and the renaming: there is nothing left to measure."""
    job = prepare(asked)
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    whole = job.path.read_bytes()
    job.path.rename(job.path.with_name(job.path.name + ".part"))
    assert prepare(asked).finished
    assert job.path.read_bytes() == whole


def test_what_another_run_measured_while_this_one_waited_is_not_measured_on(asked: Asked) -> None:
    """Prepared before the other had finished: after the wait for the device there is nothing left to do."""
    waiting, said = prepare(asked), list[str]()
    list(run.run_job(prepare(asked), lambda _: None, Scripted()))
    whole = waiting.path.read_bytes()
    assert list(run.run_job(waiting, said.append, Scripted())) == []
    assert said == [f"measured already, by another run meanwhile: {waiting.path}"]
    assert waiting.path.read_bytes() == whole
    again = afresh(waiting)
    assert again.cell.repetition == 1  # to measure once more is still to measure
    assert list(run.run_job(again, lambda _: None, Scripted()))


def test_threads_are_those_that_were_asked_for_and_only_for_that_run(asked: Asked) -> None:
    import torch

    own = torch.get_num_threads()
    for threads in (3, None):
        job = prepare(replace(asked, threads=threads, limit=1))
        list(run.run_job(job, lambda _: None, Scripted()))
        assert torch.get_num_threads() == (threads or own)
    assert "64 threads wait for each other on 2 cores" in run.crowded(64, 2)
    assert run.crowded(2, 2) == run.crowded(None, 2) == ""


def test_a_card_that_no_model_can_be_built_of_is_named(asked: Asked, tmp_path: Path) -> None:
    text = (cards.ROOT / "models" / "fastvlm-nano.toml").read_text().replace('shipped = "fastvlm-nano"\n', "")
    wrong = text.replace("cls_ratio = 1.0", "cls_ratioo = 1.0")
    assert wrong != text
    (tmp_path / "card.toml").write_text(wrong)
    own = replace(asked, model=str(tmp_path / "card.toml"), device="cpu", res=64, weights="random")
    with pytest.raises(
        CardError, match=r"card\.toml: no model can be built of it: .*cls_ratioo.*; next: mend the card"
    ):
        list(run.run_job(prepare(own), lambda _: None, Scripted()))


@pytest.mark.parametrize("value", ["-10.0", '"soon"'])
def test_a_fake_cards_own_setting_is_a_number_of_0_or_more(asked: Asked, tmp_path: Path, value: str) -> None:
    text = (cards.ROOT / "models" / "fake.toml").read_text()
    wrong = text.replace("encode_ms = 10.0", f"encode_ms = {value}")
    assert wrong != text
    (tmp_path / "card.toml").write_text(wrong)
    own = replace(asked, model=str(tmp_path / "card.toml"))
    for given in ({}, {"encode_ms": 1.0}):  # that another value is asked for does not mend the card
        with pytest.raises(SettingError, match=r"setting encode_ms of card: .* must be a number, 0 or more; next:"):
            list(run.run_job(prepare(replace(own, settings=given)), lambda _: None, Scripted()))


def test_a_device_without_a_name_is_none() -> None:
    context = cli.program.commands["run"].make_context("run", ["--model", "fake", "--device", ""])
    left = {"protocol", "processes", "again", "as_json", "bare"}
    with pytest.raises(UnknownName, match="unknown device ''"):
        prepare(cli._asked({name: value for name, value in context.params.items() if name not in left}))


def test_weights_beside_an_index_of_other_weights_are_a_doubt(asked: Asked, tmp_path: Path) -> None:
    """The line on stderr is gone when somebody reads the report."""
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    job = prepare(replace(asked, weights=str(tmp_path), limit=2))
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    doubts = runlog.read(job.path).header.effective["doubts"]
    assert any("index.json beside it is not read" in doubt for doubt in doubts)


def test_a_card_of_ones_own_under_a_known_name_is_a_doubt(asked: Asked, tmp_path: Path) -> None:
    """Tables and the paper's comparisons go by the name."""
    known = (cards.ROOT / "models" / "fake.toml").read_text(encoding="utf-8")
    own = tmp_path / "fake.toml"
    own.write_text(known.replace("encode_ms = 10.0", "encode_ms = 5.0"), encoding="utf-8")
    assert "its card is not fake" in prepare(replace(asked, model=str(own))).doubts[0]
    own.write_text(known, encoding="utf-8")
    assert prepare(replace(asked, model=str(own))).doubts == ()
    assert prepare(asked).doubts == ()
    other = own.rename(tmp_path / "mine.toml")
    other.write_text(known.replace("encode_ms = 10.0", "encode_ms = 5.0"), encoding="utf-8")
    assert prepare(replace(asked, model=str(other))).doubts == ()


def test_a_device_that_doubts_what_was_put_on_it_says_so_in_the_log(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Mac's GPU does with more than Metal recommends: it swaps, and refuses nothing."""
    monkeypatch.setattr(fake.Fake, "doubts", ["the model takes 15 GB"], raising=False)
    job = prepare(asked)
    for _ in run.run_job(job, lambda _: None, Scripted()):
        pass
    assert "the model takes 15 GB" in runlog.read(job.path).header.effective["doubts"]
