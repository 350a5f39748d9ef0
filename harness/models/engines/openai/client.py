"""HTTP to one server: a connection that is kept open and opened before any clock runs; errors in the server's words.

`http.client` of the standard library: it sends one request with one call and hands over what has arrived at once, and
it takes no proxy from the environment. An answer is never compressed, for a compressor holds text back.
"""

import http.client
import json
import select
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harness.errors import ServerError
from harness.models.engines.openai import stream
from harness.models.engines.openai.endpoint import KEY_VARIABLE, Endpoint

BUSY = (429, 502, 503, 504)
"""Answers that say "not now": asked again after a pause."""
LARGEST_ERROR_BYTES = 65_536
READ_BYTES = 65_536
LEFT_OVER_S = 1.0
"""How long to wait for the end of a stream whose answer has ended."""
HIDDEN = "***"


class Client:
    """One connection; used by one thread at a time."""

    def __init__(self, endpoint: Endpoint, key: str | None, timeout_s: float) -> None:
        self._endpoint, self._key, self._timeout_s = endpoint, key, timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._used = False
        """Whether the open connection has carried a request before the one that is being sent."""

    def ready(self) -> None:
        """Have an open connection: a server may have closed one that was idle. Raises `ServerError` if it is gone."""
        if self._connection and self._connection.sock and not _closed(self._connection):
            self._used = True
            return
        self.close()
        kind = http.client.HTTPSConnection if self._endpoint.secure else http.client.HTTPConnection
        connection = kind(self._endpoint.host, self._endpoint.port, timeout=self._timeout_s)
        try:
            connection.connect()
        except (OSError, ssl.SSLError) as error:
            raise ServerError(
                f"{self._endpoint.url}: no connection: {error.strerror or error}; next: start the server, then the "
                "same command goes on",
                gone=True,
            ) from None
        self._connection, self._used = connection, False

    def post(self, body: bytes) -> Iterator[bytes]:
        """Send a chat completion and return what comes of its stream, piece by piece as it arrives."""
        response = self._send("POST", self._endpoint.path + "/chat/completions", body)
        kind = response.getheader("Content-Type", "")
        if "text/event-stream" not in kind:
            with self._errors():
                text = response.read(LARGEST_ERROR_BYTES).decode("utf-8", "replace")
            raise ServerError(
                f"the server did not stream (Content-Type {kind!r}): there is no first token to time: "
                f"{self._hide(stream.short(text))}"
            )
        return self._pieces(response)

    def finish(self, pieces: Iterator[bytes]) -> None:
        """Read what comes behind an answer's end, so that the connection can be used again; else it is closed."""
        if not self._connection or not self._connection.sock:
            return
        self._connection.sock.settimeout(LEFT_OVER_S)
        try:
            for _ in pieces:
                pass
        except ServerError:
            return
        if self._connection and self._connection.sock:
            self._connection.sock.settimeout(self._timeout_s)

    def get(self, path: str) -> str | None:
        """Return the text at `path` (from the server's root if it begins with "//"), or None where there is none."""
        where = path[1:] if path.startswith("//") else self._endpoint.path + path
        try:
            self.ready()
            response = self._send("GET", where, None)
            with self._errors():
                return response.read().decode("utf-8", "replace")
        except ServerError as error:
            if error.gone:
                raise
            return None

    def close(self) -> None:
        """Let go of the connection: what is left of an answer is not waited for."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _send(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        assert self._connection, "ready() first"
        headers = {"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        with self._errors():
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
        self._used = False  # from here on a broken connection is a broken answer
        if response.status != 200:
            with self._errors():
                raw = response.read(LARGEST_ERROR_BYTES).decode("utf-8", "replace")
            if not response.isclosed():
                self.close()
            raise self._refusal(response.status, path, raw, response.getheader("Location"))
        return response

    def _refusal(self, status: int, path: str, raw: str, location: str | None) -> ServerError:
        said = raw
        with suppress(ValueError):
            said = stream.words(json.loads(raw))
        said = f"moved to {location}" if location else stream.short(said)
        advice = f"; next: set the environment variable {KEY_VARIABLE}" if status in (401, 403) else ""
        text = f"HTTP {status} at {path}: {self._hide(said) or 'no reason given'}{advice}"
        return ServerError(text, status=status, busy=status in BUSY)

    def _pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        done = False
        try:
            while True:
                with self._errors():
                    piece = response.read1(READ_BYTES)
                if not piece:
                    done = True
                    return
                yield piece
        finally:
            if not (done and response.isclosed()):
                self.close()  # else the next request would get the end of this answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what goes wrong on the wire into a `ServerError`; no key is ever in it."""
        try:
            yield
        except TimeoutError:
            self.close()
            raise ServerError(
                f"no answer within {self._timeout_s:g} s; next: --set timeout_s={2 * self._timeout_s:g}"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            self.close()
            if self._used and isinstance(error, ConnectionError):
                raise ServerError("the server closed the idle connection just as it was used", busy=True) from None
            what = "the connection broke" if isinstance(error, OSError | http.client.IncompleteRead) else "no HTTP"
            raise ServerError(f"{what}: {self._hide(str(error)) or type(error).__name__}", cut=True) from None

    def _hide(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if self._key else text

    def hide(self, told: ServerError) -> ServerError:
        """Return the error without the key, should the server have repeated it."""
        return told if not self._key or self._key not in str(told) else told.saying(self._hide(str(told)))


def _closed(connection: http.client.HTTPConnection) -> bool:
    """Return whether the other side has closed an idle connection: it is readable, though nothing was asked."""
    try:
        return bool(select.select([connection.sock], [], [], 0)[0])
    except (OSError, ValueError):
        return True


def decoded(text: str | None) -> object:
    """Return the JSON of `text`, or None where it is none."""
    with suppress(ValueError, TypeError):
        return json.loads(text or "")
    return None
