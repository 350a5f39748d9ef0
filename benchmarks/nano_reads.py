"""What `fastvlm-nano` reads, and whether it looks at the picture: ANLS by side, by font, and on other people's pages.

    python benchmarks/nano_reads.py [--weights FOLDER] [--questions 320] [--data FOLDER] > reads.md

Every figure is a real `harness run` in the device's own precision, with its own 95 % interval, resampled by page:

- pages of a seed that neither training nor the suite uses, in fonts that training has seen, and in others;
- at the largest side, the same questions with the picture taken away (a blank page) and with another page's picture;
- at the largest side, the folders in `--data` (DocVQA's columns), as they are: documents of another world.

With random or half-trained weights all of it is near zero: pass `--weights` to look at a checkpoint of a training run.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from harness.suites import pages

SIDES = (256, 512, 768, 1024)
SEED = 20261123


def rows(questions: int) -> list[dict[str, Any]]:
    """Return questions about pages that no training and no suite has."""
    return list(itertools.islice(pages.rows(questions, SEED), questions))


def blank(row: dict[str, Any]) -> dict[str, Any]:
    """Return the question with an empty page in place of the picture."""
    return {**row, "image": pages.png(Image.new("P", (1600, 2100), 159))}


def swapped(asked: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each question with the picture of the next page of the same template."""
    by_template: dict[str, list[dict[str, Any]]] = {}
    for row in asked:
        same = by_template.setdefault(row["template"], [])
        if not same or same[-1]["docId"] != row["docId"]:
            same.append(row)
    for row in asked:
        same = by_template[row["template"]]
        place = next(i for i, other in enumerate(same) if other["docId"] == row["docId"])
        yield {**row, "image": same[(place + 1) % len(same)]["image"]}


def write(folder: Path, name: str, asked: list[dict[str, Any]]) -> Path:
    """Write questions as parquet in DocVQA's columns."""
    path = folder / f"{name}.parquet"
    table = datasets.Dataset.from_list([{**row, "image": {"bytes": row["image"], "path": None}} for row in asked])
    table.cast_column("image", datasets.Image()).to_parquet(path)
    return path


def score(path: Path, side: int, weights: str | None, out: Path) -> dict[str, Any]:
    """Run and return the result's accuracy."""
    command = [sys.executable, "-m", "harness", "run", "--model", "fastvlm-nano", "--res", str(side), "--json"]
    command += ["--suite", "docvqa", "--data", str(path), "--offline", "--out", str(out), "--max-samples", "8"]
    command += ["--weights", weights] if weights else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)[0]
    return result


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a checkpoint's folder in place of the shipped one")
    parser.add_argument("--questions", type=int, default=320)
    parser.add_argument("--sides", default=",".join(map(str, SIDES)))
    parser.add_argument("--data", type=Path, help="a folder of parquet folders in DocVQA's columns")
    parser.add_argument("--sets", default="docvqa_mini,sroie_mini", help="which of them")
    options = parser.parse_args()
    asked = rows(options.questions)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [int(side) for side in options.sides.split(",")]
        seen = [row for row in asked if row["font_split"] == "seen"]
        unseen = [row for row in asked if row["font_split"] == "unseen"]
        sets = {
            "seen fonts": (write(folder, "seen", seen), sides),
            "unseen fonts": (write(folder, "unseen", unseen), sides),
            "picture taken away": (write(folder, "blank", list(map(blank, asked))), sides[-1:]),
            "another page's picture": (write(folder, "swapped", list(swapped(asked))), sides[-1:]),
        }
        if options.data:
            sets |= {name: (options.data / name, sides[-1:]) for name in options.sets.split(",")}
        print("| questions | side | ANLS | 95 % interval | n |\n|--|--|--|--|--|")
        for title, (path, asked_at) in sets.items():
            for side in asked_at:
                found = score(path, side, options.weights, folder / "runs")["accuracy"]
                low, high = found["low"], found["high"]
                interval = "–" if low is None else f"{low:.3f}–{high:.3f}"  # none where all questions share one picture
                print(f"| {title} | {side} | {found['value']:.3f} | {interval} | {found['n']} |", flush=True)


if __name__ == "__main__":
    main()
