"""Counts that were made before, in the cache folder: nobody waits for the same count twice.

What a card amounts to depends on the card, the side, our own code and the libraries that build the networks; a count's
name in the cache is a digest of all of them, so a change of any counts anew.
"""

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from harness import cards, plugins
from harness.files import cache_folder, digest_bytes, write_atomically
from harness.machine import environment
from harness.models.card import ModelCard

LIBRARIES = ("torch", "torchvision", "transformers", "timm", "accelerate")

HERE = Path(__file__).parent

Counted = TypeVar("Counted")


def remembered(card: ModelCard, side: int, kind: type[Counted], count: Callable[[], Counted]) -> Counted:
    """Return what `count` returned for this card and side before, or count now; raises what `count` raises.

    Files of a checkpoint can change, and a foreign adapter's code is not ours to digest: only what the package's own
    cards say is remembered.
    """
    adapter = plugins.load("adapters", card.adapter).__file__
    if card.folder or card.name not in cards.names("models") or not Path(str(adapter)).is_relative_to(HERE):
        return count()
    name = digest_bytes(msgspec.json.encode([card, side, _code()]))
    path = cache_folder() / "counts" / f"{card.name}-{side}px-{name}.json"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    counted = count()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no number
        write_atomically(path, msgspec.json.encode(counted))
    return counted


@cache
def _code() -> list[str]:
    """Return what counts: the libraries' versions, and a digest of our own modules that build, prepare and count."""
    ours = [*sorted(HERE.rglob("*.py")), HERE.parent / "images.py"]
    digest = digest_bytes(b"".join(path.read_bytes() for path in ours))
    return [*(f"{name} {environment.installed(name)}" for name in LIBRARIES), digest]
