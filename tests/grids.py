"""Whole grids of cells made up, with accuracies: what figures and choices are tried on."""

import random
from pathlib import Path
from typing import Any

import synthetic_logs

from harness.reports import accuracy, frame, measured
from harness.stats import mean_interval_clustered


def grid(folder: Path, models: int, growth: float, **about: Any) -> measured.Measured:
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
                **about,
            )
    data, accuracies = frame.load(folder), {}
    for cell in data.cells:
        about = cell.configuration
        rng, right = random.Random(f"{about.model} {about.resolution}"), 0.25 + 0.3 * (about.resolution / 1024) ** 0.5
        scores = tuple(float(rng.random() < right + 0.3 * names.index(about.model) / models) for _ in range(120))
        clusters = tuple(f"i{k // 2}" for k in range(120))
        mean = mean_interval_clustered(scores, clusters)
        accuracies[about] = accuracy.Accuracy("ANLS", mean.value, mean.low, mean.high, 120, "", scores, clusters)
    return measured.gather(data, accuracies)
