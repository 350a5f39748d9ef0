"""Doubts as values: what makes a number hard to trust, how much, and what to do about it. Pure functions on arrays.

Nothing is removed because of a doubt: it is printed beside the number. Times are nanoseconds of valid samples, in the
order in which they were measured.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from harness.stats import Clusters, alike, as_values, median_interval, modes, percentile, spread

UNSTABLE_CV = 0.10
UNSTABLE_MAXIMUM = 1.5
"""pyperf warns when the standard deviation exceeds 10 % of the mean, or the maximum 1.5 times it."""
RESIDUAL = 0.05
"""Share of TTFT that the stages do not explain."""
REFUSED = 0.10
"""Share of samples that the gate refused."""
FEWEST = 8
PRECISION = 0.05
FEWEST_IMAGES = 6
SPEEDS_APART = 0.04
"""Two speeds nearer than this change the median by no more than ±2 %."""
APART = 0.05
"""How far apart the medians of a cell's processes may lie, as a share of theirs."""
MOST_TOLD = 6
"""Conditions that a doubt names."""
TAIL = 0.02
COLD = 1.5
"""Cold start over warm median."""
SLOW_FIRST = 1.25
"""First timed sample over the median of the others: the warm-up was too short."""
DRIFT = 0.05
DRIFT_Z = 2.58
"""Change of the fitted trend over the whole run; it must also be significant at 99 % (Mann-Kendall)."""
CLOCK_GAP = 0.02
"""Host time over device time (CUDA events) of the same stages."""
FEWEST_FOR_DRIFT = 8
MOST_FOR_DRIFT = 1000


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason not to trust a number as it stands."""

    name: str
    text: str
    advice: str
    amount: float | None = None
    """How much, as a share (0.08 is 8 %), a ratio or a count, as the text says."""


def unstable(values_ns: ArrayLike, what: str = "TTFT") -> Doubt | None:
    """Doubt values that scatter: sd over 10 % of the mean, or a maximum over 1.5 times the mean."""
    seen = spread(values_ns)
    if seen.cv is None or seen.mean is None or seen.maximum is None or seen.mean <= 0:
        return None
    outlying = seen.maximum / seen.mean
    if seen.cv <= UNSTABLE_CV and outlying <= UNSTABLE_MAXIMUM:
        return None
    return Doubt(
        "unstable",
        f"{what} scatters: sd {seen.cv:.0%} of the mean, slowest sample {outlying:.2f} times the mean",
        "close other programs, see `harness doctor`, or raise --min-seconds; quote the median with its interval",
        seen.cv,
    )


def residual(ttft_ns: ArrayLike, stage_sum_ns: ArrayLike) -> Doubt | None:
    """Doubt a stage split whose sum is not the TTFT measured without it (median of the pairs' residuals over 5 %)."""
    whole, parts = as_values(ttft_ns), as_values(stage_sum_ns)
    if not len(whole) or len(whole) != len(parts) or np.median(whole) <= 0:
        return None
    share = float(np.median((whole - parts) / whole))
    if abs(share) <= RESIDUAL:
        return None
    why = (
        f"{share:.1%} lies outside every stage"
        if share > 0
        else f"their sum is {-share:.1%} longer, because each stage waits for the device and the whole pass does not"
    )
    return Doubt(
        "residual",
        f"stage times do not add up to TTFT: {why}",
        "quote TTFT, and the stages only as shares of their sum",
        share,
    )


def refused(valid: Sequence[bool], reasons: Iterable[Sequence[str]] = ()) -> list[Doubt]:
    """Doubt a run in which the gate refused many samples: one doubt per reason, `throttled` and the like by name."""
    if not len(valid):
        return []
    share = 1 - sum(map(bool, valid)) / len(valid)
    if share <= REFUSED:
        return []
    counts = Counter(reason for each in reasons for reason in each)
    advice = "see `harness doctor`; measure on a quiet machine, plugged in and cool"
    if not counts:
        return [Doubt("refused", f"{share:.0%} of the samples were refused", advice, share)]
    return [
        Doubt(reason, f"{count} of {len(valid)} samples were refused as {reason}", advice, count / len(valid))
        for reason, count in counts.most_common()
    ]


def few_samples(
    values_ns: ArrayLike, what: str = "TTFT", kept: str = "valid", clusters: Clusters | None = None
) -> Doubt | None:
    """Doubt a median of few samples, or one whose interval is wider than ±5 %; `kept` is what the gate called them."""
    estimate = median_interval(values_ns, clusters=clusters)
    of = "" if what == "TTFT" else f" of {what}"
    if estimate.n < FEWEST:
        return Doubt(
            "few_samples",
            f"only {estimate.n} {kept} samples{of}",
            f"measure at least {FEWEST}: raise --limit",
            float(estimate.n),
        )
    half = estimate.relative_half_width
    if half is None or half <= PRECISION:
        return None
    return Doubt(
        "imprecise", f"the median{of} is known to ±{half:.0%} only", "raise --max-samples and --max-seconds", half
    )


def two_speeds(groups_ns: Iterable[Sequence[float]]) -> Doubt | None:
    """Doubt a median of times in two heaps; each group holds the samples of one shape."""
    found = modes(alike(groups_ns))
    if found is None or found.upper - found.lower <= SPEEDS_APART:
        return None
    return Doubt(
        "two_speeds",
        f"the machine has two speeds: {1 - found.share_upper:.0%} of the samples lie near {found.lower:.2f} times the "
        f"median, {found.share_upper:.0%} near {found.upper:.2f} times",
        "look for what switches (power, cores, another program); the median jumps from one to the other: quote both",
        found.upper - found.lower,
    )


def left_out(valid_ns: Sequence[float], refused_ns: Sequence[float]) -> Doubt | None:
    """Doubt percentiles from which the gate took samples: it refuses slow ones, and so the tail looks shorter."""
    if not len(refused_ns) or not len(valid_ns):
        return None
    without, with_them = percentile(valid_ns, 0.9), percentile([*valid_ns, *refused_ns], 0.9)
    if without.value is None or with_them.value is None:
        return None
    change = with_them.value / without.value - 1
    if abs(change) <= TAIL:
        return None
    return Doubt(
        "left_out",
        f"percentiles leave out {len(refused_ns)} refused samples; p90 with them is {with_them.value / 1e6:.3g} ms "
        f"instead of {without.value / 1e6:.3g} ms",
        "quote the median, or measure on a quiet machine",
        change,
    )


def few_images(images: int, of: int | None, timed: int) -> Doubt | None:
    """Doubt times of a handful of images, unless the suite has no more."""
    if images >= FEWEST_IMAGES or timed < FEWEST_IMAGES or images == of:
        return None
    total = f" of {of}" if of else ""
    return Doubt(
        "few_images", f"timed on {images}{total} distinct images", "other pages may take longer: raise --limit", images
    )


def mixed(differences: Mapping[str, Sequence[str]], runs: int) -> Doubt | None:
    """Doubt one median of runs under several conditions; `differences` are their values, the oldest run's first."""
    if not differences:
        return None
    told = [f"{name} {', then '.join(values)}" for name, values in differences.items()]
    more = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return Doubt(
        "mixed",
        f"its {runs} logs were not measured under the same conditions ({'; '.join(told[:MOST_TOLD])}{more}), and their "
        "times are put together",
        "measure all of it anew, or report only logs that belong together",
        float(len(differences)),
    )


def apart(spread_percent: float | None) -> Doubt | None:
    """Doubt one median of processes that lie far apart: an interval of all samples together knows nothing of that."""
    if spread_percent is None or spread_percent <= 100 * APART:
        return None
    return Doubt(
        "apart",
        f"the medians of its processes spread over {spread_percent:.0f} %, which the interval does not know",
        "look for what differs between them, measure more processes, and quote the range",
        spread_percent / 100,
    )


def torn(finished: bool, torn_bytes: int = 0) -> Doubt | None:
    """Doubt a log without a footer: its run was cut off."""
    if finished:
        return None
    lost = f", {torn_bytes} bytes of a last line lost" if torn_bytes else ""
    return Doubt("torn", f"the run did not end by itself{lost}", "the same command resumes it", float(torn_bytes))


def cold(cold_ns: float | None, warm_ns: ArrayLike) -> Doubt | None:
    """Doubt that one number does for all: the first request of a fresh process takes far longer than a warm one."""
    values = as_values(warm_ns)
    if cold_ns is None or not len(values) or np.median(values) <= 0:
        return None
    ratio = float(cold_ns / np.median(values))
    if ratio <= COLD:
        return None
    return Doubt(
        "cold_start",
        f"the first request takes {ratio:.1f} times as long as a warm one",
        "quote the cold start as a number of its own where requests are rare",
        ratio,
    )


def slow_first(values_ns: ArrayLike, what: str = "TTFT") -> Doubt | None:
    """Doubt a warm-up after which the first timed sample still is slower than all others together say."""
    values = as_values(values_ns)
    if len(values) < 4 or np.median(values[1:]) <= 0:
        return None
    ratio = float(values[0] / np.median(values[1:]))
    if ratio <= SLOW_FIRST or values[0] < values[1:].max():
        return None
    return Doubt(
        "slow_first",
        f"the first timed sample{'' if what == 'TTFT' else f' of {what}'} took {ratio:.2f} times the others' median",
        "warm up longer",
        ratio,
    )


def drift(values_ns: ArrayLike, what: str = "TTFT") -> Doubt | None:
    """Doubt values that rise or fall over the run: Theil-Sen slope over 5 %, significant by Mann-Kendall at 99 %."""
    values = as_values(values_ns)
    if len(values) > MOST_FOR_DRIFT:  # all pairs are looked at; means of neighbours show a trend as well
        values = np.array([part.mean() for part in np.array_split(values, MOST_FOR_DRIFT)])
    n = len(values)
    if n < FEWEST_FOR_DRIFT or np.median(values) <= 0:
        return None
    first, second = np.triu_indices(n, 1)
    rises = values[second] - values[first]
    score = float(np.sign(rises).sum())
    # Without the correction for ties, which only makes the test more careful.
    z = abs(score) - 1
    significance = z / np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    change = float(np.median(rises / (second - first)) * (n - 1) / np.median(values))
    if significance < DRIFT_Z or abs(change) <= DRIFT:
        return None
    why = "the machine grows hot, or something else starts" if change > 0 else "the warm-up was too short"
    return Doubt(
        "drift", f"{what} changes by {change:+.0%} over the run: {why}", "cool down, warm up, measure again", change
    )


def clock_gap(host_ns: ArrayLike, device_ns: ArrayLike) -> Doubt | None:
    """Doubt times on which the host's clock and the device's own (CUDA events) differ by more than 2 %."""
    host, device = as_values(host_ns), as_values(device_ns)
    if not len(host) or len(host) != len(device) or np.median(host) <= 0:
        return None
    gap = float(np.median((host - device) / host))
    if abs(gap) <= CLOCK_GAP:
        return None
    if gap > 0:
        text = f"the host's clock counts {gap:.1%} more than the device's: launches, copies and Python on the host"
    else:
        text = f"the device's clock counts {-gap:.1%} more than the host's, which cannot be right"
    return Doubt("clock_gap", text, "quote the host's clock", gap)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one cell's run logs have to be doubted. `ttft_ns` and `stage_sum_ns`: valid samples, pair by pair."""

    ttft_ns: ArrayLike = ()
    stage_sum_ns: ArrayLike = ()
    others_ns: Mapping[str, ArrayLike] | None = None
    """Without an end-to-end pass a cell is known by other series, by what they are called in the text."""
    images: Mapping[str, Clusters | None] = field(default_factory=dict)
    """By series (`TTFT`, or those of `others_ns`), the image of each value, where intervals are clustered by it."""
    valid: Sequence[bool] = ()
    """Of all timed samples, as are `reasons`."""
    reasons: Iterable[Sequence[str]] = ()
    cold_ns: float | None = None
    host_ns: ArrayLike = ()
    """The same stages as in `device_ns`, on the host's clock."""
    device_ns: ArrayLike = ()
    finished: bool = True
    torn_bytes: int = 0


def examine(cell: Measured) -> list[Doubt]:
    """Return every doubt about one cell."""
    headlines = {"TTFT": cell.ttft_ns} if cell.others_ns is None else cell.others_ns
    kept = "valid" if any(cell.valid) or not cell.valid else "refused"  # without a valid one the refused are shown
    found = [
        torn(cell.finished, cell.torn_bytes),
        *refused(cell.valid, cell.reasons),
        *(
            doubt
            for what, values in headlines.items()
            for doubt in of_series(values, what, kept, cell.images.get(what))
        ),
        residual(cell.ttft_ns, cell.stage_sum_ns),
        cold(cell.cold_ns, cell.ttft_ns),
        clock_gap(cell.host_ns, cell.device_ns),
    ]
    return [doubt for doubt in found if doubt is not None]


def of_series(values_ns: ArrayLike, what: str, kept: str = "valid", clusters: Clusters | None = None) -> list[Doubt]:
    """Return the doubts about one series of times whose median is quoted; `what` it is called."""
    found = (few_samples(values_ns, what, kept, clusters), unstable(values_ns, what), slow_first(values_ns, what))
    return [doubt for doubt in (*found, drift(values_ns, what)) if doubt is not None]
