"""How often `harness track` cries wolf, and how soon it finds a slower checkpoint: simulated nights, the real code.

Every night two fake models are measured side by side in virtual time by the real loop, through the real gate, by
the real stopping rule, and judged by the real verdict (side by side, history, answers). What is made up is the world:

- the night's factor on every time: log-normal, sd 3 %, the same for both arms of a night (they share the machine);
- each process's factor on its arm: log-normal, sd 1 % (memory layout and the like); in other rows 2 %;
- each stage of each sample: uniform, sd 3 %;
- 5 % of nights are throttled by 5 to 40 % from some moment on; of these, 4 of 5 are reported by a probe, 1 of 5 is not;
- answers: 160 questions on 32 images; every night about 3 % turn from right to wrong or back, as many either way.

A planted slow-down lengthens prefill so that TTFT grows by the percentage named. Seeds are 0, 1, 2 ...; nothing was
tuned to them. Run: python benchmarks/nightly_alarms.py [--series 40] [--quick]
"""

import argparse
import io
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from harness.clock import Scripted
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.measure.gate import Gate
from harness.measure.loop import Plan, measure
from harness.measure.stopping import Rule, Stopping
from harness.models.card import load_model_card
from harness.models.families.fake import FakeModel
from harness.models.protocol import Options
from harness.runlog.log import Log
from harness.runlog.records import Sample
from harness.suites.examples import Example
from harness.track import answers, ratios
from harness.track.interleave import alternate
from harness.track.nights import Reading
from harness.track.ratios import MINIMUM_EFFECT
from harness.track.verdict import REGRESSION, UNCLEAR, Judge

NIGHT_SD, SAMPLE_SD = 0.03, 0.03
THROTTLED, TOLD = 0.05, 0.8
NULL_NIGHTS, BEFORE, AFTER = 120, 20, 5
QUESTIONS, IMAGES, FLIPS = 160, 32, 0.03
TIMES_MS = {"preprocess_ms": 2.0, "encode_ms": 10.0, "project_ms": 1.0, "prefill_ms": 20.0}
RULE = Rule(minimum_samples=8, minimum_seconds=0, maximum_samples=40, maximum_seconds=120, precision=MINIMUM_EFFECT / 4)


def examples() -> list[Example]:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return [Example(str(i), i, (out.getvalue(),), "what is it", 4, (), (), {}) for i in range(RULE.maximum_samples)]


def measured(rng: random.Random, arms: Sequence[float], night: float, process_sd: float) -> list[list[Sample]]:
    """Measure the arms (their planted slow-downs, as shares of TTFT) side by side once; return their samples."""
    clock = Scripted()
    fake.reset(clock)
    card = load_model_card("fake")
    total = sum(TIMES_MS.values())
    about_ns = int(2e6 * total * len(arms) * RULE.maximum_samples)
    if rng.random() < THROTTLED:
        start = rng.randrange(-about_ns // 2, about_ns // 2)
        reason = "throttled" if rng.random() < TOLD else ""
        fake.EPISODES.append(Episode(start, 1 << 62, rng.uniform(1.05, 1.40), reason))
    samples: list[list[Sample]] = [[] for _ in arms]
    streams = []
    for slower in arms:
        factor = night * math.exp(rng.gauss(0, process_sd))
        times = {name: factor * (ms + slower * total * (name == "prefill_ms")) for name, ms in TIMES_MS.items()}
        settings = {**times, "jitter": SAMPLE_SD * math.sqrt(3), "decode_ms": 0.1}
        options = Options(side=1024, device="cpu", dtype="float32", seed=rng.randrange(1 << 30), settings=settings)
        plan = Plan(EXAMPLES, Stopping(RULE), decode_tokens=1, score=False)
        gate = Gate([fake.ScriptedProbe()], clock)
        streams.append(measure(FakeModel(card, options), fake.Fake("fake"), clock, gate, plan))
    for arm, record in alternate(*streams):
        if isinstance(record, Sample):
            samples[arm].append(record)
    return samples


def times(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    return ratios.times(Log(Path(), HEADER, tuple(samples)))


def night(rng: random.Random, name: str, slower: float, process_sd: float) -> Reading:
    """Measure one night as `harness track` does: again where it looks slower, or where the first look cannot tell."""
    factor = math.exp(rng.gauss(0, NIGHT_SD))
    rounds = []
    for _ in range(1 + ratios.CONFIRMATIONS):
        candidate, baseline = (times(one) for one in measured(rng, (slower, 0.0), factor, process_sd))
        if candidate and baseline:
            rounds.append((baseline, candidate))
        if not rounds or not ratios.again(rounds):
            break
    if not rounds:
        return Reading(name, "invalid", "the gate refused every sample")
    ttfts = sorted(row["ttft"] for _, one in rounds for row in one.values())
    return Reading(name, "valid", rounds=tuple(rounds), median_ns=ttfts[len(ttfts) // 2], n=len(ttfts))


def scores(rng: random.Random) -> answers.Accuracy:
    # Three of four are right, so a right one turns a third as often as a wrong one.
    before = [float(i % 4 > 0) for i in range(QUESTIONS)]
    after = [1 - score if rng.random() < (FLIPS * 2 / 3 if score else FLIPS * 2) else score for score in before]
    return answers.difference(before, after, [str(i * IMAGES // QUESTIONS) for i in range(QUESTIONS)])


def series(seed: int, steps: Sequence[float], process_sd: float = 0.01, judged: int = 0) -> list[dict[str, object]]:
    """Return what is found on each night of a series from `judged` on; `steps` are the nights' slow-downs."""
    rng = random.Random(f"nightly-{seed}-{process_sd}")
    judge = Judge([], "0000", MINIMUM_EFFECT)
    found = []
    for number, slower in enumerate(steps):
        reading = night(rng, f"{number:04d}", slower, process_sd)
        if number == 0:
            reading = replace(reading, rounds=())
        judge.readings.append(reading)
        judge.accuracies[reading.night] = scores(rng) if number and reading.is_point else None
        if number < judged:
            continue
        verdict = judge.verdict()
        found.append(
            {
                "alarm": verdict.code == REGRESSION,
                "unclear": verdict.code == UNCLEAR,
                "invalid": not reading.is_point,
                "stage": verdict.stage,
                "first_bad": verdict.first_bad,
                "latency": bool(verdict.latency and verdict.latency.word == "SLOWER"),
                "accuracy": bool(verdict.accuracy and verdict.accuracy.word == "WORSE"),
                "history": bool(verdict.trend and verdict.trend.word == "slower"),  # as `--alone` would say
            }
        )
    return found


def report_null(count: int, process_sd: float) -> str:
    runs = [series(seed, [0.0] * NULL_NIGHTS, process_sd) for seed in range(count)]
    every = [one for run in runs for one in run]
    per = {name: sum(bool(one[name]) for one in every) / count for name in ("alarm", "latency", "accuracy", "history")}
    unclear = sum(bool(one["unclear"]) for one in every) / len(every)
    invalid = sum(bool(one["invalid"]) for one in every) / len(every)
    return (
        f"| none | {process_sd:.0%} | {count} × {NULL_NIGHTS} | {per['alarm']:.2f} | {per['latency']:.2f} | "
        f"{per['accuracy']:.2f} | {per['history']:.2f} | {unclear:.1%} | {invalid:.1%} |"
    )


def report_step(count: int, step: float, within: int, process_sd: float) -> str:
    runs = [series(1000 + seed, [0.0] * BEFORE + [step] * AFTER, process_sd, BEFORE) for seed in range(count)]
    shares = []
    for name in ("alarm", "history"):
        for limit in (1, within):
            hit = sum(any(bool(one[name]) for one in run[:limit]) for run in runs)
            shares.append(f"{hit / count:.0%}")
    firsts = [next((one for one in run if one["alarm"]), None) for run in runs]
    named = sum(one is not None and one["stage"] == "prefill" for one in firsts)
    dated = sum(run[-1]["first_bad"] == f"{BEFORE:04d}" for run in runs)
    return (
        f"| +{step:.0%} | {process_sd:.0%} | {count} | {shares[0]} | {shares[1]} in {within} | "
        f"{shares[3]} in {within} | {named / count:.0%} | {dated / count:.0%} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="4 series of each kind")
    options = parser.parse_args()
    count = 4 if options.quick else options.series
    started_s = time.monotonic()
    print("| slow-down | process sd | series × nights | false alarms in 120 nights | of these side by side | answers | "
          "history alone would give | could not tell | invalid |")  # fmt: skip
    print("|--|--|--|--|--|--|--|--|--|")
    for process_sd in (0.01, 0.02):
        print(report_null(count if process_sd == 0.01 else max(2, count // 3), process_sd), flush=True)
    print()
    print("| slow-down | process sd | series | first night | found | history alone | stage named | first bad named |")
    print("|--|--|--|--|--|--|--|--|")
    for step, within in ((0.05, 5), (0.10, 3)):
        for process_sd in (0.01, 0.02):
            print(report_step(count, step, within, process_sd), flush=True)
    print(f"\n{time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return 0


EXAMPLES = examples()
HEADER: Any = None  # only the protocol is read from it, and only of logs without a TTFT

if __name__ == "__main__":
    sys.exit(main())
