"""A night's log counts for what it was measured on: the checkpoint as it is now, asked as it is now."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_logs as logs

from harness.errors import SettingError
from harness.measure import job
from harness.measure.asked import Asked
from harness.runlog.log import read
from harness.track import contents, nights
from harness.track.contents import COMMON, OWN, Content
from harness.track.nights import Expected, Series
from harness.track.verdict import UNCLEAR, Judge

SERIES = Series("box", "cpu", "torch", "float32", 1024, "fastvlm-0.5b", "pages", "ttft")
REST = {
    "model", "asked_suite", "resolution", "device", "engine", "dtype", "protocol",  # the series
    "weights",  # how its digest came about
    "part", "repetition",  # parts are not tracked; repetitions are rounds
    "minimum_samples", "minimum_seconds", "maximum_samples", "maximum_seconds", "precision",  # how often, not what
}  # fmt: skip


def safetensors(path: Path, size: int = 64, cut: int = 0) -> Path:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole[: len(whole) - cut])
    return path


def test_everything_a_number_depends_on_is_compared() -> None:
    """A field that comes to a cell later must be sorted into one of these, or this test falls."""
    assert set(job.prepare(Asked(model="fake", device="fake", suite="pages", limit=2)).cell.as_dict()) == {
        *OWN, *COMMON, *REST
    }  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, *COMMON])
def test_a_log_of_anything_else_does_not_count(tmp_path: Path, name: str) -> None:
    """Each fact is changed in turn; the night is then not measured, and the reading says what had been measured."""
    path = logs.write(tmp_path / "n1" / "alone" / "checkpoint" / "box" / "a.jsonl")
    cell = read(path).header.cell
    now = {known: cell.get(known) for known in (*OWN, *COMMON)}
    same = nights.read(tmp_path, "n1", Expected(SERIES, Content(now)), None)
    assert (same.state, same.changed) == ("valid", "")
    other = nights.read(tmp_path, "n1", Expected(SERIES, Content({**now, name: "another"})), None)
    assert other.state == "missing"
    assert other.changed == f"{name} {contents.brief(cell.get(name))} → another"


def test_the_verdict_names_what_it_compared_and_what_had_the_name_before(tmp_path: Path) -> None:
    logs.write(tmp_path / "n1" / "alone" / "checkpoint" / "box" / "a.jsonl")
    found = nights.read(tmp_path, "n1", Expected(SERIES, Content({"weights_digest": "w0"})), None)
    verdict = Judge([replace(found, changed="weights_digest w9 → w0")], "n1", 0.03).verdict()
    assert verdict.compared == (("n1", "weights w0"),)
    assert any("measured before as something else (weights_digest w9 → w0)" in notice for notice in verdict.notices)


def test_a_folder_overwritten_in_place_has_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size, and with the time of the old file put back: neither tells, but the digest does."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    file = safetensors(tmp_path / "night" / "model.safetensors")
    held = contents.Contents(Asked(model="fastvlm-0.5b", device="fake", suite="pages", limit=2))
    first, again = held.of(tmp_path / "night", False), held.of(tmp_path / "night", False)
    assert first == again
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert held.of(tmp_path / "night", False) != first


def test_what_trainers_put_beside_checkpoints_is_no_checkpoint(tmp_path: Path) -> None:
    safetensors(tmp_path / "checkpoint-20" / "model.safetensors")
    safetensors(tmp_path / "checkpoint-100" / "model.safetensors")
    for name, file in (("runs", "events.tfevents"), ("global_step100", "mp_rank_00_model_states.pt"),
                       ("state", "optimizer.bin"), ("empty", None)):  # fmt: skip
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_bytes(b"x")
    (tmp_path / "latest").symlink_to("checkpoint-100")
    found = nights.discover(tmp_path)
    assert [night.name for night in found.nights] == ["checkpoint-20", "checkpoint-100"]
    assert "latest is a link to checkpoint-100, which is tracked under its own name" in found.notices
    assert len(found.notices) == 5
    (tmp_path / "other" / "runs").mkdir(parents=True)
    with pytest.raises(SettingError, match="no folder in it holds weights"):
        nights.discover(tmp_path / "other")


def test_what_is_half_written_is_told_from_what_is_broken(tmp_path: Path) -> None:
    safetensors(tmp_path / "whole" / "model.safetensors")
    assert contents.unfinished(tmp_path / "whole") == ""
    safetensors(tmp_path / "half" / "model.safetensors", cut=10)
    assert contents.unfinished(tmp_path / "half").startswith("model.safetensors has ")
    safetensors(tmp_path / "late" / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "late" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert contents.unfinished(tmp_path / "late") == (
        "1 of 2 weight files are not there yet (model-00002-of-00002.safetensors)"
    )
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert contents.unfinished(tmp_path / "bare") == "no weights in it yet"
    (tmp_path / "bare" / "config.json").write_text('{"a":')
    assert contents.unfinished(tmp_path / "bare") == "a JSON file that breaks off"


def test_a_night_without_memory_is_no_broken_checkpoint(tmp_path: Path) -> None:
    path = logs.write(tmp_path / "n1" / "alone" / "checkpoint" / "box" / "a.jsonl", n=0, failures=2)
    path.write_text(path.read_text().replace('"error":"ExampleError"', '"error":"OutOfMemoryError"'))
    assert '"error":"OutOfMemoryError"' in path.read_text()
    found = nights.read(tmp_path, "n1", Expected(SERIES), None)
    assert found.state == "unready"
    verdict = Judge([nights.Reading("n0", "valid"), found], "n0", 0.03).verdict()
    assert verdict.code == UNCLEAR
    assert verdict.lines[0].startswith("not measured tonight: ")
    assert "the same command tries again" in verdict.lines
