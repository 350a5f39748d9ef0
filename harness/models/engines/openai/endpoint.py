"""Where a served model is: a URL without secrets, whether that is this machine, and the key from the environment."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from harness.errors import SettingError

KEY_VARIABLE = "HARNESS_API_KEY"
"""The one variable a key is read from: a key that was meant for another service is never sent to a server here."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, in parts."""

    secure: bool
    host: str
    port: int
    path: str
    """What stands before `/chat/completions`, mostly "/v1"; never with a slash at its end."""

    @property
    def url(self) -> str:
        """The URL in one spelling: what the cell's key and the log's command have."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"

    @property
    def here(self) -> bool:
        """Whether the server is this machine (by its loopback names, or this machine's own name)."""
        if self.host in ("localhost", socket.gethostname()):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse(text: str) -> Endpoint:
    """Read `--endpoint`; a URL with a password or a query, which would end up in logs, is refused."""
    parts = urlsplit(text.strip())
    try:
        port = parts.port
    except ValueError as error:
        raise SettingError(f"--endpoint: {error}; next: --endpoint http://localhost:8000/v1") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise SettingError(
            "--endpoint: a user, password, query or fragment in the URL would stand in every log; "
            f"next: put the key into the environment variable {KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f"--endpoint {text}: not an http or https URL; next: --endpoint http://localhost:8000/v1")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return Endpoint(secure, parts.hostname, port or (443 if secure else 80), path)


def key() -> str | None:
    """Return the key of `HARNESS_API_KEY`, or None; what cannot stand in a header is refused without being shown."""
    value = os.environ.get(KEY_VARIABLE, "").strip()
    if any(not "!" <= character <= "~" for character in value):
        raise SettingError(f"{KEY_VARIABLE}: holds characters that no key has; next: set it to the key alone")
    return value or None
