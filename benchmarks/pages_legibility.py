"""How well an outside reader (Tesseract) reads the fields of `pages`, by image side and by the side they are set for.

    python benchmarks/pages_legibility.py [--count 160] [--seed 0] > legibility.md

Needs the `tesseract` program (Debian: `apt-get install tesseract-ocr`). Every page is padded to a square and resized as
a model's preprocessor does it; the reader is shown where the value stands, enlarged to a comfortable size, and its line
is scored by ANLS. So this measures whether the letters are still there, not whether a model finds them. The last line
gives what a reader without eyes gets: the answer to the same question on another page.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from PIL import Image

from harness.images import pad_square, resize
from harness.suites import pages

SIDES = (256, 512, 768, 1024)
CLASSES = (256, 512, 768, 1024, 10_000)
COMFORTABLE_PX = 30  # x-height at which Tesseract reads best


def anls(prediction: str, answers: tuple[str, ...]) -> float:
    """Score one answer: 1 minus the edit distance over the longer length, nothing below one half."""
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        right = " ".join(answer.lower().split())
        row = list(range(len(right) + 1))
        for i, a in enumerate(said, 1):
            last, row[0] = row[0], i
            for j, b in enumerate(right, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
        best = max(best, 1 - row[-1] / max(len(said), len(right), 1))
    return best if best >= 0.5 else 0.0


def read(image: Image.Image, folder: Path) -> str:
    """Return Tesseract's reading of one line."""
    path = folder / "line.png"
    image.save(path)
    command = ["tesseract", str(path), "-", "--psm", "7", "-l", "eng"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
    )
    return done.stdout.strip()


def value(page: pages.Document, picture: Image.Image, side: int | None, field: pages.Field) -> Image.Image:
    """Cut the value out of the page at `side` (None: as it is) and enlarge it to a comfortable x-height."""
    width, height = page.image.size
    longest = max(width, height)
    scale = side / longest if side else 1.0
    left, top = ((longest - width) // 2, (longest - height) // 2) if side else (0, 0)
    x0, y0, x1, y1 = field.value.box
    air = 0.25 * (y1 - y0)
    edges = (x0 - air + left, y0 - air / 2 + top, x1 + air + left, y1 + air / 2 + top)
    x0, y0, x1, y1 = (round(edge * scale) for edge in edges)
    cut = picture.crop((x0, y0, x1, y1))
    zoom = max(COMFORTABLE_PX / (field.value.style.x_height_px * scale), 0.1)
    return cut.resize((max(8, round(cut.width * zoom)), max(8, round(cut.height * zoom))), Image.Resampling.BICUBIC)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=pages.COUNT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scores: dict[tuple[int, int | None], list[float]] = defaultdict(list)
    by_font: dict[tuple[str, int | None], list[float]] = defaultdict(list)
    answers: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for page in pages.documents(options.seed, "suite"):
            if page.index * pages.PER_PAGE >= options.count:
                break
            print(f"\rpage {page.index + 1}", end="", file=sys.stderr)
            whole = page.image.convert("RGB")
            square = pad_square(whole, (127, 127, 127))
            for side in (*SIDES, None):
                picture = resize(square, side, side) if side else whole
                for field in page.asked:
                    score = anls(read(value(page, picture, side, field), Path(name)), field.answers)
                    scores[next(c for c in CLASSES if field.legible_side <= c), side].append(score)
                    by_font["unseen" if page.unseen else "seen", side].append(score)
            for field in page.asked:
                answers[re.sub(r"price_of_.*|(summary|detail)_.*", "cell", field.name)].append(field.answers)
    heads = " | ".join([*map(str, SIDES), "full size"])
    print(f"\n| set to be readable at | questions | {heads} |\n|--|--|{'--|' * (len(SIDES) + 1)}")
    for limit in CLASSES:
        label = f"≤ {limit}" if limit < 10_000 else "> 1024"
        means = [sum(scores[limit, side]) / len(scores[limit, side]) for side in (*SIDES, None)]
        print(f"| {label} | {len(scores[limit, None])} | {' | '.join(f'{m:.2f}' for m in means)} |")
    for which in ("all", "seen", "unseen"):
        means, number = [], 0
        for side in (*SIDES, None):
            got = [s for (key, at), found in by_font.items() if at == side and which in ("all", key) for s in found]
            means.append(sum(got) / len(got))
            number = len(got)
        print(f"| {which} fonts | {number} | {' | '.join(f'{m:.2f}' for m in means)} |")
    pairs = [(other[0], own) for same in answers.values() for own in same for other in same if other is not own]
    blind = [anls(said, own) for said, own in pairs]
    mean = sum(blind) / len(blind)
    print(f"\nBlind (the answer of another page's field of the same name, {len(blind)} pairs): {mean:.3f}")


if __name__ == "__main__":
    main()
