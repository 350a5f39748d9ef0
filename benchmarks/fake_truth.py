"""Whether the instrument tells the truth: the fake model's stage medians, measured in real time, against what they are.

    python benchmarks/fake_truth.py [--passes 40]

Prints each stage's truth, its measured median, and the difference in per cent; and what the loop adds to each event.
"""

import argparse
import statistics

from harness.clock import Monotonic
from harness.images import blank, png
from harness.machine.devices import fake
from harness.measure.passes import Bench, time_stages, time_whole
from harness.models.card import load_model_card
from harness.models.families.fake import FakeModel
from harness.models.protocol import STAGES, Options, Request


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passes", type=int, default=40)
    passes = parser.parse_args().passes
    clock = Monotonic()
    fake.reset(clock)
    card = load_model_card("fake")
    model, device = FakeModel(card, Options(side=1024, settings=card.settings)), fake.Fake("fake")
    request = Request((png(blank((64, 48)).image),), "What is this?", max_new_tokens=1, ignore_eos=True)
    stages, ttft_ns = [], []
    for _ in range(passes):
        stages.append(time_stages(model, request, Bench(device, clock))[0].stage_ns)
        ttft_ns.append(time_whole(model, request, Bench(device, clock))[0].ttft_ns or 0)
    print(f"{'stage':<12}{'truth ms':>10}{'measured ms':>13}{'difference':>12}   (medians of {passes})")
    truths = {stage: float(card.settings[f"{stage}_ms"]) for stage in STAGES}
    rows = [(stage, truths[stage], statistics.median(each[stage] for each in stages) / 1e6) for stage in STAGES]
    rows.append(("TTFT", sum(truths.values()), statistics.median(ttft_ns) / 1e6))
    for name, truth, measured in rows:
        print(f"{name:<12}{truth:>10.3f}{measured:>13.3f}{100 * (measured / truth - 1):>11.2f} %")
    added_us = 1e3 * (rows[-1][2] - rows[-1][1]) / 5
    print(f"the whole pass adds {added_us:.1f} microseconds per event (5 events up to the first piece)")


main()
