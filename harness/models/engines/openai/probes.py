"""What a server does with requests, asked before a cell is measured: caches, salt, shrinking, fields, its name.

A probe sends pictures that no server has seen (noise), so that what an earlier run left in its caches cannot help it.
Times here only tell a cached answer from a fresh one; they are logged as shares and stand in no report.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from harness import images
from harness.clock import Clock
from harness.errors import ServerError, UnknownName
from harness.models.engines.openai import body, metrics, stream
from harness.models.engines.openai.client import Client, decoded
from harness.models.engines.openai.metrics import Fact

QUESTION = "What is this?"
ROUNDS = 3
CACHED_SHARE = 0.8
"""A repeat is cached if the slowest one takes less than this share of the fastest fresh request."""
SMALL_PX = 64
USUAL_PX = 1024
AREA_RATIO = 3.5
"""Twice the side is four times the area; with fewer image tokens than this, something limits the picture's size."""
CLOSE_TOKENS = 4
"""Servers may count a start token or a line end otherwise than the local processor."""
CELL_PX = 8
LENGTHS = ("max_tokens", "max_completion_tokens")
OPTIONAL: Mapping[str, object] = {
    "temperature": 0,
    "stream_options": {"include_usage": True},
    "seed": 0,
    "top_k": 1,
    "ignore_eos": True,
}
SENT = ("temperature", "stream_options")
"""The optional fields that measured requests carry, where the server takes them."""
EOS_TOKENS = 8
MOST_WORDS = 3
"""No token is longer; seen with `transformers serve`, whose parser repeats a prompt in which it misses its anchor."""
ATTEMPTS = 8
"""A server that is still loading its model says "busy": half a minute is waited for it."""
FIRST_PAUSE_NS = 50_000_000
LONGEST_PAUSE_NS = 8_000_000_000


@dataclass(frozen=True, slots=True)
class Findings:
    """What the probes found: for the log, for the requests that follow, and what makes the server doubtful."""

    fields: Mapping[str, object]
    """Fields of every request, without its length."""
    length: str
    facts: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One probe's answer: when its first text (or its end) came, and what the server counted."""

    first_ns: int
    counted: Mapping[str, Fact]
    model: str = ""
    fingerprint: str = ""
    text: str = ""


@dataclass(slots=True)
class Probes:
    """Questions to one server about one model."""

    client: Client
    clock: Clock
    model: str
    fields: dict[str, object] = field(default_factory=dict)
    length: str = LENGTHS[0]

    def ask(
        self, pictures: list[bytes], tokens: int = 1, salt: str | None = None, more: Mapping[str, object] | None = None
    ) -> Asked:
        """Send one request and wait for all of its answer; a busy server is asked again after a pause."""
        for attempt in range(1, ATTEMPTS):
            try:
                return self._ask(pictures, {**self.fields, self.length: tokens, **(more or {})}, salt)
            except ServerError as error:
                if not error.busy:
                    raise
                self.clock.sleep_ns(min(FIRST_PAUSE_NS << attempt, LONGEST_PAUSE_NS))
        return self._ask(pictures, {**self.fields, self.length: tokens, **(more or {})}, salt)

    def _ask(self, pictures: list[bytes], fields: Mapping[str, object], salt: str | None) -> Asked:
        sent = body.build(self.model, pictures, QUESTION, fields, salt)
        self.client.ready()
        start_ns = self.clock.now_ns()
        first_ns = 0
        counted: dict[str, Fact] = {}
        text = ""
        names = {"model": "", "fingerprint": ""}
        pieces = self.client.post(sent)
        for chunk in stream.chunks(partial(next, pieces, b"")):
            if (chunk.text or chunk.thought) and not first_ns:
                first_ns = self.clock.now_ns() - start_ns
            text += chunk.thought + chunk.text
            counted |= {**metrics.of_usage(chunk.usage), **metrics.of_timings(chunk.timings)}
            names = {"model": chunk.model or names["model"], "fingerprint": chunk.fingerprint or names["fingerprint"]}
        first_ns = first_ns or self.clock.now_ns() - start_ns
        self.client.finish(pieces)
        return Asked(first_ns, counted, **names, text=text)


def examine(client: Client, clock: Clock, model: str, side: int, folder: Path | None) -> Findings:
    """Ask the server everything; `side` is the one that will be measured (0: files as they are).

    `folder` holds the checkpoint's own files, where they are at hand. Raises `ServerError` or `UnknownName` when the
    first request already fails.
    """
    probes = Probes(client, clock, model)
    first = _begin(probes)
    facts, doubts = _fields(probes)
    facts |= {"server_" + name: value for name, value in _identity(client, first).items()}
    if first.model and not _same_name(first.model, model):
        doubts.append(f"asked for {model!r}, the server says that {first.model!r} answered")
    if len(first.text.split()) > MOST_WORDS:
        doubts.append(
            f"asked for 1 token, the server sent {len(first.text.split())} words ({stream.short(first.text)[:30]!r}); "
            "it sends what the model has not made, so TTFT and answers are not the model's"
        )
    for found, doubtful in (_cache(probes, side or USUAL_PX), _shrinking(probes, side or USUAL_PX, folder)):
        facts |= found
        doubts += doubtful
    return Findings(dict(probes.fields), probes.length, facts, tuple(doubts))


def picture(side: int) -> bytes:
    """Return a square of random grey cells as PNG: new every time, with something to see at every scale."""
    cells = np.random.default_rng().integers(0, 256, (-(-side // CELL_PX), -(-side // CELL_PX)), dtype=np.uint8)
    return images.png(
        Image.fromarray(np.kron(cells, np.ones((CELL_PX, CELL_PX), np.uint8))[:side, :side]).convert("RGB")
    )


def _begin(probes: Probes) -> Asked:
    """Send the plainest request, which also loads the model; the length has two names in use."""
    refused: ServerError | None = None
    for length in LENGTHS:
        probes.length = length
        try:
            return probes.ask([picture(SMALL_PX)])
        except ServerError as error:
            if refused is None or error.status is None:
                refused = error
            if error.status not in (400, 422):
                break
    assert refused
    listed = models(probes.client)
    if listed and probes.model not in listed:
        raise UnknownName(f"model of the server (it says: {refused})", probes.model, listed) from None
    raise refused


def models(client: Client) -> list[str]:
    """Return the names that the server lists; a server may answer to names that it does not list."""
    told = decoded(client.get("/models"))
    rows = told.get("data") if isinstance(told, dict) else None
    return [str(row["id"]) for row in rows or [] if isinstance(row, dict) and "id" in row]


def _fields(probes: Probes) -> tuple[dict[str, str], list[str]]:
    """Find out which optional fields are taken, and which of them do something."""
    facts = {"server_field_length": probes.length}
    small = picture(SMALL_PX)
    usage = False
    for name, value in OPTIONAL.items():
        try:
            told = probes.ask([small], EOS_TOKENS if name == "ignore_eos" else 1, more={name: value})
        except ServerError as error:
            if error.status is None or error.gone or error.busy:
                raise
            facts[f"server_field_{name}"] = f"rejected (HTTP {error.status})"
            continue
        facts[f"server_field_{name}"] = "taken"
        made = told.counted.get("output_tokens")
        if name == "ignore_eos" and made is not None:
            facts["server_field_ignore_eos"] = (
                "holds" if made == EOS_TOKENS else f"ignored ({made} of {EOS_TOKENS} tokens)"
            )
        if name in SENT:
            probes.fields[name] = value
        usage = made is not None
    facts["server_usage"] = "told" if usage else "not told"
    doubts = [] if usage else ["the server counts no tokens (no usage): there is no time per output token"]
    if "temperature" not in probes.fields:
        doubts.append("the server rejects temperature 0: answers may be drawn at random")
    return facts, doubts


def _cache(probes: Probes, side: int) -> tuple[dict[str, str], list[str]]:
    """Compare a repeat, and the same pixels under another comment, with fresh pictures."""
    times: dict[str, list[int]] = {"fresh": [], "repeat": [], "salted": []}
    tokens: dict[str, list[int]] = {"fresh": [], "repeat": [], "salted": []}
    for number in range(ROUNDS):
        drawn = picture(side)
        for kind, salt in (("fresh", f"a{number}"), ("repeat", f"a{number}"), ("salted", f"b{number}")):
            told = probes.ask([drawn], salt=salt)
            times[kind].append(told.first_ns)
            tokens[kind].append(int(told.counted.get("cached_tokens", 0)))
    fresh_ns = max(1.0, median(times["fresh"]))
    facts, doubts = {}, []
    for kind in ("repeat", "salted"):
        share = median(times[kind]) / fresh_ns
        faster = max(times[kind]) < CACHED_SHARE * min(times["fresh"])
        counted = median(tokens[kind]) > median(tokens["fresh"])
        facts[f"server_{kind}_share"] = f"{share:.3f}"
        facts[f"server_{kind}"] = "cached" if faster else "cached, as it counts" if counted else "not seen to be cached"
        if kind == "salted" and (faster or counted):
            doubts.append(
                f"the server's cache knows a picture again by its pixels ({share:.2f} of a fresh one's time): "
                "questions that share a picture look faster than they are; next: turn the server's caches off"
            )
    return facts, doubts


def _shrinking(probes: Probes, side: int, folder: Path | None) -> tuple[dict[str, str], list[str]]:
    """Compare the prompt's tokens at two sides with the checkpoint's own processor, else with each other."""
    sides = (side, max(1, side // 2))
    pictures = [picture(one) for one in sides]
    told = [probes.ask([one]).counted.get("prompt_tokens") for one in pictures]
    if None in told:
        return {"server_shrinks": "unknown: prompt tokens are not told"}, []
    large, small = (int(one or 0) for one in told)
    facts = {"server_prompt_tokens": f"{large} at {sides[0]} px, {small} at {sides[1]} px"}
    local = local_tokens(folder, pictures)
    if local is not None:
        facts["server_prompt_tokens_local"] = f"{local[0]} at {sides[0]} px, {local[1]} at {sides[1]} px"
        apart = max(abs(large - local[0]), abs(small - local[1]))
        if apart <= CLOSE_TOKENS:
            return facts | {"server_shrinks": "no: as the checkpoint's own processor counts"}, []
        text = f"the server makes {large} prompt tokens of {sides[0]} px, the checkpoint's own processor {local[0]}"
        return facts | {"server_shrinks": "yes"}, [f"{text}: it resizes pictures, or is another model"]
    bare = probes.ask([]).counted.get("prompt_tokens")
    if large == small:
        text = f"a picture of {sides[0]} px makes as many prompt tokens as one of {sides[1]} px ({large})"
        return facts | {"server_shrinks": "one size"}, [f"{text}: the server brings every picture to one size"]
    ratio = (large - int(bare)) / max(1, small - int(bare)) if bare is not None else None
    if ratio is not None and ratio < AREA_RATIO:
        text = f"four times the picture makes {ratio:.1f} times the image tokens ({small} to {large})"
        return facts | {"server_shrinks": "perhaps"}, [
            f"{text}: the server or the model limits the size; next: --weights FOLDER compares with the checkpoint's "
            "own processor"
        ]
    return facts | {"server_shrinks": "not seen"}, []


def local_tokens(folder: Path | None, pictures: list[bytes]) -> tuple[int, int] | None:
    """Return how many prompt tokens the checkpoint's own processor makes of each picture; None without its files."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    with suppress(Exception):  # a folder whose processor cannot be had here tells nothing about the server
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        large, small = (_count(processor, data) for data in pictures)
        return large, small
    return None


def _count(processor: Callable[..., object], data: bytes) -> int:
    content = [{"type": "image", "image": Image.open(io.BytesIO(data))}, {"type": "text", "text": QUESTION}]
    made = processor.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]
    return len(made[0]) if len(made) and not isinstance(made[0], int) else len(made)


def _identity(client: Client, first: Asked) -> dict[str, str]:
    """Return what the server says it is, wherever it says so."""
    said = {"fingerprint": first.fingerprint, "answered_as": first.model}
    version = decoded(client.get("//version"))
    if isinstance(version, dict) and "version" in version:
        said["version"] = stream.short(str(version["version"]))
    build = decoded(client.get("//props"))
    if isinstance(build, dict) and "build_info" in build:
        said["version"] = stream.short(str(build["build_info"]))
    return {name: value for name, value in said.items() if value}


def _same_name(said: str, asked: str) -> bool:
    """Whether these name one model: servers add a revision, or leave the owner out."""
    first, second = (name.partition("@")[0].rstrip("/").rpartition("/")[2].lower() for name in (said, asked))
    return first == second
