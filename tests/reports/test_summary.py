"""What a cell's samples come to: which of them count, how sure their medians are, and what is doubted."""

import json
from pathlib import Path

import pytest
import synthetic_logs

from harness import stats
from harness.reports import frame, measured
from harness.reports.summary import CellSummary
from harness.runlog import log

LATER = "2026-11-24T12:00:00.000+00:00"


def only_cell(folder: Path) -> CellSummary:
    (one,) = measured.gather(frame.load(folder), {}).cells
    return one


def test_answers_made_for_their_score_alone_hide_no_refused_sample(tmp_path: Path) -> None:
    """They are valid because nothing looks at their times; the figures are of refused samples all the same."""
    synthetic_logs.write(tmp_path / "a.jsonl", n=20, lost=20, answered_only=500)
    one = only_cell(tmp_path)
    assert (one.times.n, one.times.valid, one.times.refused) == (20, 0, 20)
    assert one.marks == ("refused",)
    assert any(doubt.startswith("the gate refused every sample") for doubt in one.doubts)


def test_the_share_of_refused_samples_is_of_the_timed_ones(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", n=20, lost=15, answered_only=500)
    one = only_cell(tmp_path)
    assert (one.times.n, one.times.valid, one.times.refused) == (5, 5, 15)
    assert [doubt for doubt in one.doubts if "refused as load" in doubt] == [
        "15 of 20 samples were refused as load; see `harness doctor`; measure on a quiet machine, plugged in and cool"
    ]


def test_a_sum_of_stages_of_the_same_passes_is_as_wide_as_the_passes_are(tmp_path: Path) -> None:
    """Encode and prefill of one answer wander together, and so do the questions about one image."""
    path = synthetic_logs.write(tmp_path / "a.jsonl", protocol="paper", n=40, noise=0.1)
    rows = [one for one in log.read(path).samples if one.phase == "timed"]
    parts = [[one.stages.stage_ns[name] for one in rows if one.stages] for name in ("encode", "prefill")]
    wanted = stats.sum_of_medians(parts, together=True, clusters=[one.image_ids for one in rows])
    assert only_cell(tmp_path).times.of("ttft") == wanted
    assert wanted != stats.sum_of_medians(parts)


def test_parts_that_were_loaded_apart_are_summed_as_apart(tmp_path: Path) -> None:
    encoder, llm = {"preprocess": 5.0, "encode": 100.0}, {"project": 20.0, "prefill": 50.0}
    sums = []
    for part, times in (("fastvithd", encoder), ("llm", llm)):
        path = synthetic_logs.write(tmp_path / f"{part}.jsonl", part=part, times_ms=times, n=30, noise=0.1)
        rows = [one for one in log.read(path).samples if one.phase == "timed" and one.stages]
        stages = [[one.stages.stage_ns[name] for one in rows if one.stages] for name in times]
        sums.append(stats.sum_of_medians(stages, together=True, clusters=[one.image_ids for one in rows]))
    assert only_cell(tmp_path).times.of("ttft") == stats.sum_of_estimates(sums)


@pytest.mark.parametrize("protocol", ["ttft", "paper"])
@pytest.mark.parametrize(("stage", "two"), [("preprocess", False), ("encode", True)])
def test_pages_that_take_longer_to_decode_are_no_second_speed_of_the_machine(
    tmp_path: Path, protocol: str, stage: str, two: bool
) -> None:
    path = synthetic_logs.write(tmp_path / "a.jsonl", protocol=protocol, n=40, noise=0.01)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "sample" and record["index"] % 3 == 0:
            record["stages"]["stage_ns"][stage] += 40_000_000
            if record.get("whole"):
                record["whole"]["ttft_ns"] += 40_000_000
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert any("two speeds" in doubt for doubt in only_cell(tmp_path).doubts) == two


def test_four_images_bound_no_time_however_many_questions(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", n=8)
    times = only_cell(tmp_path).times
    assert {name for name, found in times.median_ns.items() if found.low is not None} == set()
    assert {"ttft", "encode", "tpot"} <= set(times.median_ns)


def test_runs_under_different_conditions_are_doubted_by_what_differs(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "old" / "a.jsonl", environment={"package_torch": "2.9.0"}, commit="aaa")
    synthetic_logs.write(
        tmp_path / "new" / "a.jsonl",
        environment={"package_torch": "2.9.1"},
        commit="bbb",
        repetition=1,
        started_at=LATER,
    )
    one = only_cell(tmp_path)
    (doubt,) = [doubt for doubt in one.doubts if "same conditions" in doubt]
    assert not any("spread over" in doubt for doubt in one.doubts)
    assert doubt == (
        "its 2 logs were not measured under the same conditions (harness commit aaa, then bbb; torch 2.9.0, then "
        "2.9.1), and their times are put together; measure all of it anew, or report only logs that belong together"
    )


def test_runs_of_two_folders_are_two_processes_though_both_are_the_first(tmp_path: Path) -> None:
    """`harness report old/ new/`: the newer ones take half as long, and the median of both says it."""
    synthetic_logs.write(tmp_path / "old" / "a.jsonl", n=20)
    half = {stage: ms / 2 for stage, ms in synthetic_logs.TIMES_MS.items()}
    synthetic_logs.write(tmp_path / "new" / "a.jsonl", n=20, times_ms=half, started_at=LATER)
    one = only_cell(tmp_path)
    assert one.process.count == 2
    assert one.times.between_process_percent == pytest.approx(100 * 78 / 117, rel=0.05)
    assert any(doubt.startswith("the medians of its processes spread over 6") for doubt in one.doubts)
