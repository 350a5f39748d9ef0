"""Cards: TOML files of facts. A field is a fact or a name from a closed list; a misspelt one is guessed.

What a card of each kind may say stands in its own room: `models/card.py`, `suites/card.py`, `reports/card.py`.
"""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from harness import files
from harness.errors import CardError, UnknownName, guess

SHIPPED = Path(__file__).parent / "_shipped"  # in the wheel; an editable install and a clone have the folders beside us
ROOT = SHIPPED if SHIPPED.is_dir() else Path(__file__).parent.parent


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of a card has in common: frozen, and no field that we do not know."""


class Card(Facts, frozen=True, kw_only=True):
    """What every kind of card has besides its own facts: the name of its file, and the digest of its content."""

    name: str = ""
    digest: str = ""


C = TypeVar("C", bound=Card)


def names(kind: str) -> list[str]:
    """Return the names of the shipped cards of `kind` ("models", "suites", "reports")."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.toml"))


def load(kind: str, name: str, struct: type[C]) -> C:
    """Load one card; an unknown name lists the known ones, a bad field names the file, the field and its neighbour."""
    path = Path(name) if name.endswith(".toml") else ROOT / kind / f"{name}.toml"
    if not (files.is_file(path) if name.endswith(".toml") else name in names(kind)):
        if name.endswith(".toml"):
            raise CardError(f"{path}: no such card; next: `harness list {kind}` shows the shipped ones")
        raise UnknownName(kind.removesuffix("s"), name, names(kind))
    return read(path, struct)


def read(path: Path, struct: type[C]) -> C:
    """Read one TOML file as `struct` and give it its name and digest."""
    found, raw = table(path)
    try:
        card = msgspec.convert(found, struct)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CardError(f"{path}: {explain(str(error), struct)}; next: mend the card, then `harness check`") from error
    return msgspec.structs.replace(card, name=path.stem, digest=hashlib.blake2b(raw, digest_size=8).hexdigest())


MOST_BYTES = 1 << 26
"""Of a TOML file that people write."""


def table(path: Path) -> tuple[dict[str, object], bytes]:
    """Read a TOML file that somebody wrote: its table and its bytes. Raises `CardError` for anything else."""
    try:
        raw = files.read_regular(path, MOST_BYTES)
    except OSError as error:
        raise CardError(f"{path}: {error.strerror}; next: give a TOML file") from error
    try:
        found = tomllib.loads(raw.decode())
    except RecursionError as error:
        raise CardError(f"{path}: not TOML: nested too deeply; next: mend it") from error
    except ValueError as error:  # of TOML, of UTF-8, or of an integer with too many digits
        raise CardError(f"{path}: not TOML: {error}; next: mend that line") from error
    return found, raw


def explain(message: str, struct: type[Facts]) -> str:
    """Add the nearest known field to msgspec's message about an unknown one."""
    match = re.search(r"unknown field `(\w+)`", message)
    if not match:
        return message
    fields = {field.name for part in [struct, *Facts.__subclasses__()] for field in msgspec.structs.fields(part)}
    return message + guess(match[1], fields)
