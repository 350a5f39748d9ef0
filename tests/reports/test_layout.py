"""Labels: measured as drawn, nothing lies on anything; what has no room is left out, the frontier last of all."""

import random
from pathlib import Path

import pytest
import synthetic_logs
from matplotlib.figure import Figure

from harness import plugins
from harness.reports import accuracy, frame, layout, measured, style
from harness.reports.card import load_report_card
from harness.stats import mean_interval_clustered

FIGURES = ("pareto", "pareto-tokens", "curves", "breakdown", "pareto-encoders", "pareto-encoder-size")
LOGS = Path(__file__).parents[2] / "results" / "reference"


def grid(folder: Path, models: int, growth: float) -> measured.Measured:
    """Return models at four sides each, slower and better from one to the next, with accuracies made up."""
    names = [f"model-{i:02d}-{'abcdefghij'[i % 10] * (i % 7)}" for i in range(models)]
    for i, name in enumerate(names):
        for side in (256, 512, 768, 1024):
            slow = 0.35 * growth**i
            times = {"preprocess": 4 * slow, "encode": 100 * slow * (side / 1024) ** 2, "prefill": 50 * slow}
            synthetic_logs.write(
                folder / f"{name}-{side}.jsonl",
                model=name,
                resolution=side,
                times_ms=times,
                data="embedded",
                noise=0.05,
            )
    data, accuracies = frame.load(folder), {}
    for cell in data.cells:
        about = cell.configuration
        rng, right = random.Random(about.name), 0.25 + 0.3 * (about.resolution / 1024) ** 0.5
        scores = tuple(float(rng.random() < right + 0.3 * names.index(about.model) / models) for _ in range(120))
        clusters = tuple(f"i{k // 2}" for k in range(120))
        mean = mean_interval_clustered(scores, clusters)
        accuracies[about.name] = accuracy.Accuracy("ANLS", mean.value, mean.low, mean.high, 120, "", scores, clusters)
    return measured.gather(data, accuracies)


@pytest.fixture(scope="module", params=["reference", "28 cells", "120 cells"])
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> measured.Measured:
    if request.param == "reference":
        if not LOGS.is_dir():
            pytest.skip(f"no reference logs in {LOGS}: not a checkout of the repository")
        return measured.of(LOGS)
    return grid(tmp_path_factory.mktemp("logs"), *((7, 1.35) if request.param == "28 cells" else (30, 1.12)))


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_on_anything(cells: measured.Measured, name: str) -> None:
    card = load_report_card(name)
    for picture in plugins.load("figures", card.figures[0]).draw(cells, card):
        assert layout.overlaps(picture.figure) == []
        assert picture.figure.get_figwidth() in (style.COLUMN_IN, style.PAGE_IN)


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
