"""A served model behind the seam: `answer` builds the body and opens the connection at once, and streams when iterated.

What happens before `answer` returns is the client's own work and lies outside every clock; the first byte leaves with
the first event that is asked for.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from harness.clock import Clock
from harness.errors import ExampleError, ServerError, SettingError
from harness.models.card import ModelCard
from harness.models.engines.openai import body, endpoint, metrics, probes, stream
from harness.models.engines.openai.client import Client
from harness.models.engines.openai.metrics import Fact
from harness.models.protocol import Event, Options, Piece, Request, Seen, Thought, Told, Work
from harness.models.weights import Source


class ServedModel:
    """See `protocol.Model` and `protocol.Examined`. A connection for each answer under way; idle ones are kept open."""

    IDENTITY: ClassVar[tuple[str, ...]] = (
        "server_version", "server_fingerprint", "server_answered_as", "server_prompt_tokens",
    )  # fmt: skip

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        self.name = card.title
        self._folder = source.folder
        self._side = options.side
        self._endpoint = endpoint.parse(options.endpoint)
        self._key = endpoint.key()
        self._timeout_s = float(options.settings["timeout_s"])
        if not self._timeout_s > 0:
            raise SettingError(f"--set timeout_s={self._timeout_s:g}: must be more than 0 seconds")
        self._idle: deque[Client] = deque()
        self._opened = 0
        self._metrics = False
        self._found = probes.Findings({"temperature": 0, "stream_options": {"include_usage": True}}, "max_tokens")

    def examine(self, clock: Clock) -> None:
        """Ask the server what it does with requests (`probes`); what it answers shapes all later ones."""
        with self._client() as client:
            self._found = probes.examine(client, clock, self.name, self._side, self._folder)
            self._metrics = "vllm:" in (client.get("//metrics") or "")

    def answer(self, request: Request, /) -> Iterator[Event]:
        """Build the body now; the returned iterator sends it and yields `Seen`, `Thought`, `Piece`, and `Told` last."""
        if request.visual_only:
            raise ExampleError("a server makes no prompt of a picture alone; next: --protocol ttft")
        shown = [body.show(data, self._side) for data in request.images]
        fields = {**self._found.fields, self._found.length: request.max_new_tokens}
        sent = body.build(self.name, [one.data for one in shown], request.question, fields)
        client = self._take()
        try:
            client.ready()
            before = self._read_metrics(client)
        except BaseException:
            client.close()
            raise
        return self._stream(client, sent, shown, before)

    def _stream(
        self, client: Client, sent: bytes, shown: list[body.Shown], before: Mapping[str, float]
    ) -> Iterator[Event]:
        counts = {"chunks": 0, "thought_chunks": 0, "bytes_sent": len(sent)}
        facts: dict[str, Fact] = {}
        finish = ""
        try:
            client.ready()  # a look of microseconds; under load the body was built some time ago
            pieces = client.post(sent)
            for chunk in stream.chunks(partial(next, pieces, b"")):
                if chunk.thought:
                    counts["thought_chunks"] += 1
                    yield Thought(chunk.thought)
                if chunk.text:
                    counts["chunks"] += 1
                    yield Piece(chunk.text)
                finish = chunk.finish or finish
                if chunk.usage or chunk.timings:
                    facts |= {**metrics.of_usage(chunk.usage), **metrics.of_timings(chunk.timings)}
            if not counts["chunks"]:
                raise _empty(finish, counts["thought_chunks"], facts.get("output_tokens"))
        except ServerError as error:
            if error.cut:
                client.ready()  # raises if the server is gone: then it is no fault of this example
            raise client.hide(error) from None
        if shown:
            yield _seen(shown)
        made = facts.get("output_tokens")
        told = {**facts, **counts, "finish": finish}
        yield Told(made if isinstance(made, int) else None, partial(self._told, client, pieces, before, told))

    def _told(
        self, client: Client, pieces: Iterator[bytes], before: Mapping[str, float], told: Mapping[str, Fact]
    ) -> Mapping[str, Fact]:
        """Return the facts of one answer; the server's own clock is read only now, after ours has stopped."""
        client.finish(pieces)
        after = self._read_metrics(client)
        self._put(client)
        return {**told, **(metrics.between(before, after) if after else {})}

    def _read_metrics(self, client: Client) -> Mapping[str, float]:
        return metrics.read(client.get("//metrics")) if self._metrics else {}

    def describe(self) -> Mapping[str, str]:
        """Return what the log says: what was sent how, and what the probes found."""
        return {
            "dtype": "the server's own",
            "tokenizer": "the server's own",
            "template": "the server's own",
            "image_backend": f"longest side {self._side} px, PIL bicubic, PNG"
            if self._side
            else "the file's own bytes",
            "salt": "a comment in the image file, new for every request",
            "clock_starts": "after the body is built and the connection is open",
            "server_metrics": "vLLM's /metrics" if self._metrics else "none offered",
            **self._found.facts,
        }

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the probes found that makes every number doubtful."""
        return self._found.doubts

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        """Return nothing: what a server computes is not known here."""
        return {}

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Client:
        try:
            return self._idle.pop()
        except IndexError:
            return Client(self._endpoint, self._key, self._timeout_s)

    def _put(self, client: Client) -> None:
        self._idle.append(client)

    @contextmanager
    def _client(self) -> Iterator[Client]:
        client = self._take()
        client.ready()
        try:
            yield client
        except ServerError as error:
            raise client.hide(error) from None
        finally:
            self._put(client)


def _seen(shown: list[body.Shown]) -> Seen:
    first = shown[0]
    pixels = sum(one.sent_px[0] * one.sent_px[1] for one in shown)
    done = tuple(dict.fromkeys(text for one in shown for text in one.conversions))
    return Seen(first.original_px, first.sent_px, pixels, len(shown), 0, 0, done)


def _empty(finish: str, thoughts: int, tokens: object) -> ServerError:
    made = f"finish_reason {finish or 'none'}" + (f", {tokens} output tokens" if tokens is not None else "")
    if thoughts:
        return ServerError(f"the server sent reasoning text alone, no answer ({made}); next: turn reasoning off")
    return ServerError(f"the server sent an empty answer ({made})")
