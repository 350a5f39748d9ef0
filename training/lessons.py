"""From a training page to a lesson: pixels as the model will see them, where each character lies, and what is asked."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from harness import images
from harness.models.families.fastvlm import BLACK, STRIDE
from harness.suites import pages
from harness.suites.pages import fonts
from harness.suites.pages.sheet import Run
from training.vocabulary import READ_ON

Box = tuple[float, float, float, float]

LONGEST = 24
"""Letters of a line that are asked for at most."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a lesson looks like: pages resized to a side within `sides`, of which a `window` is shown."""

    sides: tuple[int, int]
    window: int
    """Pixels a side of the piece shown; 0: the whole page."""
    pages: int
    """Pages in a batch,"""
    windows: int
    """and how many pieces of each."""
    readable_px: float
    """Text of a smaller x-height is neither taught nor asked for."""
    repeats: int
    """Batches that show the same pages: drawing a page costs as much as a tenth of a step."""
    fields: int
    """Questions asked of one piece at most,"""
    lines: int
    """and lines to be read at most."""


@dataclass(frozen=True, slots=True)
class Character:
    """A printed character and the box that it fills; too small to read: code 0."""

    code: int
    box: Box


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, and in which box (left, top, right, bottom) of the lesson the answer is printed."""

    question: str
    answer: str
    box: Box
    centres: tuple[tuple[float, float], ...]
    """The middle of each letter of the answer, spaces among them."""
    is_field: bool
    asked: bool = True
    """Whether the language model is asked it, or only the encoder is told where its answer lies."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A piece of a page: RGB pixels (side, side, 3)."""

    pixels: NDArray[np.uint8]
    characters: tuple[Character, ...]
    tasks: tuple[Task, ...]


def batch(kind: Kind, seed: int, step: int) -> list[Lesson]:
    """Return the lessons of one batch: a function of its arguments alone, so that training can go on anywhere."""
    turn = step // kind.repeats
    pieces: list[Lesson] = []
    for place in range(kind.pages):
        index = turn * kind.pages + place
        whose = f"{seed}|{index}" if kind.window else f"{seed}|whole|{turn}"  # whole pages of a batch have one side
        side = STRIDE * Random(whose).randint(kind.sides[0] // STRIDE, kind.sides[1] // STRIDE)
        pieces += _pieces(kind, _sight(side, kind.readable_px, seed, index), f"{seed}|{step}|{place}")
    return pieces


@dataclass(frozen=True, slots=True)
class Sight:
    """A whole page at one side of the square."""

    page: pages.Document
    pixels: NDArray[np.uint8]
    """(side, side, 3)"""
    scale: float
    """Pixels of the square to one of the page,"""
    left: int
    top: int
    """and pixels of the page to the left of it and above it in the square."""
    characters: tuple[Character, ...]

    def box(self, run: Run) -> Box:
        """Return where the small letters of `run` lie in the square: left, top, right, bottom."""
        box = (run.box[0], run.base_px - run.style.x_height_px, run.box[2], run.base_px)
        return _scaled(box, self.scale, self.left, self.top)

    def centres(self, run: Run) -> Iterator[tuple[float, float]]:
        """Yield the middle of every letter, as high as those of `characters`."""
        y = (run.box[1] + run.base_px) / 2
        for left, right in _edges(run):
            yield ((left + right) / 2 + self.left) * self.scale, (y + self.top) * self.scale


@functools.lru_cache(maxsize=64)
def _sight(side: int, readable_px: float, seed: int, index: int) -> Sight:
    """Draw page `index` and resize it, as the model will see it."""
    page = pages.document(index, seed)
    width, height = page.image.size
    square = images.resize(images.pad_square(page.image.convert("RGB"), BLACK), side, side)
    longest = max(width, height)
    scale, left, top = side / longest, (longest - width) // 2, (longest - height) // 2
    marks = tuple(
        Character(ord(mark) if run.style.x_height_px * scale >= readable_px else 0, _scaled(box, scale, left, top))
        for run in page.runs
        for mark, box in _boxes(run)
    )
    return Sight(page, np.asarray(square), scale, left, top, marks)


def _scaled(box: Box, scale: float, dx: float, dy: float) -> Box:
    x0, y0, x1, y1 = box
    return (x0 + dx) * scale, (y0 + dy) * scale, (x1 + dx) * scale, (y1 + dy) * scale


def _boxes(run: Run) -> Iterator[tuple[str, Box]]:
    """Yield every letter of a run with the box from its base line to the capitals' height, to a pixel or two.

    `Run.characters` is exact, and a third of what drawing the page costs: kerning is spread over the run here.
    """
    for mark, (left, right) in zip(run.text, _edges(run), strict=True):
        if mark != " ":
            yield mark, (left, run.box[1], right, run.base_px)


def _edges(run: Run) -> Iterator[tuple[float, float]]:
    """Yield left and right edge of every letter."""
    widths = [_advance(run.style.face, run.style.em_px, mark) for mark in run.text]
    stretch = (run.box[2] - run.box[0]) / max(sum(widths), 1e-6)
    x = float(run.box[0])
    for width in widths:
        yield x, x + width * stretch
        x += width * stretch


@functools.lru_cache(maxsize=100_000)
def _advance(face: str, em_px: float, mark: str) -> float:
    return fonts.load(face, em_px).getlength(mark)


def _pieces(kind: Kind, sight: Sight, key: str) -> Iterator[Lesson]:
    draw = Random(key)
    side = sight.pixels.shape[0]
    shown = kind.window or side
    for _ in range(kind.windows):
        left, top, right, bottom = _anchor(sight, shown, draw)
        x, y = _place(draw, left, right, shown, side), _place(draw, top, bottom, shown, side)
        yield Lesson(
            sight.pixels[y : y + shown, x : x + shown],
            tuple(
                Character(mark.code, _scaled(mark.box, 1, -x, -y))
                for mark in sight.characters
                if x <= (mark.box[0] + mark.box[2]) / 2 < x + shown and y <= (mark.box[1] + mark.box[3]) / 2 < y + shown
            ),
            tuple(_tasks(kind, sight, x, y, shown, draw)),
        )


def _anchor(sight: Sight, shown: int, draw: Random) -> Box:
    """Return what a window must show: a field with its labels if they fit, else a line of text."""
    field = draw.choice(sight.page.fields)
    boxes = [sight.box(run) for run in (field.value, *field.labels)]
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    box = min(x0), min(y0), max(x1), max(y1)
    return box if max(box[2] - box[0], box[3] - box[1]) < shown - 8 else sight.box(draw.choice(sight.page.runs))


def _place(draw: Random, first: float, last: float, shown: int, side: int) -> int:
    """Return where a window of `shown` pixels starts that holds `first` to `last`, as far as it can."""
    low, high = max(0, int(last) + 4 - shown), min(int(first) - 4, side - shown)
    return max(0, min(draw.randint(min(low, high), max(low, high)), side - shown))


def _tasks(kind: Kind, sight: Sight, x: int, y: int, shown: int, draw: Random) -> Iterator[Task]:
    def box(run: Run) -> Box:
        return _scaled(sight.box(run), 1, -x, -y)

    def is_shown(run: Run) -> bool:
        x0, y0, x1, y1 = box(run)
        whole = x0 >= 0 and y0 >= 0 and x1 <= shown and y1 <= shown
        return whole and run.style.x_height_px * sight.scale >= kind.readable_px

    def task(question: str, run: Run, is_field: bool, asked: bool = True) -> Task:
        answer = run.text if is_field else run.text[:LONGEST]
        centres = tuple((left - x, top - y) for left, top in sight.centres(run))[: len(answer)]
        return Task(question, answer, box(run), centres, is_field, asked)

    page = sight.page
    fields = [field for field in page.fields if all(map(is_shown, (field.value, *field.labels)))]
    draw.shuffle(fields)
    for i, field in enumerate(fields):
        yield task(field.question, field.value, True, i < kind.fields)
    lines = [run for run in page.runs if len(run.text) > 4 and is_shown(run)]
    draw.shuffle(lines)
    for run in lines[: kind.lines]:
        start = run.text[: draw.randint(3, 5)]
        if sum(other.text.startswith(start) for other in page.runs) == 1:
            yield task(f"{READ_ON} {start}", run, False)
