"""Deterministic draws: the same key gives the same page in every process, on every platform and Python."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of draws keyed by text, which also remembers what is already printed on the page.

    Only `random.Random.random` is used: Python promises its sequence for a given integer seed, of the other methods it
    does not.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))
        self.printed: list[str] = []

    def chance(self, share: float) -> bool:
        """Return True in `share` of the draws."""
        return self._random.random() < share

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def spread(self, low: float, high: float) -> float:
        """Return a number between `low` and `high`, even on a logarithmic scale."""
        return math.exp(math.log(low) + self._random.random() * (math.log(high) - math.log(low)))

    def choice(self, items: Sequence[T]) -> T:
        """Return one of `items`."""
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return all `items` in a drawn order."""
        left = list(items)
        return [left.pop(int(self._random.random() * len(left))) for _ in items]

    def fresh(self, make: "Callable[[Draw], str]") -> str:
        """Return `make(self)`, drawn until it neither contains nor lies in anything remembered; and remember it."""
        for _ in range(1000):
            text = make(self)
            if self.apart(text):
                self.printed.append(text)
                return text
        raise ValueError(f"a thousand draws gave nothing new; the last was {text!r}: its word list is too short")

    def apart(self, text: str) -> bool:
        """Return whether `text` shares nothing whole with what is remembered."""
        low = text.casefold()
        return all(low not in other.casefold() and other.casefold() not in low for other in self.printed)

    def reserve(self, *texts: str) -> None:
        """Remember what the page prints besides drawn values."""
        self.printed.extend(texts)
