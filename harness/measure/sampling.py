"""Which examples are timed, and in which order: every beginning of the order stands for the whole suite. Pure.

The suite is laid out by shape (pixels, width and height, image, length of the question) and visited by a rotated van
der Corput sequence: after any number of examples they lie evenly over the suite, small and large ones take turns, and
an image with many questions is met as often as its questions ask. So medians of a beginning are the suite's, without
weights. The order knows no model: two models that are compared are asked the same examples.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from statistics import median
from typing import Protocol

from harness import images
from harness.models.protocol import Foreseen

VERSION = "even-1"
"""Raise it when another order comes out: it is part of a cell's key."""
CLOSE = 0.02
"""The sample's median tokens and pixels must be so near to the suite's before precision may end the timing."""
ENOUGH = 64
"""From so many examples on an even spread is trusted: two sizes, half of the suite each, have no median to be near."""
MOST_LOOKED_AT = 20_000
"""Of larger suites, so many examples drawn by seed stand for the rest: opening 100,000 files would take minutes."""

UNKNOWN = Foreseen()
Size = tuple[int, int]
"""Width and height in pixels."""


Foresee = Callable[[Sequence[Size], str], Foreseen]
"""From the images' sizes and the question to what the model will see."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of an example without decoding its images: its shape."""

    id: str
    image_ids: tuple[str, ...]
    sizes: tuple[Size, ...]
    """Of its images, from their headers; (0, 0) for one that cannot be read."""
    characters: int
    foreseen: Foreseen = UNKNOWN

    @property
    def pixels(self) -> int:
        """Pixels of all its images."""
        return sum(width * height for width, height in self.sizes)

    def shape(self, with_text: bool) -> tuple[object, ...]:
        """Return what a device may have to prepare itself for when it meets it first: tiles, tokens, text length."""
        text = self.characters if self.foreseen.text_tokens is None else self.foreseen.text_tokens
        return (*self.seen_as, text) if with_text else self.seen_as

    @property
    def seen_as(self) -> tuple[object, ...]:
        """Tiles and visual tokens; of a model that cannot foresee them, the sizes that decide them."""
        if self.foreseen.visual_tokens is not None:
            return (self.foreseen.tiles, self.foreseen.visual_tokens)
        return self.sizes

    @property
    def stratum(self) -> tuple[object, ...]:
        """Tiles, visual tokens and pixels, to an eighth and to a half of an octave: examples of one are alike."""
        tokens = self.foreseen.visual_tokens or 0
        return self.foreseen.tiles, _octaves(tokens, 8), _octaves(self.pixels, 2)


class Glance(Protocol):
    """An example whose images are not read."""

    @property
    def id(self) -> str: ...
    @property
    def image_ids(self) -> tuple[str, ...]: ...
    @property
    def question(self) -> str: ...
    @property
    def sizes(self) -> tuple[Size, ...]: ...


@dataclass(frozen=True, slots=True)
class Header:
    """A glance at an example that lies in memory."""

    id: str
    image_ids: tuple[str, ...]
    question: str
    sizes: tuple[Size, ...]


def glance(examples: Sequence[object], at: int) -> Glance:
    """Return a glance at one example; a suite on disk has a cheaper way than reading its images whole."""
    cheap = getattr(examples, "glance", None)
    if cheap is not None:
        found: Glance = cheap(at)
        return found
    example = examples[at]
    sizes = tuple(images.size_of(data) for data in example.images)  # type: ignore[attr-defined]
    return Header(example.id, example.image_ids, example.question, sizes)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The order in which the examples are asked, as positions in the suite, and what each looks like (by its id)."""

    order: tuple[int, ...]
    looks: dict[str, Look]


def draw(examples: Sequence[object], seed: int, foresee: Foresee | None = None) -> Drawn:
    """Return the order of `examples`: the same for the same suite and seed."""
    rng = random.Random(f"{VERSION} {seed}")
    count = len(examples)
    positions = list(range(count))
    rest: list[int] = []
    if count > MOST_LOOKED_AT:
        rng.shuffle(positions)
        positions, rest = positions[:MOST_LOOKED_AT], positions[MOST_LOOKED_AT:]
    looks = [look(glance(examples, at), foresee) for at in positions]
    order = [positions[k] for k in even(laid_out(looks, rng), rng.random())]
    return Drawn((*order, *rest), {each.id: each for each in looks})


def look(seen: Glance, foresee: Foresee | None = None) -> Look:
    """Return what is known of an example; a model that cannot say beforehand leaves its tokens open."""
    foreseen = foresee(seen.sizes, seen.question) if foresee else UNKNOWN
    return Look(seen.id, seen.image_ids, seen.sizes, len(seen.question), foreseen)


def laid_out(looks: Sequence[Look], rng: random.Random) -> list[int]:
    """Return the positions of `looks` along a line on which neighbours are alike; chance decides among equals."""
    chance = [rng.random() for _ in looks]

    def where(k: int) -> tuple[object, ...]:
        one = looks[k]
        return one.pixels, one.sizes, one.image_ids, one.characters, chance[k]

    return sorted(range(len(looks)), key=where)


def even(line: Sequence[int], rotation: float) -> list[int]:
    """Return `line` in the order of a van der Corput sequence (bits reversed), rotated: any beginning is spread evenly.

    Source: van der Corput 1935; Cranley and Patterson 1976 for the rotation.
    """
    count = len(line)
    bits = max(1, (count - 1).bit_length())
    taken: set[int] = set()
    order = []
    for k in range(1 << bits):
        share = int(f"{k:0{bits}b}"[::-1], 2) / (1 << bits)
        at = min(count - 1, int((share + rotation) % 1.0 * count))
        if count and at not in taken:
            taken.add(at)
            order.append(line[at])
    order += [line[at] for at in range(count) if at not in taken]  # rounding may leave one out
    return order


class Timed:
    """The examples timed so far, and whether they stand for the suite."""

    def __init__(self, drawn: Drawn) -> None:
        self._looks = drawn.looks
        self._mine: dict[str, Look] = {}
        everything = list(drawn.looks.values())
        self._suite_images = len({each.image_ids for each in everything})
        self._suite_pixels = _median([each.pixels for each in everything])
        self._suite_tokens = _median([_tokens(each) for each in everything])

    def add(self, example: str) -> None:
        """Take an example of which there is a valid timing."""
        if example in self._looks:
            self._mine[example] = self._looks[example]

    @property
    def all_images(self) -> bool:
        """Whether every image of the suite was timed: then they are no sample of images."""
        return len({each.image_ids for each in self._mine.values()}) >= self._suite_images

    @property
    def represents(self) -> bool:
        """Whether the median pixels and tokens of these examples are those of the suite."""
        mine = list(self._mine.values())
        if len(mine) >= min(ENOUGH, len(self._looks)):
            return True
        return _close(_median([each.pixels for each in mine]), self._suite_pixels) and _close(
            _median([_tokens(each) for each in mine]), self._suite_tokens
        )

    def facts(self) -> dict[str, float]:
        """Return what the figures rest on, for the log."""
        mine = list(self._mine.values())
        strata = {each.stratum for each in mine}
        everything = list(self._looks.values())
        facts: dict[str, float] = {
            "examples": len(mine),
            "suite_examples": len(everything),
            "images": len({each.image_ids for each in mine}),
            "suite_images": self._suite_images,
            "shapes": len(strata),
            "suite_shapes": len({each.stratum for each in everything}),
            "share_of_suite_of_these_shapes": round(
                sum(each.stratum in strata for each in everything) / max(1, len(everything)), 4
            ),
        }
        pairs = {
            "median_px": (_median([each.pixels for each in mine]), self._suite_pixels),
            "median_visual_tokens": (_median([_tokens(each) for each in mine]), self._suite_tokens),
        }
        for name, (here, there) in pairs.items():
            if here and there:
                facts |= {name: here, f"suite_{name}": there}
        return facts


def _octaves(count: int, parts: int) -> int:
    return round(parts * log2(count)) if count > 0 else -1


def _tokens(each: Look) -> int:
    return each.foreseen.visual_tokens or 0


def _median(values: Sequence[int]) -> float:
    return float(median(values)) if values else 0.0


def _close(here: float, there: float) -> bool:
    return abs(here - there) <= CLOSE * there
