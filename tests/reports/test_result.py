"""What one measurement came to: the roofline is of the samples whose work was counted."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
import synthetic_logs

from harness.reports import result as outcome
from harness.reports.accuracy import Accuracy
from harness.runlog import log as runlog
from harness.runlog.records import Counted


def rewrite(path: Path, counted: list[Counted], peaks: dict[str, float], shapes: list[tuple[int, int]]) -> None:
    """Give a log's samples shapes (visual tokens, tiles) and times in proportion, its machine peaks, and counts."""
    log = runlog.read(path)
    header = msgspec.structs.replace(log.header, effective=peaks)
    samples = []
    for sample in log.samples:
        tokens, tiles = shapes[sample.index]
        assert sample.stages
        stages = msgspec.structs.replace(sample.stages, stage_ns={"encode": tiles * 100_000_000})
        samples.append(msgspec.structs.replace(sample, visual_tokens=tokens, tiles=tiles, stages=stages))
    lines = [header, *counted, *samples, log.footer]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def test_the_roofline_is_of_samples_of_the_shape_that_was_counted(tmp_path: Path) -> None:
    """The first example counted has one tile, most have five: one's FLOPs over the other's time would say 10 %."""
    path = synthetic_logs.write(tmp_path / "a.jsonl", n=12)
    shapes = [(256, 1)] * 3 + [(1280, 5)] * 9
    counted = [
        Counted(visual_tokens=n, text_tokens=20, tiles=t, flops={"encode": t * 10**9}, weight_bytes={"encode": 10**6})
        for n, t in ((256, 1), (1280, 5))
    ]
    rewrite(path, counted, {"peak_flops_per_s": 2e10, "peak_bytes_per_s": 1e10}, shapes)
    (result,), _ = outcome.of([path])
    (encode,) = [row for row in result.as_dict()["stages"] if row["stage"] == "encode"]
    assert encode["flops"] == 5 * 10**9
    assert encode["of_roofline"] == pytest.approx(0.5)


def test_a_stage_that_reads_more_than_it_computes_is_held_against_the_memory(tmp_path: Path) -> None:
    path = synthetic_logs.write(tmp_path / "a.jsonl", n=12)
    work = {"flops": {"encode": 10**9}, "weight_bytes": {"encode": 8 * 10**8}}
    counted = [Counted(visual_tokens=256, text_tokens=20, tiles=1, **work)]
    rewrite(path, counted, {"peak_flops_per_s": 2e11, "peak_bytes_per_s": 1e10}, [(256, 1)] * 12)
    (result,), _ = outcome.of([path])
    (encode,) = [row for row in result.as_dict()["stages"] if row["stage"] == "encode"]
    assert encode["of_roofline"] == pytest.approx(0.8)


def test_beside_the_accuracy_stands_how_many_of_its_answers_were_timed(tmp_path: Path) -> None:
    (result,), _ = outcome.of([synthetic_logs.write(tmp_path / "a.jsonl", n=12, answered_only=8)])
    told = {}
    for n in (20, 12):
        cell = dataclasses.replace(result.cell, accuracy=Accuracy("ANLS", 0.7, 0.6, 0.8, n=n))
        told[n] = dataclasses.replace(result, cell=cell).as_dict()["also"]["accuracy"]
    assert told[20] == "ANLS 0.700 [0.600, 0.800] over 20 questions of pages; 12 of these answers were timed"
    assert told[12] == "ANLS 0.700 [0.600, 0.800] over 12 questions of pages"


def test_without_a_measured_peak_there_is_no_share(tmp_path: Path) -> None:
    path = synthetic_logs.write(tmp_path / "a.jsonl", n=12)
    (result,), _ = outcome.of([path])
    assert all(row["of_roofline"] is None for row in result.as_dict()["stages"])
