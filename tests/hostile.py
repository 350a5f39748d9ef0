"""A fake server that falls into one trap at a time: what real ones were seen to do.

A picture costs `COST_S`, but nothing where the trap lets the server know it again. Answers: the question's last word, a
letter a token, and a token that ends it and has no text; tokens are counted for whom asks for `stream_options`.
"""

import base64
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

MODEL, COST_S = "hostile/tiny", 0.03
THOUGHTS = ("Let", " me", " see.")
THOUGHT_TOKENS = len(THOUGHTS) + 2
"""The marks around reasoning are tokens too, and have no text."""
TRAPS = (
    "repeats_free", "cached_tokens_zero", "hashes_pixels", "error_event", "role_first", "few_chunks", "no_usage", "cut",
    "usage_apart", "rejects_fields", "takes_fields_silently", "shrinks", "one_size", "comments", "slow_first", "empty",
    "broken", "no_stream", "busy", "closes_idle", "reasoning", "reasoning_only", "tells_key", "other_name",
    "half_characters", "echoes",
)  # fmt: skip


class Hostile(ThreadingHTTPServer):
    """`bodies` is what it was asked; from request `fail_from` on (counted from 1) it falls into its trap."""

    daemon_threads = True

    def __init__(self, trap: str, fail_from: int = 0, port: int = 0) -> None:
        assert trap in ["", *TRAPS], trap
        super().__init__(("127.0.0.1", port), Handler)
        self.trap, self.fail_from, self.url = trap, fail_from, f"http://127.0.0.1:{self.server_port}/v1"
        self.bodies: list[dict[str, Any]] = []
        self.known: set[str] = set()
        self.sockets: list[socket.socket] = []
        self.connections = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def die(self) -> None:
        """End as a killed process does: nothing listens any more, and every connection breaks."""
        self.shutdown()
        self.server_close()
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None: ...


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hostile

    def log_message(self, *_: object) -> None: ...

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.server.sockets.append(self.connection)

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._plain(200 if found else 404, {"data": [{"id": MODEL}]} if found else {"detail": "Not Found"})

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            number = len(server.bodies)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        self._answer(body, number, server.trap if number >= server.fail_from else "")
        with server.lock:
            server.at_once -= 1

    def _answer(self, body: dict[str, Any], number: int, trap: str) -> None:
        odd = sorted({"seed", "top_k", "ignore_eos", "stream_options"} & set(body))
        *pictures, text = body["messages"][0]["content"]
        files = [base64.b64decode(part["image_url"]["url"].partition("base64,")[2]) for part in pictures]
        if trap == "rejects_fields" and odd:
            self._plain(422, {"detail": f"Unexpected fields in the request: {odd}"})
        elif body["model"] != MODEL:
            self._plain(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif trap == "tells_key":
            self._plain(401, {"error": {"message": f"Incorrect API key: {self.headers['Authorization']}"}})
        elif trap == "busy" and number % 2:
            self._plain(503, {"error": "loading"})
        elif trap == "no_stream":
            self._plain(200, {"choices": [{"message": {"content": "all at once"}}]})
        else:
            time.sleep(10 * COST_S if trap == "slow_first" and number == 1 else 0)
            cached = [self._encode(data, trap) for data in files]
            tokens = 20 + sum(_tokens(data, trap) for data in files)
            word, most = text["text"].split()[-1].strip("?!."), body["max_tokens"]
            kept = body.get("ignore_eos") and trap != "takes_fields_silently"
            ended = not kept and len(word) < most
            told = tokens if any(cached) and trap != "cached_tokens_zero" else 0
            usage = {
                "prompt_tokens": tokens,
                "completion_tokens": (len(word) + 1 if ended else most) + THOUGHT_TOKENS * trap.startswith("reasoning"),
                "prompt_tokens_details": {"cached_tokens": told},
            }
            last: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "stop" if ended else "length"}]}
            if "stream_options" in body and trap != "no_usage":
                last["usage"] = usage
            with suppress(OSError):
                self._stream(list(_script(trap, word[:most], last)))
            self.close_connection = trap in ("closes_idle", "broken")

    def _encode(self, data: bytes, trap: str) -> bool:
        hashed = Image.open(io.BytesIO(data)).tobytes() if trap == "hashes_pixels" else data
        known = hashlib.sha256(hashed).hexdigest()
        cached = trap in ("repeats_free", "cached_tokens_zero", "hashes_pixels") and known in self.server.known
        self.server.known.add(known)
        time.sleep(0 if cached else COST_S)
        return cached

    def _stream(self, script: list[bytes | float]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for step in script:
            if isinstance(step, bytes):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(step), step))
            else:
                time.sleep(step)

    def _plain(self, status: int, told: object) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _tokens(data: bytes, trap: str) -> int:
    with Image.open(io.BytesIO(data)) as image:
        scale = min(1.0, {"shrinks": 256, "one_size": 1}.get(trap, 10**6) / max(image.size))
        return round(image.width * image.height * scale**2 / 32**2)


def _script(trap: str, word: str, last: dict[str, Any]) -> Iterator[bytes | float]:
    """Yield what is sent, and seconds to wait in between; empty bytes end the answer."""
    if trap in ("role_first", "reasoning", "reasoning_only"):
        yield from (_chunk({"role": "assistant", "content": ""}), COST_S)
    if trap in ("reasoning", "reasoning_only"):
        yield from (_chunk({"reasoning_content": text}) for text in THOUGHTS)
        yield COST_S
    if trap == "echoes":
        yield _chunk({"content": "Look at the picture. What is this?"})
    if trap == "comments":
        yield b": keep-alive\n\n: and again\n\n"
    if trap == "error_event":
        yield from (b'data: {"error": {"message": "CUDA out of memory"}}\n\ndata: [DONE]\n\n', b"")
    if trap == "half_characters":
        yield from (bytes([one]) for one in 'data: {"choices": [{"delta": {"content": "é日"}}]}\r\n\r\n'.encode())
    if trap not in ("empty", "reasoning_only"):
        yield from (_chunk({"content": piece}) for piece in ([word[:2], word[2:]] if trap == "few_chunks" else word))
    if trap not in ("cut", "broken"):
        last["model"] = "another/model" if trap == "other_name" else MODEL
        apart = (
            [_data({"choices": [], "usage": last.pop("usage")})] if trap == "usage_apart" and "usage" in last else []
        )
        yield from (_data(last), *apart)
        yield b"data: [DONE]\n\n"
    if trap != "broken":
        yield b""


def _chunk(delta: object) -> bytes:
    return _data({"model": MODEL, "choices": [{"index": 0, "delta": delta}]})


def _data(told: object) -> bytes:
    return b"data: " + json.dumps(told).encode() + b"\n\n"


@contextmanager
def serve(trap: str = "", fail_from: int = 0, port: int = 0) -> Iterator[Hostile]:
    """Run the server in a thread on a free port of 127.0.0.1; it ends with the block."""
    with Hostile(trap, fail_from, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
