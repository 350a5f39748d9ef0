"""Scoring a suite: our untimed answers against lmms-eval's way, one answer at a time through its plug-in of ours.

    python benchmarks/scoring_fast.py --data FOLDER [--data FOLDER ...] [--model fastvlm-nano] [--images 12]

FOLDER has a Parquet file in DocVQA's columns. For each image all arms answer all its questions, in changing order:
`plug-in` (what `lmms_eval --model vlm_pareto` does for each request, reading its row included), and the ways of sharing
(`features`, `prefix`, `batch`). Ratios are of images, with the interval of their median; answers are compared one by
one. With random weights answers mean nothing, but must be the same all the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_eval.tasks.docvqa.utils import docvqa_doc_to_visual

from harness import stats
from harness.lmms_plugin import Answers
from harness.machine import environment
from harness.measure import scoring
from harness.models import sharing
from harness.models.protocol import Request
from harness.suites import examples
from harness.suites.card import load_suite_card

HOWS = ("features", "prefix", "batch")
TASK = "docvqa_val"


class Asked:
    """One of lmms-eval's requests, as its task makes them."""

    def __init__(self, text: str, tokens: int, at: int) -> None:
        self.args = (text, {"max_new_tokens": tokens}, docvqa_doc_to_visual, at, TASK, "validation")


def main() -> None:
    """Score each data set by all arms, image by image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", default="fastvlm-nano")
    parser.add_argument("--weights", default=None, help="a folder, or random")
    parser.add_argument("--res", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=12, help="of each set")
    parser.add_argument("--tokens", type=int, help="longest answer; default: the suite's")
    given = parser.parse_args()
    arguments = {"card": given.model, "res": given.res, "dtype": given.dtype, "device": given.device}
    plug_in = Answers(**arguments, **({"weights": given.weights} if given.weights else {}))
    machine = environment.machine_name(given.device)
    for folder in given.data:
        told = {"machine": machine, "model": given.model, "res": given.res, "dtype": given.dtype}
        sys.stdout.write(json.dumps(told | {"data": folder.name, **score(plug_in, folder, given)}) + "\n")
        sys.stdout.flush()


def score(plug_in: Answers, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Time all arms on each image of one data set, and compare their answers."""
    import datasets

    files = sorted(str(path) for path in folder.glob("*.parquet"))
    split = datasets.load_dataset("parquet", data_files=files, split="train")
    suite = examples.open_suite(load_suite_card("docvqa"), str(folder), None, True)
    groups = list(scoring.by_image(suite.examples, range(len(suite.examples)), ()))[: given.images]
    times: dict[str, list[int]] = {name: [] for name in ("plug-in", *HOWS)}
    different = dict.fromkeys(HOWS, 0)
    questions = 0
    for number, positions in enumerate(groups):
        shown = [suite.examples[at] for at in positions]
        tokens = given.tokens or shown[0].max_new_tokens
        answers: dict[str, list[str]] = {}
        arms: dict[str, Callable[[], list[str]]] = {
            "plug-in": lambda shown=shown, tokens=tokens: [  # type: ignore[misc]
                plug_in.answer(Asked(one.question, tokens, one.index), split) for one in shown
            ],
            **{how: lambda how=how, at=positions, tokens=tokens: ours(plug_in, suite, at, tokens, how) for how in HOWS},  # type: ignore[misc]
        }
        names = list(arms)
        for name in names[number % 4 :] + names[: number % 4]:
            start_ns = time.perf_counter_ns()
            answers[name] = arms[name]()
            times[name].append(time.perf_counter_ns() - start_ns)
        questions += len(positions)
        for how in HOWS:
            different[how] += sum(a != b for a, b in zip(answers[how], answers["plug-in"], strict=True))
    return {
        "images": len(groups),
        "questions": questions,
        "seconds": {name: round(sum(ns) / 1e9, 2) for name, ns in times.items()},
        "times as fast": {how: faster(times["plug-in"], times[how]) for how in HOWS},
        "other answers": different,
    }


def ours(plug_in: Answers, suite: examples.Suite, positions: list[int], tokens: int, how: str) -> list[str]:
    """Read the image's questions from the suite and answer them together."""
    shown = [suite.examples[at] for at in positions]
    requests = [Request(one.images, one.question, tokens) for one in shown]
    return [one.text for one in sharing.answer_all(plug_in.model, requests, how)]  # type: ignore[arg-type]


def faster(theirs: list[int], mine: list[int]) -> str:
    """Return the ratio of sums, and of the images' ratios the median with its interval."""
    found = stats.median_interval([a / b for a, b in zip(theirs, mine, strict=True)])
    interval = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{sum(theirs) / sum(mine):.2f}x in all; median image {found.value:.2f}x{interval}, n = {found.n}"


if __name__ == "__main__":
    main()
