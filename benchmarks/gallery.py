"""Draw all figures for the reference logs and for 28 and 120 made-up cells into docs/gallery; count what overlaps.

python benchmarks/gallery.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import grids  # noqa: E402 - a test's maker

from harness import plugins  # noqa: E402
from harness.reports import layout, measured, style  # noqa: E402
from harness.reports.card import load_report_card  # noqa: E402

FIGURES = ("pareto", "curves", "breakdown", "pareto-encoders", "pareto-encoder-size")


def main() -> None:
    """Write the pictures and print a line for each."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            "reference": measured.of(ROOT / "results" / "reference"),
            "28-cells": grids.grid(Path(folder) / "28", 7, 1.35),
            "120-cells": grids.grid(Path(folder) / "120", 30, 1.12),
        }
    for about, data in sets.items():
        for name in FIGURES:
            card = load_report_card(name)
            for picture in plugins.load("figures", card.figures[0]).draw(data, card):
                file = out / f"{about}-{picture.name}.png"
                file.write_bytes(style.render(picture.figure, "png"))
                width_in, height_in = picture.figure.get_size_inches()
                found = len(layout.overlaps(picture.figure))
                print(f"{file.name:40} {width_in:.1f} × {height_in:.1f} in, {found} overlaps")


if __name__ == "__main__":
    main()
