"""Tonight over the baseline: the ratio of TTFT and of each stage, its interval and a word for it. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

import numpy as np

from harness import stats
from harness.models.protocol import STAGES
from harness.runlog.log import Log
from harness.stats import Estimate

Word = Literal["SAME", "FASTER", "SLOWER", "AMBIGUOUS"]
MINIMUM_EFFECT = 0.03
"""A ratio nearer to 1 than this is no regression, however sure it is."""
CONFIRMATIONS = 2
"""Further runs that must agree before a SLOWER fails a night: processes of one model differ by chance, which does not
cancel between the arms (benchmarks/nightly_alarms.py shows how much of it this bears)."""
MINIMUM_SHARE = 0.01
"""A stage alone fails a night only if what it lost is so much of TTFT: 5 % of 30 µs is nobody's trouble."""

Times = Mapping[str, Mapping[str, float]]
"""Example → name (`ttft`, stages) → nanoseconds."""


class Timings(dict[str, dict[str, float]]):
    """Times, and the image of each example where images were drawn: two questions about a page are not independent."""

    def __init__(self, rows: Mapping[str, dict[str, float]], images: Mapping[str, str]) -> None:
        super().__init__(rows)
        self.images = images


@dataclass(frozen=True, slots=True)
class Ratio:
    """One name's time in the candidate (B) over the baseline (A): 1.05 is 5 % slower."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    a_ns: float | None
    b_ns: float | None
    word: Word
    cost: float = 0.0
    """What B lost here, as a share of A's TTFT."""

    @property
    def change(self) -> str:
        """The size in words: `+5.1 % [+4.2 %, +6.0 %]`."""
        if self.value is None:
            return "not measured"
        bounds = "" if self.low is None or self.high is None else f" [{self.low - 1:+.1%}, {self.high - 1:+.1%}]"
        return f"{self.value - 1:+.1%}{bounds}"


@dataclass(frozen=True, slots=True)
class Latency:
    """What layer 1 found; `slower` names what is slower, worst first, `note` says what limits the finding."""

    word: Word
    ratios: tuple[Ratio, ...]
    slower: tuple[Ratio, ...]
    confirmed: bool
    rounds: int
    pairs: int
    note: str = ""

    @property
    def ttft(self) -> Ratio | None:
        """The ratio of TTFT."""
        return next((ratio for ratio in self.ratios if ratio.name == "ttft"), None)


def times(log: Log) -> Timings:
    """Return the valid timed samples of `log` that have stages: by example, TTFT and each stage.

    Images are named unless all of the suite's were timed: then none was left to chance, as in reports.
    """
    found: dict[str, dict[str, float]] = {}
    images: dict[str, str] = {}
    for sample in log.samples:
        if sample.phase != "timed" or not sample.valid or sample.stages is None:
            continue
        stages = {name: float(ns) for name, ns in sample.stages.stage_ns.items() if "." not in name}
        row = {name: stages[name] for name in STAGES if name in stages}
        if sample.whole and sample.whole.ttft_ns is not None:
            row["ttft"] = float(sample.whole.ttft_ns)
        elif log.header.cell.get("protocol") == "paper":
            row["ttft"] = stages.get("encode", 0.0) + stages.get("prefill", 0.0)
        if "ttft" in row:
            found[sample.example] = row
            images[sample.example] = " ".join(sample.image_ids)
    rests_on = log.footer.rests_on if log.footer else {}
    complete = bool(rests_on) and rests_on.get("images", 0) >= rests_on.get("suite_images", 1)
    return Timings(found, {} if complete or not all(images.values()) else images)


def decide(rounds: Sequence[tuple[Times, Times]], minimum_effect: float = MINIMUM_EFFECT) -> Latency:
    """Return the verdict on rounds of (baseline, candidate), each a run of its own.

    With several rounds a SLOWER counts only where every round says it (two processes differ by chance); sizes are
    those of all pairs together.
    """
    each = [compare([one], minimum_effect) for one in rounds]
    pooled = each[0] if len(each) == 1 else compare(rounds, minimum_effect)
    pairs = sum(len(_shared(a, b)) for a, b in rounds)
    if not pooled:
        return Latency("AMBIGUOUS", (), (), False, len(rounds), pairs, "no valid pair of samples")
    names = [{ratio.name for ratio in slower(one)} for one in each]
    agreed = names[0].intersection(*names[1:])
    found = tuple(sorted((r for r in pooled if r.name in agreed), key=lambda r: (r.name != "ttft", -r.cost)))
    ttft = next((ratio for ratio in pooled if ratio.name == "ttft"), None)
    if found:
        return Latency("SLOWER", pooled, found, len(rounds) > 1, len(rounds), pairs)
    word: Word = ttft.word if ttft else "AMBIGUOUS"
    word = "AMBIGUOUS" if word == "SLOWER" else word
    note = ""
    if any(names):
        note = f"{', '.join(sorted(set().union(*names)))} was slower in one run and not in another: not confirmed"
    elif word == "AMBIGUOUS":
        note = f"{pairs} pairs do not tell: TTFT {ttft.change if ttft else 'is not there'}"
    return Latency(word, pooled, (), False, len(rounds), pairs, note)


def again(rounds: Sequence[tuple[Times, Times]], minimum_effect: float = MINIMUM_EFFECT) -> bool:
    """Return whether one more run is due: a SLOWER must be confirmed, and one more look may settle what is unclear."""
    word = decide(rounds, minimum_effect).word
    return word == "SLOWER" or (word == "AMBIGUOUS" and len(rounds) == 1)


def compare(rounds: Sequence[tuple[Times, Times]], minimum_effect: float = MINIMUM_EFFECT) -> tuple[Ratio, ...]:
    """Return the ratios of TTFT and every stage that both arms have, over all rounds.

    The same examples are compared pair by pair (the median of the pairs' ratios: pages of different size do not add
    noise), clustered by image; where the arms share no examples, the ratio of the medians.
    """
    present = [set(next(iter(side.values()), {})) for a, b in rounds for side in (a, b)]
    names = [name for name in ("ttft", *STAGES) if present and all(name in one for one in present)]
    ttft_ns = median([row["ttft"] for a, _ in rounds for row in a.values()]) if "ttft" in names else None
    found = []
    for name in names:
        a_ns, b_ns, estimate = _estimate(rounds, name)
        cost = (median(b_ns) - median(a_ns)) / ttft_ns if a_ns and b_ns and ttft_ns else 0.0
        word = judge(estimate, minimum_effect)
        found.append(
            Ratio(
                name,
                estimate.value,
                estimate.low,
                estimate.high,
                estimate.n,
                median(a_ns) if a_ns else None,
                median(b_ns) if b_ns else None,
                word,
                cost,
            )
        )
    return tuple(found)


def _estimate(rounds: Sequence[tuple[Times, Times]], name: str) -> tuple[list[float], list[float], Estimate]:
    found = [(a, b, key) for a, b in rounds for key in _shared(a, b) if a[key][name] > 0]
    if found:
        pairs = [(a[key][name], b[key][name]) for a, b, key in found]
        quotients = np.array([b / a for a, b in pairs])
        named = [side.images.get(key, "") if isinstance(side, Timings) else "" for side, _, key in found]
        # Over ones, the ratio of medians is the median, with the interval of the pairs' ratios.
        estimate = stats.ratio_of_medians(
            quotients, np.ones(len(quotients)), pairs=True, clusters=named if all(named) else None
        )
        return [a for a, _ in pairs], [b for _, b in pairs], estimate
    a_ns = [row[name] for a, _ in rounds for row in a.values()]
    b_ns = [row[name] for _, b in rounds for row in b.values()]
    return a_ns, b_ns, stats.ratio_of_medians(b_ns, a_ns)


def _shared(a: Times, b: Times) -> list[str]:
    return [key for key in a if key in b]


def _named(ratios: Sequence[Ratio], name: str) -> float | None:
    return next((ratio.value for ratio in ratios if ratio.name == name), None)


def judge(ratio: Estimate, minimum_effect: float) -> Word:
    """Return SLOWER or FASTER for a sure change of at least the minimum effect.

    SAME: surely not slower by as much, and not surely faster. Everything else is AMBIGUOUS.
    """
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return "AMBIGUOUS"
    most, least = 1 + minimum_effect, 1 / (1 + minimum_effect)
    if ratio.low > 1 and ratio.value >= most:
        return "SLOWER"
    if ratio.high < 1 and ratio.value <= least:
        return "FASTER"
    return "SAME" if ratio.high <= most else "AMBIGUOUS"


def slower(ratios: Sequence[Ratio]) -> list[Ratio]:
    """Return what counts as slower: TTFT, or a stage that costs enough of TTFT, unless TTFT itself is faster."""
    ttft = next((ratio for ratio in ratios if ratio.name == "ttft"), None)
    if ttft and ttft.word == "FASTER":
        return []
    return [r for r in ratios if r.word == "SLOWER" and (r.name == "ttft" or r.cost >= MINIMUM_SHARE)]


def interleaved(a: Log, b: Log) -> bool:
    """Return whether the two logs' samples take turns in time, as those of one interleaved job do."""
    moments = sorted(
        (sample.at, arm) for arm, log in enumerate((a, b)) for sample in log.samples if sample.phase == "timed"
    )
    turns = sum(first[1] != second[1] for first, second in pairwise(moments))
    fewest = min(len([1 for _, arm in moments if arm == side]) for side in (0, 1))
    return fewest > 0 and turns >= fewest * 0.8
