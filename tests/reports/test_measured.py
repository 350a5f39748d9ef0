"""What may be drawn together: one platform, one lot of questions and weights for each curve, and the rest is named."""

from pathlib import Path

import pytest
import synthetic_logs

from harness.reports import frame, measured, tables, wording
from harness.reports.card import load_report_card
from harness.reports.measured import Measured


def gathered(folder: Path) -> Measured:
    return measured.gather(frame.load(folder), {})


def test_threads_make_another_platform_where_they_were_asked_for(tmp_path: Path) -> None:
    for threads in (None, 1, 8):
        synthetic_logs.write(tmp_path / f"{threads}.jsonl", seed=threads or 0, of_cell={"threads": threads})
    data = gathered(tmp_path)
    told = [wording.platform(where) for where, _, _ in measured.by_platform(data.cells)]
    assert told == [
        "box, cpu, torch, float32",
        "box, cpu, torch, float32, 1 thread",
        "box, cpu, torch, float32, 8 threads",
    ]
    shown = [row[4].text for row in tables.cells(load_report_card("cells"), data).rows]
    assert sorted(shown) == told


def test_a_curve_is_of_one_lot_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    """The suite with most resolutions, though another one has more samples at one of them."""
    for side in (256, 512):
        synthetic_logs.write(tmp_path / f"{side}.jsonl", resolution=side, suite="docvqa")
    synthetic_logs.write(tmp_path / "more.jsonl", resolution=512, suite="textvqa", n=40)
    synthetic_logs.write(tmp_path / "first.jsonl", resolution=512, suite="docvqa", of_cell={"limit": 3})
    kept, left_out = measured.one_each(gathered(tmp_path).cells)
    assert [(one.cell.suite, one.cell.resolution, one.cell.limit) for one in kept] == [
        ("docvqa", 256, None), ("docvqa", 512, None),
    ]  # fmt: skip
    assert left_out == {
        "fastvlm-0.5b": "drawn is suite docvqa, limit none; left out: suite textvqa, limit none (1 cell); "
        "suite docvqa, limit 3 (1 cell)."
    }


@pytest.mark.parametrize("name", ["weights_digest", "data_digest", "suite_digest", "seed", "model_digest"])
def test_whatever_makes_another_lot_is_named(tmp_path: Path, name: str) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl")
    synthetic_logs.write(tmp_path / "b.jsonl", n=40, of_cell={name: 7 if name == "seed" else "x7"})
    kept, left_out = measured.one_each(gathered(tmp_path).cells)
    assert [one.times.n for one in kept] == [40]
    assert left_out["fastvlm-0.5b"].startswith(f"drawn is {name.replace('_', ' ')} ")


def test_what_is_drawn_whole_leaves_nothing_out(tmp_path: Path) -> None:
    for side in (256, 512):
        synthetic_logs.write(tmp_path / f"{side}.jsonl", resolution=side)
    assert measured.one_each(gathered(tmp_path).cells)[1] == {}


def test_rows_of_a_csv_that_would_look_alike_get_the_column_that_differs(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl")
    alone = wording.long_form("x", "x", gathered(tmp_path).cells, ("ttft",))
    synthetic_logs.write(tmp_path / "b.jsonl", of_cell={"limit": 3})
    both = wording.long_form("x", "x", gathered(tmp_path).cells, ("ttft",))
    more = [heading.title for heading in both.headings if heading not in alone.headings]
    assert more == ["limit"]
    at = [heading.title for heading in both.headings].index("limit")
    assert sorted(row[at].text for row in both.rows) == ["", "3"]
