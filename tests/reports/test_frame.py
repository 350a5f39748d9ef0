"""Run logs to rows and summaries: nothing is dropped in silence, medians are the truth up to the noise put in."""

import os
from pathlib import Path

import pytest
import synthetic_logs

from harness.errors import LogError
from harness.reports import accuracy as scoring
from harness.reports import frame, measured, result, tables
from harness.reports.card import load_report_card
from harness.reports.marks import MARKS
from harness.reports.summary import CellSummary


def cells_of(folder: Path) -> list[CellSummary]:
    data = frame.load(folder)
    return list(measured.gather(data, scoring.of(data, remember=False)).cells)


def test_a_row_per_sample_with_units(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "box" / "a.jsonl", n=10)
    data = frame.load(tmp_path)
    assert len(data.samples) == 11
    assert list(data.samples["phase"]).count("cold") == 1
    for column in ("encode_ns", "prefill_ns", "ttft_ns", "visual_tokens", "original_width_px", "rss_bytes", "machine"):
        assert column in data.samples
    first = data.records["box/a.jsonl"].samples[3]
    assert data.samples["encode_ns"][3] == first.stages.stage_ns["encode"]
    assert data.samples["stages_ns"][3] == sum(first.stages.stage_ns.values())


def test_unreadable_logs_are_named(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "good.jsonl")
    synthetic_logs.write(tmp_path / "future.jsonl", schema=99)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "good.jsonl").read_bytes())
    (tmp_path / "junk.jsonl").write_text("not JSON\n")
    (tmp_path / "empty.jsonl").write_text("")
    data = frame.load(tmp_path)
    assert len(data.records) == 1
    reasons = {skipped.log: skipped.reason for skipped in data.skipped}
    assert set(reasons) == {"future.jsonl", "good.jsonl", "junk.jsonl", "empty.jsonl"}
    assert "schema 99" in reasons["future.jsonl"]
    assert "the same run as copy.jsonl" in reasons["good.jsonl"]
    with pytest.raises(LogError, match="no such file"):
        frame.load(tmp_path / "nowhere")


def test_an_empty_folder_gives_no_rows(tmp_path: Path) -> None:
    assert cells_of(tmp_path) == []


def test_medians_residual_and_refused_samples(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", n=60, refused=5, residual_ms=3.0, failures=2)
    (one,) = cells_of(tmp_path)
    assert one.times.n == 60
    assert one.times.refused == 5
    for stage, truth_ms in synthetic_logs.TIMES_MS.items():
        assert one.times.ns(stage) / 1e6 == pytest.approx(truth_ms, rel=0.02)
        assert one.times.of(stage).low <= one.times.of(stage).value <= one.times.of(stage).high
    assert one.times.ns("ttft") / 1e6 == pytest.approx(159, rel=0.02)
    assert one.times.residual_percent == pytest.approx(100 * 3 / 159, rel=0.05)
    assert one.times.ns("tpot") == 10_000_000
    assert any("2 examples failed" in doubt for doubt in one.doubts)


def test_a_big_residual_is_a_doubt(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", residual_ms=40)
    (one,) = cells_of(tmp_path)
    assert any(doubt.startswith("stage times do not add up to TTFT: ") for doubt in one.doubts)


def test_the_papers_protocol_adds_encoder_and_prefill(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", protocol="paper", n=40)
    (one,) = cells_of(tmp_path)
    assert one.times.additive
    assert one.times.ns("ttft") == one.times.ns("encode") + one.times.ns("prefill")
    assert one.times.of("ttft").low < one.times.ns("ttft") < one.times.of("ttft").high
    assert one.marks == ("paper",)
    assert "no question is answered" in one.accuracy.reason


def test_isolated_parts_are_one_row(tmp_path: Path) -> None:
    encoder, llm = {"preprocess": 5.0, "encode": 100.0}, {"project": 1.0, "prefill": 50.0}
    synthetic_logs.write(tmp_path / "e.jsonl", part="fastvithd", times_ms=encoder, n=30, visual_tokens=0)
    (one,) = cells_of(tmp_path)
    assert one.times.ns("ttft") is None
    assert "part llm" in one.times.missing
    synthetic_logs.write(tmp_path / "l.jsonl", part="llm", times_ms=llm, n=30)
    (one,) = cells_of(tmp_path)
    assert one.times.missing == ""
    assert one.times.ns("ttft") / 1e6 == pytest.approx(156, rel=0.02)
    assert one.marks == ("isolated",)
    assert one.tokens.visual == 256


def test_doubts_are_about_the_series_that_is_quoted(tmp_path: Path) -> None:
    """A cell without an end-to-end pass was doubted for having 0 samples, however many there were."""
    synthetic_logs.write(tmp_path / "paper.jsonl", protocol="paper", n=20)
    synthetic_logs.write(tmp_path / "encoder.jsonl", times_ms={"preprocess": 5.0, "encode": 100.0}, n=20, model="x",
                         protocol="paper")  # fmt: skip
    encoder, llm = {"preprocess": 5.0, "encode": 100.0}, {"project": 1.0, "prefill": 50.0}
    synthetic_logs.write(tmp_path / "e.jsonl", part="fastvithd", times_ms=encoder, n=20, visual_tokens=0)
    synthetic_logs.write(tmp_path / "l.jsonl", part="llm", times_ms=llm, n=20)
    assert [doubt for one in cells_of(tmp_path) for doubt in one.doubts if "valid samples" in doubt] == []
    synthetic_logs.write(tmp_path / "l.jsonl", part="llm", times_ms=llm, n=5)
    synthetic_logs.write(tmp_path / "paper.jsonl", protocol="paper", n=4)
    found = [doubt for one in cells_of(tmp_path) for doubt in one.doubts if "valid samples" in doubt]
    assert sorted(found) == [
        "only 4 valid samples of encode + prefill; measure at least 8: raise --limit",
        "only 5 valid samples of part llm; measure at least 8: raise --limit",
    ]


def test_what_the_times_rest_on_is_a_column_where_a_log_says_it(tmp_path: Path) -> None:
    """An old log has a dash there; a folder of old logs alone has no such column."""
    synthetic_logs.write(tmp_path / "old.jsonl", n=12)
    card = load_report_card("cells")
    before = tables.cells(card, measured.gather(frame.load(tmp_path), {}))
    assert "images" not in [heading.title for heading in before.headings]
    facts = {"images": 6, "suite_images": 40, "share_of_suite_of_these_shapes": 0.925}
    synthetic_logs.write(tmp_path / "new.jsonl", n=12, resolution=512, rests_on=facts)
    table = tables.cells(card, measured.gather(frame.load(tmp_path), {}))
    at = [heading.title for heading in table.headings].index("images")
    assert sorted((row[at].text, row[at + 1].text) for row in table.rows) == [("6 of 40", "92"), ("–", "–")]
    (outcome,) = result.of([tmp_path / "new.jsonl"])[0]
    assert outcome.as_dict()["also"]["timed on"] == "6 of 40 images, of the shapes of 92 % of the suite"


def test_fresh_processes_are_one_row_with_their_spread(tmp_path: Path) -> None:
    for process in range(3):
        times = {**synthetic_logs.TIMES_MS, "encode": 100.0 + 10 * process}
        synthetic_logs.write(tmp_path / f"{process}.jsonl", repetition=process, times_ms=times, noise=0.001)
    (one,) = cells_of(tmp_path)
    assert one.process.count == 3
    assert one.times.n == 36
    assert one.times.between_process_percent == pytest.approx(100 * 20 / 166.5, rel=0.05)


def test_marks(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl.part", weights="random", data="embedded", device="fake", finished=False)
    (one,) = cells_of(tmp_path)
    assert one.marks == ("random", "embedded", "emulated", "torn")
    assert one.mark == "".join(MARKS[mark].symbol for mark in one.marks)
    assert one.accuracy.reason == "random weights are never scored"


def test_a_plot_of_two_routes_marks_the_one_that_is_transformers_own(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "own.jsonl", effective={"route": "own"})
    synthetic_logs.write(tmp_path / "auto.jsonl", settings={"route": "auto"}, effective={"route": "auto"})
    marks = {one.process.route: one.marks for one in cells_of(tmp_path)}
    assert "auto" in marks["auto"]
    assert "auto" not in marks["own"]


def test_stages_that_nothing_divides_are_told_as_one_and_never_zero(tmp_path: Path) -> None:
    times = {"preprocess": 5.0, "encode+project": 100.0, "prefill": 50.0}
    synthetic_logs.write(tmp_path / "log.jsonl", times_ms=times)
    (one,) = cells_of(tmp_path)
    assert one.times.ns("encode") is None
    assert one.times.ns("project") is None
    assert any("encode and project are timed as one" in doubt for doubt in one.doubts)
    assert not any("do not add up to TTFT" in doubt for doubt in one.doubts), "the sum of all stages is still TTFT"


def test_stages_that_some_pages_divide_are_told_as_one_for_all(tmp_path: Path) -> None:
    """Else encode would be the median of those pages alone, which are the small ones that came first."""
    apart = {"preprocess": 5.0, "encode": 40.0, "project": 10.0, "prefill": 50.0}
    together = {"preprocess": 5.0, "encode+project": 400.0, "prefill": 50.0}
    path = synthetic_logs.write(tmp_path / "a.jsonl", times_ms=apart, n=6, noise=0)
    other = synthetic_logs.write(tmp_path / "b.jsonl", times_ms=together, n=12, noise=0)
    lines, later = path.read_bytes().splitlines(), other.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:-2], *later[8:]]) + b"\n")  # the samples of pages 6 to 11, and the footer
    other.unlink()
    (one,) = cells_of(tmp_path)
    assert (one.times.n, one.times.valid) == (12, 12)
    assert one.times.ns("encode") is None
    assert one.times.ns("project") is None
    assert one.times.ns("encode+project") == pytest.approx(225e6)
    assert any("encode and project are timed as one: nothing divides them in 6 of 12" in doubt for doubt in one.doubts)
    assert not any("left out" in doubt or "refused" in doubt for doubt in one.doubts)
    ((found,), _) = result.of([path])
    listed = [row["stage"] for row in found.as_dict()["stages"]]  # type: ignore[attr-defined]
    assert listed == ["preprocess", "encode+project", "prefill", "TTFT"]


def test_different_weights_are_different_rows(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", weights="random")
    synthetic_logs.write(tmp_path / "b.jsonl", weights="local", seed=1)
    assert [one.cell.weights for one in cells_of(tmp_path)] == ["local", "random"]


def test_answers_take_one_sample_per_example(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", n=8, refused=3, answers=["yes", "no"])
    data = frame.load(tmp_path)
    answers = scoring.answers(data.records.values())
    assert [sample.index for sample in answers] == list(range(8))


def test_unknown_suites_and_judges_give_reasons(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", suite="no-such-suite")
    synthetic_logs.write(tmp_path / "b.jsonl", suite="mmvet")
    reasons = [one.accuracy.reason for one in cells_of(tmp_path)]
    assert any("judge" in reason for reason in reasons)
    assert any("unknown suite" in reason for reason in reasons)


def test_answers_are_scored_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: nothing can be scored")
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    doc = {"questionId": 1, "question": "?", "answers": ["yes"]}
    synthetic_logs.write(
        tmp_path / "logs" / "a.jsonl", suite="docvqa", n=20, answers=["yes", "no", "yes", "yes"], doc=doc
    )
    data = frame.load(tmp_path / "logs")
    (accuracy,) = scoring.of(data).values()
    assert accuracy.value == pytest.approx(0.75)
    assert accuracy.n == 20
    assert accuracy.low < 0.75 < accuracy.high
    assert len(set(accuracy.clusters)) == 10
    (kept,) = (tmp_path / "cache" / "scores").glob("*.json")
    kept.write_text(kept.read_text().replace("0.75", "0.5", 1))
    (again,) = scoring.of(data).values()
    assert again.value == 0.5, "read from the cache, not scored anew"
    (one,) = measured.gather(data, scoring.of(data)).cells
    assert one.accuracy.value == 0.5


def test_processes_of_an_isolated_cell_are_compared_by_their_sums(tmp_path: Path) -> None:
    """Not by the median of a heap of encoder's and LLM's samples: 120 + 40 ms against 100 + 40 ms is 13 %."""
    for repetition, encode_ms in enumerate((100.0, 120.0)):
        for part, times in (("fastvithd", {"preprocess": 0.0, "encode": encode_ms}), ("llm", {"prefill": 40.0})):
            path = tmp_path / f"{part}-{repetition}.jsonl"
            synthetic_logs.write(
                path, part=part, times_ms=times, repetition=repetition, noise=0, n=12 if part == "llm" else 5
            )
    (one,) = cells_of(tmp_path)
    assert one.times.between_process_percent == pytest.approx(100 * 20 / 150)


def test_a_run_counts_once_however_many_files_hold_it(tmp_path: Path) -> None:
    """Its earlier unfinished state, a copy with other line ends, one with an empty line: all are the same run."""
    whole = synthetic_logs.write(tmp_path / "b.jsonl", n=10).read_bytes()
    (tmp_path / "a.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    (tmp_path / "c.jsonl").write_bytes(whole.replace(b"\n", b"\r\n"))
    (tmp_path / "d.jsonl").write_bytes(whole + b"\n")
    data = frame.load(tmp_path)
    assert list(data.records) == ["b.jsonl"]
    assert len(data.samples) == 11
    assert [str(one) for one in data.skipped] == [
        "a.jsonl.part: skipped: an earlier state of the run in b.jsonl",
        "c.jsonl: skipped: the same run as b.jsonl",
        "d.jsonl: skipped: the same run as b.jsonl",
    ]


def test_a_pipe_in_the_folder_is_named_and_not_waited_for(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "good.jsonl")
    os.mkfifo(tmp_path / "x.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    data = frame.load(tmp_path)
    assert list(data.records) == ["good.jsonl"]
    reasons = {one.log: one.reason for one in data.skipped}
    assert set(reasons) == {"x.jsonl", "gone.jsonl"}
    assert "a named pipe" in reasons["x.jsonl"]
