"""Figures: the size of a paper's column, marks printed in them, hover targets that exist, the same bytes every time."""

from pathlib import Path

import matplotlib as mpl
import pytest
import synthetic_logs

from harness import plugins
from harness.reports import canvas, frame, measured, style
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
    assert all(size >= 6.5 for size in sizes(picture.figure))


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


def test_a_model_whose_encoder_is_timed_with_what_follows_has_no_bar_and_a_note_says_so(tmp_path: Path) -> None:
    times = {"preprocess": 4.0, "encode+project": 80.0, "prefill": 50.0}
    synthetic_logs.write(tmp_path / "joined.jsonl", model="joined", times_ms=times)
    synthetic_logs.write(tmp_path / "part.jsonl", model="half", part="llm", times_ms={"prefill": 50.0})
    (picture,) = drawn(tmp_path, "breakdown")
    assert "joined" not in picture.alt
    (note,) = [text for _, text in picture.numbers.notes if text.startswith("not drawn")]
    assert note.startswith("not drawn, for encode is timed there together with what follows it: joined 1024 px on box")
    assert "half" not in note


def test_bars_are_the_medians(tmp_path: Path) -> None:
    (picture,) = drawn(tmp_path, "breakdown")
    data = measured.gather(frame.load(tmp_path), {})
    widths = [patch.get_width() for patch in picture.figure.axes[0].patches]
    truth = [
        row.times.ns(stage) / 1e6 for row in data.cells for stage in ("preprocess", "encode", "project", "prefill")
    ]
    assert widths == pytest.approx(truth)


def test_models_of_very_different_speed_get_panels_of_their_own(tmp_path: Path) -> None:
    for model, factor in (("fastvlm-0.5b", 1), ("fastvlm-7b", 4), ("cambrian-1-8b", 300)):
        times = {"encode": 10.0 * factor, "prefill": 10.0 * factor}
        synthetic_logs.write(tmp_path / f"{model}.jsonl", model=model, times_ms=times)
    data = measured.gather(frame.load(tmp_path), {})
    (picture,) = plugins.load("figures", "breakdown").draw(data, load_report_card("breakdown"))
    quick, slow = picture.figure.axes
    assert quick.get_xlim()[1] < 200 < slow.get_xlim()[1]
    assert "each panel has its own scale" in slow.get_xlabel()
    assert len(picture.hovers) == 6


def test_no_two_series_look_alike() -> None:
    looks = {str(sorted(canvas.series_style(number).items(), key=str)) for number in range(64)}
    assert len(looks) == 64


def test_the_marks_are_said_once_with_who_carries_them() -> None:
    said = canvas.marks_note({"a": {"a 1": ["random"], "a 2": ["random", "torn"]}, "b": {"b 1": ["random", "paper"]}})
    assert said == "† random weights · ¶ encoder + prefill, added: b · ⚠ unfinished run: a 2"


def test_the_alt_text_is_made_from_the_data(tmp_path: Path) -> None:
    (picture,) = drawn(tmp_path, "curves")
    assert "fastvlm-0.5b from 6" in picture.alt
    assert "ms at 256 px to 1" in picture.alt
    (picture,) = drawn(tmp_path, "breakdown")
    assert "fastvlm-0.5b 1024 px 15" in picture.alt


@pytest.mark.parametrize("name", ["breakdown", "curves"])
def test_a_picture_that_leaves_cells_out_says_so(tmp_path: Path, name: str) -> None:
    (whole,) = drawn(tmp_path, name)
    synthetic_logs.write(tmp_path / "other.jsonl", suite="docvqa", n=40)
    (picture,) = drawn(tmp_path, name)
    assert picture.caption == whole.caption + canvas.SOME
    assert whole.numbers.notes == ()
    assert [label for label, _ in picture.numbers.notes] == ["fastvlm-0.5b:"]
    assert [row[0].text for row in picture.numbers.rows] == [row[0].text for row in whole.numbers.rows]
