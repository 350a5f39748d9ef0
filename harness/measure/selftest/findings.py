"""What a self-test found, in words and as JSON, in one file that can be sent: no host name, user name or path in it."""

import getpass
import json
import re
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Level = Literal["ok", "doubt", "failed", "absent"]
"""`absent`: this machine has not what the check is of; no fault."""
Figure = float | int | str | bool | None

SEPARATOR = "--- the same as JSON ---"
PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}[/\\]?")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `next_step` is what to do about it, empty where nothing is to be done."""

    check: str
    level: Level
    text: str
    next_step: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of one run, and what it ran on."""

    device: str
    subject: str
    """Model, side, precisions."""
    findings: tuple[Finding, ...]
    environment: Mapping[str, str]
    took_s: float

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(one for one in self.findings if one.level == "failed")

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """What makes numbers of this machine doubtful now."""
        return tuple(one for one in self.findings if one.level == "doubt")

    @property
    def verdict(self) -> str:
        """The one line: passed, or what failed."""
        if self.failed:
            return f"FAILED: {', '.join(dict.fromkeys(one.check for one in self.failed))}"
        doubts = f", {len(self.doubts)} doubts" if len(self.doubts) > 1 else ", 1 doubt" if self.doubts else ""
        return f"passed{doubts}"

    def as_dict(self) -> dict[str, object]:
        """Return all of it for a program, without host name, user name and paths."""
        told = {
            "verdict": self.verdict,
            "device": self.device,
            "subject": self.subject,
            "took_s": round(self.took_s, 1),
            "findings": [{**asdict(one), "figures": dict(one.figures)} for one in self.findings],
            "environment": dict(self.environment),
        }
        return {name: _sendable(value) for name, value in told.items()}

    def text(self) -> str:
        """Return all of it for people."""
        lines = [f"harness selftest on {self.device}: {self.verdict}", f"{self.subject}; {self.took_s:.0f} s", ""]
        for one in self.findings:
            lines.append(f"{one.level:7} {one.check:14} {one.text}")
            if one.next_step:
                lines.append(f"{'':23}next: {one.next_step}")
        return without_places("\n".join(lines))

    def write(self, path: Path) -> None:
        """Write the file to send."""
        told = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        request = "Please send this file to the project's issue tracker, whatever it says: see docs/selftest.md."
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{self.text()}\n\n{request}\n\n{SEPARATOR}\n{told}\n", encoding="utf-8")


def _sendable(value: object) -> object:
    """Return a value of the report with all its texts (not its names) without places."""
    if isinstance(value, dict):
        return {name: _sendable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_sendable(one) for one in value]
    return without_places(value) if isinstance(value, str) else value


def without_places(text: str) -> str:
    """Return `text` without host name, user name and paths: error messages of libraries have them."""
    names = {str(Path.cwd()): "<folder>", tempfile.gettempdir(): "<temporary>", socket.gethostname(): "<host>"}
    with suppress(RuntimeError):
        names[str(Path.home())] = "<home>"
    with suppress(OSError, KeyError, ImportError):
        names[getpass.getuser()] = "<user>"
    text = PATH.sub(lambda found: "<path>/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)
    for name, stand_in in sorted(names.items(), key=lambda each: -len(each[0])):
        if len(name) > 1:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stand_in, text)
    return text
