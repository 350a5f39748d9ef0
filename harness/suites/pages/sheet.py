"""One page being set: text, rules and boxes, with every run of text kept beside its pixels."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from harness.suites.pages import fonts
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import READABLE_PX, Plan
from harness.suites.pages.words import variants

INK, PAPER = 0, 159
"""Pixels are indices into two ramps: 0 to 159 goes from ink to paper,"""
ACCENT, ON_ACCENT = 160, 255
"""and 160 to 255 from the page's colour to paper, so that text on either ground is antialiased in place."""
TINT, GREY = 148, 110

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in page pixels; the last two lie just outside."""


class Overflow(Exception):
    """The drawn words do not fit the page at their type sizes."""


@dataclass(frozen=True, slots=True)
class Style:
    """A face at a size, and its ink."""

    face: str
    em_px: float
    fill: int = INK

    @property
    def x_height_px(self) -> float:
        """Height of a lower-case x in page pixels."""
        return fonts.proportions(self.face).x_height * self.em_px

    @property
    def line_px(self) -> int:
        """From one base line to the next: two and a half x-heights, whatever the face."""
        return math.ceil(self.x_height_px * 2.6)

    @property
    def ascent_px(self) -> int:
        """How far capitals, digits and ascenders stand above the base line."""
        return math.ceil(fonts.proportions(self.face).ascent * self.em_px)

    @property
    def descent_px(self) -> int:
        """How far g, p, y and the dollar sign hang below the base line."""
        return math.ceil(fonts.proportions(self.face).descent * self.em_px)

    def width(self, text: str) -> int:
        """Return how far `text` advances, in page pixels."""
        return math.ceil(fonts.load(self.face, self.em_px).getlength(text))


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of text in one style on one line."""

    text: str
    style: Style
    box: Box
    """From the first character's origin to the last one's advance, from ascender to descender."""
    base_px: int
    role: str
    """heading, label, value, filler."""

    def characters(self) -> list[tuple[str, Box]]:
        """Return every character but spaces with its own box: which character lies where."""
        font = fonts.load(self.style.face, self.style.em_px)
        left, top, _, bottom = self.box
        ends = [left + round(font.getlength(self.text[: i + 1])) for i in range(len(self.text))]
        starts = [left, *ends[:-1]]
        cells = zip(self.text, starts, ends, strict=True)
        return [(mark, (start, top, end, bottom)) for mark, start, end in cells if mark != " "]


@dataclass(frozen=True, slots=True)
class Field:
    """A question about the page and its one right answer."""

    name: str
    group: str
    question: str
    question_type: str
    """As DocVQA names them: form, table/list, free_text, layout."""
    answers: tuple[str, ...]
    """As printed; then what else is right."""
    value: Run
    labels: tuple[Run, ...]
    """What must be read to know which value is asked for."""
    type_px: float
    """x-height in page pixels of the smallest of these runs."""
    legible_side: int
    """Smallest side of a square image, padded and resized, at which that x-height is READABLE_PX pixels."""


class Sheet:
    """The page under the pen. `plan` says at which side of a square image each group of text becomes readable."""

    def __init__(self, width: int, height: int, family: fonts.Family, plan: Plan, draw: Draw) -> None:
        self.width, self.height, self.family, self.plan, self.draw = width, height, family, plan, draw
        self.image = Image.new("L", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.runs: list[Run] = []
        self.fields: list[Field] = []
        self.margin = round(width * draw.spread(0.06, 0.085))

    @property
    def inner(self) -> int:
        """Width between the margins."""
        return self.width - 2 * self.margin

    def style(
        self,
        group: str,
        weight: str = "regular",
        *,
        fits: Sequence[str] = (),
        within: int = 0,
        fill: int = INK,
    ) -> Style:
        """Return the type of `group`, shrunk until `fits` fit `within`, but never beyond its band (`Overflow`)."""
        face = {"regular": self.family.regular, "bold": self.family.bold, "italic": self.family.italic}[weight]
        side, limit = self.plan.sides[group]
        style = Style(face, self._em_px(face, side), fill)
        longest = max((style.width(text) for text in fits), default=0)
        if longest <= within or not fits:
            return style
        style = Style(face, self._em_px(face, side * longest / within * 1.01), fill)
        if self.legible_side(style.x_height_px) > limit or max(style.width(text) for text in fits) > within:
            raise Overflow(f"{group}: {longest} px is too long for {within} px")
        return style

    def _em_px(self, face: str, side: float) -> float:
        """Return the em, in quarter pixels rounded up, whose x-height is READABLE_PX at `side`."""
        x_height_px = READABLE_PX * max(self.width, self.height) / side
        return math.ceil(4 * x_height_px / fonts.proportions(face).x_height) / 4

    def legible_side(self, x_height_px: float) -> int:
        """Return the side of the square at which text of this x-height becomes readable."""
        return math.ceil(READABLE_PX * max(self.width, self.height) / x_height_px)

    def text(self, x: int, base: int, text: str, style: Style, role: str = "filler", anchor: str = "l") -> Run:
        """Print `text` with its left end, middle or right end (`anchor` l, m, r) at `x` and its base line at `base`."""
        width = style.width(text)
        x -= {"l": 0, "m": width // 2, "r": width}[anchor]
        top, bottom = base - style.ascent_px, base + style.descent_px
        if x < 0 or x + width > self.width or top < 0 or bottom > self.height:
            raise Overflow(f"{text!r} at {x}, {base} leaves the page")
        self.pen.text((x, base), text, fill=style.fill, font=fonts.load(style.face, style.em_px), anchor="ls")
        run = Run(text, style, (x, top, x + width, bottom), base, role)
        self.runs.append(run)
        return run

    def wrap(self, text: str, style: Style, width: int) -> list[str]:
        """Break `text` into lines of at most `width` pixels; `~` is a space at which no line breaks."""
        lines: list[str] = []
        space = style.width(" ")
        room = 0
        for word in text.split(" "):
            size = style.width(word.replace("~", " "))
            if lines and size + space <= room:
                lines[-1] += f" {word}"
                room -= size + space
            else:
                lines.append(word)
                room = width - size
        return lines

    def paragraph(self, x: int, base: int, text: str, style: Style, width: int, last: int, value: str = "") -> "Block":
        """Print `text` over as many lines as it takes, from base line `base`, none below `last` (the rest is dropped).

        A `value` within the text becomes a run of its own. Returns the next base line and the value's run.
        """
        found = None
        for line in self.wrap(text, style, width):
            if base > last:
                break
            plain = line.replace("~", " ")
            before, hit, after = plain.partition(value) if value else (plain, "", "")
            start = x
            for part, role in ((before, "filler"), (hit, "value"), (after, "filler")):
                if part.strip():
                    run = self.text(start, base, part, style, role)
                    found = run if role == "value" else found
                start += style.width(part)
            base += style.line_px
        return Block(base, found)

    def filler(self, x: int, base: int, style: Style, width: int, last: int, sentences: Sequence[str]) -> int:
        """Print as many whole `sentences` as end above `last`; return the next base line."""
        fitting: list[str] = []
        for sentence in sentences:
            if base + (len(self.wrap(" ".join([*fitting, sentence]), style, width)) - 1) * style.line_px > last:
                break
            fitting.append(sentence)
        return self.paragraph(x, base, " ".join(fitting), style, width, last).base if fitting else base

    def rule(self, x0: int, y: int, x1: int, thick: int = 2, fill: int = INK, dash: int = 0) -> None:
        """Draw a level line, dashed if `dash` is the length of a dash."""
        for x in range(x0, x1, 2 * dash) if dash else (x0,):
            self.pen.rectangle((x, y, min(x + dash, x1) - 1 if dash else x1 - 1, y + thick - 1), fill=fill)

    def box(self, x0: int, y0: int, x1: int, y1: int, fill: int | None = None, outline: int | None = INK) -> None:
        """Draw a box, filled or outlined."""
        self.pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill, outline=outline, width=3)

    def ask(
        self, group: str, name: str, question: str, kind: str, value: Run, *labels: Run, also: Sequence[str] = ()
    ) -> None:
        """Note a question that `value` answers and that `labels` lead to."""
        type_px = min(run.style.x_height_px for run in (value, *labels))
        answers = tuple(dict.fromkeys((*variants(value.text), *also)))
        side = self.legible_side(type_px)
        self.fields.append(Field(name, group, question, kind, answers, value, labels, type_px, side))

    def picture(
        self, ink: tuple[int, int, int], paper: tuple[int, int, int], accent: tuple[int, int, int]
    ) -> Image.Image:
        """Return the page in colour: a palette image whose two ramps run from ink and from `accent` to `paper`."""
        self.image.putpalette([*_ramp(ink, paper, PAPER + 1), *_ramp(accent, paper, ON_ACCENT - ACCENT + 1)])
        return self.image


@dataclass(frozen=True, slots=True)
class Block:
    """Where a paragraph ended, and the run of the value within it."""

    base: int
    value: Run | None


def _ramp(start: tuple[int, int, int], end: tuple[int, int, int], steps: int) -> list[int]:
    return [round(a + (b - a) * i / (steps - 1)) for i in range(steps) for a, b in zip(start, end, strict=True)]


def png(image: Image.Image) -> bytes:
    """Encode without loss; the lowest compression is three times as quick and a fifth larger."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
