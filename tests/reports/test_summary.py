"""What a cell's samples come to: which of them count, how sure their medians are, and what is doubted."""

from pathlib import Path

import pytest
import synthetic_logs

from harness.reports import frame, measured
from harness.reports.summary import CellSummary


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
