"""What a cell will probably take: time, memory, download. Predicted from counts and peaks; never a result."""

from collections.abc import Iterable
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.machine import backend
from harness.measure.asked import Asked
from harness.models import weights
from harness.models.card import ModelCard
from harness.models.synthesis import model_card
from harness.suites import cache as builds
from harness.suites.card import load_suite_card


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a cell will probably take. Predicted from counts and this machine's peaks; never a result."""

    seconds: float | None
    """Of loading and of the FLOPs of timed samples alone; None where no peak or no FLOPs are known."""
    memory_bytes: int | None
    download_bytes: int | None
    """Of weights; data are not in it."""
    answers: str = ""
    """How many questions are then answered in all, most of them untimed: a number, "all", or none."""


def estimate(asked: Asked, peak_flops_per_s: float | None) -> Estimate:
    """Predict what a cell takes: FLOPs over half the machine's measured peak, twice per sample, and loading."""
    from harness.models import counts  # torch, which a plan that is only listed need not wait for

    if asked.endpoint:
        return Estimate(None, None, 0, _answers(asked))
    card = model_card(asked.model, asked.offline)
    trained = asked.weights is not None or weights.present(card) or (card.hub is not None and not asked.offline)
    told = _answers(asked) if trained else ""
    try:
        counted = counts.row(card, asked.res or card.resolution.default)
    except HarnessError:
        return Estimate(None, None, None, told)
    width = 4 if (asked.dtype or backend.of(asked.device).dtype()) == "float32" else 2
    held = {name: count for name, count in counted.params.items() if _held(name, asked.part, card)}
    size = width * sum(held.values())
    flops = 0 if asked.part == "llm" else counted.encode_flops
    flops += counted.prefill_flops if asked.part in (None, "llm") else 0
    seconds = None
    if peak_flops_per_s and flops:  # family `auto` counts its own in a real answer alone
        samples = min(asked.maximum_samples, max(asked.minimum_samples, 20))
        each = 2 * flops / (0.5 * peak_flops_per_s)
        seconds = 5 + size / 1e9 + min(max(samples * each, asked.minimum_seconds), asked.maximum_seconds + each)
    here = asked.weights is not None or weights.present(card) or asked.offline or not card.hub
    return Estimate(seconds, size, 0 if here else counted.bf16_bytes, told)


def _answers(asked: Asked) -> str:
    """Return how many questions trained weights would answer for their score: all of the suite, or up to the limit.

    Which weights will be found is not known beforehand; random ones, asked for by name, answer none.
    """
    if asked.weights == "random" or asked.protocol != "ttft" or asked.part:
        return ""
    known = [count for count in (asked.limit, _size(asked)) if count is not None]
    share = f" / {asked.shards}" if asked.shard else ""
    return f"{min(known) if known else 'all'}{share}"


def _size(asked: Asked) -> int | None:
    """Return how many questions the suite has; None where its data are not built yet."""
    suite = load_suite_card(asked.suite)
    if suite.origin == "embedded":
        from harness.suites import pages  # fonts and an image library

        return pages.COUNT
    build = None if asked.data else builds.remembered(suite.task, None)
    return build.count if build else None


def _held(name: str, part: str | None, card: ModelCard) -> bool:
    if part is None or name == part:
        return True
    return part == "llm" and name not in {encoder.name for encoder in card.encoders}


def total(estimates: Iterable[Estimate]) -> Estimate:
    """Add up seconds and downloads, and take the largest memory; None where any cell's is unknown."""
    each = list(estimates)
    seconds = [one.seconds for one in each]
    memory = [one.memory_bytes for one in each]
    return Estimate(
        None if None in seconds else sum(s for s in seconds if s is not None),
        None if None in memory else max((m for m in memory if m is not None), default=0),
        sum(one.download_bytes or 0 for one in each),
    )
