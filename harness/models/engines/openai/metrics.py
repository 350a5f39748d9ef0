"""The server's own clock, where it has one: vLLM's `/metrics` before and after a request, llama.cpp's `timings`."""

from collections.abc import Mapping

Fact = int | float | str

VLLM = {
    "vllm:time_to_first_token_seconds": "server_ttft_ns",
    "vllm:request_queue_time_seconds": "server_queue_ns",
    "vllm:request_prefill_time_seconds": "server_prefill_ns",
}
"""Histograms: the change of their sum is one request's time if their count has gone up by one."""
HITS = {"vllm:prefix_cache_hits": "server_prefix_hits", "vllm:mm_cache_hits": "server_picture_hits"}
LLAMA = {"prompt_ms": "server_prefill_ns", "predicted_ms": "server_decode_ns"}


def read(text: str | None) -> dict[str, float]:
    """Return the values of a Prometheus page by name, added up over labels; buckets are left out."""
    found: dict[str, float] = {}
    for line in (text or "").splitlines():
        name, _, rest = line.partition("{")
        if not rest:
            name, _, rest = line.partition(" ")
        if not name or name.startswith("#") or name.endswith("_bucket"):
            continue
        try:
            value = float(rest.rpartition("}")[2].split()[0])
        except (ValueError, IndexError):
            continue
        found[name] = found.get(name, 0.0) + value
    return found


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Fact]:
    """Return what one request took by the server's clock; with other people's requests in between, their number."""
    facts: dict[str, Fact] = {}
    for name, ours in VLLM.items():
        count = after.get(f"{name}_count", 0.0) - before.get(f"{name}_count", 0.0)
        if count == 1:
            facts[ours] = round(1e9 * (after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)))
        elif count > 1:
            facts["server_others"] = round(count) - 1
    for name, ours in HITS.items():
        for spelled in (name, f"{name}_total"):
            if spelled in after:
                facts[ours] = round(after[spelled] - before.get(spelled, 0.0))
    return facts


def of_timings(timings: Mapping[str, object]) -> dict[str, Fact]:
    """Return llama.cpp's own times, and how much of the prompt it took from its cache."""
    facts: dict[str, Fact] = {}
    for name, ours in LLAMA.items():
        value_ms = timings.get(name)
        if isinstance(value_ms, int | float):
            facts[ours] = round(1e6 * value_ms)
    cached = timings.get("cache_n")
    if isinstance(cached, int):
        facts["cached_tokens"] = cached
    return facts


def of_usage(usage: Mapping[str, object]) -> dict[str, Fact]:
    """Return what a server counted: prompt, output and cached tokens."""
    details = usage.get("prompt_tokens_details") or {}
    named = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
    }
    return {name: value for name, value in named.items() if isinstance(value, int)}
