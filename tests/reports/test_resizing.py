"""Which library resized: read from every log's own words, and said where cells of one figure differ in it."""

from pathlib import Path

import pytest
import synthetic_logs
from matplotlib.text import Text

from harness.reports import frame, measured, render, resizing
from harness.reports.card import load_report_card
from harness.reports.document import Picture


@pytest.mark.parametrize(
    ("told", "library"),
    [
        ("PIL bicubic", "PIL"),
        (
            "torchvision bicubic, antialiased; 0.42% of the values of noise differ from PIL's, by 2 of 255",
            "torchvision",
        ),
        ("torchvision, by Qwen2VLImageProcessor", "torchvision"),
        ("PIL, by Qwen2VLImageProcessorPil", "PIL"),
        ("PIL, then torchvision, by LlavaNextImageProcessor", "PIL, then torchvision"),
        ("Qwen2VLImageProcessor", resizing.UNNAMED),
        ("Qwen2VLImageProcessorPil", "PIL"),
        (
            "a library that transformers does not name, by Emu3ImageProcessor",
            "a library that transformers does not name",
        ),
        ("opencv area", "opencv area"),
        ("", ""),
    ],
)
def test_a_logs_words_name_the_library(told: str, library: str) -> None:
    assert resizing.library(told) == library


def cells(folder: Path, told: dict[str, str], **more: object) -> measured.Measured:
    for name, how in told.items():
        effective = {"image_backend": how} if how else {}
        synthetic_logs.write(folder / f"{name}.jsonl", model=name, n=8, effective=effective, **more)  # type: ignore[arg-type]
    return measured.gather(frame.load(folder), {})


def test_one_library_needs_no_word(tmp_path: Path) -> None:
    told = {"a": "PIL bicubic", "b": "PIL, by CLIPImageProcessorPil", "c": ""}
    assert resizing.notes(cells(tmp_path, told).cells) == ()


def test_a_server_resizes_as_it_likes(tmp_path: Path) -> None:
    told = {"a": "longest side 512 px, PIL bicubic, PNG", "b": "the file's own bytes"}
    assert resizing.notes(cells(tmp_path, told, endpoint="http://h/v1").cells) == ()


def test_of_many_models_a_few_are_named(tmp_path: Path) -> None:
    told = {f"m{number}": "PIL bicubic" for number in range(5)} | {"other": "torchvision, by X"}
    (said,) = resizing.notes(cells(tmp_path, told).cells)
    assert "(by PIL: m0, m1, m2 and 2 more; by torchvision: other)" in said


@pytest.mark.parametrize("name", ["curves", "breakdown"])
@pytest.mark.parametrize(("protocol", "said"), [("ttft", {"curves", "breakdown"}), ("paper", {"breakdown"})])
def test_a_figure_of_times_says_it_below_its_numbers(tmp_path: Path, name: str, protocol: str, said: set[str]) -> None:
    """The paper's TTFT has no resizing in it; its stacked stages have."""
    data = cells(tmp_path, {"a": "PIL bicubic", "b": "torchvision, by X"}, protocol=protocol)
    (drawn,) = render.build(load_report_card(name), data).blocks
    assert isinstance(drawn, Picture)
    assert any("different libraries" in text for _, text in drawn.numbers.notes) == (name in said)
    assert ("Note: images were resized" in drawn.said) == (name in said), "beside the picture, not below a table alone"
    printed = " ".join(text.get_text() for text in drawn.figure.findobj(Text)).replace("\n", " ")
    assert ("images resized by PIL: a; by torchvision: b" in printed) == (name in said), "in the picture itself"
