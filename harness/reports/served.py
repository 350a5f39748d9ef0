"""What only a served model's logs have: tokens that the server counts, its doubts, and TTFT under load."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from harness.runlog.log import Log
from harness.runlog.records import Loaded, Pass

CACHED_SHARE = 0.05
"""Share of a prompt taken from a cache that a chat template alone explains."""
TOKENS_PER_CHUNK = 1.5
BURST_SHARE = 0.02
BURST_TOKENS = 8
TOGETHER = 0.1
"""A chunk comes with the first one if it follows within this share of the mean time between chunks."""
STEPS_APART = 1.05
"""The number of tokens between two moments is known if the most it may be is no more than this times the least."""


class Pace(NamedTuple):
    """The time per output token of one answer, or in words why it has none."""

    ns: float | None
    reason: str = ""


def pace(whole: Pass, ends_counted: bool = True) -> Pace:
    """Return the time per token between an answer's first chunk (reasoning too) and the last chunk of its text.

    The server says how many tokens it made, and no chunk says how many it holds. So the tokens made in between are
    known within bounds alone: at least one for each chunk that came later, at most all but one for each chunk that came
    first, and but for the end token, whose step comes after the last text (`ends_counted`: the server counts it).
    There is a time where the bounds agree: then a chunk is a token.
    """
    tokens, times_ns = _tokens(whole, ends_counted), _times_ns(whole)
    if not whole.output_tokens:
        return Pace(None, "the server counts no tokens")
    if whole.thought_ns is not None and not whole.thoughts_ns:
        return Pace(None, "the log is an older one and has the first time of the reasoning alone")
    if len(times_ns) < 2 or not whole.piece_ns:
        return Pace(None, "one chunk holds all of the answer")
    if times_ns[-1] > whole.piece_ns[-1]:
        return Pace(None, "reasoning came after the last text")
    took_ns, first = times_ns[-1] - times_ns[0], _together(times_ns)
    if took_ns < BURST_SHARE * times_ns[-1] * min(1.0, (len(times_ns) - 1) / (BURST_TOKENS - 1)):
        return Pace(None, "all chunks came in one burst")
    fewest, most = len(times_ns) - first, tokens - first
    if fewest > most:
        return Pace(None, "more chunks came than the server counts tokens")
    if most > STEPS_APART * fewest:
        return Pace(None, "a chunk holds several tokens, and nothing says how many came with the first")
    return Pace(took_ns / ((fewest + most) / 2))


def ends_counted(timed: Sequence[Pass]) -> bool:
    """Return whether the server counts the token that ends an answer, which has no text.

    It does not if an answer that ended by itself has as many chunks as tokens.
    """
    ended = [one for one in timed if one.server.get("finish") == "stop" and one.output_tokens]
    return not any(len(_times_ns(one)) >= one.output_tokens for one in ended)


def without_pace(paces: Sequence[Pace]) -> str:
    """Return how many answers have no time per token and why; nothing where all have one."""
    reasons = Counter(one.reason for one in paces if one.ns is None)
    return "; ".join(f"{count} of {len(paces)} answers: {reason}" for reason, count in reasons.most_common())


def _times_ns(whole: Pass) -> list[int]:
    """Return when each chunk came, of the reasoning and of the answer."""
    return sorted((*whole.thoughts_ns, *whole.piece_ns))


def _tokens(whole: Pass, ends: bool) -> int:
    """Return how many tokens were made up to the last text."""
    return whole.output_tokens - (ends and whole.server.get("finish") == "stop" and whole.output_tokens > 0)


def _together(times_ns: Sequence[int]) -> int:
    """Return how many chunks came with the first one: what is held back on the way comes at once."""
    near_ns = TOGETHER * (times_ns[-1] - times_ns[0]) / max(1, len(times_ns) - 1)
    return sum(came_ns - times_ns[0] <= near_ns for came_ns in times_ns)


def passes(logs: Sequence[Log]) -> list[Pass]:
    """Return the timed answers of a server."""
    timed = [one for log in logs for one in log.samples if one.phase == "timed" and one.timed]
    return [one.whole for one in timed if one.whole and one.whole.server]


def doubts(logs: Sequence[Log]) -> list[str]:
    """Return what the answers themselves show of a server; what its probes found is among the header's doubts."""
    return list(_of_passes(passes(logs)))


def _of_passes(timed: Sequence[Pass]) -> Iterator[str]:
    cached = [_number(one, "cached_tokens") / prompt for one in timed if (prompt := _number(one, "prompt_tokens"))]
    if cached and median(cached) > CACHED_SHARE:
        yield f"the server took {median(cached):.0%} of the prompts from its cache, as it counts; turn its caches off"
    hits = sum(_number(one, "server_picture_hits") > 0 for one in timed)
    if hits:
        yield f"the server knew the picture of {hits} of {len(timed)} requests already; turn its caches off"
    others = sum(_number(one, "server_others") > 0 for one in timed)
    if others:
        yield f"others used the server during {others} of {len(timed)} requests; measure it alone"
    yield from _of_chunks([one for one in timed if one.piece_ns])


def _of_chunks(timed: Sequence[Pass]) -> Iterator[str]:
    waits = [one.piece_ns[0] - one.thought_ns for one in timed if one.thought_ns is not None]
    if waits:
        yield (
            f"TTFT waits for {max(0.0, median(waits)) / 1e6:.0f} ms of reasoning (median of {len(waits)} of "
            f"{len(timed)} answers): it ends with the first text of the answer itself"
        )
    timed = [one for one in timed if one.thought_ns is None or one.thoughts_ns]  # else older logs' chunks are unknown
    ends = ends_counted(timed)
    sizes = [_tokens(one, ends) / len(_times_ns(one)) for one in timed if one.output_tokens]
    if sizes and median(sizes) > TOKENS_PER_CHUNK:
        yield f"a chunk holds {median(sizes):.1f} tokens: TTFT ends with all of the first chunk's"
    all_ns = [times_ns for one in timed if len(times_ns := _times_ns(one)) > 1]
    long = [times_ns for one in timed if one.output_tokens >= BURST_TOKENS and (times_ns := _times_ns(one))]
    bursts = [times_ns for times_ns in long if times_ns[-1] - times_ns[0] < BURST_SHARE * times_ns[-1]]
    if len(bursts) > len(long) / 2:
        yield "answers come in one burst: something between server and client holds them back, TTFT is the whole time"
    elif all_ns and (first := median(map(_together, all_ns))) > TOKENS_PER_CHUNK:
        yield f"the first {first:.0f} chunks come together: something holds them back, and TTFT ends with all of them"


def _number(one: Pass, name: str) -> float:
    value = one.server.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def load_text(one: Loaded) -> str:
    """Return a line about one number of requests at a time."""
    done = len(one.ttft_ns)
    if not done:
        return f"{one.concurrency} at a time: no request answered ({len(one.failures)} failed)"
    rate = 1e9 * done / one.wall_ns if one.wall_ns else 0.0
    failed = f", {len(one.failures)} failed" if one.failures else ""
    return (
        f"{one.concurrency} at a time: TTFT {median(one.ttft_ns) / 1e6:.1f} ms (median of {done}, slowest "
        f"{max(one.ttft_ns) / 1e6:.1f}), {rate:.2f} answers a second{failed}"
    )
