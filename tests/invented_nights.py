"""Nights made up for the tests of tracking: arms with known slow-downs, readings, and a judge over them."""

import random

from harness.track.nights import Reading
from harness.track.verdict import Judge

TIMES = {"preprocess": 5.0, "encode": 100.0, "project": 1.0, "prefill": 50.0}


def arm(seed: int, noise: float = 0.01, common: int = 0, **factors: float) -> dict[str, dict[str, float]]:
    """Return 20 examples' times: each example has a size of its own (`common`), each stage its noise."""
    rng, sizes = random.Random(f"arm{seed}"), random.Random(common)
    found = {}
    for example in range(20):
        size = sizes.uniform(0.5, 2.0)
        row = {n: 1e6 * ms * size * factors.get(n, 1.0) * rng.lognormvariate(0, noise) for n, ms in TIMES.items()}
        found[f"e{example}"] = {**row, "ttft": sum(row.values())}
    return found


def night(name: str, ms: float = 156, rounds: int = 3, **factors: float) -> Reading:
    seed = int(name)
    both = tuple((arm(seed + 100 * r), arm(seed + 100 * r + 50, **factors)) for r in range(rounds))
    return Reading(name, "valid", rounds=both, median_ns=ms * 1e6, n=20, fingerprint=(("os", "one"),))


def judge(*readings: Reading) -> Judge:
    first = Reading("0", "valid", median_ns=156e6, n=20, fingerprint=(("os", "one"),))
    made = Judge([first, *readings], "0", 0.03)
    made.accuracies = {reading.night: None for reading in made.readings}
    return made
