"""Figures: the size of a paper's column, marks printed in them, hover targets that exist, the same bytes every time."""

from pathlib import Path

import matplotlib as mpl
import pytest
import synthetic_logs

from harness import plugins
from harness.reports import frame, measured, style
from harness.reports.card import load_report_card


def drawn(folder: Path, name: str, **more: object) -> list:
    for side in (256, 512, 1024):
        times = {"preprocess": 4.0, "encode": 100 * (side / 1024) ** 2, "project": 1.0, "prefill": 50.0}
        synthetic_logs.write(folder / f"{side}.jsonl", resolution=side, times_ms=times, **more)
    data = measured.gather(frame.load(folder), {})
    card = load_report_card(name)
    return plugins.load("figures", card.figures[0]).draw(data, card)


@pytest.mark.parametrize("name", ["breakdown", "curves"])
def test_marks_are_printed_and_hovers_have_targets(tmp_path: Path, name: str) -> None:
    (picture,) = drawn(tmp_path, name, weights="random", data="embedded")
    svg = style.render(picture.figure, "svg", text="none").decode()
    assert "† random weights" in svg
    assert "‡ data from this package" in svg
    assert picture.hovers
    for target in picture.hovers:
        assert f'id="{target}"' in svg
    assert picture.figure.get_figwidth() == style.COLUMN_IN
    assert all(size >= 5.5 for size in sizes(picture.figure))


def sizes(figure: object) -> list[float]:
    from matplotlib.text import Text

    return [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]


def test_bytes_do_not_depend_on_when_or_on_the_users_settings(tmp_path: Path) -> None:
    (picture,) = drawn(tmp_path, "breakdown")
    first = {kind: style.render(picture.figure, kind) for kind in ("png", "svg", "pdf")}
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        (again,) = drawn(tmp_path, "breakdown")
        assert {kind: style.render(again.figure, kind) for kind in first} == first


def test_isolated_and_additive_protocols_are_apart(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "p.jsonl", protocol="paper")
    pictures = drawn(tmp_path, "breakdown")
    assert [picture.title.endswith("protocol paper") for picture in pictures] == [False, True]
    assert pictures[1].marks == {"paper"}
    assert [picture.name for picture in pictures] == ["breakdown", "breakdown-2"]


def test_bars_are_the_medians(tmp_path: Path) -> None:
    (picture,) = drawn(tmp_path, "breakdown")
    data = measured.gather(frame.load(tmp_path), {})
    widths = [patch.get_width() for patch in picture.figure.axes[0].patches]
    truth = [
        row.times.ns(stage) / 1e6 for row in data.cells for stage in ("preprocess", "encode", "project", "prefill")
    ]
    assert widths == pytest.approx(truth)


def test_labels_do_not_cover_each_other() -> None:
    with style.style():
        figure, axes = style.new()
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 10)
        points = [(5 + i / 10, 5 + i / 20, f"label{i}") for i in range(4)]
        style.place_labels(axes, points)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(width, height) <= 2, "labels overlap by more than two pixels"
