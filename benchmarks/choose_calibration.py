"""Is the cell that `harness choose` names right as often as it says? Simulated grids whose truth is known.

    python benchmarks/choose_calibration.py [GRIDS [SEED ...]]

`choice.WIDER` was fitted on seed 0: what seed 0 shows is no evidence for it; other seeds are.

Every grid has its own spread of true accuracies (from none at all, when all cells are equally good, to wide), its own
noise, sizes and budget. Printed: by what was said, how often the named winner was one of the truly best that truly fit.
"""

import itertools
import sys
from collections.abc import Iterator

import numpy as np

from harness.reports import choice
from harness.reports.pareto import Point

SPREADS = (0.0, 0.01, 0.03, 0.1)
"""Standard deviation of true accuracies between cells; real grids lie between the last two."""


def grid(rng: np.random.Generator, spread: float) -> tuple[list[Point], np.ndarray, np.ndarray]:
    """Return cells as measured, their true TTFT in ms and their true accuracy in points."""
    cells, questions = int(rng.integers(2, 9)), int(rng.integers(40, 200))
    ttft_ms = np.exp(rng.uniform(np.log(50), np.log(500), cells))
    right = np.clip(rng.uniform(0.3, 0.8) + spread * rng.standard_normal(cells), 0.05, 0.95)
    hard = rng.uniform(size=questions)
    points = []
    for i in range(cells):
        own = rng.uniform(size=questions)
        luck = np.where(rng.uniform(size=questions) < 0.5, hard, own)  # half of what makes a question hard is shared
        scores = 100.0 * (luck < right[i])
        times = ttft_ms[i] * rng.lognormal(0, 0.05, int(rng.integers(8, 40)))
        points.append(
            Point(
                str(i),
                str(i),
                float(np.median(times)),
                float(scores.mean()),
                cost_parts=(tuple(times),),
                scores=tuple(scores),
                clusters=tuple(str(k) for k in range(questions)),
                questions="same",
            )
        )  # fmt: skip
    return points, ttft_ms, 100 * right


def played(grids: int, seed: int = 0) -> Iterator[tuple[float, bool]]:
    """Yield what was said of the winner, and whether it was right."""
    rng = np.random.default_rng(seed)
    for number in range(grids):
        points, ttft_ms, right = grid(rng, SPREADS[number % len(SPREADS)])
        budget = choice.Budget(ttft_ns=1e6 * float(rng.uniform(60, 500)))
        _, wins = choice.odds(*choice.drawn(points, number, 1000), budget, [True] * len(points))
        winner = int(np.argmax(wins))
        if wins[winner] > 0:
            fits = ttft_ms * 1e6 <= budget.ttft_ns
            best = max(right[fits], default=np.inf)
            yield float(wins[winner]), bool(fits[winner] and right[winner] >= best - 1e-9)


def main() -> None:
    """Print a table over all seeds, and a line for each seed."""
    grids = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seeds = [int(text) for text in sys.argv[2:]] or [0]
    by_seed = {seed: np.array(list(played(grids, seed))) for seed in seeds}
    found = np.concatenate(list(by_seed.values()))
    edges = [0.0, 0.4, 0.6, 0.8, 0.95, 1.01]
    print(f"{'said':>12} {'grids':>6} {'mean said':>10} {'right':>7} {'sd':>6}")
    for low, high in [*itertools.pairwise(edges), (0.0, 1.01)]:
        mine = found[(found[:, 0] >= low) & (found[:, 0] < high)]
        if len(mine):
            print(f"{low:5.2f}–{min(high, 1):5.2f} {_numbers(mine)}")
    for seed, mine in by_seed.items():
        print(f"{f'seed {seed}':>11} {_numbers(mine)}")


def _numbers(mine: np.ndarray) -> str:
    said, right = mine.mean(axis=0)
    sd = float(np.sqrt(np.mean(mine[:, 0] * (1 - mine[:, 0])) / len(mine)))  # of `right`, if what was said is true
    return f"{len(mine):6d} {said:10.3f} {right:7.3f} {sd:6.3f}"


if __name__ == "__main__":
    main()
