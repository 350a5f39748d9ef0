"""What only a served model's logs have: tokens that the server counts, its doubts, and TTFT under load."""

from collections.abc import Iterator, Sequence
from statistics import median

from harness.runlog.log import Log
from harness.runlog.records import Loaded, Pass

CACHED_SHARE = 0.05
"""Share of a prompt taken from a cache that a chat template alone explains."""
TOKENS_PER_CHUNK = 1.5
BURST_SHARE = 0.02
BURST_TOKENS = 8


def tpot_ns(whole: Pass) -> float | None:
    """Return the time per output token after the first, by the server's count of tokens; chunks are not tokens.

    None where the server counts none, or sends all of them in one chunk.
    """
    if whole.output_tokens < 2 or len(whole.piece_ns) < 2:
        return None
    return (whole.piece_ns[-1] - whole.piece_ns[0]) / (whole.output_tokens - 1)


def doubts(logs: Sequence[Log]) -> list[str]:
    """Return what the answers themselves show of a server; what its probes found is among the header's doubts."""
    timed = [one for log in logs for one in log.samples if one.phase == "timed" and one.timed]
    passes = [one.whole for one in timed if one.whole and one.whole.server]
    return list(_of_passes(passes))


def _of_passes(passes: Sequence[Pass]) -> Iterator[str]:
    cached = [_number(one, "cached_tokens") / prompt for one in passes if (prompt := _number(one, "prompt_tokens"))]
    if cached and median(cached) > CACHED_SHARE:
        yield f"the server took {median(cached):.0%} of the prompts from its cache, as it counts; turn its caches off"
    hits = sum(_number(one, "server_picture_hits") > 0 for one in passes)
    if hits:
        yield f"the server knew the picture of {hits} of {len(passes)} requests already; turn its caches off"
    others = sum(_number(one, "server_others") > 0 for one in passes)
    if others:
        yield f"others used the server during {others} of {len(passes)} requests; measure it alone"
    sizes = [one.output_tokens / len(one.piece_ns) for one in passes if one.piece_ns and one.output_tokens]
    if sizes and median(sizes) > TOKENS_PER_CHUNK:
        yield f"a chunk holds {median(sizes):.1f} tokens: TTFT ends with all of the first chunk's"
    long = [one for one in passes if one.output_tokens >= BURST_TOKENS and one.ttft_ns]
    bursts = [one for one in long if one.piece_ns[-1] - one.piece_ns[0] < BURST_SHARE * one.piece_ns[-1]]
    if len(bursts) > len(long) / 2:
        yield "answers come in one burst: something between server and client holds them back, TTFT is the whole time"


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
