"""A server under load: a curve per cell, with what was measured and nothing else."""

from pathlib import Path

import msgspec
import synthetic_logs

from harness import plugins
from harness.reports import frame, measured, style
from harness.reports.card import load_report_card
from harness.runlog.records import Loaded


def served(folder: Path) -> list:
    path = synthetic_logs.write(folder / "served.jsonl")
    *lines, footer = path.read_bytes().splitlines(keepends=True)
    for count, n in ((1, 12), (4, 12), (16, 4)):
        times = tuple(1_000_000 * (100 * count + i) for i in range(n))
        load = Loaded(concurrency=count, wall_ns=2_000_000_000, ttft_ns=times, failures=("gone",) * (count == 16))
        lines.append(msgspec.json.encode(load) + b"\n")
    path.write_bytes(b"".join([*lines, footer]))
    data = measured.gather(frame.load(folder), {})
    return plugins.load("figures", "load").draw(data, load_report_card("load"))


def test_the_curve_is_what_was_measured(tmp_path: Path) -> None:
    (picture,) = served(tmp_path)
    rows = [[entry.text for entry in row] for row in picture.numbers.rows]
    assert [row[2] for row in rows] == ["1", "4", "16"]
    assert rows[0][3].startswith("106 [")
    assert rows[2][3] == "1602", "four requests have no interval"
    assert [row[5:] for row in rows] == [["6.00", "12", "0"], ["6.00", "12", "0"], ["2.00", "4", "1"]]
    assert "106 ms at 1 to 1602 ms at 16" in picture.alt
    svg = style.render(picture.figure, "svg", text="none").decode()
    assert all(f'id="{target}"' in svg for target in picture.hovers)
    assert len(picture.hovers) == 3


def test_without_load_there_is_no_picture(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "alone.jsonl")
    data = measured.gather(frame.load(tmp_path), {})
    assert plugins.load("figures", "load").draw(data, load_report_card("load")) == []
