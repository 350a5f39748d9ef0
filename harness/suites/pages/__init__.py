"""The embedded suite `pages`: document pages drawn by the package itself, with questions whose answers are known.

`rows` gives the suite in the columns of DocVQA; `documents` gives pages with every run of text and its place, for
training. Both draw from streams keyed by `split|seed|page`, so the pages of one split never come from another's stream.
Which text is readable at which image side is dealt out in `plan`; what that means in shares stands in docs/pages.md.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from PIL import Image

from harness.suites.pages import fonts, form, letter, receipt, table
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import BANDS, DEMANDS, READABLE_PX, SHARES, deal
from harness.suites.pages.sheet import Field, Overflow, Run, Sheet, png

__all__ = [
    "BANDS",
    "COUNT",
    "PER_PAGE",
    "READABLE_PX",
    "SHARES",
    "VERSION",
    "Document",
    "Field",
    "Run",
    "document",
    "documents",
    "png",
    "rows",
]

VERSION = 2
"""Raised whenever a pixel, a question or an answer of the suite changes."""
PER_PAGE = 5
"""Questions asked about each page of the suite."""
COUNT = 160
"""Questions of the default suite: two rounds of every template with every demand, on 32 pages."""

TEMPLATES: dict[str, ModuleType] = {"form": form, "receipt": receipt, "table": table, "letter": letter}
INKS = ((18, 18, 22), (0, 0, 0), (40, 40, 48), (24, 28, 58))
PAPERS = ((255, 255, 255), (253, 252, 248), (248, 248, 250), (250, 246, 236))
ACCENTS = ((28, 62, 110), (96, 24, 32), (20, 84, 62), (64, 64, 72), (88, 56, 20), (60, 40, 100))

Split = Literal["suite", "train"]


@dataclass(frozen=True, slots=True)
class Document:
    """One page: its picture (mode P; `convert("RGB")` is exact), everything printed on it, and what can be asked."""

    index: int
    key: str
    template: str
    family: str
    unseen: bool
    """Whether the family is one that no training page uses."""
    image: Image.Image
    runs: tuple[Run, ...]
    fields: tuple[Field, ...]
    asked: tuple[Field, ...]
    """The five fields that the suite asks for: the demanded number from each band of legibility."""


def rows(count: int = COUNT, seed: int = 0, split: Split = "suite") -> Iterator[dict[str, object]]:
    """Yield `count` questions as rows of DocVQA's columns (`image` is PNG bytes, one object per page) and some more.

    More: field, template, font, font_split (seen, unseen), type_px (x-height in page pixels), legible_side, version.
    """
    made = 0
    for page in documents(seed, split):
        data = png(page.image) if made < count else b""
        for place, field in enumerate(page.asked):
            if made >= count:
                return
            yield {
                "questionId": str(page.index * PER_PAGE + place + 1),
                "question": field.question,
                "question_types": [field.question_type],
                "image": data,
                "docId": page.index,
                "ucsf_document_id": page.key,
                "ucsf_document_page_no": "1",
                "answers": list(field.answers),
                "data_split": "validation",
                "field": field.name,
                "template": page.template,
                "font": page.family,
                "font_split": "unseen" if page.unseen else "seen",
                "type_px": round(field.type_px, 3),
                "legible_side": field.legible_side,
                "version": VERSION,
            }
            made += 1


def documents(seed: int, split: Split = "train", start: int = 0, step: int = 1) -> Iterator[Document]:
    """Yield pages without end: `start`, `start + step` ... (so that several processes can share one stream)."""
    for index in itertools.count(start, step):
        yield document(index, seed, split)


def document(index: int, seed: int = 0, split: Split = "train") -> Document:
    """Draw page `index` of a stream: templates, demands and unseen fonts (a quarter of the suite) come by turns."""
    names = list(TEMPLATES)
    turn, demand = index % len(names), index // len(names) % len(DEMANDS)
    unseen = split == "suite" and (turn + demand) % 4 == 3
    template = TEMPLATES[names[turn]]
    for attempt in itertools.count():
        key = f"pages-{split}-{seed}-{index}"
        draw = Draw(key, VERSION, attempt)
        width, height = template.size(draw)
        plan = deal(draw, template.GROUPS, DEMANDS[demand])
        sheet = Sheet(width, height, draw.choice(fonts.UNSEEN if unseen else fonts.SEEN), plan, draw)
        try:
            template.compose(sheet)
        except Overflow:
            continue
        return Document(
            index=index,
            key=key,
            template=names[turn],
            family=sheet.family.name,
            unseen=unseen,
            image=sheet.picture(draw.choice(INKS), draw.choice(PAPERS), draw.choice(ACCENTS)),
            runs=tuple(sheet.runs),
            fields=tuple(sheet.fields),
            asked=_asked(sheet, DEMANDS[demand]),
        )
    raise AssertionError("an endless count ended")


def _asked(sheet: Sheet, demand: tuple[int, ...]) -> tuple[Field, ...]:
    """Choose the demanded number of fields from each band, in the order in which they stand on the page."""
    left = sheet.draw.shuffled(sheet.fields)
    chosen = []
    for band in demand:
        field = next(field for field in left if sheet.plan.bands[field.group] == band)
        left.remove(field)
        chosen.append(field)
    return tuple(sorted(chosen, key=lambda field: (field.value.box[1], field.value.box[0])))
