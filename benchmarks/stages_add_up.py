"""Do the stages of family `auto` add up to the undisturbed TTFT? For every family that it knows, from tiny checkpoints.

    python benchmarks/stages_add_up.py [--pairs 40] [--family qwen2_5_vl ...]

Each family's tiny checkpoint (`tests/tiny_vlms.py`, saved as the released ones are) answers one page: one pass split
into stages and one whole pass, in turns, `--pairs` times. Printed is the sum of the stages over TTFT: the median of
the pairs with its interval. Exit 1 where an interval lies outside 0.95 to 1.05. A pass takes milliseconds, so what
listening costs weighs more here than with any real model.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import tiny_vlms

from harness import images, stats
from harness.clock import Monotonic
from harness.errors import HarnessError
from harness.machine import backend, environment
from harness.measure.passes import Bench, time_stages, time_whole, undisturbed
from harness.models.card import ModelCard, Resolution
from harness.models.families import auto
from harness.models.families.auto.answering import SETTINGS
from harness.models.protocol import Options, Request
from harness.models.weights import Source

PAGE = images.png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 200, 3), dtype=np.uint8)))
MOST = 0.05
WARM = 3


def main() -> None:
    """Measure each family and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--family", nargs="+", default=list(tiny_vlms.FAMILIES))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.stdout.write(f"{environment.machine_name('cpu')}, {given.pairs} pairs\n")
    outside = [name for name in given.family if not adds_up(name, given.pairs)]
    sys.exit(f"outside ±{MOST:.0%}: {', '.join(outside)}" if outside else 0)


def adds_up(name: str, pairs: int) -> bool:
    """Measure one family and print its line; return whether its interval may lie within the bounds."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tiny_vlms.write(Path(folder), name)
            model = auto.load(card(name), Source("local", Path(folder)), Options(tiny_vlms.FAMILIES[name].side))
        except HarnessError as error:
            sys.stdout.write(f"{name:18}not measured: {error}\n")
            return True
        bench = Bench(backend.of("cpu").open(Monotonic()), Monotonic())
        request = Request((PAGE,), "What is the total?", 1, ignore_eos=True)
        stages, wholes = [], []
        with undisturbed() as collector:
            collector.freeze()
            for number in range(WARM + pairs):
                collector.collect()
                for kind in ("stages", "whole") if number % 2 else ("whole", "stages"):
                    if kind == "stages":
                        split = time_stages(model, request, bench)[0].stage_ns
                        stages.append(sum(ns for stage, ns in split.items() if "." not in stage))
                    else:
                        wholes.append(time_whole(model, request, bench)[0].ttft_ns or 0)
        model.close()
    found = stats.ratio_of_medians(stages[WARM:], wholes[WARM:], pairs=True)
    assert found.low is not None
    assert found.high is not None
    median_ms = stats.spread(wholes[WARM:]).median / 1e6
    sys.stdout.write(
        f"{name:18}{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of a TTFT of {median_ms:.1f} ms\n"
    )
    sys.stdout.flush()
    return found.high >= 1 - MOST and found.low <= 1 + MOST


def card(name: str) -> ModelCard:
    """Return a card of family `auto` for the tiny checkpoint."""
    rule = Resolution(rule="any", default=tiny_vlms.FAMILIES[name].side)
    return ModelCard(name=name, title=name, adapter="auto", license="none", resolution=rule, settings=SETTINGS)


if __name__ == "__main__":
    main()
