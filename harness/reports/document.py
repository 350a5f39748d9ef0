"""What a report is before it has a format: tables of entries, pictures with their numbers, provenance, doubts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.errors import UnknownName

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell of a table. `sort` orders it, `hover` says more, `marks` are names of `marks.MARKS`."""

    text: str
    sort: float | str | None = None
    hover: str = ""
    marks: tuple[str, ...] = ()
    tone: str = ""
    """matches, differs, absent, or nothing."""
    parts: "tuple[Entry, ...]" = ()
    """The same as published, measured here and verdict, where a format sets them in columns of their own."""


@dataclass(frozen=True, slots=True)
class Heading:
    """One column's title; `numeric` ones are set to the right."""

    title: str
    unit: str = ""
    numeric: bool = False

    @property
    def text(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. `notes` are (label, text) below it; `data` is its long form for CSV, where that says more.

    `key` says how to read its entries.
    """

    name: str
    title: str
    headings: tuple[Heading, ...] = ()
    rows: tuple[tuple[Entry, ...], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    data: "Table | None" = None
    empty: str = "nothing was measured for this table"
    key: str = ""

    @property
    def explained(self) -> tuple[tuple[str, str], ...]:
        """Its notes, the key first."""
        return (("Read:", self.key), *self.notes) if self.key else self.notes

    def only(self, columns: Sequence[str], rows: Sequence[str]) -> "Table":
        """Return the columns with these titles, in their order, and the rows whose first entry has one of `rows`.

        Empty: all. Raises `UnknownName` for a column that is not there.
        """
        titles = [heading.title for heading in self.headings]
        for name in columns:
            if name not in titles:
                raise UnknownName(f"column of {self.name}", name, titles)
        kept = [titles.index(name) for name in columns] or list(range(len(titles)))
        lines = [row for row in self.rows if not rows or any(name in row[0].text for name in rows)]
        return replace(
            self,
            headings=tuple(self.headings[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in lines),
            empty=f"no row of {self.name} is called {' or '.join(rows)}" if rows else self.empty,
        )

    @property
    def marks(self) -> frozenset[str]:
        """All marks that its entries carry."""
        return frozenset(mark for row in self.rows for entry in row for mark in entry.marks)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A drawn figure: a matplotlib Figure, what it shows in words, and the numbers in it.

    `hovers` maps the SVG ids of its points to what hovering over them says.
    """

    name: str
    title: str
    alt: str
    figure: "Figure"
    numbers: Table
    caption: str = ""
    hovers: Mapping[str, str] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()

    @property
    def said(self) -> str:
        """Its caption, with the notes for whoever sees the picture without its numbers."""
        return " ".join([self.caption, *(f"Note: {text}" for label, text in self.numbers.notes if label == "Note:")])


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One report, ready for any format."""

    name: str
    title: str
    text: tuple[str, ...]
    blocks: tuple[Table | Picture, ...]
    doubts: tuple[str, ...] = ()
    provenance: Table | None = None
    sources: tuple[str, ...] = ()
    sections: "tuple[Report, ...]" = ()
    """Of a page: the reports on it."""
    front: tuple[Table | Picture, ...] = ()
    """Of a page: what its first screen shows."""

    @property
    def marks(self) -> frozenset[str]:
        """All marks that appear in it."""
        return frozenset[str]().union(*(part.marks for part in (*self.front, *self.blocks, *self.sections)))

    @property
    def tables(self) -> list[Table]:
        """All its tables; of a picture, its numbers."""
        return [block if isinstance(block, Table) else block.numbers for block in self.blocks]
