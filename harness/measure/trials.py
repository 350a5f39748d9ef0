"""Runs an experiment on the instrument (see `experiments.py`) and says whether it holds, with its numbers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from harness import stats
from harness.measure import experiments, run
from harness.measure.asked import Asked

SMALLEST_ELSEWHERE = 0.1
"""A difference elsewhere below this share of the planted one is real but nothing: sleeping shifts caches a little."""
SMALLEST_FOUND = 0.5
"""A planted delay counts as found when at least this share of it shows in its stage."""
LARGEST_OVERHEAD = 1.01
"""TTFT with our instrumentation over TTFT without: the issue's bound."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """B over A for one stage: the median of the pairs' ratios and its 95 % interval (order statistics)."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    a_median_ms: float | None
    apart: bool = False
    """Whether A and B differ: 1 is outside an interval wide enough for all the ratios of the experiment together."""

    @property
    def half_width_percent(self) -> float | None:
        """The smallest difference that this many pairs resolve on this machine, about."""
        return None if self.low is None or self.high is None else 50 * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment gave."""

    kind: str
    title: str
    ratios: tuple[Ratio, ...]
    passed: bool
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return asdict(self)


def conduct(kind: str, asked: Asked, count: int, stage: str, share: float, say: Callable[[str], None]) -> Result:
    """Load the model once and run `count` interleaved pairs of experiment `kind`."""
    with run.opened(asked, say) as (job, model, device, clock):
        rounds = []
        for pair in experiments.pairs(kind, model, device, clock, job.suite.examples, count, stage, share):
            rounds.append(pair)
            say(f"pair {pair.number + 1} of {count}")
        title = job.cell.title
    names = [name for name in rounds[0].a_ns if all(name in pair.b_ns for pair in rounds)]
    ratios = tuple(
        ratio(name, [p.a_ns[name] for p in rounds], [p.b_ns[name] for p in rounds], len(names)) for name in names
    )
    passed, verdict = judge(kind, ratios, stage, share)
    return Result(kind, title, ratios, passed, verdict)


def ratio(name: str, a_ns: list[int], b_ns: list[int], among: int = 1) -> Ratio:
    """Return the median of b / a pair by pair, with its interval.

    `among` is how many ratios are judged together. Of five 95 % intervals one misses 1 in every fifth experiment on a
    perfect machine, so whether A and B differ is decided at 1 - 5 % / `among` (Bonferroni).
    """
    shares = [b / a for a, b in zip(a_ns, b_ns, strict=True)]
    estimate, wide = stats.median_interval(shares), stats.median_interval(shares, 1 - 0.05 / among)
    apart = wide.low is not None and wide.high is not None and not wide.low <= 1 <= wide.high
    middle = stats.median_interval(a_ns).value
    return Ratio(name, estimate.value, estimate.low, estimate.high, estimate.n, middle / 1e6 if middle else None, apart)


def judge(kind: str, ratios: tuple[Ratio, ...], stage: str, share: float) -> tuple[bool, str]:
    """Return whether the experiment holds, and in words why."""
    by_name = {each.name: each for each in ratios}
    if kind == "aa":
        off = [each.name for each in ratios if each.apart]
        if off:
            return False, f"A and A differ in {', '.join(off)}: timings of this machine are not to be trusted now"
        return True, "A and A cannot be told apart"
    if kind == "overhead":
        cost = by_name["ttft"]
        dearer = 1 / cost.value if cost.value else None  # arm A is instrumented, B is bare
        passed = dearer is not None and dearer <= LARGEST_OVERHEAD
        return passed, f"TTFT with instrumentation over TTFT without: {dearer:.4f} (allowed: {LARGEST_OVERHEAD})"
    planted = by_name[stage]
    found = planted.low is not None and planted.low > 1 and (planted.value or 0) >= 1 + SMALLEST_FOUND * share
    least = SMALLEST_ELSEWHERE * share
    elsewhere = [
        name
        for name, each in by_name.items()
        if name not in (stage, "ttft") and each.apart and abs((each.value or 1) - 1) >= least
    ]
    if not found:
        return False, f"{share:+.0%} planted in {stage} was not found"
    if elsewhere:
        return False, f"{share:+.0%} planted in {stage} was found, but also a difference in {', '.join(elsewhere)}"
    return True, f"{share:+.0%} planted in {stage} was found there and nowhere else"
