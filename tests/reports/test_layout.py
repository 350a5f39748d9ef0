"""Labels: measured as drawn, nothing lies on anything; what has no room is left out, the frontier last of all."""

from pathlib import Path

import grids
import pytest
from matplotlib.figure import Figure

from harness import plugins
from harness.reports import layout, measured, style
from harness.reports.card import load_report_card

FIGURES = ("pareto", "pareto-tokens", "curves", "breakdown", "pareto-encoders", "pareto-encoder-size")
LOGS = Path(__file__).parents[2] / "results" / "reference"
TOKENS = str(Path(__file__).parents[2] / "benchmarks" / "families-tokens.toml")  # curves against visual tokens


@pytest.fixture(scope="module", params=["reference", "28 cells", "120 cells"])
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> measured.Measured:
    if request.param == "reference":
        if not LOGS.is_dir():
            pytest.skip(f"no reference logs in {LOGS}: not a checkout of the repository")
        return measured.of(LOGS)
    return grids.grid(tmp_path_factory.mktemp("logs"), *((7, 1.35) if request.param == "28 cells" else (30, 1.12)))


@pytest.mark.parametrize("name", [*FIGURES, TOKENS], ids=[*FIGURES, "tokens"])
def test_nothing_lies_on_anything(cells: measured.Measured, name: str) -> None:
    card = load_report_card(name)
    for picture in plugins.load("figures", card.figures[0]).draw(cells, card):
        assert layout.overlaps(picture.figure) == []
        assert picture.figure.get_figwidth() in (style.COLUMN_IN, style.PAGE_IN)


def test_ticks_that_have_no_room_are_left_out_but_never_the_last() -> None:
    tokens = [16.0, 64.0, 144.0, 256.0, 320.0, 567.0, 1008.0, 1280.0]
    assert list(style.apart(tokens, lambda value: f"{value:,.0f}")) == [16, 64, 144, 320, 567, 1280]
    assert style.apart([512.0], str) == {512.0: "512.0"}


def test_overlaps_are_found() -> None:
    with style.style():
        figure = Figure(figsize=(3.3, 2.5), layout="none")
        axes = figure.add_subplot()
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 10)
        axes.plot([0, 10], [5, 5], color="black")
        axes.plot([2], [8], "o")
        for x, y, text in (
            (5, 5, "on line"),
            (2, 8, "on point"),
            (7, 2, "first"),
            (7.2, 2.1, "second"),
            (9.9, 8, "too far to the right"),
        ):
            axes.text(x, y, text)
        found = layout.overlaps(figure)
    assert sorted(found) == [
        "'first' on 'second'", "'on line' on a line", "'on point' on a point or bar",
        "'too far to the right' leaves the figure",
    ]  # fmt: skip


def test_a_label_without_room_is_left_out_and_the_first_one_is_not() -> None:
    with style.style():
        figure = Figure(figsize=(1.2, 1.0))
        axes = figure.add_subplot()
        axes.plot([1, 1.02, 1.04, 1.06, 1.08], [1, 1.02, 1, 1.02, 1], "o")
        labels = [layout.Label(1 + i / 50, 1 + i % 2 / 50, f"a long label {i}") for i in range(5)]
        left_out = layout.place(axes, labels)
        assert layout.overlaps(figure) == []
    assert left_out
    assert len(left_out) + len(axes.texts) == 5
